//! Invariant 7: after an end, only a later credential begins another loan, and a resumed download
//! never does.

use http::StatusCode;
use loangate::sandbox::Bounds;
use serde_json::{Value, json};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::support::{AUDIO, BOOK, File, Scene, Setting};

const SIZE: u64 = 100_000;

#[tokio::test]
async fn download_resumed_after_a_return_uses_no_licence() {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(SIZE));
    let (path, loan) = (format!("/files/{AUDIO}/audio.mp3"), format!("/loans/{AUDIO}"));
    let now = loangate::clock::Clock::system().now().as_second();
    let token = scene.token_with(&json!({ "sub": "kari", "iat": now - 30 }));
    let client = scene.http2();
    let first =
        scene.get(&client, &path, &token).header("range", "bytes=0-9999").send().await.unwrap();
    assert_eq!(first.status(), StatusCode::PARTIAL_CONTENT);
    let returned =
        client.delete(format!("{}{loan}", scene.base)).bearer_auth(&token).send().await.unwrap();
    assert_eq!(returned.status(), StatusCode::NO_CONTENT);
    scene
        .until("the end is acknowledged", async || scene.ledger().await[0]["state"] == "ended")
        .await;
    let before = scene.origin.requests().len();

    // The download requests its next range with its old token, and then with one that the app
    // renewed.
    let ended: jiff::Timestamp =
        scene.ledger().await[0]["ended"].as_str().unwrap().parse().unwrap();
    let renewed = scene.token_with(&json!({ "sub": "kari", "iat": ended.as_second() + 1 }));
    for (token, what) in [(&token, "loan-ended"), (&renewed, "loan-refused")] {
        for (range, validator) in [
            ("bytes=10000-19999", None),
            ("bytes=10000-", Some(("if-range", "\"v1\""))),
            ("bytes=-500", None),
            ("bytes=10000-", Some(("if-match", "\"v1\""))),
        ] {
            let mut request = scene.get(&client, &path, token).header("range", range);
            if let Some((name, value)) = validator {
                request = request.header(name, value);
            }
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{range} {validator:?}");
            let document: Value = answer.json().await.unwrap();
            assert_eq!(document["type"], what, "{range} {validator:?}");
        }
    }
    // The old token begins nothing from the start either, nor by an explicit begin.
    assert_eq!(
        scene.get(&client, &path, &token).send().await.unwrap().status(),
        StatusCode::FORBIDDEN
    );
    let put = client.put(format!("{}{loan}", scene.base)).bearer_auth(&token).send().await.unwrap();
    assert_eq!(put.status(), StatusCode::FORBIDDEN);
    assert_eq!(
        (scene.books().await.len(), scene.origin.requests().len()),
        (1, before),
        "a loan was begun or a byte sent"
    );

    // After a new login, a request from the start begins another loan.
    assert_eq!(scene.get(&client, &path, &renewed).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(scene.books().await.len(), 2);
    scene.end().await;
}

#[tokio::test]
async fn token_of_a_clock_that_is_ahead_begins_nothing_after_a_return() {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(SIZE));
    let (path, loan) = (format!("/files/{AUDIO}/audio.mp3"), format!("/loans/{AUDIO}"));
    let now = loangate::clock::Clock::system().now().as_second();
    let token = scene.token_with(&json!({ "sub": "kari", "iat": now + 50 }));
    let request = async || scene.get(&scene.http1(), &path, &token).send().await.unwrap().status();
    assert_eq!(request().await, StatusCode::OK);
    let (returned, _) = scene.call_api("DELETE", &loan, &token, "").await;
    assert_eq!(returned, StatusCode::NO_CONTENT);
    let ended = async || scene.ledger().await[0]["state"] == "ended";
    scene.until("the end is acknowledged", ended).await;
    assert_eq!(request().await, StatusCode::FORBIDDEN);
    assert_eq!(scene.call_api("PUT", &loan, &token, "").await.0, StatusCode::FORBIDDEN);
    assert_eq!(scene.books().await.len(), 1);
    scene.end().await;
}

/// The end of the earlier loan was cached, and nobody waited for the acceptance of the new one.
#[tokio::test]
async fn older_token_reads_under_a_loan_that_was_accepted_late() {
    let config = vec![("[ledger]", "[gate]\npatience = \"300ms\"\n\n[ledger]")];
    let bounds = Bounds { poll_after_seconds: 0, ..Bounds::quick() };
    let scene = Scene::start_with(Setting { config, bounds, ..Setting::default() }).await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(SIZE));
    let (path, loan) = (format!("/files/{AUDIO}/audio.mp3"), format!("/loans/{AUDIO}"));
    let now = loangate::clock::Clock::system().now().as_second();
    let token = scene.token_with(&json!({ "sub": "kari", "iat": now - 30 }));
    let read = async || scene.get(&scene.http1(), &path, &token).send().await.unwrap().status();
    scene.until("the file is delivered", async || read().await == StatusCode::OK).await;
    assert_eq!(scene.call_api("DELETE", &loan, &token, "").await.0, StatusCode::NO_CONTENT);
    let ended = async || scene.ledger().await[0]["state"] == "ended";
    scene.until("the end is acknowledged", ended).await;
    assert_eq!(read().await, StatusCode::FORBIDDEN);

    let effect = json!({ "pending_polls": { "n": 4 } });
    scene.fault(&json!({ "call": "begin", "times": 1, "effect": effect })).await;
    let ended = scene.ledger().await[0]["ended"].as_str().unwrap().to_owned();
    let ended: jiff::Timestamp = ended.parse().unwrap();
    let newer = scene.token_with(&json!({ "sub": "kari", "iat": ended.as_second() + 1 }));
    let begin = async || scene.call_api("PUT", &loan, &newer, "").await.0;
    let is_pending = async || begin().await == StatusCode::SERVICE_UNAVAILABLE;
    scene.until("the loan is pending", is_pending).await;
    scene.no_faults().await;
    let live = async || scene.ledger().await.iter().any(|loan| loan["state"] == "accepted");
    scene.until("Bokbasen accepts it", live).await;
    scene.until("the older token reads", async || read().await == StatusCode::OK).await;
    assert_eq!(scene.books().await.len(), 2);
    scene.end().await;
}

#[tokio::test]
async fn return_waits_for_a_begin_that_is_not_written_yet() {
    let config = vec![("[ledger]", "[gate]\npatience = \"300ms\"\n\n[ledger]")];
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    let (path, token) = (format!("/loans/{BOOK}"), scene.token("kari"));
    let request = async |method: &str| scene.call_api(method, &path, &token, "").await;
    let config = loangate::config::load(&scene.config_file()).unwrap().config;
    let file = SqliteConnectOptions::new().filename(config.ledger.sqlite_file().unwrap());
    let mut other = SqliteConnection::connect_with(&file).await.unwrap();

    // Another process writes to the ledger, longer than the reader waits for the begin.
    let writing = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let (status, problem) = request("PUT").await;
    assert_eq!((status.as_u16(), &problem["type"]), (503, &"loan-pending".into()), "{problem}");
    let (status, problem) = request("DELETE").await;
    assert_eq!((status.as_u16(), &problem["type"]), (503, &"loan-pending".into()), "{problem}");
    writing.rollback().await.unwrap();

    let returned = async || request("DELETE").await.0 == StatusCode::NO_CONTENT;
    scene.until("the loan is returned", returned).await;
    let is_over = async || scene.ledger().await.iter().all(|loan| loan["state"] == "ended");
    scene.until("the end is acknowledged", is_over).await;
    assert_eq!((scene.ledger().await.len(), scene.books().await.len()), (1, 1));
    scene.end().await;
}
