//! SIGTERM: running bodies complete, new connections are refused, and the drain is bounded in time.

use std::time::Duration;

use http::StatusCode;
use loangate::sandbox::Bounds;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{AUDIO, BOOK, File, Process, Scene, Setting, frames, metric, raw_client};

/// Larger than all sockets and windows together, so the gate cannot finish before the reader reads.
const SIZE: u64 = 64 << 20;

/// Starts a scene with a large file and a gate process.
async fn scene(config: Vec<(&'static str, &'static str)>) -> (Scene, Process) {
    let mut scene =
        Scene::without_gate(Setting { bounds: Bounds::quick(), config, ..Setting::default() })
            .await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(SIZE));
    let gate = scene.spawn_gate().await;
    (scene, gate)
}

/// Starts a download and reads its first chunk.
async fn started_download(scene: &Scene, client: &reqwest::Client) -> (reqwest::Response, u64) {
    let request = scene.get(client, &format!("/files/{AUDIO}/audio.mp3"), &scene.token("kari"));
    let mut answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let bit = answer.chunk().await.unwrap().unwrap();
    assert_eq!(bit, File::of(SIZE).part(0..bit.len() as u64));
    (answer, bit.len() as u64)
}

async fn refuses_connections(scene: &Scene) -> bool {
    TcpStream::connect(scene.address()).await.is_err()
}

async fn readiness(scene: &Scene) -> StatusCode {
    scene.admin("/readyz").await.status()
}

#[tokio::test]
async fn drain_finishes_bodies_and_refuses_new_connections() {
    for version in [http::Version::HTTP_11, http::Version::HTTP_2] {
        let (scene, mut gate) = scene(Vec::new()).await;
        let client = if version == http::Version::HTTP_2 { scene.http2() } else { scene.http1() };
        assert_eq!(readiness(&scene).await, StatusCode::OK);
        let (mut answer, mut at) = started_download(&scene, &client).await;
        assert_eq!(answer.version(), version);

        gate.terminate();
        scene.until("no new connections", async || refuses_connections(&scene).await).await;
        assert_eq!(readiness(&scene).await, StatusCode::SERVICE_UNAVAILABLE, "while it drains");
        assert!(gate.runs());

        let file = File::of(SIZE);
        while let Some(chunk) = answer.chunk().await.unwrap() {
            let end = at + chunk.len() as u64;
            assert!(chunk == file.part(at..end), "{version:?}: other bytes at {at}");
            at = end;
        }
        assert_eq!(at, SIZE, "{version:?}");
        drop((answer, client));
        assert_eq!(gate.exit().await.code(), Some(0), "{version:?}");
        scene.end().await;
    }
}

#[tokio::test]
async fn delay_of_the_drain_accepts_connections_and_is_not_ready() {
    let (scene, mut gate) =
        scene(vec![("[admin]", "[server]\ndrain_delay = \"60s\"\n\n[admin]")]).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    gate.terminate();
    let unready = async || readiness(&scene).await == StatusCode::SERVICE_UNAVAILABLE;
    scene.until("the gate reports that it stops", unready).await;
    for client in [scene.http1(), scene.http2()] {
        let path = format!("/files/{BOOK}/book.epub");
        let answer = scene.get(&client, &path, &scene.token("kari")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers().get("connection"), None);
        assert_eq!(answer.bytes().await.unwrap().len(), 1000);
    }
    assert!(gate.runs());
    gate.terminate();
    assert_eq!(gate.exit().await.code(), Some(0), "the second signal stops at once");
    scene.end().await;
}

#[tokio::test]
async fn accepting_stops_after_the_delay() {
    let (scene, mut gate) =
        scene(vec![("[admin]", "[server]\ndrain_delay = \"300ms\"\n\n[admin]")]).await;
    let (mut answer, mut at) = started_download(&scene, &scene.http2()).await;
    gate.terminate();
    scene.until("no new connections", async || refuses_connections(&scene).await).await;
    assert!(gate.runs());
    while let Some(chunk) = answer.chunk().await.unwrap() {
        at += chunk.len() as u64;
    }
    assert_eq!(at, SIZE);
    drop(answer);
    assert_eq!(gate.exit().await.code(), Some(0));
    scene.end().await;
}

