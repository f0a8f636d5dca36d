//! Outages of Bokbasen and lost responses: readers with a loan are served, no loan is begun twice,
//! and the gate recovers.

use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use loangate::sandbox::Bounds;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{BOOK, File, Scene, Setting, metric};

/// Time after an outage within which a retrying reader is served.
const SERVED_WITHIN: Duration = Duration::from_secs(10);
/// Value of `lending.settle` in these scenes.
const SETTLE: Duration = Duration::from_millis(500);

const PATH: &str = "/files/9788299999014/book.epub";

/// Starts a scene with a book and a sandbox with time for responses to be lost.
async fn scene(config: Vec<(&'static str, &'static str)>) -> Scene {
    let bounds =
        Bounds { list_lag_ms: 150, post_bound_ms: 150, pending_polls: 1, ..Bounds::quick() };
    let scene = Scene::start_with(Setting { bounds, config, ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
    scene
}

/// Setting with a short patience: 200 ms instead of fifteen seconds.
const IMPATIENT: (&str, &str) = ("[ledger]", "[gate]\npatience = \"200ms\"\n\n[ledger]");

/// Requests the file. Returns the status, the problem's `type`, and Retry-After.
async fn fetch(scene: &Scene, borrower: &str) -> (StatusCode, String, Option<u64>) {
    let answer = scene.get(&scene.http2(), PATH, &scene.token(borrower)).send().await.unwrap();
    let status = answer.status();
    let wait =
        answer.headers().get("retry-after").map(|wait| wait.to_str().unwrap().parse().unwrap());
    let body = answer.bytes().await.unwrap();
    if status == StatusCode::OK {
        assert_eq!(body, File::of(5000).part(0..5000));
        return (status, String::new(), wait);
    }
    let document: Value = serde_json::from_slice(&body).unwrap();
    (status, document["type"].as_str().unwrap().to_owned(), wait)
}

/// Repeats the request until the file is served. Only these problems may occur before.
async fn until_served(scene: &Scene, borrower: &str, before: &[&str]) {
    let deadline = Instant::now() + SERVED_WITHIN;
    loop {
        let (status, problem, wait) = fetch(scene, borrower).await;
        if status == StatusCode::OK {
            return;
        }
        assert!(
            before.contains(&problem.as_str()) && wait.is_some(),
            "{status} {problem} {wait:?}"
        );
        assert!(Instant::now() < deadline, "not served in time: {problem}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn live(scene: &Scene) -> Vec<Value> {
    let mut books = scene.books().await;
    books.retain(|loan| matches!(loan["status"].as_str(), Some("PENDING" | "ACCEPTED")));
    books
}

/// Returns the history of the accepted loan in the ledger.
async fn history(scene: &Scene) -> Vec<Value> {
    let ledger = scene.ledger().await;
    let accepted: Vec<_> = ledger.iter().filter(|loan| loan["state"] == "accepted").collect();
    assert_eq!(accepted.len(), 1, "{ledger:?}");
    let path = format!("/api/v1/loans/{}", accepted[0]["id"].as_str().unwrap());
    let loan: Value = scene.admin(&path).await.json().await.unwrap();
    loan["history"].as_array().unwrap().clone()
}

#[tokio::test]
async fn outage_delays_only_readers_without_a_loan() {
    let mut scene = scene(Vec::new()).await;
    assert_eq!(fetch(&scene, "kari").await.0, StatusCode::OK);
    scene.stop_sandbox().await;

    assert_eq!(fetch(&scene, "kari").await.0, StatusCode::OK, "from the cache");
    scene.stop_gate().await;
    scene.start_gate().await;
    assert_eq!(fetch(&scene, "kari").await.0, StatusCode::OK, "from the ledger");

    // The outage lasts until the breaker's cool-down is at its longest, the worst moment to
    // recover: five failures open it, and three failed trials lengthen it.
    let deadline = Instant::now() + Duration::from_secs(40);
    let mut attempts = 0;
    while metric(&scene.metrics().await, "loangate_lending_calls_total", "outcome=\"not_sent\"")
        < 8.0
        || metric(&scene.metrics().await, "loangate_lending_breaker_open", "") < 1.0
    {
        attempts += 1;
        let (status, problem, wait) = fetch(&scene, &format!("newcomer {}", attempts % 8)).await;
        assert_eq!(
            (status, problem.as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "lending-unavailable")
        );
        assert!(wait.is_some_and(|wait| (1..=5).contains(&wait)), "{wait:?}");
        assert!(
            Instant::now() < deadline,
            "the cool-down did not reach its maximum:\n{}",
            scene.metrics().await
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ready = scene.admin("/readyz").await;
    assert_eq!(ready.status(), StatusCode::OK, "readers with a loan are served");
    assert!(ready.text().await.unwrap().contains("Bokbasen refuses the connection"));
    assert_eq!(fetch(&scene, "kari").await.0, StatusCode::OK, "still");

    scene.start_sandbox().await;
    until_served(&scene, "newcomer 1", &["lending-unavailable"]).await;
    until_served(&scene, "newcomer 2", &["lending-unavailable"]).await;
    assert!(!scene.admin("/readyz").await.text().await.unwrap().contains("Bokbasen"));
    assert_eq!(live(&scene).await.len(), 3);
    let left: Vec<_> =
        scene.ledger().await.into_iter().filter(|loan| loan["state"] == "unknown").collect();
    assert!(left.is_empty(), "a begin that was never sent counts as unknown: {left:?}");
    scene.end().await;
}

#[tokio::test]
async fn begin_with_a_lost_response_is_found_and_not_repeated() {
    for (config, before) in [(vec![], &[][..]), (vec![IMPATIENT], &["loan-pending"][..])] {
        let scene = scene(config).await;
        scene.fault(&json!({ "call": "begin", "times": 1, "effect": "cut_after" })).await;
        let impatient = !before.is_empty();
        if impatient {
            let (status, problem, wait) = fetch(&scene, "kari").await;
            assert_eq!(
                (status, problem.as_str()),
                (StatusCode::SERVICE_UNAVAILABLE, "loan-pending")
            );
            assert!(wait.is_some());
        }
        until_served(&scene, "kari", before).await;
        let books = scene.books().await;
        assert_eq!((books.len(), &books[0]["status"]), (1, &"ACCEPTED".into()), "{books:?}");
        let history = history(&scene).await;
        let at = |state: &str| -> Timestamp {
            let step = history.iter().find(|step| step["to"] == state).unwrap();
            step["at"].as_str().unwrap().parse().unwrap()
        };
        // Bokbasen's listing lags. An earlier query could have found nothing and begun again.
        let settled = history.iter().find(|step| step["cause"] == "settle").unwrap();
        let settled: Timestamp = settled["at"].as_str().unwrap().parse().unwrap();
        // From the begin: a busy ledger writes its loss a little later.
        let waited = settled.duration_since(at("intended"));
        assert!(waited >= SETTLE.try_into().unwrap(), "queried after {waited:?}: {history:?}");
        scene.end().await;
    }
}

#[tokio::test]
async fn begin_aborted_before_its_execution_leads_to_one_loan() {
    // Once the begin is never executed, and once long after its connection closed.
    for effect in [json!("cut_before"), json!({ "cut_before": { "late_ms": 150 } })] {
        let scene = scene(Vec::new()).await;
        scene.fault(&json!({ "call": "begin", "times": 1, "effect": effect })).await;
        until_served(&scene, "kari", &["loan-pending"]).await;
        let books = scene.books().await;
        assert_eq!(
            (books.len(), &books[0]["status"]),
            (1, &"ACCEPTED".into()),
            "{effect}: {books:?}"
        );
        scene.end().await;
    }
}

#[tokio::test]
async fn two_loans_of_one_reference_are_reduced_to_one() {
    let scene = scene(Vec::new()).await;
    let faults = ["duplicate", "cut_after"]
        .map(|effect| json!({ "call": "begin", "times": 1, "effect": effect }));
    scene.fault(&json!(faults)).await;
    until_served(&scene, "kari", &["loan-pending"]).await;
    let books = scene.books().await;
    assert_eq!(books.len(), 2, "not two loans: {books:?}");
    let live = live(&scene).await;
    assert_eq!((live.len(), &live[0]["status"]), (1, &"ACCEPTED".into()), "{books:?}");
    assert_eq!(metric(&scene.metrics().await, "loangate_loan_events_total", "duplicate"), 1.0);
    scene.end().await;
}
