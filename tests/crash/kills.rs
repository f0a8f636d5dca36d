//! kill -9 at any moment: a begin that had left is found again and never made twice, and an end
//! arrives.

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

/// How long the last of a round's readers may take to be served after the restart.
const SERVED_WITHIN: Duration = Duration::from_secs(30);

/// A reader of a round, who asks for one title.
#[derive(Clone, Debug)]
struct Asker {
    path: String,
    /// Where its loan is asked for.
    loan: String,
    token: String,
    /// The pseudonym and the title, as the sandbox's books have them.
    booked: (String, String),
}

/// Numbers that one seed decides. It is told, so that a failure can be tried again:
/// `LOANGATE_TEST_SEED=… cargo test`.
fn chance() -> fastrand::Rng {
    let given = std::env::var("LOANGATE_TEST_SEED").ok().map(|seed| seed.parse().unwrap());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("LOANGATE_TEST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_at_random_moments_make_no_loan_twice_and_lose_none() {
    kills(50, &json!([])).await;
}

/// A quarter of an hour, in lanes that each have a gate and a Bokbasen of their own, since a round
/// mostly waits: `cargo test --release --test crash -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a quarter of an hour"]
async fn a_thousand_kills_while_answers_are_lost_make_no_loan_twice_and_lose_none() {
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

/// So many kills at random moments of first requests and returns, each followed by a restart, while
/// the sandbox misbehaves so.
async fn kills(rounds: usize, faults: &Value) {
    let mut chance = chance();
    // Long enough after a kill for the begin to land and to show: 60 ms and 60 ms are well within
    // the 500 ms of settle.
    let bounds = Bounds {
        list_lag_ms: 60,
        post_bound_ms: 60,
        pending_polls: 1,
        pending_ms: 20,
        ..Bounds::quick()
    };
    let mut scene = Scene::around(Setting { bounds, ..Setting::default() }).await;
    let whole = File::of(50_000).part(0..50_000);
    // Of these, each begin meets its own: together they delay it by 0 to 60 ms, in steps of four.
    let delays = [4, 8, 16, 32].map(
        |ms| json!({ "call": "begin", "probability": 0.5, "effect": { "delay": { "ms": ms } } }),
    );
    scene.fault(&json!(delays)).await;
    scene.fault(faults).await;

    let names = names(&scene);
    let mut starts = Vec::new();
    let (mut served, mut given_back) = (BTreeSet::new(), BTreeSet::new());
    let mut former: Vec<Asker> = Vec::new();
    let (mut early, mut unserved_but_there) = (0, 0);
    let mut gate = scene.spawn_gate().await;
    for round in 0..rounds {
        let readers: Vec<Asker> = (0..4)
            .map(|number| {
                let borrower = format!("reader {number} of round {round}");
                let isbn = if number % 2 == 0 { BOOK } else { AUDIO };
                // A file for each, so that the origin's log tells who was served.
                scene.origin.put(&format!("{isbn}/{round}-{number}.epub"), File::of(50_000));
                Asker {
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
            // Whatever comes of it but a whole file is what a crash does to a reader.
            first.spawn(async move {
                let answer =
                    request.send().await.ok().filter(|answer| answer.status() == StatusCode::OK)?;
                answer.bytes().await.ok().map(|body| (booked, body))
            });
        }
        // Two of the readers before give theirs back meanwhile.
        let returning: Vec<Asker> = former.drain(..).take(2).collect();
        let mut returns = JoinSet::new();
        for reader in &returning {
            returns.spawn(give_back(&scene, reader).send());
        }
        // Not to wait for anything: this is the moment at which the kill falls.
        tokio::time::sleep(Duration::from_millis(chance.u64(..150))).await;
        gate.kill();
        let before: Vec<_> = first.join_all().await.into_iter().flatten().collect();
        let books = scene.books().await;
        let there = in_the_books(&books, &["ACCEPTED"]);
        for (booked, body) in &before {
            assert_eq!(body, &whole, "a part was taken for the whole in round {round}");
            assert!(there.contains(booked), "round {round}: served without a loan");
        }
        early += before.len();
        let begun = in_the_books(&books, &["PENDING", "ACCEPTED"]);
        unserved_but_there +=
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
            until_given_back(give_back(&scene, reader)).await;
            let again =
                scene.get(&scene.http1(), &reader.path, &reader.token).send().await.unwrap();
            assert_eq!(
                again.status(),
                StatusCode::FORBIDDEN,
                "round {round}: the old token starts nothing"
            );
            served.remove(&reader.booked);
            given_back.insert(reader.booked.clone());
        }
        served.extend(readers.iter().map(|reader| reader.booked.clone()));
        former = readers;
        let accepted = async || in_the_books(&scene.books().await, &["ACCEPTED"]) == served;
        scene.until("who was served has a loan there, and nobody else has", accepted).await;
        let over = in_the_books(&scene.books().await, &["RETURNED"]);
        assert!(given_back.is_subset(&over), "round {round}: what has ended here has ended there");
        scene.check().await;
    }
    starts.sort();
    println!(
        "{rounds} kills: {early} readers were served before, {unserved_but_there} had a loan at Bokbasen and no file yet; \
         a start took {:?} (median; the longest {:?})",
        starts[rounds / 2],
        starts[rounds - 1],
    );
    no_byte_without_a_loan(&scene, &names).await;
    gate.terminate();
    assert!(gate.exit().await.success());
    // What every kill left is one unbroken trail, and its end is where it was kept apart.
    let ledger = loangate::config::load(&scene.config_file()).unwrap().config.ledger.file;
    let verified =
        loangate::ledger::verify(&ledger, &AuditKey::new(&names.audit_key())).await.unwrap();
    assert_eq!(verified.findings, Vec::<String>::new());
    assert_eq!(loangate::ledger::check(&ledger).await.unwrap(), Vec::<String>::new());
    scene.end().await;
}

#[tokio::test]
async fn a_pending_loan_is_carried_to_its_end_after_a_kill_with_no_reader_asking() {
    let setting =
        Setting { bounds: Bounds { pending_polls: 1, ..Bounds::quick() }, ..Setting::default() };
    let mut scene = Scene::around(setting).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
    // Every question about the loan is turned away, so that it stays pending for as long as this
    // lasts.
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
    assert!(asking.await.unwrap().is_err(), "nobody was served");
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
    assert!(scene.origin.asked().is_empty(), "and no reader has asked");
    scene.check().await;
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_return_that_was_answered_is_never_undone_by_a_kill_and_one_that_was_not_is_whole_or_nothing()
 {
    let mut chance = chance();
    let mut scene = Scene::around(Setting { bounds: Bounds::quick(), ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
    // Bokbasen takes its time for an end, so that some kills fall between the ledger and its word.
    scene.fault(&json!({ "call": "return", "effect": { "delay": { "ms": 40 } } })).await;
    let (mut answered, mut undone) = (0, 0);
    let mut gate = scene.spawn_gate().await;
    for round in 0..20 {
        let token = scene.token(&format!("reader of round {round}"));
        let (file, loan) = (format!("/files/{BOOK}/book.epub"), format!("/loans/{BOOK}"));
        until_served(scene.get(&scene.http1(), &file, &token)).await;
        let request = scene.http1().delete(format!("{}{loan}", scene.base)).bearer_auth(&token);
        let returning = tokio::spawn(request.send());
        // Not to wait for anything: this is the moment at which the kill falls.
        tokio::time::sleep(Duration::from_millis(chance.u64(..9))).await;
        gate.kill();
        let returned =
            returning.await.unwrap().is_ok_and(|answer| answer.status() == StatusCode::NO_CONTENT);
        answered += usize::from(returned);

        gate = scene.spawn_gate().await;
        let asked = scene.origin.asked().len();
        let again = scene.get(&scene.http2(), &file, &token).send().await.unwrap();
        let is_open = again.status() == StatusCode::OK;
        assert!(!(returned && is_open), "round {round}: it was given back, and opens");
        if is_open {
            undone += 1;
            continue; // the kill came first, and the loan is as it was
        }
        assert_eq!(again.status(), StatusCode::FORBIDDEN);
        assert_eq!(scene.origin.asked().len(), asked, "round {round}: a byte after the end");
        // It arrives there, once or more often, and nothing is begun by the same token.
        let ended = async || {
            let ends = scene.books().await.last().map(|loan| loan["ends"].as_u64().unwrap());
            ends.is_some_and(|ends| ends > 0)
        };
        scene.until("the end is there", ended).await;
        assert_eq!(scene.books().await.len(), round + 1);
    }
    println!(
        "20 kills while loans were given back: {answered} were answered before, {undone} not begun with"
    );
    scene.check().await;
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

/// Asks again, as an app does, until the file comes. Nothing but a 503 may come before.
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

fn give_back(scene: &Scene, reader: &Asker) -> reqwest::RequestBuilder {
    scene.http1().delete(format!("{}{}", scene.base, reader.loan)).bearer_auth(&reader.token)
}

/// Asks again until it is answered that the loan is over.
async fn until_given_back(request: reqwest::RequestBuilder) {
    let deadline = Instant::now() + SERVED_WITHIN;
    while request.try_clone().unwrap().send().await.unwrap().status() != StatusCode::NO_CONTENT {
        assert!(Instant::now() < deadline, "not given back in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Compares the origin's log with the books: whenever a file was fetched, its reader had an
/// accepted loan of it there.
async fn no_byte_without_a_loan(scene: &Scene, names: &Readers) {
    let books = scene.books().await;
    let time =
        |loan: &Value, name: &str| loan[name].as_str().map(|at| at.parse::<Timestamp>().unwrap());
    let asked = scene.origin.asked();
    assert!(!asked.is_empty());
    for asked in asked {
        let mut segments = asked.path.trim_start_matches('/').split('/');
        let (isbn, file) = (segments.next().unwrap(), segments.next().unwrap());
        let (round, number) = file.trim_end_matches(".epub").split_once('-').unwrap();
        let borrower = format!("reader {number} of round {round}");
        let pseudonym = names.pseudonym(LIBRARY.parse().unwrap(), &borrower).to_string();
        let held = books.iter().any(|loan| {
            loan["isbn"] == isbn
                && loan["borrower"] == pseudonym.as_str()
                && time(loan, "accepted").is_some_and(|accepted| accepted <= asked.at)
                && time(loan, "ended").is_none_or(|ended| asked.at <= ended)
        });
        assert!(held, "{} was fetched at {} without a loan", asked.path, asked.at);
    }
}

/// Who has which title in one of these states.
fn in_the_books(books: &[Value], states: &[&str]) -> BTreeSet<(String, String)> {
    let text = |loan: &Value, name: &str| loan[name].as_str().unwrap().to_owned();
    let held = books.iter().filter(|loan| states.contains(&loan["status"].as_str().unwrap()));
    held.map(|loan| (text(loan, "borrower"), text(loan, "isbn"))).collect()
}

/// Tells pseudonyms as the gate of this scene does.
fn names(scene: &Scene) -> Readers {
    let loaded = loangate::config::load(&scene.config_file()).unwrap();
    Readers::new(&loaded.config.readers, Clock::system()).unwrap()
}
