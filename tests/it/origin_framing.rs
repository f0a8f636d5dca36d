//! Origins with wrongly framed responses: no bytes of one response are used for another, and no
//! incomplete body looks complete.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use crate::support::{RawOrigin, Reply, Scene, Setting};

const EVIL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";

async fn scene_before(origin: &RawOrigin) -> Scene {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.replace_in_config(&format!("{}/", scene.origin.url), &origin.url);
    scene.replace_in_config(
        "name = \"files\"",
        "name = \"files\"\nidle = \"500ms\"\nfirst_byte = \"1s\"",
    );
    scene.start_gate().await;
    scene
}

/// Returns the body of a response. The client keeps its connection, and with it the worker's pool.
async fn text(scene: &Scene, client: &reqwest::Client, method: Method, name: &str) -> String {
    let request = client.request(method, format!("{}/covers/{name}", scene.base));
    request.send().await.unwrap().text().await.unwrap()
}

async fn request(
    scene: &Scene,
    method: Method,
    name: &str,
    range: Option<&str>,
) -> reqwest::Response {
    try_request(scene, method, name, range).await.unwrap()
}

async fn try_request(
    scene: &Scene,
    method: Method,
    name: &str,
    range: Option<&str>,
) -> reqwest::Result<reqwest::Response> {
    let mut request = scene.http1().request(method, format!("{}/covers/{name}", scene.base));
    if let Some(range) = range {
        request = request.header("range", range);
    }
    request.send().await
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\netag: \"v1\"\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn body_of_a_head_response_is_never_another_response() {
    for status in ["200 OK", "204 No Content", "304 Not Modified"] {
        let origin = RawOrigin::start(move |head, _| {
            if head.contains("/bad.png") {
                // The body looks like a response, and arrives when the connection is in use again.
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", EVIL.len());
                Reply::SendLate(head.into_bytes(), EVIL.as_bytes().to_vec())
            } else {
                Reply::send(&ok("good"))
            }
        });
        let origin = origin.await;
        let scene = scene_before(&origin).await;
        let client = scene.http1();
        for number in 0..5 {
            // HEAD results are cached, so each request is for another file.
            text(&scene, &client, Method::HEAD, &format!("bad.png/{number}")).await;
            assert_eq!(text(&scene, &client, Method::GET, "good.png").await, "good", "{status}");
        }
        scene.end().await;
    }
}

#[tokio::test]
async fn unsolicited_response_is_never_given_to_a_reader() {
    let origin = RawOrigin::start(|head, _| {
        let text = ok("good");
        if head.contains("/bad.png") {
            Reply::send(&format!("{text}{EVIL}"))
        } else {
            Reply::send(&text)
        }
    });
    let origin = origin.await;
    let scene = scene_before(&origin).await;
    let client = scene.http1();
    for _ in 0..5 {
        for name in ["bad.png", "good.png"] {
            assert_eq!(text(&scene, &client, Method::GET, name).await, "good", "{name}");
        }
    }
    scene.end().await;
}

#[tokio::test]
async fn http_1_0_with_chunks_is_read_and_its_connection_closed() {
    let text = "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n\
                4\r\ngood\r\n0\r\n\r\n";
    let origin = RawOrigin::start(move |_, _| Reply::send(text)).await;
    let scene = scene_before(&origin).await;
    for requests in 1..4 {
        assert_eq!(request(&scene, Method::GET, "a.png", None).await.text().await.unwrap(), "good");
        assert_eq!(origin.connections(), requests);
    }
    scene.end().await;
}

#[tokio::test]
async fn line_that_ends_without_carriage_return_is_a_protocol_error() {
    for (text, breaks_in_body) in [
        ("HTTP/1.1 200 OK\ncontent-length: 4\n\ngood", false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 4\nx: y\r\n\r\ngood", false),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4;a\nb\r\ngood\r\n0\r\n\r\n", true),
    ] {
        let origin = RawOrigin::start(move |_, _| Reply::send(text)).await;
        let scene = scene_before(&origin).await;
        match try_request(&scene, Method::GET, "a.png", None).await {
            Ok(answer) if breaks_in_body => assert!(answer.bytes().await.is_err(), "{text:?}"),
            Ok(answer) => assert_eq!(answer.status(), StatusCode::BAD_GATEWAY, "{text:?}"),
            // The connection may break before the head is sent.
            Err(_) => assert!(breaks_in_body, "{text:?}"),
        }
        scene.end().await;
    }
}

