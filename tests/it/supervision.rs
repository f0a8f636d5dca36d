//! After a panic in a background task or in a loan's driver the task runs again, and the loan is
//! neither lost nor begun twice. The gate is a separate process that really panics, at points that
//! `src/crash.rs` has in debug builds.
#![cfg(debug_assertions)]

use http::StatusCode;
use loangate::sandbox::Bounds;
use serde_json::{Value, json};

use crate::support::{BOOK, File, Process, Scene, Setting, metric};

const PATH: &str = "/files/9788299999014/book.epub";

/// Every task that runs for the lifetime of the process.
const TASK_NAMES: [&str; 22] = [
    "accept-admin",
    "adopt-orphans",
    "balance",
    "compare-clocks",
    "drive-loans",
    "expire",
    "fetch-login-keys",
    "flush-metering",
    "fold-metrics",
    "follow-feed",
    "forget",
    "order-certificates",
    "place-connections",
    "reload",
    "reload-certificates",
    "search-late-begins",
    "send-ends",
    "share-limits",
    "store-requests",
    "watch-certificates",
    "watch-gate",
    "watch-readers",
];

/// Starts a gate that panics once at each of these points.
async fn panicking(places: &str, faults: &Value) -> (Scene, Process) {
    let bounds = Bounds { list_lag_ms: 60, post_bound_ms: 60, pending_polls: 1, ..Bounds::quick() };
    let mut scene = Scene::without_gate(Setting { bounds, ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
    if !faults.is_null() {
        scene.fault(faults).await;
    }
    let gate = scene.spawn_gate_with("LOANGATE_PANIC", places).await;
    (scene, gate)
}

async fn until_served(scene: &Scene) {
    let (client, token) = (scene.http2(), scene.token("kari"));
    let served = async || {
        let status = scene.get(&client, PATH, &token).send().await.unwrap().status();
        assert!(matches!(status, StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE), "{status}");
        status == StatusCode::OK
    };
    scene.until("the reader is served", served).await;
}

async fn restarts(scene: &Scene, task: &str) -> f64 {
    metric(&scene.metrics().await, "loangate_task_restarts_total", &format!("task=\"{task}\""))
}

async fn stop(mut gate: Process, scene: Scene) {
    scene.check().await;
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

#[tokio::test]
async fn each_background_task_runs_again_after_a_panic() {
    let (scene, gate) = panicking("task * before", &Value::Null).await;
    for task in TASK_NAMES {
        scene.until(task, async || restarts(&scene, task).await == 1.0).await;
    }
    let all = metric(&scene.metrics().await, "loangate_task_restarts_total", "");
    assert_eq!(all, TASK_NAMES.len() as f64, "this test does not list every task");
    // The tasks work: a loan is driven, delivered bytes are written, and the end is sent.
    until_served(&scene).await;
    let delivered = async || scene.ledger().await[0]["delivered"][PATH]["bytes"] == 5000;
    scene.until("the delivery is in the ledger", delivered).await;
    let (status, _) =
        scene.call_api("DELETE", &format!("/loans/{BOOK}"), &scene.token("kari"), "").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    scene.until("the end is sent", async || scene.ledger().await[0]["state"] == "ended").await;
    stop(gate, scene).await;
}

#[tokio::test]
async fn panic_during_a_run_restarts_the_scheduler() {
    let (scene, gate) = panicking("schedule checked after", &Value::Null).await;
    until_served(&scene).await;
    assert_eq!(restarts(&scene, "drive-loans").await, 1.0);
    assert_eq!(scene.books().await.len(), 1);
    stop(gate, scene).await;
}

#[tokio::test]
async fn loan_whose_driver_panics_is_settled_and_begun_once() {
    let lost = json!({ "call": "begin", "times": 1, "effect": "cut_after" });
    let cases = [
        ("send begin before", Value::Null, "unknown"),
        ("send begin after", Value::Null, "unknown"),
        ("send loan before", Value::Null, "pending"),
        ("send loan after", Value::Null, "pending"),
        ("send find before", lost.clone(), "unknown"),
        ("send find after", lost, "unknown"),
    ];
    for (place, faults, state) in cases {
        let (scene, gate) = panicking(place, &faults).await;
        until_served(&scene).await;
        let books = scene.books().await;
        assert_eq!(
            (books.len(), &books[0]["status"]),
            (1, &json!("ACCEPTED")),
            "{place}: {books:#?}"
        );
        assert_eq!(restarts(&scene, "driver").await, 1.0, "{place}");
        // The newest row is the loan. An intent that was never sent may precede it.
        let ledger = scene.ledger().await;
        let path = format!("/api/v1/loans/{}", ledger.last().unwrap()["id"].as_str().unwrap());
        let first: Value = scene.admin(&path).await.json().await.unwrap();
        let steps = first["history"].as_array().unwrap();
        assert!(steps.iter().any(|step| step["to"] == state), "{place}: {steps:#?}");
        stop(gate, scene).await;
    }
}

#[tokio::test]
async fn loan_whose_adoption_panics_is_settled_by_that_process() {
    let bounds = Bounds { list_lag_ms: 60, post_bound_ms: 60, pending_polls: 1, ..Bounds::quick() };
    let mut scene = Scene::without_gate(Setting { bounds, ..Setting::default() }).await;
    let mut dead = scene.spawn_gate_until("send begin after").await;
    assert!(scene.get(&scene.http1(), PATH, &scene.token("kari")).send().await.is_err());
    dead.exit().await;
    // The next process owns the loan then, so none finds it among the orphans. No reader requests
    // it either.
    let gate = scene.spawn_gate_with("LOANGATE_PANIC", "adopt loan after").await;
    let settled = async || scene.ledger().await[0]["state"] == "accepted";
    scene.until("the loan is settled", settled).await;
    assert_eq!(restarts(&scene, "adopt-orphans").await, 1.0);
    let books = scene.books().await;
    assert_eq!((books.len(), &books[0]["status"]), (1, &json!("ACCEPTED")), "{books:#?}");
    stop(gate, scene).await;
}
