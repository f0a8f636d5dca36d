//! The demo's web reader in Chromium: borrow, read, listen, return, and be refused.
//!
//! `LOANGATE_WRITE_DOCS=1` writes the screenshots of `docs/demo`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::chromium::key_of;
use crate::support::{AUDIO, BOOK, Chromium, Demo, DevTools, program};

/// The audiobook of over 60 MB.
const LONG_AUDIO: &str = "9788299999045";
async fn open(demo: &Demo, program: &Path) -> DevTools {
    let certificate = demo.dir().join("certs/server.pem");
    let mut page = Chromium::open(program, "about:blank", &certificate).devtools().await;
    page.appear((1280, 900), "light").await;
    let url = format!("{}/demo/", demo.ready_field("base_url"));
    page.call("Page.navigate", json!({ "url": url })).await;
    page
}

fn act(isbn: &str, name: &str) -> String {
    format!("[data-isbn='{isbn}'] [data-act='{name}']")
}

async fn sign_in(page: &mut DevTools, reader: &str) {
    page.click(&format!("[data-reader='{reader}']")).await;
    page.until(&format!("document.querySelector(\"[data-reader='{reader}'][aria-pressed=true]\")"))
        .await;
    page.until("!document.querySelector('[data-reader]').disabled").await;
}

/// Asserts that the page stayed on its own origin and reported no error. A refusal of the gate is
/// none, although the browser lists its status.
fn assert_clean(page: &DevTools, base: &str) {
    for request in page.events("Network.requestWillBeSent") {
        let url = request["request"]["url"].as_str().unwrap();
        let is_own = [base, "blob:", "data:"].iter().any(|own| url.starts_with(own));
        assert!(is_own, "an external request: {url}");
    }
    let exceptions: Vec<_> = page.events("Runtime.exceptionThrown").collect();
    assert!(exceptions.is_empty(), "{exceptions:#?}");
    let written = page.events("Runtime.consoleAPICalled");
    let errors: Vec<_> = written.filter(|call| call["type"] == "error").collect();
    assert!(errors.is_empty(), "{errors:#?}");
    for entry in page.events("Log.entryAdded").map(|event| &event["entry"]) {
        let is_refusal = entry["source"] == "network"
            && ["/loans/", "/files/"].iter().any(|path| {
                entry["url"].as_str().is_some_and(|url| url.starts_with(&format!("{base}{path}")))
            });
        assert!(entry["level"] != "error" || is_refusal, "{entry:#}");
    }
}

/// Asserts that nothing is wider than the page, and writes the screenshots on request.
async fn show(page: &mut DevTools, name: &str) {
    let write = std::env::var("LOANGATE_WRITE_DOCS").is_ok_and(|write| write == "1");
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/demo");
    for (width, scheme) in [(390, "light"), (390, "dark"), (1280, "dark"), (1280, "light")] {
        page.appear((width, 900), scheme).await;
        page.until("new Promise(done => requestAnimationFrame(() => done(true)))").await;
        let fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth";
        assert_eq!(page.evaluate(fits).await, true, "{name} scrolls sideways at {width} pixels");
        if write {
            let height = page.evaluate("document.documentElement.scrollHeight").await;
            let height = u32::try_from(height.as_u64().unwrap()).unwrap();
            page.appear((width, height), scheme).await;
            // The book is laid out again, which no event reports.
            tokio::time::sleep(Duration::from_millis(800)).await;
            page.screenshot(&directory.join(format!("{name}-{width}-{scheme}.png"))).await;
        }
    }
    page.appear((1280, 900), "light").await;
}