/// They were accepted before the drain, and their clients have sent nothing yet.
#[tokio::test]
async fn new_connections_are_served_while_the_gate_drains() {
    let (scene, mut gate) = scene(Vec::new()).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let token = scene.token("kari");
    let path = format!("/files/{BOOK}/book.epub");
    assert_eq!(
        scene.get(&scene.http1(), &path, &token).send().await.unwrap().status(),
        StatusCode::OK
    );
    let connect = async || TcpStream::connect(scene.address()).await.unwrap();
    let (one, other) = (connect().await, connect().await);
    let ca = scene.ca();
    let secure =
        async |socket, protocol| raw_client::connect_over(socket, &ca, "localhost", protocol).await;
    let mut idle = secure(connect().await, "http/1.1").await;
    gate.terminate();
    scene.until("no new connections", async || refuses_connections(&scene).await).await;
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\r\n");
    let mut one = secure(one, "http/1.1").await;
    for stream in [&mut one, &mut idle] {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        assert!(text.starts_with("http/1.1 200") && text.contains("connection: close"), "{text}");
    }
    let mut other = secure(other, "h2").await;
    let head = frames::head("GET", "localhost", &path, Some(&token));
    let flags = frames::END_HEADERS | frames::END_STREAM;
    let request = [frames::preface(&[]), frames::frame(frames::HEADERS, flags, 1, &head)];
    other.write_all(&request.concat()).await.unwrap();
    let (mut arrived, mut goaway) = (0, false);
    while let Some((kind, flags, _, payload)) = frames::next(&mut other).await {
        match kind {
            frames::DATA => arrived += payload.len(),
            frames::PING if flags == 0 => {
                let _ = other.write_all(&frames::frame(frames::PING, 1, 0, &payload)).await;
            }
            frames::GOAWAY => goaway = true,
            _ => {}
        }
    }
    assert!(goaway && arrived == 1000, "{goaway} {arrived}");
    drop((one, idle, other));
    assert_eq!(gate.exit().await.code(), Some(0));
    scene.end().await;
}

/// Over HTTP/1.1, only a response can say that its connection ends. Each of these connections has
/// had requests, and is idle or receives a response when the drain begins.
#[tokio::test]
async fn used_connection_gets_one_more_response_while_the_gate_drains() {
    let (scene, mut gate) = scene(Vec::new()).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let (ca, token) = (scene.ca(), scene.token("kari"));
    let request = |method: &str, path: &str, rest: &str| {
        format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n{rest}"
        )
    };
    let book = format!("/files/{BOOK}/book.epub");
    let (get, audio) = (request("GET", &book, "\r\n"), format!("/files/{AUDIO}/audio.mp3"));
    let used = async |request: &str| {
        let mut stream = raw_client::connect(scene.address(), &ca, "localhost", "http/1.1").await;
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(stream.read(&mut [0; 64]).await.unwrap() > 0);
        stream
    };
    let body = "content-length: 17\r\n\r\n{\"fraction\": 0.4}";
    let put = request("PUT", &format!("/loans/{BOOK}/progress"), body);
    let silent = used(&get).await;
    let mut streams = vec![
        ("idle", used(&get).await),
        ("had a request with a body", used(&put).await),
        ("receives a response", used(&request("GET", &audio, "\r\n")).await),
    ];
    let mut half = used(&get).await;
    half.write_all(&get.as_bytes()[..20]).await.unwrap();
    gate.terminate();
    scene.until("no new connections", async || refuses_connections(&scene).await).await;
    half.write_all(&get.as_bytes()[20..]).await.unwrap();
    for (_, stream) in &mut streams {
        stream.write_all(get.as_bytes()).await.unwrap();
    }
    streams.extend([("has sent half a head", half), ("silent", silent)]);
    for (what, mut stream) in streams {
        let mut answer = Vec::new();
        // An end without a close_notify would be an error.
        stream.read_to_end(&mut answer).await.expect(what);
        let tail = &answer[answer.len().saturating_sub(2000)..];
        let tail = String::from_utf8_lossy(tail).to_ascii_lowercase();
        assert_eq!(tail.contains("connection: close"), what != "silent", "{what}: {tail}");
    }
    assert_eq!(gate.exit().await.code(), Some(0));
    scene.end().await;
}

#[tokio::test]
async fn second_signal_stops_at_once() {
    let (scene, mut gate) = scene(Vec::new()).await;
    let (mut answer, mut at) = started_download(&scene, &scene.http1()).await;
    gate.terminate();
    scene
        .until("draining", async || readiness(&scene).await == StatusCode::SERVICE_UNAVAILABLE)
        .await;
    assert!(gate.runs());
    gate.terminate();
    // server.drain is a minute, longer than the test waits for an exit.
    assert_eq!(gate.exit().await.code(), Some(0));
    // The running body broke off, and the client notices.
    let broken = loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => at += chunk.len() as u64,
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(broken && at < SIZE, "{at} bytes of {SIZE} looked whole");
    scene.end().await;
}

