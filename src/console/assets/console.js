// Shortcuts, a copy button, and updates of an open page. Every page works without this script.
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

  // The server sends the changing parts of the page, escaped, as they are on a page that is loaded
  // again. A part in which somebody is at work stays.
  const swap = (html) => {
    const template = document.createElement("template");
    template.innerHTML = html;
    const [next, root] = [template.content, document].map((at) => at.querySelector("[data-state]"));
    if (next.dataset.state !== root.dataset.state) {
      root.replaceWith(document.importNode(next, true));
    }
    for (const part of template.content.querySelectorAll("[data-live]")) {
      const target = document.querySelector(`[data-live="${CSS.escape(part.dataset.live)}"]`);
      const inUse = target?.contains(document.activeElement);
      if (target && !inUse && target.innerHTML !== part.innerHTML) {
        target.replaceChildren(...part.cloneNode(true).childNodes);
      }
    }
  };

  const keepUpdated = (bar) => {
    let source = null;
    let paused = false;
    const show = (state) => {
      for (const text of bar.querySelectorAll("[data-says]")) {
        text.hidden = text.dataset.says !== state;
      }
      for (const button of bar.querySelectorAll("[data-switch]")) {
        button.hidden = button.dataset.switch !== { live: "pause", paused: "resume" }[state];
      }
    };
    const stop = (state) => {
      source?.close();
      source = null;
      show(state);
    };
    const start = () => {
      if (source || paused || document.hidden) return;
      source = new EventSource(bar.dataset.stream);
      show("live");
      source.addEventListener("update", (event) => swap(event.data));
      source.addEventListener("end", () => stop("ended"));
      source.addEventListener("error", () => {
        if (source?.readyState === EventSource.CLOSED) stop("ended");
      });
    };
    for (const button of bar.querySelectorAll("[data-switch]")) {
      button.addEventListener("click", () => {
        const hadFocus = document.activeElement === button;
        paused = button.dataset.switch === "pause";
        if (paused) stop("paused");
        else start();
        if (hadFocus) bar.querySelector("[data-switch]:not([hidden])")?.focus();
      });
    }
    // A page that nobody sees needs no updates.
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) start();
      else if (source) stop("live");
    });
    addEventListener("pagehide", () => source && stop("live"));
    addEventListener("pageshow", start);
  };

  const bar = document.querySelector("[data-stream]");
  if (bar) keepUpdated(bar);
})();
