//! Invariant 3: every loan ends, in the ledger and at Bokbasen. Access stops first, also for a
//! stalled reader.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::json;

use crate::support::scene::{Setting, movable_clock};
use crate::support::{AUDIO, BOOK, File, Scene};

/// Time after a return within which all its streams must end.
const ABORTED_WITHIN: Duration = Duration::from_secs(1);

async fn return_loan(scene: &Scene, isbn: &str, token: &str) {
    let url = format!("{}/loans/{isbn}", scene.base);
    let answer = scene.http1().delete(url).bearer_auth(token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
}

/// Returns `ends` and the status of the one loan in the books.
async fn ended(scene: &Scene) -> (u64, String) {
    let books = scene.books().await;
    (books[0]["ends"].as_u64().unwrap(), books[0]["status"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn return_aborts_running_streams_within_a_second() {
    for over_http2 in [false, true] {
        for stalled in [false, true] {
            let scene = Scene::start().await;
            scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(1 << 30));
            let token = scene.token("kari");
            let client = if over_http2 { scene.http2() } else { scene.http1() };
            let path = format!("/files/{AUDIO}/audio.mp3");
            let mut body = scene.get(&client, &path, &token).send().await.unwrap();
            assert_eq!(body.status(), StatusCode::OK);
            assert!(body.chunk().await.unwrap().is_some());
            // One reader keeps reading while the loan is returned; the other stalls.
            let reading = tokio::spawn(async move {
                while !stalled && body.chunk().await.is_ok_and(|chunk| chunk.is_some()) {}
                body
            });
            return_loan(&scene, AUDIO, &token).await;
            let returned = Instant::now();
            let over = async || {
                let metrics = scene.metrics().await;
                crate::support::metric(&metrics, "loangate_streams", "") == 0.0
            };
            scene.until("the body is over", over).await;
            assert!(returned.elapsed() < ABORTED_WITHIN, "{:?}", returned.elapsed());
            let mut body = reading.await.unwrap();
            let mut rest = 0;
            let broken = loop {
                match body.chunk().await {
                    Ok(Some(chunk)) => rest += chunk.len(),
                    Ok(None) => break false,
                    Err(_) => break true,
                }
            };
            assert!(
                broken || !stalled,
                "http2 {over_http2}, stalled {stalled}: {rest} bytes and a complete body"
            );
            let metrics = scene.metrics().await;
            let cut =
                crate::support::metric(&metrics, "loangate_streams_closed_total", "end=\"cut\"");
            assert_eq!(cut, 1.0, "http2 {over_http2}, stalled {stalled}");
            scene
                .until("the end is acknowledged", async || {
                    ended(&scene).await == (1, "RETURNED".into())
                })
                .await;
            scene.end().await;
        }
    }
}

#[tokio::test]
async fn unused_loan_is_cancelled_and_its_licence_freed() {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let token = scene.token("kari");
    let url = format!("{}/loans/{BOOK}", scene.base);
    let begun = scene.http1().put(url).bearer_auth(&token).send().await.unwrap();
    assert_eq!(begun.status(), StatusCode::CREATED);
    return_loan(&scene, BOOK, &token).await;
    scene.until("cancelled", async || scene.books().await[0]["status"] == "CANCELLED").await;
    scene.until("here too", async || scene.ledger().await[0]["end_reason"] == "cancelled").await;
    scene.end().await;
}

#[tokio::test]
async fn loan_is_returned_after_a_permit_also_after_a_restart() {
    for (permit, restart) in [(true, false), (true, true), (false, true)] {
        let mut scene = Scene::start().await;
        scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
        let token = scene.token("kari");
        let url = format!("{}/loans/{BOOK}", scene.base);
        scene.http1().put(url).bearer_auth(&token).send().await.unwrap();
        if permit {
            // A HEAD is a permit too; the gate does not track whether a byte followed.
            let url = format!("{}/files/{BOOK}/book.epub", scene.base);
            let head = scene.http1().head(url).bearer_auth(&token).send().await.unwrap();
            assert_eq!(head.status(), StatusCode::OK);
        }
        if restart {
            scene.stop_gate().await;
            scene.start_gate().await;
        }
        return_loan(&scene, BOOK, &token).await;
        let end = if permit { "RETURNED" } else { "CANCELLED" };
        scene.until(end, async || ended(&scene).await.1 == end).await;
        scene.end().await;
    }
}

#[tokio::test]
async fn pending_loan_can_be_returned() {
    let config = vec![("[ledger]", "[gate]\npatience = \"300ms\"\n\n[ledger]")];
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene
        .fault(&json!({ "call": "begin", "effect": { "pending_polls": { "n": 1_000_000 } } }))
        .await;
    let token = scene.token("kari");
    let path = format!("/files/{BOOK}/book.epub");
    let waiting = scene.get(&scene.http1(), &path, &token).send().await.unwrap();
    assert_eq!(waiting.status(), StatusCode::SERVICE_UNAVAILABLE);
    scene.until("pending", async || scene.ledger().await[0]["state"] == "pending").await;
    return_loan(&scene, BOOK, &token).await;
    scene.until("cancelled", async || scene.books().await[0]["status"] == "CANCELLED").await;
    assert!(scene.origin.requests().is_empty());
    scene.end().await;
}

#[tokio::test]
async fn return_of_a_pending_loan_is_final_for_waiting_requests() {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene
        .fault(&json!({ "call": "begin", "effect": { "pending_polls": { "n": 1_000_000 } } }))
        .await;
    // The query about the pending loan returns long after the end is acknowledged.
    scene.fault(&json!({ "call": "get", "effect": { "delay": { "ms": 500 } } })).await;
    let token = scene.token("kari");
    let path = format!("/files/{BOOK}/book.epub");
    let waiting = tokio::spawn(scene.get(&scene.http1(), &path, &token).send());
    scene
        .until("pending", async || {
            scene.ledger().await.iter().any(|loan| loan["state"] == "pending")
        })
        .await;
    return_loan(&scene, BOOK, &token).await;
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(scene.books().await.len(), 1, "begun again without a new request");
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert_eq!(answer.json::<serde_json::Value>().await.unwrap()["type"], "loan-ended");
    scene.until("cancelled", async || scene.books().await[0]["status"] == "CANCELLED").await;
    assert_eq!((scene.books().await.len(), scene.ledger().await.len()), (1, 1));

    // The loan was never accepted, so the same token may begin another (invariant 7).
    scene.no_faults().await;
    let again = scene.get(&scene.http1(), &path, &token).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::OK);
    scene.end().await;
}

#[tokio::test]
async fn end_arrives_after_an_outage_and_a_restart() {
    let mut scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let token = scene.token("kari");
    let path = format!("/files/{BOOK}/book.epub");
    assert_eq!(
        scene.get(&scene.http1(), &path, &token).send().await.unwrap().status(),
        StatusCode::OK
    );
    scene.stop_sandbox().await;
    return_loan(&scene, BOOK, &token).await;
    let gone = scene.get(&scene.http1(), &path, &token).send().await.unwrap();
    assert_eq!(
        gone.status(),
        StatusCode::FORBIDDEN,
        "access stops although Bokbasen has not received the end"
    );
    scene.stop_gate().await;
    scene.start_gate().await;
    let gone = scene.get(&scene.http1(), &path, &token).send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::FORBIDDEN, "access stays closed");
    scene.start_sandbox().await;
    scene.until("it arrived", async || ended(&scene).await == (1, "RETURNED".into())).await;
    scene.end().await;
}

#[tokio::test]
async fn unaccepted_ends_delay_no_other_and_alert_after_a_day() {
    let clock = movable_clock();
    let scene = Scene::start_with(Setting { clock: clock.clone(), ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(1000));
    // Many more ends than are sent at once.
    let fails =
        json!({ "call": "return", "isbn": BOOK, "effect": { "status": { "status": 429 } } });
    scene.fault(&fails).await;
    for number in 0..40 {
        let token = scene.token(&format!("reader-{number}"));
        let path = format!("/files/{BOOK}/book.epub");
        assert_eq!(
            scene.get(&scene.http1(), &path, &token).send().await.unwrap().status(),
            StatusCode::OK
        );
        return_loan(&scene, BOOK, &token).await;
    }
    let token = scene.token("kari");
    let path = format!("/files/{AUDIO}/audio.mp3");
    assert_eq!(
        scene.get(&scene.http1(), &path, &token).send().await.unwrap().status(),
        StatusCode::OK
    );
    return_loan(&scene, AUDIO, &token).await;
    let state = async |isbn: &'static str| {
        let ledger = scene.ledger().await;
        ledger.into_iter().find(|loan| loan["isbn"] == isbn).unwrap()
    };
    scene.until("the good one is over", async || state(AUDIO).await["state"] == "ended").await;
    let failing = state(BOOK).await;
    assert_eq!(
        (&failing["state"], failing.get("end_overdue")),
        (&"ending".into(), None),
        "{failing}"
    );

    clock.advance(Duration::from_secs(86_401));
    let overdue = async || {
        let metrics = scene.metrics().await;
        crate::support::metric(&metrics, "loangate_ends_overdue", "") == 40.0
    };
    scene.until("the alarm", overdue).await;
    assert_eq!(state(BOOK).await["end_overdue"], true);
    scene.no_faults().await;
    let over = async || scene.ledger().await.iter().all(|loan| loan["state"] == "ended");
    scene.until("all are over", over).await;
    assert!(scene.books().await.iter().all(|loan| loan["ends"].as_u64() >= Some(1)));
    scene.end().await;
}