#[tokio::test]
async fn drain_timeout_aborts_a_stalled_reader() {
    for version in [http::Version::HTTP_11, http::Version::HTTP_2] {
        let (scene, mut gate) =
            scene(vec![("[admin]", "[server]\ndrain = \"1s\"\n\n[admin]")]).await;
        let client = if version == http::Version::HTTP_2 { scene.http2() } else { scene.http1() };
        let (mut answer, mut at) = started_download(&scene, &client).await;
        gate.terminate();
        assert_eq!(gate.exit().await.code(), Some(0), "{version:?}");
        let broken = loop {
            match answer.chunk().await {
                Ok(Some(chunk)) => at += chunk.len() as u64,
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        assert!(broken && at < SIZE, "{version:?}: {at} bytes of {SIZE} looked whole");
        scene.end().await;
    }
}

#[tokio::test]
async fn silent_connections_do_not_delay_a_drain() {
    let (scene, mut gate) = scene(Vec::new()).await;
    let address = scene.address();
    let ca = scene.ca();
    let connect = async |protocol, sent: Vec<u8>| {
        let mut stream = raw_client::connect(address, &ca, "localhost", protocol).await;
        stream.write_all(&sent).await.unwrap();
        stream.flush().await.unwrap();
        stream
    };
    let request = frames::frame(1, 5, 1, &frames::head("GET", "localhost", "/", None));
    let silent = [
        connect("http/1.1", Vec::new()).await,
        connect("http/1.1", b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec()).await,
        connect("http/1.1", b"GET / HTTP/1.1\r\nho".to_vec()).await,
        connect("h2", Vec::new()).await,
        connect("h2", frames::preface(&[])).await,
        connect("h2", [frames::preface(&[]), request.clone()].concat()).await,
        connect("h2", [frames::preface(&[]), request[..20].to_vec()].concat()).await,
    ];
    let mut shaking = TcpStream::connect(address).await.unwrap();
    // Waiting for the limits of silence would take far too long: 20 seconds for a head, 75 seconds
    // for an idle connection.
    let began = std::time::Instant::now();
    gate.terminate();
    assert_eq!(gate.exit().await.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    assert_eq!(shaking.read(&mut [0]).await.unwrap_or(0), 0);
    drop(silent);
    scene.end().await;
}

/// The kernel resets a closed socket when more input arrives, and then discards what the client has
/// not received yet.
#[tokio::test]
async fn drain_delivers_the_rest_to_a_slow_http2_reader() {
    // So little that the kernel accepts it, and a GOAWAY after it, while the client reads nothing.
    const FITTING: u64 = 50_000;
    const WINDOW: u32 = 1 << 20;
    let (scene, mut gate) = scene(Vec::new()).await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(FITTING));
    let address = scene.address();
    let ca = scene.ca();
    let mut stream = raw_client::connect_with_buffer(address, &ca, "h2", 4096).await;
    let path = format!("/files/{AUDIO}/audio.mp3");
    let head = frames::head("GET", "localhost", &path, Some(&scene.token("kari")));
    let window_update = |bytes: u32| frames::frame(8, 0, 0, &bytes.to_be_bytes());
    let request = [
        frames::preface(&[(4, WINDOW)]),
        window_update(WINDOW),
        frames::frame(frames::HEADERS, frames::END_HEADERS | frames::END_STREAM, 1, &head),
    ];
    stream.write_all(&request.concat()).await.unwrap();
    stream.flush().await.unwrap();
    scene
        .until("the kernel has the file", async || {
            let closed = "loangate_streams_closed_total";
            metric(&scene.metrics().await, closed, "end=\"complete\"") == 1.0
        })
        .await;
    gate.terminate();
    scene.until("no new connections", async || refuses_connections(&scene).await).await;
    // Longer than the gate waits for another request on a connection that drains.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut arrived = 0;
    while let Some((kind, flags, _, payload)) = frames::next(&mut stream).await {
        match kind {
            frames::DATA => arrived += payload.len() as u64,
            frames::PING if flags == 0 => {
                let _ = stream.write_all(&frames::frame(frames::PING, 1, 0, &payload)).await;
            }
            _ => {}
        }
        // The gate may have closed, once the file has arrived.
        let _ = stream.write_all(&window_update(1)).await;
        let _ = stream.flush().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(arrived, FITTING);
    drop(stream);
    assert_eq!(gate.exit().await.code(), Some(0));
    scene.end().await;
}
