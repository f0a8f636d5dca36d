//! A failing origin: no incomplete body looks complete, nothing internal of the origin is exposed,
//! and nothing private of the reader is passed on.

use http::StatusCode;
use serde_json::Value;

use crate::support::scene::Setting;
use crate::support::{BOOK, File, Scene};

const FILE: &str = "audio.mp3";

async fn scene_with(file: File) -> Scene {
    let setting = Setting {
        config: vec![(
            "name = \"files\"",
            "name = \"files\"\nidle = \"300ms\"\nfirst_byte = \"500ms\"",
        )],
        ..Setting::default()
    };
    let scene = Scene::start_with(setting).await;
    scene.origin.put(&format!("{BOOK}/{FILE}"), file);
    scene
}

async fn get(scene: &Scene, client: &reqwest::Client, range: Option<&str>) -> reqwest::Response {
    let mut request = scene.get(client, &format!("/files/{BOOK}/{FILE}"), &scene.token("kari"));
    if let Some(range) = range {
        request = request.header("range", range);
    }
    request.send().await.unwrap()
}

#[tokio::test]
async fn broken_body_never_looks_complete() {
    for (name, file) in [
        (
            "aborted, with its length known",
            File { abort_after: Some(400_000), ..File::of(1_000_000) },
        ),
        (
            "cut, chunked",
            File { abort_after: Some(400_000), has_length: false, ..File::of(1_000_000) },
        ),
        ("aborted at its start", File { abort_after: Some(0), ..File::of(1_000_000) }),
        ("stalled", File { stall_after: Some(400_000), ..File::of(1_000_000) }),
        (
            "aborted, and the gate extracts a range",
            File { ranges: false, abort_after: Some(400_000), ..File::of(1_000_000) },
        ),
    ] {
        for range in [None, Some("bytes=0-999999")] {
            // Without a validator the rest may belong to another file.
            let scene = scene_with(file.clone().field("etag", "W/\"v1\"")).await;
            for client in [scene.http1(), scene.http2()] {
                let answer = get(&scene, &client, range).await;
                assert!(answer.status().is_success(), "{name}: {}", answer.status());
                let body = answer.bytes().await;
                assert!(
                    body.is_err(),
                    "{name}, {range:?}: {} bytes looked complete",
                    body.unwrap().len()
                );
            }
            scene.end().await;
        }
    }
}

#[tokio::test]
async fn range_is_extracted_from_a_full_origin_response() {
    let file = File { ranges: false, ..File::of(3_000_000) };
    let scene = scene_with(file.clone()).await;
    for client in [scene.http1(), scene.http2()] {
        for (range, part) in [
            ("bytes=0-0", 0..1),
            ("bytes=1000000-1999999", 1_000_000..2_000_000),
            ("bytes=2999999-", 2_999_999..3_000_000),
            ("bytes=-1", 2_999_999..3_000_000),
        ] {
            let answer = get(&scene, &client, Some(range)).await;
            assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT, "{range}");
            let told = format!("bytes {}-{}/3000000", part.start, part.end - 1);
            assert_eq!(answer.headers()["content-range"], told.as_str(), "{range}");
            assert_eq!(answer.bytes().await.unwrap(), file.part(part), "{range}");
        }
        let past = get(&scene, &client, Some("bytes=3000000-")).await;
        assert_eq!(past.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(past.headers()["content-range"], "bytes */3000000");
    }
    scene.end().await;
}

#[tokio::test]
async fn unusable_origin_response_is_a_502_without_details() {
    let redirect = File { status: Some(StatusCode::FOUND), ..File::of(0) }
        .field("location", "http://127.0.0.1:1/x");
    for (name, file, range, status, slug) in [
        (
            "500",
            File { status: Some(StatusCode::INTERNAL_SERVER_ERROR), ..File::of(10) },
            None,
            502,
            "origin-failed",
        ),
        (
            "403",
            File { status: Some(StatusCode::FORBIDDEN), ..File::of(10) },
            None,
            502,
            "origin-failed",
        ),
        ("a redirect", redirect, None, 502, "origin-failed"),
        (
            "404",
            File { status: Some(StatusCode::NOT_FOUND), ..File::of(10) },
            None,
            404,
            "title-not-found",
        ),
        (
            "another part",
            File { content_range: Some("bytes 5-14/100".into()), ..File::of(100) },
            Some("bytes=0-9"),
            502,
            "origin-failed",
        ),
        (
            "a 206 with an invalid range",
            File { content_range: Some("bytes 0-9/*".into()), ..File::of(100) },
            Some("bytes=0-9"),
            502,
            "origin-failed",
        ),
        (
            "a 206 to no range",
            File { status: Some(StatusCode::PARTIAL_CONTENT), ..File::of(100) },
            None,
            502,
            "origin-failed",
        ),
        (
            "a range of compressed bytes",
            File::of(100).field("content-encoding", "gzip"),
            Some("bytes=0-9"),
            502,
            "origin-failed",
        ),
        ("silence", File { silent: true, ..File::of(100) }, None, 504, "origin-timeout"),
    ] {
        let scene = scene_with(file).await;
        let answer = get(&scene, &scene.http2(), range).await;
        assert_eq!(answer.status(), status, "{name}");
        let text = answer.text().await.unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["type"], slug, "{name}");
        assert!(!text.contains("127.0.0.1"), "{text}");
        scene.end().await;
    }
}

