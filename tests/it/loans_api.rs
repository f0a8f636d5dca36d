//! The readers' loans API: list, begin, return; each request is idempotent.

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::scene::Setting;
use crate::support::{AUDIO, BOOK, File, Scene};

/// Sends a request without a body.
async fn fetch(scene: &Scene, method: &str, path: &str, token: &str) -> (StatusCode, Value) {
    scene.call_api(method, path, token, "").await
}

#[tokio::test]
async fn loan_requests_are_idempotent() {
    let scene = Scene::start().await;
    let token = scene.token("kari");
    let path = format!("/loans/{BOOK}");
    assert_eq!(
        fetch(&scene, "GET", "/loans", &token).await,
        (StatusCode::OK, json!({ "loans": [] }))
    );
    assert_eq!(fetch(&scene, "GET", &path, &token).await.0, StatusCode::NOT_FOUND);
    assert_eq!(fetch(&scene, "DELETE", &path, &token).await, (StatusCode::NO_CONTENT, Value::Null));

    let (status, loan) = fetch(&scene, "PUT", &path, &token).await;
    assert_eq!(status, StatusCode::CREATED, "{loan}");
    assert_eq!((&loan["isbn"], &loan["state"]), (&BOOK.into(), &"accepted".into()));
    assert_eq!(loan["files"], json!([format!("/files/{BOOK}/")]));
    assert!(
        loan["due"].is_string() && loan["begun"].is_string() && loan["licence_type"].is_string(),
        "{loan}"
    );
    assert!(loan.get("borrower").is_none() && loan.get("reference").is_none(), "{loan}");
    assert_eq!(fetch(&scene, "PUT", &path, &token).await, (StatusCode::OK, loan.clone()));
    assert_eq!(fetch(&scene, "GET", &path, &token).await, (StatusCode::OK, loan.clone()));
    assert_eq!(fetch(&scene, "GET", "/loans", &token).await.1, json!({ "loans": [loan] }));
    assert_eq!(fetch(&scene, "GET", "/loans", &scene.token("ola")).await.1, json!({ "loans": [] }));
    assert_eq!(scene.books().await.len(), 1);

    for _ in 0..2 {
        assert_eq!(
            fetch(&scene, "DELETE", &path, &token).await,
            (StatusCode::NO_CONTENT, Value::Null)
        );
    }
    scene.until("the loan is over at Bokbasen", async || scene.books().await[0]["ends"] == 1).await;
    let (_, shown) = fetch(&scene, "GET", &path, &token).await;
    assert!(shown["ended"].is_string(), "{shown}");
    scene.end().await;
}

