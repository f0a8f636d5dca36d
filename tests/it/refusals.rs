//! Invalid refusals, waits and listings of Bokbasen cause no begin storm, no busy loop and no
//! second loan.

use std::time::Duration;

use http::StatusCode;
use loangate::clock;
use loangate::sandbox::Bounds;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::scene::movable_clock;
use crate::support::{BOOK, File, Scene, Setting, metric};

const PATH: &str = "/files/9788299999014/book.epub";
const IMPATIENT: (&str, &str) = ("[ledger]", "[gate]\npatience = \"500ms\"\n\n[ledger]");

async fn scene(bounds: Bounds, config: Vec<(&'static str, &'static str)>) -> Scene {
    let scene = Scene::start_with(Setting { bounds, config, ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(100));
    scene
}

async fn fetch(scene: &Scene) -> reqwest::Response {
    scene.get(&scene.http2(), PATH, &scene.token("kari")).send().await.unwrap()
}

async fn breaches(scene: &Scene, breach: &str) -> f64 {
    metric(&scene.metrics().await, "loangate_lending_breaches_total", breach)
}

#[tokio::test]
async fn refusal_holds_for_any_time_bokbasen_names() {
    for retry_after in [0_u64, 1_000_000_000_000_000_000] {
        let scene = scene(Bounds::quick(), Vec::new()).await;
        let refuse = json!({ "refuse": { "code": "NO_FREE_LICENSE", "retry_after": retry_after } });
        scene.fault(&json!({ "call": "begin", "effect": refuse })).await;
        for _ in 0..10 {
            let answer = fetch(&scene).await;
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{retry_after}");
            let wait = answer.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap();
            assert!((1..=86_400).contains(&wait), "{retry_after}: {wait}");
            let problem: Value = answer.json().await.unwrap();
            assert_eq!(problem["reason"], "NO_FREE_LICENSE");
        }
        assert_eq!(scene.books().await.len(), 1, "one begin: {retry_after}");
        scene.end().await;
    }
}

#[tokio::test]
async fn refusal_whose_time_has_passed_holds_for_refusal_ttl() {
    let clock = movable_clock();
    let bounds = Bounds { pending_polls: 1, ..Bounds::quick() };
    let config = vec![("[ledger]", "[gate]\nrefusal_ttl = \"60s\"\n\n[ledger]")];
    let setting = Setting { bounds, config, clock: clock.clone(), ..Setting::default() };
    let mut scene = Scene::without_gate(setting).await;
    let front = scene.rewritten().await;
    front.rewrite(|_, mut answer| {
        if let Some(refusal) = answer.body.get_mut("refusal").filter(|refusal| refusal.is_object())
        {
            refusal["retryAfter"] = "2000-01-01T00:00:00Z".into();
        }
        answer
    });
    scene.start_gate().await;
    scene
        .fault(&json!({ "call": "begin", "effect": { "refuse": { "code": "NO_FREE_LICENSE" } } }))
        .await;
    let began = clock.now();
    for seconds in [0, 2, 59] {
        clock.set(clock::after(began, Duration::from_secs(seconds)));
        let answer = fetch(&scene).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "after {seconds} s");
        assert_eq!(answer.json::<Value>().await.unwrap()["reason"], "NO_FREE_LICENSE");
        // After the restart only the ledger has the refusal.
        scene.stop_gate().await;
        scene.start_gate().await;
    }
    assert_eq!(fetch(&scene).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(scene.books().await.len(), 1, "one begin while the refusal holds");
    clock.set(clock::after(began, Duration::from_secs(61)));
    assert_eq!(fetch(&scene).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(scene.books().await.len(), 2, "another begin after that");
    scene.end().await;
}

#[tokio::test]
async fn retry_after_of_zero_causes_no_busy_loop() {
    let bounds = Bounds { pending_polls: 4, poll_after_seconds: 0, ..Bounds::quick() };
    let scene = scene(bounds, Vec::new()).await;
    let began = Instant::now();
    assert_eq!(fetch(&scene).await.status(), StatusCode::OK);
    let polls = metric(&scene.metrics().await, "loangate_lending_calls_total", "call=\"loan\"");
    assert!(polls <= began.elapsed().as_secs_f64() + 2.0, "{polls} polls in {:?}", began.elapsed());
    scene.end().await;
}

#[tokio::test]
async fn absurd_retry_after_is_bounded() {
    let bounds = Bounds { pending_polls: 1, ..Bounds::quick() };
    let scene = scene(bounds, Vec::new()).await;
    let busy = json!({ "status": { "status": 429, "retry_after": 1_000_000_000_000_000_000_u64 } });
    scene.fault(&json!({ "call": "begin", "times": 1, "effect": busy })).await;
    let answer = fetch(&scene).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let wait = answer.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap();
    assert!(wait <= 3600, "{wait}");
    assert_eq!(fetch(&scene).await.status(), StatusCode::OK);
    scene.end().await;
}

#[tokio::test]
async fn unknown_status_at_settle_is_shown_and_can_be_ended() {
    let scene = scene(Bounds::quick(), vec![IMPATIENT]).await;
    scene.fault(&json!({ "call": "begin", "times": 1, "effect": "cut_after" })).await;
    for call in ["list", "get"] {
        scene.fault(&json!({ "call": call, "effect": "unknown_status" })).await;
    }
    assert_eq!(fetch(&scene).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    scene
        .until("the loan is settled", async || scene.ledger().await[0]["state"] == "pending")
        .await;
    assert!(breaches(&scene, "unknown_status").await >= 1.0);
    assert_eq!(
        fetch(&scene).await.status(),
        StatusCode::SERVICE_UNAVAILABLE,
        "an unknown status opens nothing"
    );

    let path = format!("/api/v1/loans/{}", scene.ledger().await[0]["id"].as_str().unwrap());
    let loan: Value = scene.admin(&path).await.json().await.unwrap();
    assert!(loan["history"].to_string().contains("UNDER_REVIEW"), "{loan}");
    let token = std::fs::read_to_string(scene.dir.path().join("certs/admin.token")).unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}{path}?reason=stuck", scene.admin);
    let ended = client.delete(url).bearer_auth(token).send().await.unwrap();
    assert_eq!(ended.status(), StatusCode::ACCEPTED);
    scene.until("Bokbasen has its end", async || scene.books().await[0]["ends"] == 1).await;
    scene.no_faults().await;
    scene.until("the loan has ended", async || scene.ledger().await[0]["state"] == "ended").await;
    scene.end().await;
}

#[tokio::test]
async fn listed_loan_without_its_reference_is_counted_as_a_breach() {
    let scene = scene(Bounds::quick(), vec![IMPATIENT]).await;
    scene.fault(&json!({ "call": "begin", "times": 1, "effect": "cut_after" })).await;
    scene.fault(&json!({ "call": "list", "effect": "no_reference" })).await;
    assert_eq!(fetch(&scene).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    scene
        .until("the breach is counted", async || breaches(&scene, "no_reference").await >= 2.0)
        .await;
    assert_eq!(fetch(&scene).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    scene.no_faults().await;
    let served = async || fetch(&scene).await.status() == StatusCode::OK;
    scene.until("the loan is found", served).await;
    assert_eq!(scene.books().await.len(), 1, "the listed row is the begun loan");
    scene.end().await;
}
