// Drives the console in headless Chromium with playwright-core, and checks each page with axe-core.
// The test passes what to do as JSON in the variable CONSOLE_TASK, and reads a report from stdout.

import { createRequire } from "node:module";
import { readFileSync, mkdirSync } from "node:fs";
import { Agent, get } from "node:https";
import { join } from "node:path";

const task = JSON.parse(process.env.CONSOLE_TASK);
const require = createRequire(join(task.modules, "package.json"));
const { chromium } = require("playwright-core");
const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
setTimeout(() => fail("the task took too long"), 480_000).unref();

const report = { pages: [], findings: [], console: [], external: [] };

function fail(why) {
  console.log(JSON.stringify({ ...report, failed: String(why?.stack ?? why) }));
  process.exit(1);
}

function check(holds, what) {
  if (!holds) throw new Error(what);
}

const browser = await chromium.launch({
  executablePath: task.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"],
});

// Opens a page that reports what it must not do.
async function open(options = {}) {
  const context = await browser.newContext({ locale: "en-GB", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) report.console.push(message.text());
  });
  page.on("pageerror", (error) => report.console.push(String(error)));
  page.on("request", (request) => {
    const known = [task.base, task.provider].filter(Boolean);
    if (!known.some((base) => request.url().startsWith(`${base}/`))) report.external.push(request.url());
  });
  return page;
}

async function audit(page, name) {
  await page.evaluate(AXE);
  const found = await page.evaluate(() => globalThis.axe.run(document));
  report.pages.push(`${name} ${page.url().slice(task.base.length)}`);
  for (const violation of found.violations) {
    const nodes = violation.nodes.map((node) => `${node.target} ${node.failureSummary}`);
    report.findings.push(`${name}: ${violation.id}: ${nodes.join("; ")}`);
  }
  const wide = await page.evaluate(
    () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
  );
  if (wide > 0) report.findings.push(`${name}: the page is ${wide} px too wide`);
}

async function signIn(page) {
  await page.goto(`${task.base}/`);
  await page.fill("#name", "Ida");
  await page.fill("#token", task.token);
  await page.click("main button");
  await page.waitForSelector("#query");
}

async function find(page, query, library = "") {
  await page.goto(`${task.base}/`);
  await page.fill("#query", query);
  if (library) await page.fill("#library", library);
  await page.fill("#purpose", "case 4711");
  await page.click("main button");
}

// Reads the book this many times, as a reader with a loan.
async function read(times) {
  const agent = new Agent({ rejectUnauthorized: false, keepAlive: true });
  const headers = { authorization: `Bearer ${task.reader}`, range: "bytes=0-99" };
  for (let time = 0; time < times; time += 1) {
    const status = await new Promise((done, failed) => {
      const request = get(task.book, { agent, headers }, (response) => {
        response.resume().on("end", () => done(response.statusCode));
      });
      request.on("error", failed);
    });
    check(status === 206, `the book was not read: ${status}`);
  }
  agent.destroy();
}

// Leaves a difference of the books for a person.
async function failBalance() {
  const headers = { authorization: `Bearer ${task.token}` };
  await fetch(`${task.base}/api/v1/balance`, { method: "POST", headers });
}

const REQUESTS = "[data-live=gates] td:nth-child(4)";

