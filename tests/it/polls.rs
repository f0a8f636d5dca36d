//! Pending loans are cheap: their polls leave calls for new readers, and no caller's patience holds
//! a flight forever.

use std::time::Duration;

use http::StatusCode;
use loangate::sandbox::Bounds;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::support::{AUDIO, BOOK, File, Scene, Setting, metric};

const PATH: &str = "/files/9788299999014/book.epub";
/// Number of pending loans beside the new readers.
const PENDING_LOANS: usize = 700;
/// Number of new readers, and the time within which each must be served.
const NEW_READERS: usize = 15;
const SERVED_WITHIN: Duration = Duration::from_secs(4);
/// Number of callers who leave while their loans are pending, and the maximum number of tasks alive
/// for these loans: polls in flight and their connections.
const ABANDONED_LOANS: usize = 200;
const MAX_TASKS: usize = 60;

async fn scene(bounds: Bounds, config: Vec<(&'static str, &'static str)>) -> Scene {
    let scene = Scene::start_with(Setting { bounds, config, ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
    scene
}

async fn flights(scene: &Scene) -> f64 {
    metric(&scene.metrics().await, "loangate_flights", "")
}

/// Returns the number of loans of this state in the ledger.
async fn in_state(scene: &Scene, state: &str) -> usize {
    scene.ledger().await.iter().filter(|loan| loan["state"] == state).count()
}

type Response = reqwest::Result<reqwest::Response>;

/// Requests the audiobook for this many readers. Returns the requests once all loans pend.
async fn wait_for_pending_loans(
    scene: &Scene,
    clients: &[reqwest::Client],
    count: usize,
) -> Vec<JoinHandle<Response>> {
    let waiting = (0..count)
        .map(|number| {
            let token = scene.token(&format!("waiting {number}"));
            let client = &clients[number % clients.len()];
            tokio::spawn(scene.get(client, &format!("/files/{AUDIO}/a.mp3"), &token).send())
        })
        .collect();
    scene
        .until("all of them are pending", async || in_state(scene, "pending").await == count)
        .await;
    waiting
}

/// Lets new readers borrow the book; each must be served in time.
async fn new_readers_are_served(scene: &Scene, name: &str) {
    let client = scene.http2();
    let served = (0..NEW_READERS).map(|number| {
        let request = scene.get(&client, PATH, &scene.token(&format!("{name} {number}")));
        async move {
            let began = Instant::now();
            (request.send().await.unwrap().status(), began.elapsed())
        }
    });
    let served = futures_util::future::join_all(served).await;
    println!("{name}: {served:?}");
    for (status, took) in served {
        assert!(
            status == StatusCode::OK && took < SERVED_WITHIN,
            "{name}: {status} after {took:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_readers_are_served_beside_700_pending_loans() {
    let bounds = Bounds { pending_limit_ms: 3_600_000, ..Bounds::quick() };
    let config = vec![
        ("timeout = \"2s\"", "timeout = \"10s\""),
        ("[ledger]", "[gate]\npatience = \"30s\"\n\n[ledger]"),
    ];
    let scene = scene(bounds, config).await;
    let forever = json!({ "pending_polls": { "n": 1_000_000 } });
    scene.fault(&json!({ "call": "begin", "isbn": AUDIO, "effect": forever })).await;
    scene.fault(&json!({ "call": "get", "effect": { "delay": { "ms": 300 } } })).await;
    // More connections than one, since a connection has a limit of streams.
    let clients: Vec<_> = (0..14).map(|_| scene.http2()).collect();
    let waiting = wait_for_pending_loans(&scene, &clients, PENDING_LOANS).await;
    scene.fault(&json!({ "call": "begin", "effect": { "delay": { "ms": 300 } } })).await;
    new_readers_are_served(&scene, "beside callers who wait").await;

    waiting.iter().for_each(|request| request.abort());
    drop((waiting, clients));
    scene
        .until("a loan without callers holds no flight", async || flights(&scene).await == 0.0)
        .await;
    assert_eq!(in_state(&scene, "pending").await, PENDING_LOANS);
    new_readers_are_served(&scene, "beside callers who left").await;
    scene.end().await;
}

#[tokio::test]
async fn pending_loan_without_a_caller_holds_no_task() {
    let bounds = Bounds { pending_limit_ms: 3_600_000, ..Bounds::quick() };
    // Few concurrent calls, since each connection to the sandbox has its own tasks.
    let scene =
        scene(bounds, vec![("timeout = \"2s\"", "timeout = \"2s\"\nconcurrency = 8")]).await;
    let forever = json!({ "pending_polls": { "n": 1_000_000 } });
    scene.fault(&json!({ "call": "begin", "isbn": AUDIO, "effect": forever })).await;
    // More connections than one, since a connection has a limit of streams.
    let clients: Vec<_> = (0..4).map(|_| scene.http2()).collect();
    let early = scene.get(&clients[0], PATH, &scene.token("early")).send().await.unwrap();
    assert_eq!(early.status(), StatusCode::OK, "the connections are open now");
    // The gate's slow work, the sandbox and the clients all run on this test's runtime.
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let waiting = wait_for_pending_loans(&scene, &clients, ABANDONED_LOANS).await;
    waiting.iter().for_each(|request| request.abort());
    drop((waiting, clients));
    scene.until("the flights are over", async || flights(&scene).await == 0.0).await;
    let most = before + MAX_TASKS;
    scene.until("their tasks have ended", async || tasks() <= most).await;
    assert_eq!(in_state(&scene, "pending").await, ABANDONED_LOANS, "none is decided");
    scene.end().await;
}

#[tokio::test]
async fn flights_beyond_the_limit_are_refused_as_overloaded() {
    let config = vec![("settle = \"500ms\"", "settle = \"500ms\"\nflights = 3")];
    let scene = scene(Bounds::quick(), config).await;
    scene
        .fault(&json!({ "call": "begin", "times": 3, "effect": { "delay": { "ms": 1500 } } }))
        .await;
    let client = scene.http2();
    let waiting: Vec<_> = (0..3)
        .map(|number| {
            tokio::spawn(scene.get(&client, PATH, &scene.token(&format!("early {number}"))).send())
        })
        .collect();
    scene
        .until("three flights are under way", async || in_state(&scene, "intended").await == 3)
        .await;
    let refused = scene.get(&client, PATH, &scene.token("late")).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    let document: Value = serde_json::from_slice(&refused.bytes().await.unwrap()).unwrap();
    assert_eq!(document["type"], "overloaded");
    assert_eq!(metric(&scene.metrics().await, "loangate_flights_refused_total", ""), 1.0);
    for early in waiting {
        assert_eq!(early.await.unwrap().unwrap().status(), StatusCode::OK, "the others are served");
    }
    let late = scene.get(&client, PATH, &scene.token("late")).send().await.unwrap();
    assert_eq!(late.status(), StatusCode::OK, "a finished flight makes room");
    assert_eq!(scene.books().await.len(), 4, "nothing was begun for a refused flight");
    scene.end().await;
}

#[tokio::test]
async fn abandoned_loan_is_found_again_by_its_reader() {
    let bounds = Bounds { pending_ms: 5000, ..Bounds::quick() };
    let scene = scene(bounds, Vec::new()).await;
    let (client, token) = (scene.http2(), scene.token("kari"));
    let request = tokio::spawn(scene.get(&client, PATH, &token).send());
    scene.until("the loan is pending", async || in_state(&scene, "pending").await == 1).await;
    assert_eq!(flights(&scene).await, 1.0);
    request.abort();
    scene.until("the flight is over", async || flights(&scene).await == 0.0).await;
    assert_eq!(in_state(&scene, "pending").await, 1, "it ended before the loan was decided");
    let answer = scene.get(&client, PATH, &token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(scene.books().await.len(), 1);
    scene.end().await;
}

#[tokio::test]
async fn begin_continues_without_its_caller() {
    let scene = scene(Bounds::quick(), Vec::new()).await;
    scene.fault(&json!({ "call": "begin", "effect": { "delay": { "ms": 700 } } })).await;
    let (client, token) = (scene.http2(), scene.token("kari"));
    let request = tokio::spawn(scene.get(&client, PATH, &token).send());
    scene.until("the intent is written", async || in_state(&scene, "intended").await == 1).await;
    request.abort();
    scene.until("the loan is accepted", async || in_state(&scene, "accepted").await == 1).await;
    assert_eq!(scene.books().await.len(), 1);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routine_polls_that_hang_leave_calls_to_first_polls() {
    let bounds = Bounds { pending_limit_ms: 3_600_000, ..Bounds::quick() };
    // Long enough that a hanging poll occupies its slot until the end of the test.
    let mut scene = scene(bounds, vec![("timeout = \"2s\"", "timeout = \"60s\"")]).await;
    let forever = json!({ "pending_polls": { "n": 1_000_000 } });
    scene.fault(&json!({ "call": "begin", "isbn": AUDIO, "effect": forever })).await;
    let client = scene.http2();
    let waiting = wait_for_pending_loans(&scene, &[client], 40).await;
    waiting.iter().for_each(|request| request.abort());
    // After a restart these loans have no callers, and all are due at once.
    scene.stop_gate().await;
    scene.hang("get", AUDIO).await;
    scene.start_gate().await;
    // A quarter of the 32 slots is for routine polls.
    scene.until("polls hang", async || scene.hung("get").await >= 8).await;
    let client = scene.http2();
    for number in 0..10 {
        let request = scene.get(&client, PATH, &scene.token(&format!("new {number}")));
        assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    }
    let unknown = "call=\"loan\",outcome=\"unknown\"";
    let timed_out = metric(&scene.metrics().await, "loangate_lending_calls_total", unknown);
    assert_eq!(timed_out, 0.0, "a new reader waited for a hanging poll");
    scene.check().await;
    // Otherwise the gate would wait for the polls that hang.
    scene.stop_sandbox().await;
    scene.end().await;
}
