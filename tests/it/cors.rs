//! CORS: pages of allowed origins can send requests and read the responses; others cannot read
//! anything.

use http::{HeaderMap, Method, StatusCode};

use crate::support::scene::Setting;
use crate::support::{BOOK, File, Scene};

const READER: &str = "https://reader.example.no";
const PATH: &str = "/files/9788299999014/book.epub";

async fn scene(cors: bool) -> Scene {
    let line = "[cors]\norigins = [\"https://reader.example.no\", \"http://localhost:3000\", \
                \"capacitor://localhost\", \
                \"ionic://localhost\", \"http://localhost\", \"https://*.school.example.no\"]\n\n\
                [ledger]";
    let config = if cors { vec![("[ledger]", line)] } else { Vec::new() };
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene
}

async fn preflight(
    scene: &Scene,
    path: &str,
    origin: &str,
    method: &str,
) -> (StatusCode, HeaderMap) {
    let request = scene.http2().request(Method::OPTIONS, format!("{}{path}", scene.base));
    let request = request
        .header("origin", origin)
        .header("access-control-request-method", method)
        .header("access-control-request-headers", "authorization,range");
    let answer = request.send().await.unwrap();
    (answer.status(), answer.headers().clone())
}

fn lists(fields: &HeaderMap, name: &str, wanted: &str) -> bool {
    fields.get(name).is_some_and(|field| {
        field.to_str().unwrap().split(", ").any(|entry| entry.eq_ignore_ascii_case(wanted))
    })
}

#[tokio::test]
async fn preflight_needs_no_token_and_changes_no_loan() {
    let scene = scene(true).await;
    for (path, method) in
        [(PATH, "GET"), ("/loans/9788299999014", "PUT"), ("/loans/9788299999014", "DELETE")]
    {
        for origin in [READER, "http://localhost:3000"] {
            let (status, fields) = preflight(&scene, path, origin, method).await;
            assert_eq!(status, StatusCode::NO_CONTENT, "{path}");
            assert_eq!(fields["access-control-allow-origin"], origin);
            assert!(lists(&fields, "access-control-allow-methods", method), "{fields:?}");
            for field in [
                "authorization",
                "range",
                "if-range",
                "cache-control",
                "pragma",
                "x-requested-with",
            ] {
                assert!(lists(&fields, "access-control-allow-headers", field), "{fields:?}");
            }
            assert_eq!(fields["vary"], "Origin");
        }
    }
    for stranger in [
        "https://reader.example.no.evil.com",
        "http://reader.example.no",
        "null",
        "https://READER.example.no:444",
    ] {
        let (_, fields) = preflight(&scene, PATH, stranger, "GET").await;
        assert!(!fields.contains_key("access-control-allow-origin"), "{stranger}: {fields:?}");
        assert!(!fields.contains_key("access-control-allow-methods"), "{stranger}: {fields:?}");
    }
    assert!(scene.books().await.is_empty() && scene.origin.requests().is_empty());
    scene.end().await;
}

#[tokio::test]
async fn hybrid_apps_and_one_wildcard_label_are_allowed() {
    let scene = scene(true).await;
    let token = scene.token("kari");
    let allowed = async |origin: &str| {
        let request = scene.get(&scene.http2(), PATH, &token).header("origin", origin);
        let seen =
            request.send().await.unwrap().headers().get("access-control-allow-origin").cloned();
        let (_, fields) = preflight(&scene, PATH, origin, "GET").await;
        let before = fields.get("access-control-allow-origin").cloned();
        assert_eq!(seen, before, "{origin}: the preflight and the response agree");
        seen.map(|seen| seen.to_str().unwrap().to_owned())
    };
    for origin in [
        "capacitor://localhost",
        "ionic://localhost",
        "http://localhost",
        "https://oslo.school.example.no",
        "https://a-1.school.example.no",
    ] {
        assert_eq!(allowed(origin).await.as_deref(), Some(origin), "its own origin, not *");
    }
    for origin in [
        "capacitor://localhost.evil.com",
        "https://school.example.no",
        "https://a.b.school.example.no",
        "http://oslo.school.example.no",
        "https://oslo.school.example.no:8443",
        "https://evilschool.example.no",
        "https://oslo.school.example.no.evil.com",
        "https://*.school.example.no",
    ] {
        assert_eq!(allowed(origin).await, None, "{origin}");
    }
    scene.end().await;
}

#[tokio::test]
async fn allowed_pages_can_read_responses_and_refusals() {
    let scene = scene(true).await;
    let fetch = async |origin: Option<&str>, token: &str| {
        let mut request = scene.get(&scene.http2(), PATH, token).header("range", "bytes=0-99");
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let answer = request.send().await.unwrap();
        (answer.status(), answer.headers().clone())
    };
    let token = scene.token("kari");
    let (status, fields) = fetch(Some(READER), &token).await;
    assert_eq!(
        (status, &fields["access-control-allow-origin"]),
        (StatusCode::PARTIAL_CONTENT, &READER.parse().unwrap())
    );
    for field in ["content-range", "accept-ranges", "etag"] {
        assert!(lists(&fields, "access-control-expose-headers", field), "{fields:?}");
    }
    let (status, fields) = fetch(Some(READER), "no.token.atall").await;
    assert_eq!(
        (status, &fields["access-control-allow-origin"]),
        (StatusCode::UNAUTHORIZED, &READER.parse().unwrap())
    );
    for origin in [Some("https://evil.example"), None] {
        let (_, fields) = fetch(origin, &token).await;
        assert!(!fields.contains_key("access-control-allow-origin"), "{origin:?}");
        assert_eq!(
            fields["vary"], "Origin",
            "a cache must not serve the response to another origin"
        );
    }
    scene.end().await;
}

#[tokio::test]
async fn without_origins_no_cors_headers_are_sent() {
    let scene = scene(false).await;
    let (status, fields) = preflight(&scene, PATH, READER, "GET").await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(!fields.contains_key("access-control-allow-origin") && !fields.contains_key("vary"));
    scene.end().await;
}