// The charts move while the page is open, and end with the session.
async function watching(page) {
  await signIn(page);
  await page.goto(`${task.base}/now`);
  await page.waitForSelector(".charts svg");
  await page.waitForSelector("[data-says=live]:not([hidden])");
  await page.evaluate(() => (globalThis.isSamePage = true));
  await page.click("summary >> nth=0");
  await audit(page, "now");
  const before = await page.textContent(REQUESTS);
  await read(60);
  const moved = ([selector, before]) =>
    document.querySelector(selector).textContent.trim() !== before.trim();
  await page.waitForFunction(moved, [REQUESTS, before], { timeout: 60_000 });
  check(await page.evaluate(() => globalThis.isSamePage), "the page was loaded again");
  check(await page.locator("details[open]").count(), "an update closed the table");
  const lines = await page.locator(".plot svg .line").count();
  check(lines >= 9, `too few lines: ${lines}`);
  await audit(page, "updated now");
  await page.click("[data-switch=pause]");
  await page.waitForSelector("[data-says=paused]:not([hidden])");
  const drawn = await page.textContent("[data-live=updated]");
  await page.click("[data-switch=resume]");
  const redrawn = (before) =>
    document.querySelector("[data-live=updated]").textContent !== before;
  await page.waitForFunction(redrawn, drawn, { timeout: 60_000 });
  await page.click("text=Last day");
  await page.waitForSelector("a[aria-current=true]:has-text('Last day')");
  await audit(page, "last day");

  await page.keyboard.press("p");
  await page.waitForSelector("text=Nothing needs you.");
  await page.waitForSelector("[data-says=live]:not([hidden])");
  await audit(page, "no problems");
  await failBalance();
  await page.waitForSelector("section.problem", { timeout: 60_000 });
  check((await page.textContent("nav .tally")) === "1", "the navigation counts no problem");
  await audit(page, "problems");
  await page.click("text=In the runbook");
  await page.waitForSelector("#books-unbalanced:target");
  await audit(page, "runbook");

  await page.goto(`${task.base}/problems`);
  await page.waitForSelector("[data-says=live]:not([hidden])");
  const other = await page.context().newPage();
  await other.goto(`${task.base}/help`);
  await other.click("button:has-text('Sign out')");
  await page.waitForSelector("[data-says=ended]:not([hidden])");
}

async function watchingByKeyboard(page) {
  await signIn(page);
  await page.keyboard.press("Escape");
  await page.locator("body").press("n");
  await page.waitForSelector(".charts svg");
  await tabTo(page, ".chart summary");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".chart details[open] table");
  await tabTo(page, ".chart details[open] .scroll");
  await page.keyboard.press("p");
  await page.waitForSelector("section.problem");
  await tabTo(page, "section.problem a");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#books-unbalanced:target");
}

// Without a script, a page shows the same, and is updated by a link.
async function watchingWithoutScript(page) {
  await signIn(page);
  const deadline = Date.now() + 60_000;
  await page.goto(`${task.base}/now`);
  while ((await page.locator(".charts svg[role=img]").count()) !== 9) {
    check(Date.now() < deadline, "no charts without a script");
    await page.click("main .live a");
  }
  check((await page.locator(".live button:visible").count()) === 0, "a button without a script");
  check((await page.locator(".live p > :visible").count()) === 1, "a state without a script");
  await page.click("button:has-text('Norsk')");
  await page.waitForSelector("html[lang=nb]");
  await page.click("button:has-text('Mørkt')");
  await page.waitForSelector("html[data-theme=dark]");
  check((await page.textContent("main")).includes("Treffandel"), "the page is not Norwegian");
  await page.goto(`${task.base}/problems`);
  check((await page.textContent("main")).includes("Ingenting trenger deg."), "no empty state");
  await page.goto(`${task.base}/runbook`);
  await page.click("text=ends-overdue");
}

// A support person finds a refused reader, reads why, and ends a loan.
async function story(page) {
  await page.goto(`${task.base}/`);
  await audit(page, "sign-in");
  await signIn(page);
  await audit(page, "find");
  await find(page, task.refused);
  await page.waitForSelector("ol.steps");
  const why = await page.textContent("main");
  check(why.includes("NO_FREE_LICENSE") && why.includes("on loan"), `no reason: ${why}`);
  await audit(page, "why");
  await page.click("text=All loans of this borrower");
  await page.waitForSelector("table.loans");
  await audit(page, "loans");
  await find(page, task.loan);
  await page.waitForSelector("ol.timeline");
  await audit(page, "loan");
  await page.click("summary:has-text('Mark for balance')");
  await page.fill("#balance-reason", "the reader doubts it");
  await page.click("button:has-text('Mark for balance')");
  await page.waitForSelector(".notice.note");
  check((await page.textContent("ol.timeline")).includes("the reader doubts it"), "no mark");
  await audit(page, "marked loan");
  await page.click("summary:has-text('End the loan')");
  await audit(page, "loan with an open action");
  await page.fill("#end-reason", "asked for by the library");
  await page.click("button:has-text('End the loan')");
  await page.waitForSelector(".notice.good");
  const life = await page.textContent("ol.timeline");
  check(life.includes("asked for by the library"), `no reason in the timeline: ${life}`);
  await audit(page, "ended loan");
  await page.click("button:has-text('Norsk')");
  await page.waitForSelector("html[lang=nb]");
  check((await page.textContent("main")).includes("Tidslinje"), "the page is not Norwegian");
  const light = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.click("button:has-text('Mørkt')");
  await page.waitForSelector("html[data-theme=dark]");
  const dark = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  check(light !== dark, `the theme is the same: ${light}`);
  await audit(page, "dark loan");
  await page.goto(`${task.base}/help`);
  await audit(page, "help");
  await page.click("button:has-text('English')");
  await page.click("button:has-text('As the system')");
  await find(page, "no such thing");
  await page.waitForSelector(".notice.note");
  await audit(page, "nothing found");
  await find(page, "somebody", "NO-0301000");
  await page.waitForSelector(".empty");
  await audit(page, "no loans");
}