#[tokio::test]
async fn only_listed_fields_pass_in_either_direction() {
    let file = File::of(1000)
        .field("set-cookie", "a=b")
        .field("server", "storage/1.0")
        .field("x-amz-request-id", "1")
        .field("content-disposition", "attachment; filename=\"bok.mp3\"")
        .field("cache-control", "public, max-age=86400")
        .field("connection", "x-secret")
        .field("x-secret", "1");
    let scene = scene_with(file).await;
    let path = format!("/files/{BOOK}/{FILE}?token=&q=1");
    let request = scene.get(&scene.http1(), &path, &scene.token("kari"));
    let request = request
        .header("cookie", "session=1")
        .header("x-forwarded-for", "10.0.0.1")
        .header("accept-encoding", "gzip")
        .header("range", "bytes=0-99");
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
    for gone in ["set-cookie", "server", "x-amz-request-id", "connection", "x-secret", "via"] {
        assert!(!answer.headers().contains_key(gone), "{gone}");
    }
    assert_eq!(answer.headers()["content-disposition"], "attachment; filename=\"bok.mp3\"");
    assert_eq!(answer.headers()["cache-control"], "private, no-store");
    let requests = scene.origin.requests();
    let mut names: Vec<&str> = requests[0].headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept-encoding", "host", "range", "user-agent"]);
    assert_eq!(requests[0].headers["accept-encoding"], "identity");
    assert_eq!(requests[0].path, format!("/{BOOK}/{FILE}"));
    scene.end().await;
}

#[tokio::test]
async fn generic_content_type_is_replaced_by_the_file_name() {
    for (told, kind) in [
        ("application/octet-stream", "audio/mpeg"),
        ("binary/octet-stream", "audio/mpeg"),
        ("", "audio/mpeg"),
        ("audio/x-own", "audio/x-own"),
    ] {
        let scene = scene_with(File::of(1000).field("content-type", told)).await;
        for range in [None, Some("bytes=0-9"), Some("bytes=0-9,500-509")] {
            let answer = get(&scene, &scene.http1(), range).await;
            let several = range.is_some_and(|range| range.contains(','));
            if several {
                assert!(
                    answer
                        .text()
                        .await
                        .unwrap_or_default()
                        .contains(&format!("Content-Type: {kind}\r\n"))
                );
            } else {
                assert_eq!(answer.headers()["content-type"], kind, "{told}, {range:?}");
            }
        }
        scene.end().await;
    }
}

#[tokio::test]
async fn changed_file_is_not_mixed_into_a_download() {
    let scene = scene_with(File::of(1000)).await;
    let client = scene.http2();
    let first = get(&scene, &client, Some("bytes=0-499")).await;
    let etag = first.headers()["etag"].to_str().unwrap().to_owned();
    let second = File::with(vec![7; 900]).field("etag", "\"v2\"");
    scene.origin.put(&format!("{BOOK}/{FILE}"), second);
    let request = scene.get(&client, &format!("/files/{BOOK}/{FILE}"), &scene.token("kari"));
    let rest = request.header("range", "bytes=500-").header("if-range", etag).send().await.unwrap();
    assert_eq!(rest.status(), StatusCode::OK, "the whole new file");
    assert_eq!(rest.bytes().await.unwrap(), vec![7; 900]);
    scene.end().await;
}

#[tokio::test]
async fn unreachable_origin_is_a_502() {
    let setting = Setting { origin: Some("http://127.0.0.1:1/"), ..Setting::default() };
    let scene = Scene::start_with(setting).await;
    let answer = get(&scene, &scene.http2(), None).await;
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    let text = answer.text().await.unwrap();
    assert!(text.contains("origin-failed") && !text.contains("127.0.0.1"), "{text}");
    scene.end().await;
}
