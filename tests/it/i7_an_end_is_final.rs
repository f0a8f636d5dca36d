//! Invariant 7: after an end, only a later credential begins another loan, and a resumed download
//! never does.

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::{AUDIO, File, Scene};

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