// Opens the page of the library once its loans are counted.
async function openLibrary(page, words = "Download all as XLSX") {
  for (let tries = 0; tries < 100; tries += 1) {
    await page.goto(`${task.base}/library?library=${task.library}`);
    if (await page.locator(`text=${words}`).count()) return;
    await page.waitForTimeout(100);
  }
  throw new Error("the loans of the library are not counted");
}

// A library's loans and costs, to see and to download.
async function library(page) {
  await page.goto(`${task.base}/library`);
  await audit(page, "libraries");
  await page.click(`.names >> text=${task.library}`);
  await page.waitForSelector("#brake");
  await openLibrary(page);
  await audit(page, "library");
  report.titles = await page.$$eval("table[aria-labelledby=titles] tbody tr", (rows) =>
    rows.map((row) => [...row.cells].slice(0, 6).map((cell) => cell.innerText.trim())),
  );
  const waiting = page.waitForEvent("download");
  await page.click("text=Download all as XLSX");
  const download = await waiting;
  check(download.suggestedFilename().endsWith(".xlsx"), download.suggestedFilename());
  await download.saveAs(task.download);
  await page.click("button:has-text('Query Bokbasen for these titles')");
  await page.waitForSelector("table[aria-labelledby=titles]");
  const free = await page.textContent("table[aria-labelledby=titles]");
  check(free.includes("free") && !free.includes("not queried"), `not queried: ${free}`);
  await audit(page, "library with availability");
  await page.goto(`${task.base}/nothing`);
  check((await page.textContent("h1")) === "Not found", "an unknown address has no page");
  await audit(page, "not found");
  // Chromium reports the status of a page as an error.
  report.console = report.console.filter((message) => !message.includes("status of 404"));
}

// Moves the focus with Tab until it is on this element.
async function tabTo(page, selector) {
  for (let presses = 0; presses < 60; presses += 1) {
    const there = await page.evaluate((s) => document.activeElement?.matches(s) ?? false, selector);
    if (there) {
      const outline = await page.evaluate(
        () => getComputedStyle(document.activeElement).outlineStyle,
      );
      check(outline !== "none", `the focus on ${selector} cannot be seen`);
      return;
    }
    await page.keyboard.press("Tab");
  }
  throw new Error(`Tab does not reach ${selector}`);
}

async function keyboardOnly(page) {
  await page.goto(`${task.base}/`);
  await page.keyboard.press("Tab");
  check(await page.evaluate(() => document.activeElement.matches("a.skip")), "no skip link");
  await tabTo(page, "#token");
  await page.keyboard.type(task.token);
  await page.keyboard.press("Enter");
  await page.waitForSelector("#query");
  await page.keyboard.press("w");
  await page.waitForSelector("#request");
  await page.keyboard.press("l");
  await page.waitForSelector("#month");
  await page.keyboard.press("?");
  await page.waitForSelector("kbd");
  await page.keyboard.press("f");
  await page.waitForSelector("#query");
  await page.keyboard.press("/");
  await page.keyboard.type(task.second);
  await tabTo(page, "#purpose");
  await page.keyboard.type("case w");
  await page.keyboard.press("Enter");
  await page.waitForSelector("ol.timeline");
  await tabTo(page, "details:last-of-type summary");
  await page.keyboard.press("Enter");
  await tabTo(page, "#end-reason");
  await page.keyboard.type("by keyboard");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".notice.good");
  // Shortcuts can be turned off (WCAG 2.1.4).
  await page.keyboard.press("?");
  await page.click("button:has-text('Turn shortcuts off')");
  await page.waitForSelector("html[data-keys=off]");
  await page.keyboard.press("f");
  check(page.url().endsWith("/help"), "a shortcut works though it is off");
}

