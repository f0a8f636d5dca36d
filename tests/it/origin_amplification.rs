//! Load on a failing or hanging origin: few retries, few connections, and respect for Retry-After.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::{BOOK, File, Origin, RawOrigin, Reply, Scene, Setting, metric};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\netag: \"v1\"\r\n\r\nhello";
const NAME: &str = "name = \"files\"";

/// Starts a gate for this origin with these lines in its `[[origins]]`.
async fn scene_before(url: &str, lines: &str) -> Scene {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.replace_in_config(&format!("{}/", scene.origin.url), url);
    scene.replace_in_config(NAME, &format!("{NAME}\n{lines}"));
    scene.start_gate().await;
    scene
}

/// Requests a file of the open route, which needs no loan.
fn cover(
    scene: &Scene,
    client: &reqwest::Client,
    method: Method,
    name: &str,
) -> reqwest::RequestBuilder {
    client.request(method, format!("{}/covers/{name}", scene.base))
}

async fn status(scene: &Scene, name: &str) -> StatusCode {
    cover(scene, &scene.http1(), Method::GET, name).send().await.unwrap().status()
}

#[tokio::test]
async fn failing_origin_gets_at_most_two_requests_for_one() {
    for (failure, is_repeated) in [
        (Reply::send("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"), true),
        (Reply::send("HTTP/1.1 502 No\r\ncontent-length: 2\r\n\r\nno"), true),
        (Reply::send("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"), true),
        (Reply::send("HTTP/1.1 503 No\r\nretry-after: 9\r\ncontent-length: 0\r\n\r\n"), false),
        (Reply::send("HTTP/1.1 429 No\r\nretry-after: 9\r\ncontent-length: 0\r\n\r\n"), false),
        (Reply::send("HTTP/1.1 501 No\r\ncontent-length: 0\r\n\r\n"), false),
        (Reply::close(""), true),
        (Reply::close("220 mail.example.no ESMTP\r\n"), true),
    ] {
        for (method, field) in [
            (Method::GET, None),
            (Method::HEAD, None),
            (Method::GET, Some(("range", "bytes=0-9"))),
            (Method::GET, Some(("range", "bytes=0-9,500-509"))),
            (Method::GET, Some(("if-none-match", "\"v1\""))),
        ] {
            let reply = failure.clone();
            let origin = RawOrigin::start(move |_, _| reply.clone()).await;
            let scene = scene_before(&origin.url, "").await;
            let mut request = cover(&scene, &scene.http2(), method.clone(), "a.png");
            if let Some((name, value)) = field {
                request = request.header(name, value);
            }
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::BAD_GATEWAY, "{failure:?} {method} {field:?}");
            let wanted = if is_repeated { 2 } else { 1 };
            assert_eq!(origin.request_count(), wanted, "{failure:?} {method} {field:?}");
            scene.end().await;
        }
    }
}

