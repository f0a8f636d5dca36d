//! Calls to Bokbasen that fail or hang for some loans, or of one kind, do not delay others.

use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{AUDIO, BOOK, File, Scene, Setting, metric};

/// Time within which readers and ends are served beside the bad ones.
const SERVED_WITHIN: Duration = Duration::from_secs(20);

/// A hanging call occupies its slot until the end of a test.
const HANGS_FOR_LONG: (&str, &str) = ("timeout = \"2s\"", "timeout = \"60s\"");
/// Titles of loans whose begins fail once.
const OTHERS: [&str; 5] =
    ["9788299999106", "9788299999113", "9788299999120", "9788299999137", "9788299999144"];

async fn scene() -> Scene {
    scene_with(Vec::new()).await
}

/// Starts a scene with these replacements in the configuration.
async fn scene_with(config: Vec<(&'static str, &'static str)>) -> Scene {
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    for title in [BOOK, AUDIO] {
        scene.origin.put(&format!("{title}/file"), File::of(100));
    }
    scene
}

fn readers(kind: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{kind} {number}")).collect()
}

/// Sends one request of each reader for a title's file or its return. Returns the statuses.
async fn each(scene: &Scene, method: &str, title: &str, readers: &[String]) -> Vec<StatusCode> {
    let client = scene.http2();
    let path =
        if method == "GET" { format!("/files/{title}/file") } else { format!("/loans/{title}") };
    let answers = readers.iter().map(|reader| {
        let url = format!("{}{path}", scene.base);
        let request = client.request(method.parse().unwrap(), url).bearer_auth(scene.token(reader));
        async move { request.send().await.unwrap().status() }
    });
    stream::iter(answers).buffer_unordered(readers.len()).collect().await
}

async fn all(scene: &Scene, method: &str, title: &str, readers: &[String], expected: StatusCode) {
    let statuses = each(scene, method, title, readers).await;
    assert!(statuses.iter().all(|status| *status == expected), "{method} {title}: {statuses:?}");
}

/// Ends a scene with hanging calls. The gate would wait for them, so the sandbox stops first.
async fn stop(mut scene: Scene) {
    scene.check().await;
    scene.stop_sandbox().await;
    scene.end().await;
}

/// Returns how many loans of a title have this status in the sandbox's books.
async fn booked(scene: &Scene, title: &str, status: &str) -> usize {
    let is_one = |loan: &&Value| loan["isbn"] == title && loan["status"] == status;
    scene.books().await.iter().filter(is_one).count()
}