async function withoutScript(page) {
  await signIn(page);
  await find(page, task.third);
  await page.waitForSelector("ol.timeline");
  await page.click("summary:has-text('Make a link')");
  await page.fill("#link-reason", "a test");
  await page.click("button:has-text('Make a link')");
  check((await page.inputValue("#minted")).includes("/~"), "no link");
  await page.click("text=Back to the loan");
  await page.click("summary:has-text('End the loan')");
  await page.fill("#end-reason", "a test");
  await page.click("button:has-text('End the loan')");
  await page.waitForSelector(".notice.good");
  await page.goto(`${task.base}/why`);
  await page.fill("#library", "NO-0301000");
  await page.fill("#borrower", "somebody");
  await page.fill("#path", "/files/9788299999014/book.epub");
  await page.fill("#reader-purpose", "case");
  await page.click("section[aria-labelledby=by-reader] button");
  await page.waitForSelector("ol.steps");
  await openLibrary(page);
  await page.click("button:has-text('Query Bokbasen for these titles')");
  await page.waitForSelector("table[aria-labelledby=titles]");
  await page.click("text=By ISBN");
  await page.waitForSelector("a[aria-current]:has-text('By ISBN')");
  await page.click("button:has-text('Norsk')");
  await page.waitForSelector("html[lang=nb]");
  await page.click("button:has-text('Logg ut')");
  await page.waitForSelector("#token");
}

// The empty states, of which there is one only before something has happened.
async function beforeProblems(themes, widths) {
  for (const colorScheme of themes) {
    for (const width of widths) {
      const page = await open({ colorScheme, viewport: { width, height: 800 } });
      await signIn(page);
      await page.goto(`${task.base}/problems`);
      await page.waitForSelector("text=Nothing needs you.");
      await audit(page, "no-problems");
      const path = join(task.shots, `no-problems-${width}-${colorScheme}.png`);
      await page.screenshot({ path, fullPage: true });
      await page.context().close();
    }
  }
  await failBalance();
  const page = await open();
  await signIn(page);
  // The charts have a line after some time.
  for (let second = 0; second < 100; second += 1) {
    await read(1 + (second * 7) % 23);
    await new Promise((done) => setTimeout(done, 1000));
  }
  await page.goto(`${task.base}/problems`);
  await page.waitForSelector("section.problem", { timeout: 60_000 });
  await page.context().close();
}

// Signs in by the provider, which is another site, and comes back from it to a page.
async function byProvider(page, inspect) {
  await page.goto(`${task.base}/why`);
  await inspect(page, "sign-in with a provider");
  await page.click("text=Sign in with your organisation");
  await page.waitForURL(`${task.provider}/authorize?*`);
  await page.click("button");
  await page.waitForSelector("#request");
  check(page.url() === `${task.base}/why`, `not where the person was going: ${page.url()}`);
  check((await page.textContent("header")).includes("Kari Nordmann · support"), "not signed in");
  check((await page.locator("nav a[href='/trail']").count()) === 0, "the trail is for auditors");
  // A link of another site comes without the session, and its sign-in succeeds at once.
  await page.goto(`${task.provider}/elsewhere?${task.base}/help`);
  await page.click("a");
  await page.waitForSelector("#token");
  await page.fill("#token", task.token);
  await page.click("main form button");
  await page.waitForSelector("kbd");
  check((await page.textContent("header")).includes("admin token"), "not signed in again");
  await page.goto(`${task.base}/trail`);
  await page.fill("#purpose", "an audit");
  await page.click("main button");
  await page.waitForSelector("table.loans");
  const trail = await page.textContent("table.loans");
  check(trail.includes("oidc:f:7:kari (Kari Nordmann) · support"), trail);
  await inspect(page, "trail");
  await page.click("button:has-text('Norsk')");
  await page.click("button:has-text('Logg ut')");
  await page.waitForSelector("#token");
}

