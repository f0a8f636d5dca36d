//! Difference between Bokbasen's clock and the gate's. Loans end by Bokbasen's clock, and none
//! begins when the difference is too large.

use std::time::Duration;

use http::StatusCode;
use jiff::SignedDuration;
use loangate::clock::Clock;
use serde_json::json;

use crate::support::scene::{Setting, movable_clock};
use crate::support::{BOOK, File, Scene, metric};

/// Duration of a loan in the sandbox.
const LOAN_DURATION: Duration = Duration::from_secs(21 * 86_400);
const PATH: &str = "/files/9788299999014/book.epub";

async fn scene() -> (Scene, Clock) {
    let clock = movable_clock();
    let scene = Scene::start_with(Setting { clock: clock.clone(), ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(100));
    (scene, clock)
}

/// Returns whether the reader's loan opens the file. A ranged request begins no other loan.
async fn opens(scene: &Scene) -> bool {
    let request =
        scene.get(&scene.http2(), PATH, &scene.token("kari")).header("range", "bytes=10-");
    match request.send().await.unwrap().status() {
        StatusCode::PARTIAL_CONTENT => true,
        StatusCode::FORBIDDEN | StatusCode::SERVICE_UNAVAILABLE => false,
        other => panic!("{other}"),
    }
}

/// Its issuer's clock was right, and the end is later: the gate's clock has been set back since.
#[tokio::test]
async fn token_from_before_an_end_in_the_future_begins_nothing() {
    let (scene, clock) = scene().await;
    let start = clock.now();
    clock.advance(Duration::from_secs(60));
    let issued = |id: &str| {
        let times = (clock.now().as_second(), clock.now().as_second() + 3600);
        scene.token_with(&json!({ "sub": "kari", "iat": times.0, "exp": times.1, "jti": id }))
    };
    let (used, unused) = (issued("1"), issued("2"));
    assert_eq!(status(&scene, &used).await, StatusCode::OK);
    clock.advance(Duration::from_secs(1));
    let (returned, _) = scene.call_api("DELETE", &format!("/loans/{BOOK}"), &used, "").await;
    assert_eq!(returned, StatusCode::NO_CONTENT);
    let ended = async || scene.ledger().await[0]["state"] == "ended";
    scene.until("the end is acknowledged", ended).await;

    clock.set(start.checked_add(SignedDuration::from_secs(30)).unwrap());
    assert_ne!(status(&scene, &used).await, StatusCode::OK);
    clock.advance(Duration::from_secs(5));
    assert_ne!(status(&scene, &unused).await, StatusCode::OK);
    assert_eq!(scene.books().await.len(), 1);
    scene.end().await;
}

async fn status(scene: &Scene, token: &str) -> StatusCode {
    scene.get(&scene.http2(), PATH, token).send().await.unwrap().status()
}

/// Sets the sandbox's clock ahead, and waits until the gate has measured the difference.
async fn set_ahead(scene: &Scene, seconds: i64) {
    scene.control("PUT", "/sandbox/settings", &json!({ "clock_skew_seconds": seconds })).await;
    let measured = async || {
        // Every response carries Bokbasen's time.
        status(scene, &scene.token(&format!("somebody {}", fastrand::u64(..)))).await;
        let offset = metric(&scene.metrics().await, "loangate_lending_clock_offset_seconds", "");
        (offset - seconds as f64).abs() < 3.0
    };
    scene.until("the difference is measured", measured).await;
}

#[tokio::test]
async fn loans_end_by_bokbasens_clock() {
    const APART: i64 = 600;
    for (ahead, at, expected) in [
        (APART, LOAN_DURATION - Duration::from_secs(300), false),
        (-APART, LOAN_DURATION + Duration::from_secs(300), true),
        (-APART, LOAN_DURATION + Duration::from_secs(900), false),
    ] {
        let (scene, clock) = scene().await;
        assert_eq!(status(&scene, &scene.token("kari")).await, StatusCode::OK);
        set_ahead(&scene, ahead).await;
        assert_eq!(metric(&scene.metrics().await, "loangate_lending_clock_alarm", ""), 1.0);
        clock.advance(at);
        assert_eq!(opens(&scene).await, expected, "{ahead} s ahead, {at:?} after the begin");
        if !expected {
            let expired =
                async || scene.ledger().await.iter().any(|loan| loan["end_reason"] == "expired");
            scene.until("its expiry is registered", expired).await;
        }
        scene.end().await;
    }
}

#[tokio::test]
async fn beyond_fifteen_minutes_nothing_begins_or_expires() {
    let (scene, clock) = scene().await;
    assert_eq!(status(&scene, &scene.token("kari")).await, StatusCode::OK);
    set_ahead(&scene, 3600).await;
    assert_eq!(metric(&scene.metrics().await, "loangate_lending_clock_alarm", ""), 2.0);
    let refused = scene.get(&scene.http2(), PATH, &scene.token("newcomer")).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    assert!(refused.text().await.unwrap().contains("lending-unavailable"));
    assert!(scene.admin("/readyz").await.text().await.unwrap().contains("clock"));
    assert!(opens(&scene).await, "a live loan opens its files");

    // The loan has ended by Bokbasen's clock but not by the gate's: it opens nothing, and its end
    // is not certain.
    clock.advance(LOAN_DURATION - Duration::from_secs(1800));
    assert!(!opens(&scene).await);
    // Without the difference, an expiry would be registered by then: the task runs every second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(
        scene
            .ledger()
            .await
            .iter()
            .all(|loan| loan["state"] != "ended" && loan["state"] != "ending")
    );

    scene.control("PUT", "/sandbox/settings", &json!({ "clock_skew_seconds": 0 })).await;
    let ready = async || !scene.admin("/readyz").await.text().await.unwrap().contains("clock");
    scene.until("the clocks agree again", ready).await;
    assert!(opens(&scene).await, "the loan was not ended by the wrong clock");
    assert_eq!(status(&scene, &scene.token("another")).await, StatusCode::OK);
    scene.end().await;
}

