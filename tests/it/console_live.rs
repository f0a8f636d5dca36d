//! The pages of the console about the gates themselves: what happens now, what needs a person, and
//! the streams that update them.

use std::time::Duration;

use http::StatusCode;
use serde_json::json;
use tokio::time::{Instant, timeout, timeout_at};

use crate::support::console::Browser;
use crate::support::scene::{Setting, movable_clock};
use crate::support::{BOOK, File, Scene};

/// How long something may take that takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: &str = "/now/stream?window=hour";

/// A stream of updates, as a browser receives it.
struct Stream {
    response: reqwest::Response,
    received: String,
}

impl Stream {
    async fn open(browser: &Browser, path: &str) -> Stream {
        let cookies: Vec<_> =
            browser.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = browser.client.get(format!("{}{path}", browser.base));
        let response = request.header("cookie", cookies.join("; ")).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Stream { response, received: String::new() }
    }

    /// Receives until this text arrives.
    async fn until(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.received.contains(text) {
            let chunk = timeout_at(deadline, self.response.chunk()).await;
            let chunk = chunk.unwrap_or_else(|_| panic!("no {text}: {}", self.received));
            let chunk = chunk.unwrap().unwrap_or_else(|| panic!("no {text}: {}", self.received));
            // A character may be in two chunks.
            self.received += &String::from_utf8_lossy(&chunk);
        }
    }

    /// Waits until the server says that the stream is over, and ends it.
    async fn ends(mut self) {
        self.until("event: end").await;
        let rest =
            timeout(PATIENCE, async { while let Ok(Some(_)) = self.response.chunk().await {} });
        rest.await.expect("the stream does not end");
    }
}

async fn read(scene: &Scene, borrower: &str, path: &str) -> StatusCode {
    let answer = scene.get(&scene.http1(), path, &scene.token(borrower)).send().await.unwrap();
    let status = answer.status();
    answer.bytes().await.unwrap();
    status
}

