//! Invariant 2: one loan, once, under any concurrency.

use std::collections::BTreeSet;

use http::StatusCode;
use serde_json::json;

use crate::support::{BOOK, File, Scene, Setting, metric};

/// Clients of both versions of HTTP, each with connections of its own.
fn clients(scene: &Scene, count: usize) -> Vec<reqwest::Client> {
    (0..count).map(|number| if number % 2 == 0 { scene.http1() } else { scene.http2() }).collect()
}

/// A scene for more connections of one address at once than may be without accepted credentials.
async fn crowded() -> Scene {
    let config = vec![("[ledger]", "[limits]\nexempt_networks = [\"127.0.0.0/8\"]\n\n[ledger]")];
    Scene::set(Setting { config, ..Setting::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_first_requests_of_one_reader_make_one_loan() {
    let scene = crowded().await;
    // Slow enough that all of them are there before it is decided.
    scene.fault(&json!({ "call": "begin", "effect": { "delay": { "ms": 700 } } })).await;
    let file = File::of(150_000);
    scene.origin.put(&format!("{BOOK}/book.epub"), file.clone());
    let token = scene.token("kari");
    let clients = clients(&scene, 50);
    let asking = (0..500).map(|number| {
        let request = scene.get(&clients[number % 50], &format!("/files/{BOOK}/book.epub"), &token);
        tokio::spawn(async move {
            let answer = request.send().await.unwrap();
            (answer.status(), answer.version(), answer.bytes().await.unwrap())
        })
    });
    let whole = file.part(0..150_000);
    let mut versions = BTreeSet::new();
    for asked in asking.collect::<Vec<_>>() {
        let (status, version, body) = asked.await.unwrap();
        assert_eq!(status, StatusCode::OK);
        assert!(body == whole, "a body that is not whole");
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
async fn five_hundred_readers_at_fifty_titles_make_a_loan_for_each_pair() {
    let scene = crowded().await;
    let titles: Vec<String> = (0..50).map(isbn).collect();
    for title in &titles {
        scene.origin.put(&format!("{title}/book.epub"), File::of(20_000));
    }
    let clients = clients(&scene, 20);
    let mut pairs = BTreeSet::new();
    let mut asking = Vec::new();
    for reader in 0..500_usize {
        let token = scene.token(&format!("reader-{reader}"));
        // Each asks for a title twice at once, and every second one for another title too.
        for title in
            [reader % 50, reader % 50, (reader * 7 + reader / 50) % 50].iter().take(2 + reader % 2)
        {
            pairs.insert((reader, *title));
            let path = format!("/files/{}/book.epub", titles[*title]);
            let request = scene.get(&clients[asking.len() % 20], &path, &token);
            asking.push(tokio::spawn(async move {
                let answer = request.send().await.unwrap();
                (answer.status(), answer.bytes().await.unwrap().len())
            }));
        }
    }
    for asked in asking {
        assert_eq!(asked.await.unwrap(), (StatusCode::OK, 20_000));
    }
    let books = scene.books().await;
    let made: BTreeSet<String> =
        books.iter().map(|loan| format!("{} {}", loan["borrower"], loan["isbn"])).collect();
    assert_eq!(
        (books.len(), made.len()),
        (pairs.len(), pairs.len()),
        "one loan for each pair that asked"
    );
    assert_eq!(scene.ledger().await.len(), pairs.len());
    scene.end().await;
}

#[tokio::test]
async fn a_reader_who_hangs_up_does_not_undo_the_begin_nor_begin_twice() {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene.fault(&json!({ "call": "begin", "effect": { "delay": { "ms": 1900 } } })).await;
    let token = scene.token("kari");
    let path = format!("/files/{BOOK}/book.epub");
    for _ in 0..10 {
        let client = scene.http1();
        let request =
            scene.get(&client, &path, &token).timeout(std::time::Duration::from_millis(40));
        assert!(request.send().await.is_err(), "it hung up before the loan was decided");
    }
    let answer = scene.get(&scene.http2(), &path, &token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(scene.books().await.len(), 1);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gates_on_one_ledger_as_during_an_upgrade_make_one_loan() {
    let mut scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene.fault(&json!({ "call": "begin", "effect": { "delay": { "ms": 300 } } })).await;
    let old = scene.base.clone();
    let mut gate = scene.spawn_gate().await;
    let new = scene.base.clone();
    for round in 0..5 {
        let token = scene.token(&format!("reader-{round}"));
        let asking = (0..40).map(|number| {
            let client = if number % 4 < 2 { scene.http1() } else { scene.http2() };
            let base = if number % 2 == 0 { &old } else { &new };
            let request = client.get(format!("{base}/files/{BOOK}/book.epub")).bearer_auth(&token);
            tokio::spawn(async move { request.send().await.unwrap().status() })
        });
        for asked in asking.collect::<Vec<_>>() {
            assert_eq!(asked.await.unwrap(), StatusCode::OK, "round {round}");
        }
        assert_eq!(
            scene.books().await.len(),
            round + 1,
            "one loan for each reader, whichever gate begins it"
        );
    }
    scene.check().await;
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.stop_gate().await;
    scene.stop_sandbox().await;
}

/// The title of this number.
fn isbn(number: u32) -> String {
    let digits = format!("97882{number:07}");
    let weighted = digits
        .bytes()
        .zip([1, 3].into_iter().cycle())
        .map(|(digit, weight)| u32::from(digit - b'0') * weight);
    let sum: u32 = weighted.sum();
    format!("{digits}{}", (10 - sum % 10) % 10)
}
