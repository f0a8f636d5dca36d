//! Invariant 3: every loan ends, there as here; access stops first, also that of a reader who takes
//! nothing.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::json;

use crate::support::scene::{Setting, movable};
use crate::support::{AUDIO, BOOK, File, Scene};

/// After a return, within this time nothing of it may be under way any more.
const CUT_WITHIN: Duration = Duration::from_secs(1);

async fn give_back(scene: &Scene, isbn: &str, token: &str) {
    let url = format!("{}/loans/{isbn}", scene.base);
    let answer = scene.http1().delete(url).bearer_auth(token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
}

/// The `ends`, and the status, of the one loan in the books.
async fn ended(scene: &Scene) -> (u64, String) {
    let books = scene.books().await;
    (books[0]["ends"].as_u64().unwrap(), books[0]["status"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_return_cuts_a_stream_on_another_connection_within_a_second() {
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
            // The reader who reads goes on reading while the loan is given back; the other one
            // takes nothing.
            let reading = tokio::spawn(async move {
                while !stalled && body.chunk().await.is_ok_and(|chunk| chunk.is_some()) {}
                body
            });
            give_back(&scene, AUDIO, &token).await;
            let returned = Instant::now();
            let over = async || {
                let metrics = scene.metrics().await;
                crate::support::metric(&metrics, "loangate_streams", "") == 0.0
            };
            scene.until("the body is over", over).await;
            assert!(returned.elapsed() < CUT_WITHIN, "{:?}", returned.elapsed());
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
                "http2 {over_http2}, stalled {stalled}: {rest} bytes and a clean end"
            );
            let metrics = scene.metrics().await;
            let cut =
                crate::support::metric(&metrics, "loangate_streams_closed_total", "end=\"cut\"");
            assert_eq!(cut, 1.0, "http2 {over_http2}, stalled {stalled}");
            scene
                .until("it is acknowledged", async || ended(&scene).await == (1, "RETURNED".into()))
                .await;
            scene.end().await;
        }
    }
}

#[tokio::test]
async fn a_loan_that_nobody_had_a_file_of_is_cancelled_and_its_licence_is_free_again() {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let token = scene.token("kari");
    let url = format!("{}/loans/{BOOK}", scene.base);
    let begun = scene.http1().put(url).bearer_auth(&token).send().await.unwrap();
    assert_eq!(begun.status(), StatusCode::CREATED);
    give_back(&scene, BOOK, &token).await;
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
            // HEAD is a permit too: whether a byte followed it is not worth knowing.
            let url = format!("{}/files/{BOOK}/book.epub", scene.base);
            let head = scene.http1().head(url).bearer_auth(&token).send().await.unwrap();
            assert_eq!(head.status(), StatusCode::OK);
        }
        if restart {
            scene.stop_gate().await;
            scene.start_gate().await;
        }
        give_back(&scene, BOOK, &token).await;
        let end = if permit { "RETURNED" } else { "CANCELLED" };
        scene.until(end, async || ended(&scene).await.1 == end).await;
        scene.end().await;
    }
}

#[tokio::test]
async fn a_loan_can_be_taken_back_while_bokbasen_has_not_decided() {
    let config = vec![("[ledger]", "[gate]\npatience = \"300ms\"\n\n[ledger]")];
    let scene = Scene::set(Setting { config, ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene
        .fault(&json!({ "call": "begin", "effect": { "pending_polls": { "n": 1_000_000 } } }))
        .await;
    let token = scene.token("kari");
    let path = format!("/files/{BOOK}/book.epub");
    let asked = scene.get(&scene.http1(), &path, &token).send().await.unwrap();
    assert_eq!(asked.status(), StatusCode::SERVICE_UNAVAILABLE);
    scene.until("pending", async || scene.ledger().await[0]["state"] == "pending").await;
    give_back(&scene, BOOK, &token).await;
    scene.until("cancelled", async || scene.books().await[0]["status"] == "CANCELLED").await;
    assert!(scene.origin.asked().is_empty());
    scene.end().await;
}

#[tokio::test]
async fn what_is_taken_back_while_a_request_waits_for_it_is_not_begun_again_for_that_request() {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene
        .fault(&json!({ "call": "begin", "effect": { "pending_polls": { "n": 1_000_000 } } }))
        .await;
    // The question on its way about the pending loan is answered only when the end has long been
    // acknowledged.
    scene.fault(&json!({ "call": "get", "effect": { "delay": { "ms": 500 } } })).await;
    let token = scene.token("kari");
    let path = format!("/files/{BOOK}/book.epub");
    let waiting = tokio::spawn(scene.get(&scene.http1(), &path, &token).send());
    scene
        .until("pending", async || {
            scene.ledger().await.iter().any(|loan| loan["state"] == "pending")
        })
        .await;
    give_back(&scene, BOOK, &token).await;
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(scene.books().await.len(), 1, "begun again although nobody asked since");
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert_eq!(answer.json::<serde_json::Value>().await.unwrap()["type"], "loan-ended");
    scene.until("cancelled", async || scene.books().await[0]["status"] == "CANCELLED").await;
    assert_eq!((scene.books().await.len(), scene.ledger().await.len()), (1, 1));

    // It was never accepted, so that the same token may ask for it again (invariant 7).
    scene.no_faults().await;
    let again = scene.get(&scene.http1(), &path, &token).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::OK);
    scene.end().await;
}

#[tokio::test]
async fn an_end_arrives_after_an_outage_and_a_restart() {
    let mut scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let token = scene.token("kari");
    let path = format!("/files/{BOOK}/book.epub");
    assert_eq!(
        scene.get(&scene.http1(), &path, &token).send().await.unwrap().status(),
        StatusCode::OK
    );
    scene.stop_sandbox().await;
    give_back(&scene, BOOK, &token).await;
    let gone = scene.get(&scene.http1(), &path, &token).send().await.unwrap();
    assert_eq!(
        gone.status(),
        StatusCode::FORBIDDEN,
        "access stops although nobody there knows of it"
    );
    scene.stop_gate().await;
    scene.start_gate().await;
    let gone = scene.get(&scene.http1(), &path, &token).send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::FORBIDDEN, "and stays so");
    scene.start_sandbox().await;
    scene.until("it arrived", async || ended(&scene).await == (1, "RETURNED".into())).await;
    scene.end().await;
}

#[tokio::test]
async fn ends_that_bokbasen_never_takes_hold_up_no_other_and_are_an_alarm_after_a_day() {
    let clock = movable();
    let scene = Scene::set(Setting { clock: clock.clone(), ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(1000));
    // Far more than are sent at once.
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
        give_back(&scene, BOOK, &token).await;
    }
    let token = scene.token("kari");
    let path = format!("/files/{AUDIO}/audio.mp3");
    assert_eq!(
        scene.get(&scene.http1(), &path, &token).send().await.unwrap().status(),
        StatusCode::OK
    );
    give_back(&scene, AUDIO, &token).await;
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
