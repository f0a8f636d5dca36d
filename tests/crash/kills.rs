//! `kill -9` at any moment: a sent begin is found again and never repeated, and an end arrives.

use std::collections::BTreeSet;
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use loangate::clock::Clock;
use loangate::ledger::AuditKey;
use loangate::reader::Readers;
use loangate::sandbox::Bounds;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::{AUDIO, BOOK, File, LIBRARY, Scene, Setting};

/// Time after the restart within which every reader of a round must be served.
const SERVED_WITHIN: Duration = Duration::from_secs(30);

/// A reader of a round, who requests one title.
#[derive(Clone, Debug)]
struct RoundReader {
    path: String,
    /// Path of the loan.
    loan: String,
    token: String,
    /// Pseudonym and title in the sandbox's books.
    booked: (String, String),
}

/// Returns a random generator, and prints its seed. `LOANGATE_TEST_SEED=…` repeats a run.
pub(crate) fn chance() -> fastrand::Rng {
    let given = std::env::var("LOANGATE_TEST_SEED").ok().map(|seed| seed.parse().unwrap());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("LOANGATE_TEST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_duplicate_no_loan_and_lose_none() {
    kills(50, &json!([])).await;
}

/// Takes a quarter of an hour. It runs in lanes with their own gate and sandbox, since a round
/// mostly waits: `cargo test --release --test crash -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a quarter of an hour"]
async fn thousand_kills_with_lost_responses_duplicate_no_loan() {
    let lost = json!([
        { "call": "begin", "probability": 0.1, "effect": "cut_after" },
        { "call": "begin", "probability": 0.1, "effect": { "cut_before": { "late_ms": 50 } } },
        { "call": "begin", "probability": 0.05, "effect": "cut_before" },
        { "call": "get", "probability": 0.1, "effect": { "status": { "status": 503 } } },
        { "call": "list", "probability": 0.1, "effect": "garbage" },
        { "call": "return", "probability": 0.1, "effect": "cut_after" },
        { "call": "return", "probability": 0.1, "effect": "cut_before" },
        { "call": "cancel", "probability": 0.1, "effect": "cut_after" },
    ]);
    const LANES: usize = 5;
    futures_util::future::join_all((0..LANES).map(|_| kills(1000 / LANES, &lost))).await;
}

/// Kills the gate this many times at random moments of first requests and returns. Each kill is
/// followed by a restart. The sandbox has these faults.
async fn kills(rounds: usize, faults: &Value) {
    let mut chance = chance();
    // The begin is executed and listed within 120 ms of a kill, well within the 500 ms of
    // `lending.settle`.
    let bounds = Bounds {
        list_lag_ms: 60,
        post_bound_ms: 60,
        pending_polls: 1,
        pending_ms: 20,
        ..Bounds::quick()
    };
    let mut scene = Scene::without_gate(Setting { bounds, ..Setting::default() }).await;
    let whole = File::of(50_000).part(0..50_000);
    // Each begin gets a random subset of these delays: 0 to 60 ms in total, in steps of four.
    let delays = [4, 8, 16, 32].map(
        |ms| json!({ "call": "begin", "probability": 0.5, "effect": { "delay": { "ms": ms } } }),
    );
    scene.fault(&json!(delays)).await;
    scene.fault(faults).await;

    let names = names(&scene);
    let mut starts = Vec::new();
    let (mut served, mut returned) = (BTreeSet::new(), BTreeSet::new());
    let mut former: Vec<RoundReader> = Vec::new();
    let (mut early, mut unserved_with_loan) = (0, 0);
    let mut gate = scene.spawn_gate().await;
    for round in 0..rounds {
        let readers: Vec<RoundReader> = (0..4)
            .map(|number| {
                let borrower = format!("reader {number} of round {round}");
                let isbn = if number % 2 == 0 { BOOK } else { AUDIO };
                // One file per reader, so the origin's log shows who was served.
                scene.origin.put(&format!("{isbn}/{round}-{number}.epub"), File::of(50_000));
                RoundReader {
                    path: format!("/files/{isbn}/{round}-{number}.epub"),
                    loan: format!("/loans/{isbn}"),
                    token: scene.token(&borrower),
                    booked: (
                        names.pseudonym(LIBRARY.parse().unwrap(), &borrower).to_string(),
                        isbn.to_owned(),
                    ),
                }
            })
            .collect();
        let mut first = JoinSet::new();
        for (number, reader) in readers.iter().enumerate() {
            let client = if number < 2 { scene.http1() } else { scene.http2() };
            let request = scene.get(&client, &reader.path, &reader.token);
            let booked = reader.booked.clone();
            // A crash may cause any result except a complete file.
            first.spawn(async move {
                let answer =
                    request.send().await.ok().filter(|answer| answer.status() == StatusCode::OK)?;
                answer.bytes().await.ok().map(|body| (booked, body))
            });
        }
        // Two readers of the previous round return their loans at the same time.
        let returning: Vec<RoundReader> = former.drain(..).take(2).collect();
        let mut returns = JoinSet::new();
        for reader in &returning {
            returns.spawn(return_loan(&scene, reader).send());
        }
        // No wait for a condition: this is the moment of the kill.
        tokio::time::sleep(Duration::from_millis(chance.u64(..150))).await;
        gate.kill();
        let before: Vec<_> = first.join_all().await.into_iter().flatten().collect();
        let books = scene.books().await;
        let at_bokbasen = in_the_books(&books, &["ACCEPTED"]);
        for (booked, body) in &before {
            assert_eq!(body, &whole, "an incomplete file looked complete in round {round}");
            assert!(at_bokbasen.contains(booked), "round {round}: served without a loan");
        }
        early += before.len();
        let begun = in_the_books(&books, &["PENDING", "ACCEPTED"]);
        unserved_with_loan +=
            readers.iter().filter(|reader| begun.contains(&reader.booked)).count() - before.len();

        gate = scene.spawn_gate().await;
        starts.push(gate.took);
        let mut again = JoinSet::new();
        for (number, reader) in readers.iter().enumerate() {
            let client = if number < 2 { scene.http2() } else { scene.http1() };
            let request = scene.get(&client, &reader.path, &reader.token);
            again.spawn(until_served(request));
        }
        for body in again.join_all().await {
            assert_eq!(body, whole);
        }
        returns.join_all().await;
        for reader in &returning {
            until_returned(return_loan(&scene, reader)).await;
            let again =
                scene.get(&scene.http1(), &reader.path, &reader.token).send().await.unwrap();
            assert_eq!(
                again.status(),
                StatusCode::FORBIDDEN,
                "round {round}: the old token begins nothing"
            );
            served.remove(&reader.booked);
            returned.insert(reader.booked.clone());
        }
        served.extend(readers.iter().map(|reader| reader.booked.clone()));
        former = readers;
        let accepted = async || in_the_books(&scene.books().await, &["ACCEPTED"]) == served;
        scene.until("exactly the served readers have loans at Bokbasen", accepted).await;
        let over = in_the_books(&scene.books().await, &["RETURNED"]);
        assert!(returned.is_subset(&over), "round {round}: an end did not arrive at Bokbasen");
        scene.check().await;
    }
    starts.sort();
    println!(
        "{rounds} kills: {early} readers were served before, {unserved_with_loan} had a loan at \
         Bokbasen but no file; \
         a start took {:?} (median; the longest {:?})",
        starts[rounds / 2],
        starts[rounds - 1],
    );
    no_byte_without_a_loan(&scene, &names).await;
    gate.terminate();
    assert!(gate.exit().await.success());
    // The audit trail is unbroken across all kills, and its end matches the anchor.
    let store = loangate::config::load(&scene.config_file()).unwrap().config.ledger.store;
    let key = AuditKey::new(&names.audit_key());
    let verified = loangate::ledger::verify(&store, &key, &loangate::ledger::RowsRead::default())
        .await
        .unwrap();
    assert_eq!(verified.findings, Vec::<String>::new());
    assert_eq!(
        loangate::ledger::check(&store, &key, &loangate::ledger::RowsRead::default())
            .await
            .unwrap(),
        Vec::<String>::new()
    );
    scene.end().await;
}

#[tokio::test]
async fn pending_loan_is_decided_after_a_kill_without_requests() {
    let setting =
        Setting { bounds: Bounds { pending_polls: 1, ..Bounds::quick() }, ..Setting::default() };
    let mut scene = Scene::without_gate(setting).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
    // The sandbox rejects every query about the loan, so it stays pending.
    scene.fault(&json!({ "call": "get", "effect": { "status": { "status": 429 } } })).await;
    let mut gate = scene.spawn_gate().await;
    let request =
        scene.get(&scene.http1(), &format!("/files/{BOOK}/book.epub"), &scene.token("kari"));
    let asking = tokio::spawn(request.send());
    let state =
        async |scene: &Scene| scene.ledger().await.first().map(|loan| loan["state"].clone());
    scene
        .until("pending in the ledger", async || state(&scene).await == Some("pending".into()))
        .await;
    gate.kill();
    assert!(asking.await.unwrap().is_err(), "the reader was served before the kill");
    let books = scene.books().await;
    assert_eq!((books.len(), &books[0]["status"]), (1, &"PENDING".into()));

    let mut gate = scene.spawn_gate().await;
    assert_eq!(state(&scene).await, Some("pending".into()));
    scene.no_faults().await;
    scene
        .until("accepted in the ledger", async || state(&scene).await == Some("accepted".into()))
        .await;
    let books = scene.books().await;
    assert_eq!((books.len(), &books[0]["status"]), (1, &"ACCEPTED".into()));
    assert!(scene.origin.requests().is_empty(), "no reader sent a request");
    scene.check().await;
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn return_survives_a_kill_or_has_no_effect() {
    let mut chance = chance();
    let mut scene =
        Scene::without_gate(Setting { bounds: Bounds::quick(), ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
    // Bokbasen delays each end, so that some kills happen between the ledger's commit and the
    // response.
    scene.fault(&json!({ "call": "return", "effect": { "delay": { "ms": 40 } } })).await;
    let (mut answered, mut undone) = (0, 0);
    let mut gate = scene.spawn_gate().await;
    for round in 0..20 {
        let token = scene.token(&format!("reader of round {round}"));
        let (file, loan) = (format!("/files/{BOOK}/book.epub"), format!("/loans/{BOOK}"));
        until_served(scene.get(&scene.http1(), &file, &token)).await;
        let request = scene.http1().delete(format!("{}{loan}", scene.base)).bearer_auth(&token);
        let returning = tokio::spawn(request.send());
        // No wait for a condition: this is the moment of the kill.
        tokio::time::sleep(Duration::from_millis(chance.u64(..9))).await;
        gate.kill();
        let returned =
            returning.await.unwrap().is_ok_and(|answer| answer.status() == StatusCode::NO_CONTENT);
        answered += usize::from(returned);

        gate = scene.spawn_gate().await;
        let requests = scene.origin.requests().len();
        let again = scene.get(&scene.http2(), &file, &token).send().await.unwrap();
        let is_open = again.status() == StatusCode::OK;
        assert!(!(returned && is_open), "round {round}: a returned loan opens its file");
        if is_open {
            undone += 1;
            continue; // the kill came first and the loan is unchanged
        }
        assert_eq!(again.status(), StatusCode::FORBIDDEN);
        assert_eq!(scene.origin.requests().len(), requests, "round {round}: a byte after the end");
        // The end arrives at Bokbasen once or more often, and the same token begins nothing.
        let ended = async || {
            let ends = scene.books().await.last().map(|loan| loan["ends"].as_u64().unwrap());
            ends.is_some_and(|ends| ends > 0)
        };
        scene.until("the end is at Bokbasen", ended).await;
        assert_eq!(scene.books().await.len(), round + 1);
    }
    println!(
        "20 kills during returns: {answered} returns were answered before, {undone} had no effect"
    );
    scene.check().await;
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

/// Repeats the request, as an app does, until the file is served. Only a 503 may occur before.
pub(crate) async fn until_served(request: reqwest::RequestBuilder) -> bytes::Bytes {
    let deadline = Instant::now() + SERVED_WITHIN;
    loop {
        let answer = request.try_clone().unwrap().send().await.unwrap();
        let status = answer.status();
        let body = answer.bytes().await.unwrap();
        if status == StatusCode::OK {
            return body;
        }
        let said = String::from_utf8_lossy(&body);
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{said}");
        assert!(Instant::now() < deadline, "not served in time: {said}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn return_loan(scene: &Scene, reader: &RoundReader) -> reqwest::RequestBuilder {
    scene.http1().delete(format!("{}{}", scene.base, reader.loan)).bearer_auth(&reader.token)
}

/// Repeats the return until the response confirms that the loan is over.
async fn until_returned(request: reqwest::RequestBuilder) {
    let deadline = Instant::now() + SERVED_WITHIN;
    while request.try_clone().unwrap().send().await.unwrap().status() != StatusCode::NO_CONTENT {
        assert!(Instant::now() < deadline, "not returned in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Checks by the books that each request at the origin had an accepted loan of its reader.
async fn no_byte_without_a_loan(scene: &Scene, names: &Readers) {
    let books = scene.books().await;
    let time =
        |loan: &Value, name: &str| loan[name].as_str().map(|at| at.parse::<Timestamp>().unwrap());
    let requests = scene.origin.requests();
    assert!(!requests.is_empty());
    for request in requests {
        let mut segments = request.path.trim_start_matches('/').split('/');
        let (isbn, file) = (segments.next().unwrap(), segments.next().unwrap());
        let (round, number) = file.trim_end_matches(".epub").split_once('-').unwrap();
        let borrower = format!("reader {number} of round {round}");
        let pseudonym = names.pseudonym(LIBRARY.parse().unwrap(), &borrower).to_string();
        let held = books.iter().any(|loan| {
            loan["isbn"] == isbn
                && loan["borrower"] == pseudonym.as_str()
                && time(loan, "accepted").is_some_and(|accepted| accepted <= request.at)
                && time(loan, "ended").is_none_or(|ended| request.at <= ended)
        });
        assert!(held, "{} was fetched at {} without a loan", request.path, request.at);
    }
}

/// Returns the pairs of borrower and title with a loan in one of these states.
fn in_the_books(books: &[Value], states: &[&str]) -> BTreeSet<(String, String)> {
    let text = |loan: &Value, name: &str| loan[name].as_str().unwrap().to_owned();
    let held = books.iter().filter(|loan| states.contains(&loan["status"].as_str().unwrap()));
    held.map(|loan| (text(loan, "borrower"), text(loan, "isbn"))).collect()
}

/// Returns pseudonyms as the gate of this scene computes them.
pub(crate) fn names(scene: &Scene) -> Readers {
    let loaded = loangate::config::load(&scene.config_file()).unwrap();
    Readers::new(&loaded.config.readers, Clock::system()).unwrap()
}