#[tokio::test]
async fn closed_idle_connection_costs_one_retry() {
    // The origin answers every second request on a connection by closing it.
    let origin = RawOrigin::start(|_, number| match number {
        0 => Reply::send(OK),
        1 => Reply::close(""),
        _ => Reply::close("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"),
    });
    let origin = origin.await;
    let scene = scene_before(&origin.url, "").await;
    let client = scene.http1();
    let get = || cover(&scene, &client, Method::GET, "a.png").send();
    assert_eq!(get().await.unwrap().status(), StatusCode::OK);
    assert_eq!(get().await.unwrap().status(), StatusCode::BAD_GATEWAY);
    assert_eq!(origin.request_count(), 3, "one for the first reader, two for the second");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sustained_failure_adds_at_most_a_fifth_and_ends() {
    const READERS: usize = 300;
    for files in [1, 20] {
        let scene = Scene::start().await;
        let put = |status: Option<StatusCode>| {
            for file in 0..files {
                scene.origin.put(&format!("covers/{file}.png"), File { status, ..File::of(100) });
            }
        };
        put(Some(StatusCode::SERVICE_UNAVAILABLE));
        let mut readers = JoinSet::new();
        for reader in 0..READERS {
            if readers.len() == 10 {
                readers.join_next().await.unwrap().unwrap();
            }
            let request =
                cover(&scene, &scene.http2(), Method::GET, &format!("{}.png", reader % files));
            readers.spawn(async move {
                assert_eq!(request.send().await.unwrap().status(), StatusCode::BAD_GATEWAY);
            });
        }
        readers.join_all().await;
        let sent = scene.origin.count("/covers/");
        assert!(
            sent * 10 <= READERS * 12,
            "{sent} requests for {READERS} readers of {files} files"
        );
        if files > 1 {
            assert!(sent < READERS / 2, "{sent}: the address is not cooling down");
            let metrics = scene.metrics().await;
            assert!(
                metric(&metrics, "loangate_origin_requests_total", "outcome=\"suspended\"") > 0.0
            );
        }
        put(None);
        let began = Instant::now();
        scene
            .until("the file is served again", async || {
                status(&scene, "0.png").await == StatusCode::OK
            })
            .await;
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        scene.end().await;
    }
}

#[tokio::test]
async fn one_bad_file_blocks_no_other_files() {
    let scene = Scene::start().await;
    let bad = File { status: Some(StatusCode::INTERNAL_SERVER_ERROR), ..File::of(100) };
    scene.origin.put("covers/bad.png", bad);
    scene.origin.put("covers/good.png", File::of(100));
    for _ in 0..50 {
        assert_eq!(status(&scene, "bad.png").await, StatusCode::BAD_GATEWAY);
    }
    for _ in 0..20 {
        assert_eq!(status(&scene, "good.png").await, StatusCode::OK);
    }
    scene.end().await;
}

#[tokio::test]
async fn retry_after_of_an_origin_is_passed_on_bounded() {
    for (status, value, told) in [
        (503, "7", Some("7")),
        (429, "7", Some("7")),
        (500, "2", Some("2")),
        (503, "1000000000000000000", Some("3600")),
        (503, "Fri, 31 Dec 9999 23:59:59 GMT", Some("3600")),
        (503, "Mon, 05 Jan 2026 08:00:00 GMT", None),
        (503, "soon", None),
    ] {
        let text =
            format!("HTTP/1.1 {status} No\r\nretry-after: {value}\r\ncontent-length: 0\r\n\r\n");
        let origin = RawOrigin::start(move |_, _| Reply::send(&text)).await;
        let scene = scene_before(&origin.url, "").await;
        let answer = cover(&scene, &scene.http1(), Method::GET, "a.png").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY, "{value}");
        let field =
            answer.headers().get("retry-after").map(|field| field.to_str().unwrap().to_owned());
        assert_eq!(field.as_deref(), told, "{status} {value}");
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["type"], "origin-failed");
        scene.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_origin_never_holds_more_than_its_cap() {
    const MAX_CONNECTIONS: usize = 4;
    let origin = RawOrigin::start(|_, _| Reply::Hang).await;
    let scene =
        scene_before(&origin.url, "connections = 4\nfirst_byte = \"2s\"\nconnect_timeout = \"1s\"")
            .await;
    let mut readers = JoinSet::new();
    let began = Instant::now();
    for reader in 0..60 {
        // Each request has its own connection, so that all workers take part.
        let request = cover(&scene, &scene.http1(), Method::GET, &format!("{reader}.png"));
        readers.spawn(async move { request.send().await.unwrap().status() });
    }
    let statuses = readers.join_all().await;
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "a wait took too long: {:?}",
        began.elapsed()
    );
    let count = |status| statuses.iter().filter(|other| **other == status).count();
    assert!(origin.max_open() <= MAX_CONNECTIONS, "{} connections", origin.max_open());
    assert!(count(StatusCode::GATEWAY_TIMEOUT) >= MAX_CONNECTIONS, "{statuses:?}");
    assert!(count(StatusCode::SERVICE_UNAVAILABLE) >= 60 - 3 * MAX_CONNECTIONS, "{statuses:?}");
    assert_eq!(count(StatusCode::OK), 0);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_share_the_cap_without_starving_each_other() {
    let origin = RawOrigin::start(|_, _| Reply::send(OK)).await;
    let scene = scene_before(&origin.url, "connections = 1\nconnect_timeout = \"30s\"").await;
    let mut readers = JoinSet::new();
    for _ in 0..40 {
        if readers.len() == 2 {
            readers.join_next().await.unwrap().unwrap();
        }
        // Both workers alternately need the one connection, which is idle at the other. The client
        // gives up before the queue does, so a request that starves fails the test.
        let request = cover(&scene, &scene.http1(), Method::GET, "a.png");
        readers.spawn(served(request.timeout(Duration::from_secs(20))));
    }
    readers.join_all().await;
    assert_eq!(origin.max_open(), 1);
    scene.end().await;
}

/// Repeats a request until it is served. A full queue refuses it at once: a request that has been
/// given the connection counts as queued until its task runs. Such a moment is short.
async fn served(request: reqwest::RequestBuilder) {
    for _ in 0..100 {
        match request.try_clone().unwrap().send().await.unwrap().status() {
            StatusCode::OK => return,
            status => assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("refused 100 times in two seconds");
}

/// Opens two responses that nothing reads yet.
async fn stalled(scene: &Scene) -> [reqwest::Response; 2] {
    scene.origin.put(&format!("{BOOK}/audio.mp3"), File::of(1 << 30));
    let (client, path) = (scene.http1(), format!("/files/{BOOK}/audio.mp3"));
    let get = async || scene.get(&client, &path, &scene.token("kari")).send().await.unwrap();
    [get().await, get().await]
}

#[tokio::test]
async fn queue_for_a_connection_has_a_deadline() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.replace_in_config(NAME, &format!("{NAME}\nconnections = 2\nconnect_timeout = \"1s\""));
    scene.start_gate().await;
    scene.origin.put("covers/a.png", File::of(100));
    let both = stalled(&scene).await;
    let answer = cover(&scene, &scene.http2(), Method::GET, "a.png").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(answer.json::<Value>().await.unwrap()["type"], "overloaded");
    assert_eq!(scene.origin.count("/covers/"), 0);
    let metrics = scene.metrics().await;
    assert_eq!(metric(&metrics, "loangate_origin_requests_total", "outcome=\"busy\""), 1.0);
    drop(both);
    scene
        .until("the file is served again", async || status(&scene, "a.png").await == StatusCode::OK)
        .await;
    scene.end().await;
}

#[tokio::test]
async fn queued_request_gets_the_next_free_connection() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.replace_in_config(NAME, &format!("{NAME}\nconnections = 2\nconnect_timeout = \"14s\""));
    scene.replace_in_config(NAME, &format!("{NAME}\nfirst_byte = \"30s\""));
    scene.start_gate().await;
    scene.origin.put("covers/a.png", File::of(100));
    let both = stalled(&scene).await;
    let reader = || {
        let client = scene.http2();
        let request = cover(&scene, &client, Method::GET, "a.png");
        tokio::spawn(async move {
            loop {
                match request.try_clone().unwrap().send().await.unwrap().status() {
                    // The request below occupied the queue for a moment.
                    StatusCode::SERVICE_UNAVAILABLE => {}
                    status => return status,
                }
            }
        })
    };
    let readers = [reader(), reader()];
    // A third request is refused at once only when both are in the queue.
    let refused = async || {
        let request =
            cover(&scene, &scene.http2(), Method::GET, "a.png").timeout(Duration::from_millis(500));
        request.send().await.is_ok_and(|answer| answer.status() == StatusCode::SERVICE_UNAVAILABLE)
    };
    scene.until("the queue is full", refused).await;
    drop(both);
    for reader in readers {
        assert_eq!(reader.await.unwrap(), StatusCode::OK);
    }
    scene.end().await;
}

#[tokio::test]
async fn resumes_count_progress_in_bytes() {
    const SIZE: u64 = 2_000_000;
    for (cut, requests, is_whole) in [(50_000, 6, false), (100_000, 20, true)] {
        let scene = Scene::start().await;
        let file = File { abort_after: Some(cut), ..File::of(SIZE) };
        scene.origin.put(&format!("{BOOK}/audio.mp3"), file.clone());
        let path = format!("/files/{BOOK}/audio.mp3");
        let body = scene
            .get(&scene.http1(), &path, &scene.token("kari"))
            .send()
            .await
            .unwrap()
            .bytes()
            .await;
        assert_eq!(body.is_ok(), is_whole, "aborted after {cut}");
        assert_eq!(scene.origin.requests().len(), requests, "aborted after {cut}");
        if let Ok(body) = body {
            assert!(body == file.part(0..SIZE));
        }
        scene.end().await;
    }
}

#[tokio::test]
async fn address_that_fails_is_tried_after_the_others() {
    let (first, second) = (Origin::start().await, Origin::start().await);
    let mut scene = Scene::without_gate(Setting::default()).await;
    let urls = format!("urls = [\"{}/\", \"{}/\"]", first.url, second.url);
    scene.replace_in_config(&format!("url = \"{}/\"", scene.origin.url), &urls);
    scene.start_gate().await;
    first.put("covers/a.png", File { status: Some(StatusCode::BAD_GATEWAY), ..File::of(100) });
    second.put("covers/a.png", File::of(100));
    for _ in 0..30 {
        assert_eq!(status(&scene, "a.png").await, StatusCode::OK);
    }
    assert!(first.count("/covers/") <= 3, "{}", first.count("/covers/"));
    scene.end().await;
}
