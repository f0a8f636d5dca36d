//! Invariant 1: no byte without a loan. Without a live loan the gate does not even query the
//! origin: not while a loan is pending, refused, unknown or over.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::scene::{Setting, movable_clock};
use crate::support::{BOOK, File, Scene};

const OTHER: &str = "9788299999021";

fn impatient() -> Setting {
    Setting {
        config: vec![(
            "[ledger]",
            "[gate]\npatience = \"300ms\"\nrefusal_ttl = \"1s\"\n\n[ledger]",
        )],
        ..Setting::default()
    }
}

/// Starts a scene with a book and a short `gate.patience`.
async fn scene_with_a_book(setting: Setting) -> Scene {
    let scene = Scene::start_with(setting).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(100_000));
    scene
}

/// Requests the book in every way, and returns the status and the problem that all of them got.
async fn request_in_every_way(scene: &Scene, token: &str) -> (StatusCode, Value) {
    let path = format!("/files/{BOOK}/book.epub");
    let mut said = None;
    for client in [scene.http1(), scene.http2()] {
        let head =
            client.head(format!("{}{path}", scene.base)).bearer_auth(token).send().await.unwrap();
        for range in [None, Some("bytes=0-1"), Some("bytes=0-")] {
            let mut request = scene.get(&client, &path, token);
            if let Some(range) = range {
                request = request.header("range", range);
            }
            let answer = request.send().await.unwrap();
            let status = answer.status();
            assert_eq!(head.status(), status, "HEAD and GET get the same status");
            let document: Value = answer.json().await.unwrap();
            if let Some((before, slug)) = &said {
                assert_eq!((*before, slug), (status, &document["type"]), "{document}");
            }
            said = Some((status, document["type"].clone()));
        }
    }
    said.unwrap()
}

#[tokio::test]
async fn loan_that_is_not_accepted_opens_nothing() {
    for (name, effect, config) in [
        ("pending", json!({ "pending_polls": { "n": 1_000_000 } }), None),
        ("of an unknown status", json!("unknown_status"), None),
        ("unknown, nothing made", json!({ "cut_before": {} }), Some("60s")),
        ("unknown, and made", json!("cut_after"), Some("60s")),
        ("unknown, the answer broken", json!("garbage"), Some("60s")),
        ("unknown, no answer", json!({ "hang": { "made": true } }), Some("60s")),
        ("unknown, 500", json!({ "status": { "status": 500, "made": true } }), Some("60s")),
    ] {
        let mut setting = impatient();
        if let Some(settle) = config {
            let settle: &'static str = Box::leak(format!("settle = \"{settle}\"").into_boxed_str());
            setting.config.push(("settle = \"500ms\"", settle));
        }
        let scene = scene_with_a_book(setting).await;
        let call = if name == "of an unknown status" { "*" } else { "begin" };
        scene.fault(&json!({ "call": call, "effect": effect })).await;
        let said = request_in_every_way(&scene, &scene.token("kari")).await;
        assert_eq!(said, (StatusCode::SERVICE_UNAVAILABLE, "loan-pending".into()), "{name}");
        assert_eq!(scene.origin.requests().len(), 0, "{name}: a request reached the origin");
        assert!(scene.books().await.len() <= 1, "{name}: begun again");
        assert_eq!(scene.ledger().await.len(), 1, "{name}");
        scene.end().await;
    }
}

#[tokio::test]
async fn refusal_opens_nothing_and_names_its_reason() {
    for code in [
        "NO_FREE_LICENSE",
        "BUDGET_EXCEEDED",
        "BORROWER_LIMIT",
        "TITLE_NOT_LENDABLE",
        "LIBRARY_NOT_ACTIVE",
        "LICENSE_NOT_FOUND",
        "SOMETHING_NEW",
    ] {
        let scene = scene_with_a_book(Setting::default()).await;
        scene
            .fault(&json!({ "call": "begin",
                "effect": { "refuse": { "code": code, "retry_after": 77 } } }))
            .await;
        let token = scene.token("kari");
        let said = request_in_every_way(&scene, &token).await;
        assert_eq!(said, (StatusCode::FORBIDDEN, "loan-refused".into()), "{code}");
        let path = format!("/files/{BOOK}/book.epub");
        let answer = scene.get(&scene.http2(), &path, &token).send().await.unwrap();
        let wait: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=77).contains(&wait), "{code}: {wait}");
        let document: Value = answer.json().await.unwrap();
        assert_eq!(document["reason"], code);
        assert_eq!(scene.origin.requests().len(), 0, "{code}: a request reached the origin");
        assert_eq!(scene.books().await.len(), 1, "{code}: begun again while the refusal holds");
        scene.end().await;
    }
}

#[tokio::test]
async fn expired_refusal_allows_another_begin() {
    let scene = scene_with_a_book(impatient()).await;
    let refuse = json!({ "call": "begin", "times": 1,
        "effect": { "refuse": { "code": "NO_FREE_LICENSE", "retry_after": 1 } } });
    scene.fault(&refuse).await;
    let (client, token) = (scene.http2(), scene.token("kari"));
    let path = format!("/files/{BOOK}/book.epub");
    assert_eq!(
        scene.get(&client, &path, &token).send().await.unwrap().status(),
        StatusCode::FORBIDDEN
    );
    scene
        .until("the book is lent", || async {
            scene.get(&client, &path, &token).send().await.unwrap().status() == StatusCode::OK
        })
        .await;
    assert_eq!(scene.books().await.len(), 2);
    scene.end().await;
}

