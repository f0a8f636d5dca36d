//! The spending brake: neither a stolen key nor an app in a loop spends a library's budget.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::scene::{Setting, movable_clock};
use crate::support::{BOOK, File, Scene, metric};

async fn scene(brake: &'static str) -> (Scene, loangate::clock::Clock) {
    let clock = movable_clock();
    let config = vec![("[ledger]", brake)];
    let scene =
        Scene::start_with(Setting { config, clock: clock.clone(), ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    (scene, clock)
}

async fn borrow(scene: &Scene, borrower: &str, library: &str) -> reqwest::Response {
    let token = scene.token_with(&json!({ "sub": borrower, "library": library }));
    scene.get(&scene.http1(), &format!("/files/{BOOK}/book.epub"), &token).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brake_limits_concurrent_begins_and_survives_a_restart() {
    let (mut scene, clock) =
        scene("[brake]\nmode = \"enforce\"\nlibrary_per_hour = 20\n\n[ledger]").await;
    let responses = futures_util::future::join_all((0..100).map(|number| {
        let scene = &scene;
        async move { borrow(scene, &format!("reader-{number}"), "NO-0301000").await }
    }));
    let responses = responses.await;
    let served = responses.iter().filter(|answer| answer.status() == StatusCode::OK).count();
    let braked =
        responses.iter().filter(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS).count();
    assert_eq!((served, braked), (20, 80));
    assert_eq!(scene.books().await.len(), 20, "no begin exceeded the limit");
    scene.stop_gate().await;
    scene.start_gate().await;
    let answer = borrow(&scene, "another", "NO-0301000").await;
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS, "the count survives a restart");
    let wait: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3500..=3600).contains(&wait), "{wait}");
    let document: Value = answer.json().await.unwrap();
    assert_eq!(
        (&document["type"], &document["reason"]),
        (&"too-many-requests".into(), &"brake".into())
    );
    assert_eq!(
        borrow(&scene, "reader", "NO-1103000").await.status(),
        StatusCode::OK,
        "another library"
    );
    clock.advance(Duration::from_secs(wait + 1));
    assert_eq!(
        borrow(&scene, "another", "NO-0301000").await.status(),
        StatusCode::OK,
        "an hour later"
    );
    scene.end().await;
}

#[tokio::test]
async fn brake_ignores_existing_loans_and_refused_begins() {
    let (scene, _) = scene("[brake]\nmode = \"enforce\"\nborrower_per_hour = 1\n\n[ledger]").await;
    let refuse = json!({ "call": "begin", "times": 1,
        "effect": { "refuse": { "code": "NO_FREE_LICENSE" } } });
    scene.fault(&refuse).await;
    let other = "9788299999021";
    scene.origin.put(&format!("{other}/book.epub"), File::of(1000));
    let token = scene.token("kari");
    let get = async |isbn: &str| {
        let path = format!("/files/{isbn}/book.epub");
        scene.get(&scene.http1(), &path, &token).send().await.unwrap().status()
    };
    assert_eq!(get(BOOK).await, StatusCode::FORBIDDEN);
    assert_eq!(get(other).await, StatusCode::OK);
    assert_eq!(get("9788299999038").await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(get(other).await, StatusCode::OK);
    scene.end().await;
}

#[tokio::test]
async fn shadow_mode_counts_and_refuses_nothing() {
    let (scene, _) = scene("[brake]\nmode = \"shadow\"\nlibrary_per_day = 2\n\n[ledger]").await;
    for number in 0..5 {
        assert_eq!(
            borrow(&scene, &format!("reader-{number}"), "NO-0301000").await.status(),
            StatusCode::OK
        );
    }
    let metrics = scene.metrics().await;
    assert_eq!(
        metric(&metrics, "loangate_brake_total", "limit=\"library_per_day\",mode=\"shadow\""),
        3.0
    );
    scene.end().await;
}

/// Returns titles with a valid check digit that no library lends.
fn random_titles(count: u32) -> Vec<String> {
    let title = |number: u32| {
        let digits = format!("97882{number:07}");
        let sum: u32 =
            digits.bytes().zip([1, 3].iter().cycle()).map(|(d, w)| u32::from(d - b'0') * w).sum();
        format!("{digits}{}", (10 - sum % 10) % 10)
    };
    (1..=count).map(title).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn begins_for_random_titles_are_limited_in_every_mode() {
    let (scene, clock) = scene("[ledger]").await;
    scene
        .fault(&json!({ "call": "begin", "times": 1000,
            "effect": { "refuse": { "code": "NO_SUCH" } } }))
        .await;
    let token = scene.token("kari");
    let client = scene.http2();
    let get = async |isbn: &str, token: &str| {
        let answer =
            scene.get(&client, &format!("/files/{isbn}/book.epub"), token).send().await.unwrap();
        let status = answer.status().as_u16();
        let wait = answer
            .headers()
            .get("retry-after")
            .map(|wait| wait.to_str().unwrap().parse::<u64>().unwrap());
        (status, wait, answer.json::<Value>().await.unwrap_or_default())
    };
    let titles = random_titles(200);
    let (mut refused, mut braked) = (0, 0);
    let answers = titles[..100].iter().map(|isbn| get(isbn, &token));
    for (status, wait, problem) in futures_util::future::join_all(answers).await {
        match status {
            403 => refused += 1,
            429 => {
                assert_eq!(
                    (&problem["type"], &problem["reason"]),
                    (&"too-many-requests".into(), &"brake".into())
                );
                assert!(wait.is_some_and(|wait| (3500..=3600).contains(&wait)), "{wait:?}");
                braked += 1;
            }
            other => panic!("{other}: {problem}"),
        }
    }
    assert_eq!((refused, braked), (30, 70));
    let metrics = scene.metrics().await;
    assert_eq!(metric(&metrics, "loangate_lending_calls_total", "call=\"begin\""), 30.0);
    let limit = "limit=\"attempts_per_borrower_per_hour\",mode=\"enforce\"";
    assert!(metric(&metrics, "loangate_brake_total", limit) >= 70.0);
    assert_eq!(get(&titles[100], &scene.token("ola")).await.0, 403, "another borrower may try");
    clock.advance(Duration::from_secs(3601));
    assert_eq!(get(&titles[101], &scene.token("kari")).await.0, 403, "an hour later");
    scene.end().await;
}

#[tokio::test]
async fn attempts_of_a_library_are_limited_if_configured() {
    let (scene, _) = scene("[brake]\nattempts_per_library_per_hour = 5\n\n[ledger]").await;
    scene
        .fault(
            &json!({ "call": "begin", "times": 3, "effect": { "refuse": { "code": "NO_SUCH" } } }),
        )
        .await;
    let mut statuses = Vec::new();
    for number in 0..7 {
        statuses.push(
            borrow(&scene, &format!("reader-{number}"), "NO-0301000").await.status().as_u16(),
        );
    }
    assert_eq!(statuses, [403, 403, 403, 200, 200, 429, 429]);
    assert_eq!(
        borrow(&scene, "reader-3", "NO-0301000").await.status(),
        StatusCode::OK,
        "a reader with a loan is still served"
    );
    assert_eq!(
        borrow(&scene, "reader", "NO-1103000").await.status(),
        StatusCode::OK,
        "another library"
    );
    scene.end().await;
}
