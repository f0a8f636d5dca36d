// Shortcuts and a copy button. Every page works without this script.
"use strict";
(() => {
  const isTyping = (target) =>
    target instanceof Element && target.closest("input, textarea, select, [contenteditable]");

  document.addEventListener("keydown", (event) => {
    if (document.documentElement.dataset.keys === "off") return;
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    if (event.key === "/") {
      const field = document.querySelector("main input:not([type=hidden])");
      if (field) {
        event.preventDefault();
        field.focus();
      }
      return;
    }
    for (const link of document.querySelectorAll("nav a[data-key]")) {
      if (link.dataset.key === event.key) {
        event.preventDefault();
        link.click();
        return;
      }
    }
  });

  for (const button of document.querySelectorAll("button[data-copy]")) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      const field = document.getElementById(button.dataset.copy);
      field.select();
      await navigator.clipboard.writeText(field.value).catch(() => {});
    });
  }
})();