#[tokio::test]
async fn absurd_length_never_makes_a_short_response_look_complete() {
    for length in [u64::MAX, u64::MAX - 1, 1 << 63] {
        let origin = RawOrigin::start(move |head, _| {
            let whole = format!("content-length: {length}\r\netag: \"v1\"\r\n");
            let ranged = head.lines().find_map(|line| line.strip_prefix("range: bytes="));
            match ranged {
                _ if head.starts_with("HEAD") => {
                    Reply::send(&format!("HTTP/1.1 200 OK\r\n{whole}\r\n"))
                }
                None => Reply::close(&format!("HTTP/1.1 200 OK\r\n{whole}\r\nshort")),
                Some(range) => {
                    let (first, last) = range.split_once('-').unwrap();
                    let last =
                        if last.is_empty() { (length - 1).to_string() } else { last.to_owned() };
                    Reply::close(&format!(
                        "HTTP/1.1 206 Partial\r\ncontent-range: bytes {first}-{last}/{length}\r\n\
                         etag: \"v1\"\r\n\
                         transfer-encoding: chunked\r\n\r\n5\r\nshort\r\n0\r\n\r\n"
                    ))
                }
            }
        });
        let origin = origin.await;
        let scene = scene_before(&origin).await;
        for range in [
            None,
            Some("bytes=0-"),
            Some("bytes=5-"),
            Some("bytes=0-4,200-"),
            Some("bytes=0-9,-10"),
        ] {
            let Ok(answer) = try_request(&scene, Method::GET, "a.png", range).await else {
                continue;
            };
            let is_refused = answer.status() == StatusCode::BAD_GATEWAY;
            let body = answer.bytes().await;
            assert!(is_refused || body.is_err(), "{length} {range:?}: {body:?} looks whole");
        }
        scene.end().await;
    }
}

#[tokio::test]
async fn part_that_was_not_requested_is_refused() {
    for fields in [
        "content-range: bytes 0-8/100",
        "content-range: bytes 1-10/100",
        "content-range: bytes 0-9/5",
        "content-range: bytes 9-0/100",
        "content-range: bytes 0-9/18446744073709551615",
        "content-range: bytes 0-9/100\r\ncontent-length: 9",
        "content-range: bytes 0-9/100\r\ncontent-length: 10\r\ncontent-length: 9",
        "content-range: lines 0-9/100",
    ] {
        let text = format!("HTTP/1.1 206 Partial\r\netag: \"v1\"\r\n{fields}\r\n\r\n0123456789");
        let origin = RawOrigin::start(move |_, _| Reply::close(&text)).await;
        let scene = scene_before(&origin).await;
        let answer = request(&scene, Method::GET, "a.png", Some("bytes=0-9")).await;
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY, "{fields}");
        scene.end().await;
    }
}

#[tokio::test]
async fn endless_response_head_times_out() {
    for (part, pause) in [
        ("HTTP/1.1 100 Continue\r\n\r\n", 0),
        ("HTTP/1.1 103 Early Hints\r\n\r\n", 100),
        ("x: y\r\n", 0),
        ("HTTP/1.1 200 OK\r\nx: y\r\n", 0),
        ("H", 50),
        ("\r\n", 0),
    ] {
        let reply = Reply::Repeat(part.as_bytes().to_vec(), Duration::from_millis(pause));
        let origin = RawOrigin::start(move |_, _| reply.clone()).await;
        let scene = scene_before(&origin).await;
        let began = Instant::now();
        let status = request(&scene, Method::GET, "a.png", None).await.status();
        let is_refused = matches!(status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT);
        assert!(is_refused, "{part:?}: {status}");
        // At most two attempts of one second each.
        assert!(began.elapsed() < Duration::from_secs(10), "{part:?}: {:?}", began.elapsed());
        scene.end().await;
    }
}

#[tokio::test]
async fn rest_of_a_file_of_another_length_is_not_appended() {
    const HALF: usize = 100_000;
    let (first, rest) = ("a".repeat(HALF), "z".repeat(HALF));
    // All files have the same tag; only the length differs. The last two are the same file.
    for (head, is_whole) in [
        (format!("206 P\r\ncontent-range: bytes {HALF}-{}/{}", 2 * HALF - 1, 2 * HALF + 50), false),
        (format!("206 P\r\ncontent-range: bytes {HALF}-{}/*", 2 * HALF - 1), false),
        (format!("206 P\r\ncontent-range: bytes {HALF}-{}/{}", 2 * HALF - 1, 2 * HALF), true),
        ("200 OK".to_owned(), true),
    ] {
        let body = if head.starts_with("200") { format!("{first}{rest}") } else { rest.clone() };
        let rest = format!(
            "HTTP/1.1 {head}\r\netag: \"v1\"\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let first = format!(
            "HTTP/1.1 200 OK\r\netag: \"v1\"\r\ncontent-length: {}\r\n\r\n{first}",
            2 * HALF
        );
        let origin = RawOrigin::start(move |head, _| match head.contains("\r\nrange:") {
            true => Reply::close(&rest),
            false => Reply::close(&first),
        })
        .await;
        let scene = scene_before(&origin).await;
        let answer = request(&scene, Method::GET, "a.png", None).await;
        let body = answer.bytes().await;
        assert_eq!(body.is_ok(), is_whole, "{head}");
        if let Ok(body) = body {
            assert!(
                body.len() == 2 * HALF && body[HALF..].iter().all(|byte| *byte == b'z'),
                "{head}"
            );
        }
        scene.end().await;
    }
}
