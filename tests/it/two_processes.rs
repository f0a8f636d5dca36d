//! Several gates on one ledger: a loan that one process ends opens nothing at another, and none
//! cancels a loan that another has opened. Also the behaviour while the ledger's change feed is
//! unreadable.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::support::scene::{Setting, movable_clock};
use crate::support::{AUDIO, BOOK, File, Process, Scene, metric};

/// Time within which an end at one process reaches the other.
const PROPAGATES_WITHIN: Duration = Duration::from_secs(1);

/// Starts two gates on one ledger. The scene uses the first; the text is the second's base URL.
async fn two_gates() -> (Scene, Process, Process, String) {
    let mut scene = Scene::without_gate(Setting::default()).await;
    let first = scene.spawn_gate().await;
    let second = Process::serve(&scene.config_file()).await;
    let base = second.ready_field("base_url");
    (scene, first, second, base)
}

async fn return_loan(scene: &Scene, base: &str, isbn: &str, token: &str) {
    let answer = scene
        .http1()
        .delete(format!("{base}/loans/{isbn}"))
        .bearer_auth(token)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn return_at_one_process_stops_streams_at_the_other() {
    let (scene, first, second, base) = two_gates().await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(1 << 30));
    let mut slowest = Duration::ZERO;
    for (borrower, over_http2, stalled) in
        [("a", false, false), ("b", true, false), ("c", false, true), ("d", true, true)]
    {
        let token = scene.token(borrower);
        let client = if over_http2 { scene.http2() } else { scene.http1() };
        let path = format!("/files/{AUDIO}/audio.mp3");
        let mut body = scene.get(&client, &path, &token).send().await.unwrap();
        assert_eq!(body.status(), StatusCode::OK);
        assert!(body.chunk().await.unwrap().is_some());
        let reading = tokio::spawn(async move {
            while !stalled && body.chunk().await.is_ok_and(|chunk| chunk.is_some()) {}
            body
        });
        return_loan(&scene, &base, AUDIO, &token).await;
        let returned = Instant::now();
        let over = async || metric(&scene.metrics().await, "loangate_streams", "") == 0.0;
        scene.until("the body is over", over).await;
        slowest = slowest.max(returned.elapsed());
        drop(reading.await.unwrap());
        let again = scene.get(&scene.http1(), &path, &token).send().await.unwrap();
        assert_eq!(again.status(), StatusCode::FORBIDDEN);
        let problem: Value = again.json().await.unwrap();
        assert_eq!(problem["type"], "loan-ended");
    }
    println!("a return at one process stopped streams at the other within {slowest:?}");
    assert!(slowest < PROPAGATES_WITHIN, "{slowest:?}");
    drop((first, second));
    scene.end().await;
}

/// Bokbasen answers later than the other process looks for ends to send, and one process has more
/// of them than it may send at once. Some are noted by both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_is_sent_by_one_of_two_processes() {
    let (scene, first, second, base) = two_gates().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let tokens: Vec<String> = (0..40).map(|number| scene.token(&number.to_string())).collect();
    for token in &tokens {
        assert_eq!(read(&scene, token).await, StatusCode::OK);
    }
    for call in ["return", "cancel"] {
        scene.fault(&json!({ "call": call, "effect": { "delay": { "ms": 1500 } } })).await;
    }
    let returns = tokens.iter().enumerate().map(async |(number, token)| {
        let here = return_loan(&scene, &base, BOOK, token);
        match number % 4 {
            0 => drop(tokio::join!(here, return_loan(&scene, &scene.base, BOOK, token))),
            _ => here.await,
        }
    });
    join_all(returns).await;
    let ended = async || scene.ledger().await.iter().all(|loan| loan["state"] == "ended");
    scene.until("the ends", ended).await;
    let books = scene.books().await;
    let twice = books.iter().filter(|loan| loan["ends"] != 1).count();
    assert_eq!((books.len(), twice), (tokens.len(), 0), "{books:?}");
    drop((first, second));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loan_opened_at_one_process_is_not_cancelled_at_the_other() {
    let (scene, first, second, base) = two_gates().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let (opened, unopened) = (scene.token("opened"), scene.token("unopened"));
    for token in [&opened, &unopened] {
        let url = format!("{}/loans/{BOOK}", scene.base);
        let begun = scene.http1().put(url).bearer_auth(token).send().await.unwrap();
        assert_eq!(begun.status(), StatusCode::CREATED);
    }
    let path = format!("/files/{BOOK}/book.epub");
    let read = scene.get(&scene.http1(), &path, &opened).send().await.unwrap();
    assert_eq!(read.status(), StatusCode::OK);
    for token in [&opened, &unopened] {
        return_loan(&scene, &base, BOOK, token).await;
    }
    let status =
        async |number: usize| scene.books().await[number]["status"].as_str().unwrap().to_owned();
    scene.until("the opened one is returned", async || status(0).await == "RETURNED").await;
    scene.until("the unopened one is cancelled", async || status(1).await == "CANCELLED").await;
    drop((first, second));
    scene.end().await;
}

