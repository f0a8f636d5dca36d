//! The main job: a file under a loan, whole and by range, over both HTTP versions.

use http::StatusCode;
use serde_json::Value;

use crate::support::{AUDIO, BOOK, File, Scene};

#[tokio::test]
async fn file_streams_under_a_loan_whole_and_by_range() {
    let scene = Scene::start().await;
    let file = File::of(3_000_000);
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), file.clone());
    let path = format!("/files/{AUDIO}/audio.mp3");
    let token = scene.token("kari");
    for client in [scene.http1(), scene.http2()] {
        let whole = scene.get(&client, &path, &token).send().await.unwrap();
        assert_eq!(whole.status(), StatusCode::OK);
        for (name, value) in [
            ("content-type", "audio/mpeg"),
            ("content-length", "3000000"),
            ("accept-ranges", "bytes"),
            ("etag", "\"v1\""),
            ("cache-control", "private, no-store"),
            ("x-content-type-options", "nosniff"),
        ] {
            assert_eq!(whole.headers()[name], value, "{name}");
        }
        assert_eq!(whole.bytes().await.unwrap(), file.part(0..3_000_000));
        for (range, told, part) in [
            ("bytes=0-", "bytes 0-2999999/3000000", 0..3_000_000),
            ("bytes=0-1", "bytes 0-1/3000000", 0..2),
            ("bytes=2000000-2000999", "bytes 2000000-2000999/3000000", 2_000_000..2_001_000),
            ("bytes=2999999-", "bytes 2999999-2999999/3000000", 2_999_999..3_000_000),
            ("bytes=-500", "bytes 2999500-2999999/3000000", 2_999_500..3_000_000),
            ("bytes=2999000-9999999", "bytes 2999000-2999999/3000000", 2_999_000..3_000_000),
        ] {
            let answer =
                scene.get(&client, &path, &token).header("range", range).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT, "{range}");
            assert_eq!(answer.headers()["content-range"], told, "{range}");
            assert_eq!(answer.bytes().await.unwrap(), file.part(part), "{range}");
        }
        let past = scene
            .get(&client, &path, &token)
            .header("range", "bytes=3000000-")
            .send()
            .await
            .unwrap();
        assert_eq!(past.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(past.headers()["content-range"], "bytes */3000000");
    }
    let books = scene.books().await;
    assert_eq!(books.len(), 1, "all requests use one loan");
    scene.end().await;
}

#[tokio::test]
async fn head_has_the_same_fields_as_get() {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
    let path = format!("/files/{BOOK}/book.epub");
    let token = scene.token("kari");
    for client in [scene.http1(), scene.http2()] {
        let get = scene.get(&client, &path, &token).send().await.unwrap();
        let head =
            client.head(format!("{}{path}", scene.base)).bearer_auth(&token).send().await.unwrap();
        assert_eq!((head.status(), get.status()), (StatusCode::OK, StatusCode::OK));
        let fields = |answer: &reqwest::Response| {
            let mut fields: Vec<_> = answer
                .headers()
                .iter()
                .filter(|(name, _)| *name != "date" && *name != "x-request-id")
                .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
                .collect();
            fields.sort();
            fields
        };
        assert_eq!(fields(&head), fields(&get));
        assert!(head.bytes().await.unwrap().is_empty());
    }
    // An app opens a book of many files with a HEAD for each, repeatedly: the origin gets one
    // request.
    assert_eq!(
        scene.origin.requests().iter().filter(|request| request.method == "HEAD").count(),
        1
    );
    scene.end().await;
}