async fn calls(scene: &Scene, call: &str, outcome: &str) -> f64 {
    let labels = format!("call=\"{call}\",outcome=\"{outcome}\"");
    metric(&scene.metrics().await, "loangate_lending_calls_total", &labels)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_bad_ends_delay_no_reader_and_no_other_end() {
    let refused = json!({ "status": { "status": 500 } });
    for effects in [
        vec![refused.clone()],
        vec![json!({ "delay": { "ms": 1500 } }), refused],
        vec![json!("cut_before")],
        vec![json!("hang")],
    ] {
        let scene = scene().await;
        let (bad, good, new) = (readers("bad", 40), readers("good", 10), readers("new", 30));
        all(&scene, "GET", AUDIO, &bad, StatusCode::OK).await;
        all(&scene, "GET", BOOK, &good, StatusCode::OK).await;
        for effect in &effects {
            scene.fault(&json!({ "call": "return", "isbn": AUDIO, "effect": effect })).await;
        }
        all(&scene, "DELETE", AUDIO, &bad, StatusCode::NO_CONTENT).await;
        // Some bad ends have failed by now, so the good calls are not simply sent before them.
        scene
            .until("bad ends have failed", async || calls(&scene, "return", "unknown").await >= 5.0)
            .await;

        let began = Instant::now();
        all(&scene, "GET", BOOK, &new, StatusCode::OK).await;
        all(&scene, "DELETE", BOOK, &good, StatusCode::NO_CONTENT).await;
        scene
            .until("the other ends arrive", async || booked(&scene, BOOK, "RETURNED").await == 10)
            .await;
        assert!(began.elapsed() < SERVED_WITHIN, "{effects:?}: {:?}", began.elapsed());
        if effects.contains(&json!("hang")) {
            let failed = calls(&scene, "return", "unknown").await;
            assert!(failed < 30.0, "the others waited for {failed} of 40 bad ends to time out");
        }

        // The bad ends are sent again later, each with its own backoff.
        scene.no_faults().await;
        scene
            .until("the bad ends arrive too", async || {
                booked(&scene, AUDIO, "RETURNED").await == 40
            })
            .await;
        scene.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_ends_are_not_sent_more_often_when_good_ones_succeed() {
    let scene = scene().await;
    let (bad, good) = (readers("bad", 40), readers("good", 100));
    all(&scene, "GET", AUDIO, &bad, StatusCode::OK).await;
    all(&scene, "GET", BOOK, &good, StatusCode::OK).await;
    scene
        .fault(
            &json!({ "call": "return", "isbn": AUDIO, "effect": { "status": { "status": 500 } } }),
        )
        .await;
    all(&scene, "DELETE", AUDIO, &bad, StatusCode::NO_CONTENT).await;
    let began = Instant::now();
    for reader in &good {
        all(&scene, "DELETE", BOOK, std::slice::from_ref(reader), StatusCode::NO_CONTENT).await;
    }
    scene
        .until("the good ends arrive", async || booked(&scene, BOOK, "RETURNED").await == 100)
        .await;
    // The backoff doubles from half a second, which bounds the sends in this time. Each first send
    // is repeated twice at once, and one more may follow an open breaker.
    let doublings = (began.elapsed().as_secs_f64() / 0.375 + 1.0).log2().ceil();
    let failed = calls(&scene, "return", "unknown").await;
    assert!(failed <= 40.0 * (doublings + 5.0), "{failed} failed in {:?}", began.elapsed());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn begins_that_hang_block_no_ends() {
    let scene = scene_with(vec![("timeout = \"2s\"", "timeout = \"5s\"")]).await;
    let (hung, ended) = (readers("hung", 60), readers("ended", 10));
    all(&scene, "GET", BOOK, &ended, StatusCode::OK).await;
    scene.fault(&json!({ "call": "begin", "effect": "hang" })).await;
    let (hanging, ()) = tokio::join!(each(&scene, "GET", AUDIO, &hung), async {
        let begun = ended.len() + hung.len();
        scene.until("the begins hang", async || scene.ledger().await.len() == begun).await;
        all(&scene, "DELETE", BOOK, &ended, StatusCode::NO_CONTENT).await;
        scene.until("ends arrive", async || booked(&scene, BOOK, "RETURNED").await == 10).await;
        assert_eq!(calls(&scene, "begin", "unknown").await, 0.0, "no begin has timed out yet");
    });
    assert!(hanging.iter().all(|status| *status == StatusCode::SERVICE_UNAVAILABLE), "{hanging:?}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_and_reads_that_hang_block_no_begins() {
    let scene = scene().await;
    let early = readers("early", 40);
    all(&scene, "GET", BOOK, &early, StatusCode::OK).await;
    for call in ["return", "list", "availability"] {
        scene.fault(&json!({ "call": call, "effect": "hang" })).await;
    }
    all(&scene, "DELETE", BOOK, &early, StatusCode::NO_CONTENT).await;
    scene.until("ends hang", async || calls(&scene, "return", "unknown").await > 0.0).await;
    all(&scene, "GET", BOOK, &readers("new", 30), StatusCode::OK).await;
    scene.no_faults().await;
    scene.until("no end is lost", async || booked(&scene, BOOK, "RETURNED").await == 40).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn title_whose_begins_fail_delays_no_other_title() {
    let scene = scene().await;
    let refused = json!({ "status": { "status": 500 } });
    scene.fault(&json!({ "call": "begin", "isbn": AUDIO, "effect": refused })).await;
    all(&scene, "GET", BOOK, &readers("first", 1), StatusCode::OK).await;
    let bad = readers("bad", 40);
    let (bad, ()) = tokio::join!(each(&scene, "GET", AUDIO, &bad), async {
        scene.until("begins fail", async || calls(&scene, "begin", "unknown").await >= 10.0).await;
        all(&scene, "GET", BOOK, &readers("new", 30), StatusCode::OK).await;
    });
    assert!(bad.iter().all(|status| status.is_server_error()), "{bad:?}");
    let breaker = metric(&scene.metrics().await, "loangate_lending_breaker_open", "kind=\"begin\"");
    assert_eq!(breaker, 0.0, "one failing title must not open the breaker");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn title_whose_begins_hang_leaves_slots_for_others() {
    let scene = scene_with(vec![HANGS_FOR_LONG]).await;
    scene.hang("begin", AUDIO).await;
    let hung = readers("hung", 60);
    let others = async {
        scene.until("the begins hang", async || scene.ledger().await.len() == hung.len()).await;
        all(&scene, "GET", BOOK, &readers("new", 15), StatusCode::OK).await;
        assert_eq!(calls(&scene, "begin", "unknown").await, 0.0, "no begin has timed out yet");
    };
    tokio::select! {
        statuses = each(&scene, "GET", AUDIO, &hung) => panic!("the begins do not hang: \
             {statuses:?}"),
        () = others => {}
    }
    stop(scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retried_ends_that_hang_leave_calls_to_other_ends() {
    let scene = scene_with(vec![HANGS_FOR_LONG]).await;
    // As many as there are slots for ends.
    let (bad, good) = (readers("bad", 8), readers("good", 20));
    all(&scene, "GET", AUDIO, &bad, StatusCode::OK).await;
    all(&scene, "GET", BOOK, &good, StatusCode::OK).await;
    // A 429 is a response, so neither the breaker nor the bulkhead suspects these ends. It names
    // the wait, so all are due again at once.
    let rejected = json!({ "status": { "status": 429, "retry_after": 1 } });
    scene.fault(&json!({ "call": "return", "isbn": AUDIO, "effect": rejected })).await;
    all(&scene, "DELETE", AUDIO, &bad, StatusCode::NO_CONTENT).await;
    scene.until("the ends fail", async || calls(&scene, "return", "rejected").await >= 8.0).await;
    scene.hang("return", AUDIO).await;
    scene.until("retries hang", async || scene.hung("return").await >= 4).await;
    for (number, reader) in good.iter().enumerate() {
        all(&scene, "DELETE", BOOK, std::slice::from_ref(reader), StatusCode::NO_CONTENT).await;
        let arrived = async || booked(&scene, BOOK, "RETURNED").await == number + 1;
        scene.until("another end arrives", arrived).await;
    }
    assert_eq!(calls(&scene, "return", "unknown").await, 0.0, "an end waited for a hanging one");
    stop(scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn begins_of_a_failed_title_leave_calls_to_other_titles() {
    let scene = scene_with(vec![HANGS_FOR_LONG]).await;
    let failed = json!({ "status": { "status": 500 } });
    scene.fault(&json!({ "call": "begin", "isbn": AUDIO, "effect": failed })).await;
    let client = scene.http2();
    let begin = |reader: &String| {
        tokio::spawn(
            scene.get(&client, &format!("/files/{AUDIO}/file"), &scene.token(reader)).send(),
        )
    };
    let mut waiting: Vec<_> = readers("first", 1).iter().map(begin).collect();
    scene.until("a begin fails", async || calls(&scene, "begin", "unknown").await > 0.0).await;
    scene.hang("begin", AUDIO).await;
    waiting.extend(readers("bad", 40).iter().map(begin));
    // Half of the 22 slots for begins.
    scene.until("begins hang", async || scene.hung("begin").await >= 11).await;
    scene.until("all intents are written", async || scene.ledger().await.len() > 40).await;
    let failed = calls(&scene, "begin", "unknown").await;
    for reader in readers("new", 10) {
        all(&scene, "GET", BOOK, std::slice::from_ref(&reader), StatusCode::OK).await;
    }
    assert_eq!(calls(&scene, "begin", "unknown").await, failed, "a begin waited for a hanging one");
    waiting.iter().for_each(|request| request.abort());
    stop(scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_failures_among_many_successes_open_no_breaker() {
    let scene = scene().await;
    all(&scene, "GET", BOOK, &readers("first", 10), StatusCode::OK).await;
    let fails_once = json!({ "status": { "status": 500 } });
    for title in OTHERS {
        scene
            .fault(&json!({ "call": "begin", "isbn": title, "times": 1, "effect": fails_once }))
            .await;
    }
    let client = scene.http2();
    let failing = OTHERS.map(|title| {
        tokio::spawn(
            scene.get(&client, &format!("/files/{title}/file"), &scene.token("kari")).send(),
        )
    });
    // As many failures, of different loans and titles, as open the breaker when few calls succeed.
    let failed = OTHERS.len() as f64;
    scene
        .until("five begins fail", async || calls(&scene, "begin", "unknown").await >= failed)
        .await;
    let breaker = metric(&scene.metrics().await, "loangate_lending_breaker_open", "kind=\"begin\"");
    assert_eq!(breaker, 0.0, "most begins succeed");
    all(&scene, "GET", BOOK, &readers("new", 5), StatusCode::OK).await;
    failing.iter().for_each(|request| request.abort());
    scene.end().await;
}
