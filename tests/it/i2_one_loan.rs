//! Invariant 2: one loan, once, under any concurrency.

use std::collections::BTreeSet;

use http::StatusCode;
use serde_json::json;

use crate::support::{BOOK, File, Scene, Setting, metric};

/// Returns clients of both HTTP versions with separate connections.
fn clients(scene: &Scene, count: usize) -> Vec<reqwest::Client> {
    (0..count).map(|number| if number % 2 == 0 { scene.http1() } else { scene.http2() }).collect()
}

/// Starts a scene that allows more connections per address without accepted credentials.
async fn crowded() -> Scene {
    let config = vec![("[ledger]", "[limits]\nexempt_networks = [\"127.0.0.0/8\"]\n\n[ledger]")];
    Scene::start_with(Setting { config, ..Setting::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_first_requests_of_one_reader_begin_one_loan() {
    let scene = crowded().await;
    // The delay lets all requests arrive before the loan is decided.
    scene.fault(&json!({ "call": "begin", "effect": { "delay": { "ms": 700 } } })).await;
    let file = File::of(150_000);
    scene.origin.put(&format!("{BOOK}/book.epub"), file.clone());
    let token = scene.token("kari");
    let clients = clients(&scene, 50);
    let requests = (0..500).map(|number| {
        let request = scene.get(&clients[number % 50], &format!("/files/{BOOK}/book.epub"), &token);
        tokio::spawn(async move {
            let answer = request.send().await.unwrap();
            (answer.status(), answer.version(), answer.bytes().await.unwrap())
        })
    });
    let whole = file.part(0..150_000);
    let mut versions = BTreeSet::new();
    for request in requests.collect::<Vec<_>>() {
        let (status, version, body) = request.await.unwrap();
        assert_eq!(status, StatusCode::OK);
        assert!(body == whole, "a body is incomplete");
        versions.insert(format!("{version:?}"));
    }
    assert_eq!(versions.len(), 2, "{versions:?}");
    assert_eq!(scene.books().await.len(), 1, "loans in Bokbasen's books");
    let ledger = scene.ledger().await;
    assert_eq!(ledger.len(), 1, "loans in the ledger");
    let metrics = scene.metrics().await;
    assert_eq!(metric(&metrics, "loangate_loan_events_total", "intended"), 1.0, "intents");
    assert_eq!(metric(&metrics, "loangate_requests_total", "outcome=\"ok\""), 500.0);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_readers_get_one_loan_for_each_title() {
    let scene = crowded().await;
    let titles: Vec<String> = (0..50).map(isbn).collect();
    for title in &titles {
        scene.origin.put(&format!("{title}/book.epub"), File::of(20_000));
    }
    let clients = clients(&scene, 20);
    let mut pairs = BTreeSet::new();
    let mut requests = Vec::new();
    for reader in 0..500_usize {
        let token = scene.token(&format!("reader-{reader}"));
        // Each reader requests a title twice at once, and every second one another title too.
        for title in
            [reader % 50, reader % 50, (reader * 7 + reader / 50) % 50].iter().take(2 + reader % 2)
        {
            pairs.insert((reader, *title));
            let path = format!("/files/{}/book.epub", titles[*title]);
            let request = scene.get(&clients[requests.len() % 20], &path, &token);
            requests.push(tokio::spawn(async move {
                let answer = request.send().await.unwrap();
                (answer.status(), answer.bytes().await.unwrap().len())
            }));
        }
    }
    for request in requests {
        assert_eq!(request.await.unwrap(), (StatusCode::OK, 20_000));
    }
    let books = scene.books().await;
    let made: BTreeSet<String> =
        books.iter().map(|loan| format!("{} {}", loan["borrower"], loan["isbn"])).collect();
    assert_eq!(
        (books.len(), made.len()),
        (pairs.len(), pairs.len()),
        "one loan for each reader and title"
    );
    assert_eq!(scene.ledger().await.len(), pairs.len());
    scene.end().await;
}

#[tokio::test]
async fn disconnect_neither_undoes_nor_repeats_a_begin() {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene.fault(&json!({ "call": "begin", "effect": { "delay": { "ms": 1900 } } })).await;
    let token = scene.token("kari");
    let path = format!("/files/{BOOK}/book.epub");
    for _ in 0..10 {
        let client = scene.http1();
        let request =
            scene.get(&client, &path, &token).timeout(std::time::Duration::from_millis(40));
        assert!(
            request.send().await.is_err(),
            "the client disconnected before the loan was decided"
        );
    }
    let answer = scene.get(&scene.http2(), &path, &token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(scene.books().await.len(), 1);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gates_on_one_ledger_begin_one_loan() {
    let mut scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene.fault(&json!({ "call": "begin", "effect": { "delay": { "ms": 300 } } })).await;
    let old = scene.base.clone();
    let mut gate = scene.spawn_gate().await;
    let new = scene.base.clone();
    for round in 0..5 {
        let token = scene.token(&format!("reader-{round}"));
        let requests = (0..40).map(|number| {
            let client = if number % 4 < 2 { scene.http1() } else { scene.http2() };
            let base = if number % 2 == 0 { &old } else { &new };
            let request = client.get(format!("{base}/files/{BOOK}/book.epub")).bearer_auth(&token);
            tokio::spawn(async move { request.send().await.unwrap().status() })
        });
        for request in requests.collect::<Vec<_>>() {
            assert_eq!(request.await.unwrap(), StatusCode::OK, "round {round}");
        }
        assert_eq!(
            scene.books().await.len(),
            round + 1,
            "one loan for each reader, from either gate"
        );
    }
    scene.check().await;
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.stop_gate().await;
    scene.stop_sandbox().await;
}

/// Returns an ISBN made of this number.
fn isbn(number: u32) -> String {
    let digits = format!("97882{number:07}");
    let weighted = digits
        .bytes()
        .zip([1, 3].into_iter().cycle())
        .map(|(digit, weight)| u32::from(digit - b'0') * weight);
    let sum: u32 = weighted.sum();
    format!("{digits}{}", (10 - sum % 10) % 10)
}