#[tokio::test]
async fn refused_or_undecided_begin_is_a_problem() {
    let config = vec![("[ledger]", "[gate]\npatience = \"300ms\"\n\n[ledger]")];
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    let refuse = json!({ "call": "begin", "isbn": BOOK,
        "effect": { "refuse": { "code": "BUDGET_EXCEEDED" } } });
    let pend = json!({ "call": "begin", "isbn": AUDIO,
        "effect": { "pending_polls": { "n": 1_000_000 } } });
    scene.fault(&json!([refuse, pend])).await;
    let token = scene.token("kari");
    let (status, document) = fetch(&scene, "PUT", &format!("/loans/{BOOK}"), &token).await;
    assert_eq!((status, &document["reason"]), (StatusCode::FORBIDDEN, &"BUDGET_EXCEEDED".into()));
    let (status, document) = fetch(&scene, "PUT", &format!("/loans/{AUDIO}"), &token).await;
    assert_eq!(
        (status, &document["type"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"loan-pending".into())
    );
    scene.end().await;
}

#[tokio::test]
async fn unauthorized_and_invalid_loan_requests_are_refused() {
    let scene = Scene::start().await;
    let token = scene.token("kari");
    let link = scene.link(&["--isbn", BOOK]);
    for (method, path, token, status, slug) in [
        ("GET", "/loans".to_owned(), "no.token.atall", 401, "reader-unauthenticated"),
        ("DELETE", "/loans".to_owned(), token.as_str(), 405, "method-not-allowed"),
        ("POST", format!("/loans/{BOOK}"), token.as_str(), 405, "method-not-allowed"),
        ("PUT", "/loans/9788299999015".to_owned(), token.as_str(), 404, "title-not-found"),
        ("GET", format!("/loans/{BOOK}/pages"), token.as_str(), 404, "title-not-found"),
        ("GET", format!("/loans/{BOOK}"), token.as_str(), 404, "loan-not-found"),
    ] {
        let (answered, document) = fetch(&scene, method, &path, token).await;
        assert_eq!(
            (answered.as_u16(), &document["type"]),
            (status, &slug.into()),
            "{method} {path}"
        );
    }
    // A link may be shared: it opens files and ends no loan.
    for method in ["GET", "PUT", "DELETE"] {
        let url = format!("{}/~{link}/loans/{BOOK}", scene.base);
        let answer = scene.http1().request(method.parse().unwrap(), url).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{method}");
    }
    assert!(scene.books().await.is_empty());
    scene.end().await;
}

#[tokio::test]
async fn reading_progress_is_stored_and_validated() {
    let mut scene = Scene::start().await;
    let token = scene.token("kari");
    let path = format!("/loans/{BOOK}");
    let put = async |scene: &Scene, body: &str, token: &str| {
        let url = format!("{}{path}/progress", scene.base);
        let answer =
            scene.http2().put(url).bearer_auth(token).body(body.to_owned()).send().await.unwrap();
        let (status, body) = (answer.status().as_u16(), answer.bytes().await.unwrap());
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        (status, json["type"].as_str().map(str::to_owned))
    };
    let no_loan = (404, Some("loan-not-found".to_owned()));
    assert_eq!(put(&scene, r#"{"fraction": 0.4}"#, &token).await, no_loan);
    let (_, loan) = fetch(&scene, "PUT", &path, &token).await;
    assert!(loan.get("progress").is_none(), "{loan}");
    for fraction in [0.4, 0.4, 1.0, 0.29] {
        assert_eq!(
            put(&scene, &json!({ "fraction": fraction }).to_string(), &token).await,
            (204, None)
        );
        assert_eq!(fetch(&scene, "GET", &path, &token).await.1["progress"], fraction);
    }
    let malformed = (400, Some("request-malformed".to_owned()));
    let long = format!("{{\"fraction\": 0.5{}}}", " ".repeat(2000));
    for body in
        ["", "0.4", "{}", r#"{"fraction": "0.4"}"#, r#"{"fraction": 1.1}"#, r#"{"fraction": -0.1}"#]
    {
        assert_eq!(put(&scene, body, &token).await, malformed, "{body}");
    }
    assert_eq!(put(&scene, &long, &token).await, malformed);
    assert_eq!(put(&scene, r#"{"fraction": 0.4, "page": 3}"#, &token).await, malformed);
    assert_eq!(
        put(&scene, r#"{"fraction": 0.4}"#, &scene.token("ola")).await,
        no_loan,
        "only the borrower of the loan"
    );

    scene.stop_gate().await;
    scene.start_gate().await;
    assert_eq!(scene.ledger().await[0]["progress"], 0.29, "support sees the progress");
    // An offline app may report progress after the end.
    assert_eq!(fetch(&scene, "DELETE", &path, &token).await.0, StatusCode::NO_CONTENT);
    assert_eq!(put(&scene, r#"{"fraction": 0.5}"#, &token).await, (204, None));
    let (_, loan) = fetch(&scene, "GET", &path, &token).await;
    assert_eq!((&loan["progress"], loan["ended"].is_string()), (&0.5.into(), true), "{loan}");
    assert_eq!(
        fetch(&scene, "GET", &format!("{path}/progress"), &token).await.0,
        StatusCode::METHOD_NOT_ALLOWED
    );
    scene.end().await;
}

#[tokio::test]
async fn explicit_route_opens_after_a_begin() {
    let setting = Setting {
        config: vec![(
            "to = \"{isbn}/{file}\"",
            "to = \"{isbn}/{file}\"\nregistration = \"explicit\"",
        )],
        ..Setting::default()
    };
    let scene = Scene::start_with(setting).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let token = scene.token("kari");
    let path = format!("/files/{BOOK}/book.epub");
    let get = async || scene.get(&scene.http2(), &path, &token).send().await.unwrap().status();
    assert_eq!(get().await, StatusCode::FORBIDDEN);
    assert_eq!(
        fetch(&scene, "PUT", &format!("/loans/{BOOK}"), &token).await.0,
        StatusCode::CREATED
    );
    assert_eq!(get().await, StatusCode::OK);
    scene.end().await;
}