#[tokio::test]
async fn ended_loan_opens_nothing_and_an_old_token_begins_none() {
    let clock = movable_clock();
    let scene = scene_with_a_book(Setting { clock: clock.clone(), ..Setting::default() }).await;
    let far = clock.now().as_second() + 300 * 86_400;
    let old = scene.token_with(&json!({ "sub": "kari", "exp": far }));
    let ageless = {
        let now = clock.now().as_second();
        scene.token_with(&json!({ "sub": "kari", "exp": far, "iat": now - 60 }))
    };
    let path = format!("/files/{BOOK}/book.epub");
    let client = scene.http2();
    assert_eq!(scene.get(&client, &path, &old).send().await.unwrap().status(), StatusCode::OK);
    clock.advance(Duration::from_secs(22 * 86_400));
    // Access ends at that moment, even before the ender has run.
    let answer = scene.get(&client, &path, &old).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    scene
        .until("the end is acknowledged", || async { scene.ledger().await[0]["state"] == "ended" })
        .await;
    assert_eq!(scene.books().await[0]["status"], "EXPIRED");
    let before = scene.origin.requests().len();
    for token in [&old, &ageless] {
        let said = request_in_every_way(&scene, token).await;
        assert_eq!(said, (StatusCode::FORBIDDEN, "loan-ended".into()));
    }
    // A later token continues no download, and begins a new loan from the start.
    clock.advance(Duration::from_secs(2));
    let later = scene.token("kari");
    for (name, value) in [
        ("range", "bytes=500-"),
        ("range", "bytes=-5"),
        ("if-range", "\"v1\""),
        ("if-match", "\"v1\""),
    ] {
        let answer = scene.get(&client, &path, &later).header(name, value).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{name}: {value}");
    }
    assert_eq!(scene.origin.requests().len(), before, "a request reached the origin");
    assert_eq!(scene.books().await.len(), 1, "begun again");
    assert_eq!(scene.get(&client, &path, &later).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(scene.books().await.len(), 2);
    scene.end().await;
}

#[tokio::test]
async fn loan_opens_nothing_for_another_reader() {
    let scene = scene_with_a_book(Setting::default()).await;
    scene.origin.put(&format!("{OTHER}/book.epub"), File::of(1000));
    let client = scene.http2();
    let path = format!("/files/{BOOK}/book.epub");
    assert_eq!(
        scene.get(&client, &path, &scene.token("kari")).send().await.unwrap().status(),
        StatusCode::OK
    );
    let before = scene.origin.requests().len();
    scene
        .fault(&json!({ "call": "begin", "effect": { "refuse": { "code": "BORROWER_LIMIT" } } }))
        .await;
    let elsewhere = scene.token_with(&json!({ "sub": "kari", "library": "NO-1103000" }));
    for (name, token, path) in [
        ("another borrower", scene.token("ola"), &path),
        ("the same name at another library", elsewhere, &path),
        ("another title", scene.token("kari"), &format!("/files/{OTHER}/book.epub")),
    ] {
        let answer = scene.get(&client, path, &token).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{name}");
    }
    assert_eq!(scene.origin.requests().len(), before, "a request reached the origin");
    scene.end().await;
}

#[tokio::test]
async fn link_opens_only_what_it_names() {
    let scene = scene_with_a_book(Setting::default()).await;
    scene.origin.put(&format!("{OTHER}/book.epub"), File::of(1000));
    let link = |arguments: &[&str]| scene.link(arguments);
    let (title, prefix) =
        (link(&["--isbn", BOOK]), link(&["--prefix", &format!("/files/{BOOK}/")]));
    let short = link(&["--prefix", "/files/97882999990"]);
    let client = scene.http2();
    let get = async |path: String| {
        client.get(format!("{}{path}", scene.base)).send().await.unwrap().status()
    };
    for token in [&title, &prefix] {
        assert_eq!(get(format!("/files/{BOOK}/book.epub?token={token}")).await, StatusCode::OK);
        assert_eq!(get(format!("/~{token}/files/{BOOK}/book.epub")).await, StatusCode::OK);
        assert_eq!(get(format!("/~{token}/files/{OTHER}/book.epub")).await, StatusCode::FORBIDDEN);
    }
    assert_eq!(
        get(format!("/~{short}/files/{BOOK}/book.epub")).await,
        StatusCode::FORBIDDEN,
        "half a segment"
    );
    let forged = format!("{}AAAA", &title[..title.len() - 4]);
    assert_eq!(get(format!("/~{forged}/files/{BOOK}/book.epub")).await, StatusCode::UNAUTHORIZED);
    assert_eq!(scene.origin.count(&format!("/{OTHER}")), 0);
    assert_eq!(scene.books().await.len(), 1, "link and token have the same pseudonym");
    scene.end().await;
}

#[tokio::test]
async fn explicit_route_begins_no_loan() {
    let setting = Setting {
        config: vec![(
            "to = \"{isbn}/{file}\"",
            "to = \"{isbn}/{file}\"\nregistration = \"explicit\"",
        )],
        ..Setting::default()
    };
    let scene = scene_with_a_book(setting).await;
    let answer = scene
        .get(&scene.http2(), &format!("/files/{BOOK}/book.epub"), &scene.token("kari"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    let document: Value = answer.json().await.unwrap();
    assert_eq!(document["reason"], "explicit-begin-required");
    assert_eq!((scene.origin.requests().len(), scene.books().await.len()), (0, 0));
    scene.end().await;
}