#[tokio::test]
async fn conditions_are_evaluated_in_order() {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
    let path = format!("/files/{BOOK}/book.epub");
    let (client, token) = (scene.http2(), scene.token("kari"));
    assert_eq!(scene.get(&client, &path, &token).send().await.unwrap().status(), StatusCode::OK);
    for (name, value, status) in [
        ("if-none-match", "\"v1\"", StatusCode::NOT_MODIFIED),
        ("if-none-match", "\"v0\"", StatusCode::OK),
        ("if-modified-since", "Mon, 05 Jan 2026 08:00:00 GMT", StatusCode::NOT_MODIFIED),
        ("if-match", "\"v1\"", StatusCode::OK),
        ("if-match", "\"v0\"", StatusCode::PRECONDITION_FAILED),
        ("if-unmodified-since", "Sun, 04 Jan 2026 08:00:00 GMT", StatusCode::PRECONDITION_FAILED),
    ] {
        let answer = scene.get(&client, &path, &token).header(name, value).send().await.unwrap();
        assert_eq!(answer.status(), status, "{name}: {value}");
    }
    for (value, status, length) in [
        ("\"v1\"", StatusCode::PARTIAL_CONTENT, 100),
        ("\"v0\"", StatusCode::OK, 5000),
        ("W/\"v1\"", StatusCode::OK, 5000),
        ("Mon, 05 Jan 2026 08:00:00 GMT", StatusCode::PARTIAL_CONTENT, 100),
    ] {
        let request = scene
            .get(&client, &path, &token)
            .header("range", "bytes=100-199")
            .header("if-range", value);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), status, "If-Range: {value}");
        assert_eq!(answer.bytes().await.unwrap().len(), length, "If-Range: {value}");
    }
    scene.end().await;
}

#[tokio::test]
async fn open_route_needs_no_loan_and_no_token() {
    let scene = Scene::start().await;
    scene.origin.put("covers/a.png", File::with("a picture").field("content-type", "image/png"));
    let answer = scene.http2().get(format!("{}/covers/a.png", scene.base)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "image/png");
    assert_eq!(answer.text().await.unwrap(), "a picture");
    assert!(scene.books().await.is_empty());
    scene.end().await;
}

#[tokio::test]
async fn refusal_is_a_problem_document() {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
    let client = scene.http1();
    let token = scene.token("kari");
    let expired = scene.token_with(&serde_json::json!({ "sub": "kari", "exp": 1_000_000_000 }));
    for (path, token, status, slug) in [
        (format!("/files/{BOOK}/book.epub"), "no.token.atall", 401, "reader-unauthenticated"),
        (format!("/files/{BOOK}/book.epub"), expired.as_str(), 401, "reader-unauthenticated"),
        (format!("/files/{BOOK}/book.epub?token={token}"), "", 401, "reader-unauthenticated"),
        ("/elsewhere".to_owned(), token.as_str(), 404, "title-not-found"),
        ("/files/9788299999015/book.epub".to_owned(), token.as_str(), 404, "title-not-found"),
        (format!("/files/{BOOK}/missing.epub"), token.as_str(), 404, "title-not-found"),
        (format!("/files/{BOOK}/../book.epub%2f"), token.as_str(), 400, "request-malformed"),
    ] {
        let mut request = client.get(format!("{}{path}", scene.base));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{path}");
        assert_eq!(answer.headers()["cache-control"], "no-store", "{path}");
        assert_eq!(answer.headers().contains_key("www-authenticate"), status == 401, "{path}");
        let document: Value = answer.json().await.unwrap();
        assert_eq!(
            (&document["type"], &document["status"]),
            (&slug.into(), &status.into()),
            "{path}"
        );
        assert!(document["detail"].as_str().unwrap().len() > 20, "{document}");
    }
    let posted = client
        .post(format!("{}/files/{BOOK}/book.epub", scene.base))
        .bearer_auth(&token)
        .send()
        .await;
    let posted = posted.unwrap();
    assert_eq!(
        (posted.status(), &posted.headers()["allow"]),
        (StatusCode::METHOD_NOT_ALLOWED, &"GET, HEAD".parse().unwrap())
    );
    let body = scene
        .get(&client, &format!("/files/{BOOK}/book.epub"), &token)
        .body("a body")
        .send()
        .await
        .unwrap();
    assert_eq!(body.status(), StatusCode::BAD_REQUEST);
    scene.end().await;
}