#[tokio::test]
async fn end_in_the_future_blocks_no_later_token() {
    let (scene, clock) = scene().await;
    let start = clock.now();
    clock.advance(Duration::from_secs(3 * 3600));
    let old = scene.token("kari");
    assert_eq!(status(&scene, &old).await, StatusCode::OK);
    let (returned, _) = scene.call_api("DELETE", &format!("/loans/{BOOK}"), &old, "").await;
    assert_eq!(returned, StatusCode::NO_CONTENT);
    scene
        .until("the end is acknowledged", async || scene.ledger().await[0]["state"] == "ended")
        .await;

    // The clock was three hours ahead, and is corrected.
    clock.set(start.checked_add(SignedDuration::from_secs(60)).unwrap());
    let same_time = scene.token("kari");
    assert_eq!(
        status(&scene, &same_time).await,
        StatusCode::FORBIDDEN,
        "it is not certainly later"
    );
    clock.advance(Duration::from_secs(5));
    let later = scene.token("kari");
    assert_eq!(status(&scene, &same_time).await, StatusCode::FORBIDDEN);
    assert_eq!(status(&scene, &later).await, StatusCode::OK);

    // The end of that loan counts too, although the other one is still in the future.
    clock.advance(Duration::from_secs(5));
    let (returned, _) = scene.call_api("DELETE", &format!("/loans/{BOOK}"), &later, "").await;
    assert_eq!(returned, StatusCode::NO_CONTENT);
    let all_ended = async || scene.ledger().await.iter().all(|loan| loan["state"] == "ended");
    scene.until("the second end is acknowledged", all_ended).await;
    assert_eq!(status(&scene, &later).await, StatusCode::FORBIDDEN);
    clock.advance(Duration::from_secs(5));
    assert_eq!(status(&scene, &scene.token("kari")).await, StatusCode::OK);
    assert_eq!(status(&scene, &later).await, StatusCode::OK, "the loan is open");
    scene.end().await;
}