/// Leaves a difference of the books for a person.
async fn fail_a_balance(scene: &Scene) {
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    read(scene, "kari", &format!("/files/{BOOK}/book.epub")).await;
    scene.fault(&json!({ "call": "list", "effect": "garbage" })).await;
    scene.admin_post("/api/v1/balance", &json!({})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_and_streams_of_the_gates_need_a_session() {
    let scene = Scene::start().await;
    let mut browser = Browser::at(&scene);
    for path in ["/now", "/problems", "/runbook"] {
        let seen = browser.get(path).await;
        assert!(seen.location().starts_with("/sign-in"), "{path}: {}", seen.location());
    }
    for path in [HOUR, "/problems/stream"] {
        // A browser does not try again after this status.
        assert_eq!(browser.get(path).await.status, StatusCode::NO_CONTENT, "{path}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_ends_with_its_session_and_does_not_renew_it() {
    let clock = movable_clock();
    let scene = Scene::start_with(Setting { clock: clock.clone(), ..Setting::default() }).await;
    let mut browser = Browser::sign_in(&scene).await;
    let mut stream = Stream::open(&browser, HOUR).await;
    stream.until("event: update").await;
    browser.post("/sign-out", &[]).await;
    stream.ends().await;

    let mut browser = Browser::sign_in(&scene).await;
    clock.advance(Duration::from_secs(20 * 60));
    assert_eq!(browser.get("/now").await.status, StatusCode::OK);
    clock.advance(Duration::from_secs(20 * 60));
    let mut stream = Stream::open(&browser, "/problems/stream").await;
    stream.until("event: update").await;
    clock.advance(Duration::from_secs(11 * 60));
    stream.ends().await;
    assert!(browser.get("/now").await.location().starts_with("/sign-in"));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_bounded_and_the_listener_stays_reachable() {
    let scene = Scene::start().await;
    let browser = Browser::sign_in(&scene).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = Stream::open(&browser, HOUR).await;
        stream.until("event: update").await;
        streams.push(stream);
    }
    streams.remove(0).ends().await;
    // The other sessions have the rest of them.
    let mut browsers = Vec::new();
    for _ in 0..13 {
        let other = Browser::sign_in(&scene).await;
        streams.push(Stream::open(&other, HOUR).await);
        browsers.push(other);
    }
    let mut late = Browser::sign_in(&scene).await;
    assert_eq!(late.get(HOUR).await.status, StatusCode::NO_CONTENT);
    assert_eq!(late.get("/now").await.status, StatusCode::OK, "the page is there without it");
    // A stream whose browser is gone makes room.
    streams.clear();
    let is_admitted = async || {
        let request = late.client.get(format!("{}{HOUR}", late.base));
        let cookies: Vec<_> =
            late.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let answer = request.header("cookie", cookies.join("; ")).send().await.unwrap();
        answer.status() == StatusCode::OK
    };
    scene.until("a stream is admitted", is_admitted).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_stream_delays_no_stop() {
    let mut scene = Scene::start().await;
    let browser = Browser::sign_in(&scene).await;
    let mut stream = Stream::open(&browser, HOUR).await;
    stream.until("event: update").await;
    timeout(PATIENCE, scene.stop_gate()).await.expect("the stream delays the stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hit_reaches_the_page_and_its_stream() {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let mut browser = Browser::sign_in(&scene).await;
    let mut stream = Stream::open(&browser, HOUR).await;
    stream.until("event: update").await;
    for path in [format!("/files/{BOOK}/book.epub"), "/nothing".to_owned()] {
        read(&scene, "kari", &path).await;
    }
    // The reason of the refusal has a line of its own.
    stream.until("<code>title-not-found</code>").await;
    for window in ["hour", "day"] {
        let page = browser.get(&format!("/now?window={window}")).await;
        assert_eq!(page.status, StatusCode::OK);
        assert_eq!(page.body.matches("<svg role=\"img\"").count(), 9, "{}", page.body);
        assert_eq!(page.body.matches("<desc").count(), 9, "{}", page.body);
        for text in ["title-not-found", "Reload", "data-stream=\"/now/stream?window=", "<caption"] {
            assert!(page.body.contains(text), "{text}: {}", page.body);
        }
        assert!(!page.body.contains(" style=") && !page.body.contains("kari"), "{}", page.body);
    }
    let unknown = browser.get("/now?window=%22%3E%3Cscript%3E&gate=%22%3E%3Cscript%3E").await;
    assert_eq!(unknown.status, StatusCode::OK);
    assert!(!unknown.body.contains("<script>"), "{}", unknown.body);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn problem_is_shown_with_what_to_do_in_each_language() {
    let scene = Scene::start().await;
    let mut browser = Browser::sign_in(&scene).await;
    let page = browser.get("/problems").await;
    assert!(page.body.contains("Nothing needs you."), "{}", page.body);
    assert!(!page.body.contains("class=\"tally\""), "{}", page.body);
    let mut stream = Stream::open(&browser, "/problems/stream").await;
    fail_a_balance(&scene).await;
    stream.until("books-unbalanced").await;
    for (language, words) in [
        ("en", ["The books differ from Bokbasen&#39;s", "Read the report of the last balance"]),
        ("nb", ["Avvik mot Bokbasens bøker", "Les rapporten fra siste avstemming"]),
    ] {
        browser.post("/preferences", &[("language", language)]).await;
        let page = browser.get("/problems").await;
        for words in words {
            let plain = page.body.replace("&#39;", "'");
            assert!(plain.contains(&words.replace("&#39;", "'")), "{words}: {}", page.body);
        }
        assert!(page.body.contains("<span class=\"tally\">1</span>"), "{}", page.body);
        assert!(page.body.contains("href=\"/runbook#books-unbalanced\""), "{}", page.body);
    }
    let runbook = browser.get("/runbook").await;
    assert!(runbook.body.contains("id=\"books-unbalanced\""), "{}", runbook.body);
    assert!(runbook.body.contains("Håndboken er på engelsk."), "{}", runbook.body);
    let outside = runbook.body.split('"').find(|part| part.contains("://"));
    assert_eq!(outside, None);
    scene.end().await;
}