/// Returns the id of the request that still loads the audio.
fn running_media(page: &DevTools) -> Option<Value> {
    let ended = |id: &Value| {
        ["Network.loadingFinished", "Network.loadingFailed"]
            .iter()
            .any(|method| page.events(method).any(|event| event["requestId"] == *id))
    };
    let sent: Vec<_> = page.events("Network.requestWillBeSent").collect();
    let media = sent.iter().rev().filter(|request| request["type"] == "Media");
    media.map(|request| &request["requestId"]).find(|id| !ended(id)).cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_borrows_reads_and_shows_why_a_reader_is_refused() {
    let Some(chromium) = program("chromium", "chromium") else {
        return;
    };
    let demo = Demo::start();
    let mut page = open(&demo, &chromium).await;
    sign_in(&mut page, "kari").await;
    page.until("document.getElementById('steps').textContent.includes('begins a loan')").await;
    page.click(&act(BOOK, "borrow")).await;
    page.until("document.getElementById('books').textContent.includes('ACCEPTED')").await;
    page.click(&act(BOOK, "read")).await;
    let text = page.text_in_frame("Torvald Eikemo hadde aldri eid en bok").await;
    assert!(text.len() > 200, "{text}");
    page.until("document.getElementById('life').children.length >= 3").await;
    page.until("document.getElementById('storage').textContent.includes('GET')").await;
    page.until("document.getElementById('delivered').textContent").await;
    show(&mut page, "reading").await;
    page.click(&act(BOOK, "giveBack")).await;
    page.until("document.getElementById('read').hidden").await;
    page.until("document.getElementById('books').textContent.includes('RETURNED')").await;

    sign_in(&mut page, "ola").await;
    page.click(&act(AUDIO, "borrow")).await;
    let why = page.until("document.getElementById('notice').innerText").await;
    for word in ["403 loan-refused", "BORROWER_LIMIT", "as many loans as the library allows"] {
        assert!(why.as_str().unwrap().contains(word), "{why} has no {word}");
    }
    let steps = "document.querySelector('#steps .refused')?.textContent";
    let refused = page.until(steps).await;
    assert!(refused.as_str().unwrap().contains("as many loans"), "{refused}");
    page.until("document.getElementById('advice').textContent").await;
    show(&mut page, "refused").await;

    page.click("#language").await;
    page.until("document.documentElement.lang === 'nb'").await;
    page.until("document.querySelector('h1').textContent === 'Ingen byte uten et lån'").await;
    page.click("#theme").await;
    page.until("document.documentElement.dataset.theme === 'dark'").await;
    assert_clean(&page, demo.ready_field("base_url"));
}

#[test]
fn open_starts_a_browser_that_trusts_only_the_demos_key() {
    let browser = tempfile::tempdir().unwrap();
    let script = "#!/bin/sh\nprintf '%s\\n' \"$@\" > \"${0%/*}/arguments\"\nexec /bin/sleep 100\n";
    std::fs::write(browser.path().join("chromium"), script).unwrap();
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(browser.path().join("chromium"), mode).unwrap();
    let demo = Demo::start_with_browser(browser.path());
    let arguments = std::fs::read_to_string(browser.path().join("arguments")).unwrap();
    let key = key_of(&demo.dir().join("certs/server.pem"));
    let profile = demo.dir().join("browser-profile");
    for argument in [
        format!("--ignore-certificate-errors-spki-list={key}"),
        format!("--user-data-dir={}", profile.canonicalize().unwrap_or(profile).display()),
        demo.ready_field("page_url").to_owned(),
    ] {
        assert!(arguments.lines().any(|line| line == argument), "{argument}: {arguments}");
    }
    assert!(!arguments.contains("--no-sandbox"), "{arguments}");

    let demo = Demo::start_with_browser(tempfile::tempdir().unwrap().path());
    assert!(demo.log().contains("Chromium is not installed"), "{}", demo.log());
}

#[tokio::test]
async fn page_signs_in_only_the_demos_readers_and_keeps_their_privacy() {
    let demo = Demo::start();
    let get = async |path: &str| {
        let answer = demo.client().get(format!("{}{path}", demo.base())).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(get("/demo/").await.0, 200);
    for path in [
        "/demo/api/sign-in/someone",
        "/demo/api/live/someone/9788299999014/0",
        "/demo/api/live/kari/9780306406157/0",
        "/demo/api/live/kari/9788299999014/x",
        "/demo/api/request/no-id",
        "/demo/api",
        "/demo/vendor",
        "/demo/page/mod.rs",
    ] {
        assert_eq!(get(path).await.0, 404, "{path}");
    }
    for path in ["/demo//", "/demo/api/", "/demo/api/sign-in/kari/"] {
        assert!([400, 404].contains(&get(path).await.0), "{path}");
    }
    // Another borrower's request: its id alone shows nothing.
    let arguments = ["--library", "NO-0301000", "--borrower", "a-stranger"];
    let token = demo.mint("reader", &arguments);
    let file = format!("{}/files/{BOOK}/book.epub", demo.base());
    let answer = demo.client().get(file).bearer_auth(token).send().await.unwrap();
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(answer.status(), 200);
    let (status, body) = get(&format!("/demo/api/request/{id}")).await;
    assert_eq!((status, body.contains("No reader of the demo")), (200, true), "{body}");
    // No response has the admin token.
    for path in ["/demo/api/world", "/demo/api/sign-in/kari", "/demo/api/live/kari/9788299999014/0"]
    {
        let (status, body) = get(path).await;
        assert_eq!(status, 200, "{path}");
        assert!(!body.contains(demo.ready_field("admin_token")), "{path}");
        assert!(!body.contains("error"), "{path}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn return_in_the_page_stops_a_playing_audiobook() {
    let Some(chromium) = program("chromium", "chromium") else {
        return;
    };
    let demo = Demo::start();
    let mut page = open(&demo, &chromium).await;
    sign_in(&mut page, "kari").await;
    page.click(&act(LONG_AUDIO, "borrow")).await;
    page.until(&format!("document.querySelector(\"{}\")", act(LONG_AUDIO, "listen"))).await;
    page.click(&act(LONG_AUDIO, "listen")).await;
    page.until("document.getElementById('audio').currentTime > 0.3").await;
    page.click("#middle").await;
    let moved = "(({ currentTime, duration }) => currentTime > duration / 2 + 0.3)\
                 (document.getElementById('audio'))";
    page.until(moved).await;
    show(&mut page, "listening").await;

    let media = running_media(&page).expect("the browser loads the audio");
    page.click(&act(LONG_AUDIO, "giveBack")).await;
    let is_return = |event: &Value| {
        event["request"]["method"] == "DELETE" && event["request"]["url"].as_str().is_some()
    };
    let sent = page.event("Network.requestWillBeSent", is_return).await;
    let answer = |event: &Value| event["requestId"] == sent["requestId"];
    let returned = page.event("Network.responseReceived", answer).await;
    assert_eq!(returned["response"]["status"], 204, "{returned}");

    let why = page.until("document.getElementById('notice').innerText").await;
    assert!(why.as_str().unwrap().contains("403 loan-ended"), "{why}");
    page.until("document.querySelector('#steps .refused')").await;
    page.until("document.getElementById('books').textContent.includes('RETURNED')").await;
    show(&mut page, "returned").await;
    page.event("Network.loadingFailed", |event| event["requestId"] == media).await;
    // A browser that has not read to the end of the stream yet does not report this end of it, and
    // cancels the request once the page knows. So the gate says when the stream ended.
    let cut = demo.time_of_line(&[LONG_AUDIO, "end=\"cut\""]).await;
    let returned = demo.time_of_line(&[LONG_AUDIO, "method=\"DELETE\""]).await;
    let after = cut.duration_since(returned).as_secs_f64();
    assert!(after.abs() < 1.0, "the stream ended {after} s after the return");
    let begun = page.event("Network.responseReceived", |event| event["requestId"] == media).await;
    let fields = begun["response"]["headers"].as_object().unwrap().iter();
    let range = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-range"));
    let range = range.map(|(_, range)| range.as_str().unwrap()).next();
    let range = range.unwrap_or_else(|| panic!("no range: {begun:#}"));
    let whole: u64 = range.rsplit('/').next().unwrap().parse().unwrap();
    assert!(whole >= 60 * 1024 * 1024, "{whole}");
    assert_clean(&page, demo.ready_field("base_url"));
}