async function screenshots() {
  const themes = ["light", "dark"];
  const widths = [390, 1280];
  mkdirSync(task.shots, { recursive: true });
  await beforeProblems(themes, widths);
  for (const colorScheme of themes) {
    for (const width of widths) {
      const viewport = { width, height: 800 };
      const page = await open({ colorScheme, viewport, locale: "en-GB" });
      const shot = async (name) => {
        await audit(page, name);
        const path = join(task.shots, `${name}-${width}-${colorScheme}.png`);
        await page.screenshot({ path, fullPage: true });
      };
      await page.goto(`${task.base}/`);
      await shot("sign-in");
      await signIn(page);
      await page.goto(`${task.base}/now`);
      await page.waitForSelector("[data-says=live]:not([hidden])");
      await shot("now");
      await page.goto(`${task.base}/problems`);
      await shot("problems");
      await page.goto(`${task.base}/runbook`);
      await shot("runbook");
      await page.goto(`${task.base}/loans/${task.loan}`);
      await shot("purpose");
      await page.goto(`${task.base}/`);
      await shot("find");
      await find(page, "no such thing");
      await shot("nothing-found");
      await find(page, task.isbn);
      await shot("loans");
      await find(page, "somebody", "NO-0301000");
      await shot("no-loans");
      await find(page, task.loan);
      await page.click("summary:has-text('End the loan')");
      await shot("loan");
      await find(page, task.refusedLoan);
      await shot("refused-loan");
      await page.goto(`${task.base}/why`);
      await page.click("summary:has-text('More about the request')");
      await shot("why");
      await page.goto(`${task.base}/why/${task.refused}`);
      await shot("why-refused");
      await page.click("button:has-text('Norsk')");
      await page.waitForSelector("html[lang=nb]");
      await shot("why-refused-norwegian");
      await openLibrary(page, "Last ned alt som XLSX");
      await page.click("button:has-text('Spør Bokbasen om disse titlene')");
      await page.waitForSelector("table[aria-labelledby=titles]");
      await shot("library-norwegian");
      await page.goto(`${task.base}/trail`);
      await page.waitForSelector("table.loans");
      await shot("trail-norwegian");
      await page.goto(`${task.base}/problems`);
      await shot("problems-norwegian");
      await page.goto(`${task.base}/help`);
      await page.click("button:has-text('English')");
      await page.waitForSelector("html[lang=en]");
      await shot("help");
      await page.goto(`${task.base}/library`);
      await shot("libraries");
      await page.goto(`${task.base}/trail`);
      await page.waitForSelector("table.loans");
      await shot("trail");
      await openLibrary(page);
      await shot("library");
      await page.context().close();
    }
  }
}

try {
  if (task.shots) {
    await screenshots();
  } else if (task.watches) {
    await watchingWithoutScript(await open({ javaScriptEnabled: false }));
    await watching(await open());
    await watchingByKeyboard(await open());
    await phone(390, ["/now", "/problems", "/runbook"]);
  } else if (task.provider) {
    await byProvider(await open(), audit);
    await byProvider(await open({ viewport: { width: 390, height: 800 } }), audit);
    await byProvider(await open({ javaScriptEnabled: false }), () => {});
  } else {
    const page = await open();
    await story(page);
    await library(page);
    const paths = ["/", "/why", "/help", `/loans?isbn=${task.isbn}`, `/why/${task.refused}`];
    await phone(390, [...paths, "/library", `/library?library=${task.library}`]);
    await keyboardOnly(await open());
    await withoutScript(await open({ javaScriptEnabled: false }));
  }
  console.log(JSON.stringify(report));
} catch (error) {
  fail(error);
} finally {
  await browser.close();
}

// The pages on a phone.
async function phone(width, paths) {
  const page = await open({ viewport: { width, height: 800 }, locale: "nb-NO" });
  await signIn(page);
  for (const path of paths) {
    await page.goto(`${task.base}${path}`);
    if (await page.locator("form[action='/purpose']").count()) {
      await page.fill("#purpose", "sak 4711");
      await page.click("main button");
    }
    await audit(page, `phone ${path}`);
  }
}