/// Runs a statement on the ledger's file while the gates run.
async fn alter(scene: &Scene, statement: &'static str) {
    let file = scene.dir.path().join("data/loangate.db");
    let options = SqliteConnectOptions::new().filename(file).busy_timeout(Duration::from_secs(10));
    let mut connection = options.connect().await.unwrap();
    sqlx::query(statement).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn read(scene: &Scene, token: &str) -> StatusCode {
    let path = format!("/files/{BOOK}/book.epub");
    scene.get(&scene.http1(), &path, token).send().await.unwrap().status()
}

#[tokio::test]
async fn unreadable_feed_bounds_cached_acceptances() {
    let clock = movable_clock();
    let scene = Scene::start_with(Setting { clock: clock.clone(), ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let token = scene.token("kari");
    let via = async |via: &str| {
        metric(&scene.metrics().await, "loangate_requests_total", &format!("via=\"{via}\""))
    };
    assert_eq!(read(&scene, &token).await, StatusCode::OK);
    assert_eq!((read(&scene, &token).await, via("cache").await), (StatusCode::OK, 1.0));
    // The feed can no longer be read, but the loans can.
    alter(&scene, "ALTER TABLE history RENAME TO lost_history").await;
    clock.advance(Duration::from_secs(29));
    assert_eq!((read(&scene, &token).await, via("cache").await), (StatusCode::OK, 2.0));
    clock.advance(Duration::from_secs(31));
    assert_eq!(
        (read(&scene, &token).await, via("ledger").await),
        (StatusCode::OK, 1.0),
        "the loan is read from the ledger"
    );
    assert_eq!(
        (read(&scene, &token).await, via("cache").await),
        (StatusCode::OK, 3.0),
        "a confirmation by the ledger must be cached like one by the feed"
    );
    // The loans cannot be read either.
    alter(&scene, "ALTER TABLE loans RENAME TO lost_loans").await;
    assert_eq!((read(&scene, &token).await, via("cache").await), (StatusCode::OK, 4.0));
    clock.advance(Duration::from_secs(31));
    assert_eq!(read(&scene, &token).await, StatusCode::SERVICE_UNAVAILABLE);
    alter(&scene, "ALTER TABLE lost_loans RENAME TO loans").await;
    assert_eq!(read(&scene, &token).await, StatusCode::OK, "the ledger can be read again");
    alter(&scene, "ALTER TABLE lost_history RENAME TO history").await;
    clock.advance(Duration::from_secs(60));
    let cached = async || {
        let before = via("cache").await;
        read(&scene, &token).await == StatusCode::OK && via("cache").await > before
    };
    scene.until("the feed confirms what is cached", cached).await;
    scene.end().await;
}

#[tokio::test]
async fn stream_ends_once_neither_feed_nor_ledger_confirms_it() {
    let config = vec![("[ledger]", "[gate]\nfreshness = \"1s\"\n\n[ledger]")];
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(1 << 30));
    let path = format!("/files/{AUDIO}/audio.mp3");
    let token = scene.token("kari");
    let mut body = scene.get(&scene.http1(), &path, &token).send().await.unwrap();
    assert!(body.chunk().await.unwrap().is_some());
    let running = async || metric(&scene.metrics().await, "loangate_streams", "") == 1.0;
    // While the loans can be read, a stream continues without the feed.
    alter(&scene, "ALTER TABLE history RENAME TO lost_history").await;
    let ledger_reads = metric(&scene.metrics().await, "loangate_requests_total", "via=\"ledger\"");
    let stale = async || {
        let head =
            scene.http1().head(format!("{}{path}", scene.base)).bearer_auth(&token).send().await;
        assert_eq!(head.unwrap().status(), StatusCode::OK);
        metric(&scene.metrics().await, "loangate_requests_total", "via=\"ledger\"")
            > ledger_reads + 2.0
    };
    scene.until("what is cached has been stale three times", stale).await;
    assert!(running().await);
    alter(&scene, "ALTER TABLE loans RENAME TO lost_loans").await;
    scene.until("the stream is aborted", async || !running().await).await;
    alter(&scene, "ALTER TABLE lost_loans RENAME TO loans").await;
    alter(&scene, "ALTER TABLE lost_history RENAME TO history").await;
    let again = scene.get(&scene.http1(), &path, &token).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::OK, "the loan itself is live");
    drop((again, body));
    scene.end().await;
}

#[tokio::test]
async fn unopened_loan_needs_a_ledger_that_can_be_written() {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let (opened, unopened) = (scene.token("opened"), scene.token("unopened"));
    for token in [&opened, &unopened] {
        let url = format!("{}/loans/{BOOK}", scene.base);
        let begun = scene.http1().put(url).bearer_auth(token).send().await.unwrap();
        assert_eq!(begun.status(), StatusCode::CREATED);
    }
    assert_eq!(read(&scene, &opened).await, StatusCode::OK);
    alter(
        &scene,
        "CREATE TRIGGER full BEFORE UPDATE OF opened ON loans BEGIN SELECT RAISE(ABORT, 'disk \
         full'); END",
    )
    .await;
    let path = format!("/files/{BOOK}/book.epub");
    let refused = scene.get(&scene.http1(), &path, &unopened).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let problem: Value = refused.json().await.unwrap();
    assert_eq!(problem["type"], "ledger-unavailable");
    assert_eq!(read(&scene, &opened).await, StatusCode::OK);
    alter(&scene, "DROP TRIGGER full").await;
    assert_eq!(read(&scene, &unopened).await, StatusCode::OK);
    scene.end().await;
}
