//! Readers who stop reading: over HTTP/2 with a closed window, over HTTP/1.1 with a full socket. A
//! body is bound by its loan and by every limit until the kernel has its last byte.

use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::scene::movable_clock;
use crate::support::{AUDIO, File, Scene, Setting, metric, raw_client};

/// Size of a file that the origin sends in one chunk.
const ONE_CHUNK: u64 = 60_000;
/// Initial window of a stream, in bytes.
const WINDOW: u32 = 1000;
/// Maximum time in which bytes of an ended loan may still arrive.
const SOON: Duration = Duration::from_secs(1);

async fn scene_with(delivery: &'static str, size: u64) -> Scene {
    let config = vec![("[ledger]", delivery)];
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(size));
    scene
}

/// Opens an HTTP/2 connection with small stream windows, which reopen only as data is read.
async fn connect(scene: &Scene) -> SendRequest<Bytes> {
    let tls = scene.connect("h2").await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(1 << 24);
    let (sender, connection) = builder.handshake(tls).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

async fn get(scene: &Scene, sender: &SendRequest<Bytes>, token: &str) -> Response<RecvStream> {
    let mut sender = sender.clone().ready().await.unwrap();
    let request = Request::builder()
        .method(Method::GET)
        .uri(format!("https://localhost:{}/files/{AUDIO}/audio.mp3", scene.address().port()))
        .header("authorization", format!("Bearer {token}"))
        .body(())
        .unwrap();
    sender.send_request(request, true).unwrap().0.await.unwrap()
}

/// Opens a stream and receives its first window without releasing capacity.
async fn stalled(scene: &Scene, sender: &SendRequest<Bytes>, reader: &str) -> RecvStream {
    let answer = get(scene, sender, &scene.token(reader)).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let mut body = answer.into_body();
    let mut arrived = 0;
    while arrived < WINDOW as usize {
        arrived += body.data().await.unwrap().unwrap().len();
    }
    assert_eq!(arrived, WINDOW as usize);
    body
}

/// Reads to the end. Returns the bytes received, and the error if the body broke off.
async fn read_to_end(mut body: RecvStream) -> (u64, Option<h2::Error>) {
    let mut arrived = 0;
    loop {
        // If the gate neither sends nor resets, the test fails instead of blocking.
        match tokio::time::timeout(Duration::from_secs(30), body.data()).await.unwrap() {
            Some(Ok(data)) => {
                arrived += data.len() as u64;
                body.flow_control().release_capacity(data.len()).unwrap();
            }
            Some(Err(error)) => return (arrived, Some(error)),
            None => return (arrived, None),
        }
    }
}

async fn closed(scene: &Scene, end: &str) -> f64 {
    metric(&scene.metrics().await, "loangate_streams_closed_total", &format!("end=\"{end}\""))
}

async fn return_loan(scene: &Scene, reader: &str) {
    let (status, _) =
        scene.call_api("DELETE", &format!("/loans/{AUDIO}"), &scene.token(reader), "").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn idle_limit_resets_streams_with_closed_windows() {
    let scene = scene_with("[delivery]\nidle = \"400ms\"\n\n[ledger]", ONE_CHUNK).await;
    let sender = connect(&scene).await;
    let mut bodies = Vec::new();
    for _ in 0..20 {
        bodies.push(stalled(&scene, &sender, "kari").await);
    }
    scene.until("all are reset", async || closed(&scene, "too_slow").await == 20.0).await;
    for body in bodies {
        let (arrived, error) = read_to_end(body).await;
        assert_eq!((arrived, error.unwrap().reason()), (0, Some(Reason::CANCEL)));
    }
    let metrics = scene.metrics().await;
    assert_eq!(metric(&metrics, "loangate_streams", ""), 0.0);
    let delivered = metric(&metrics, "loangate_delivered_bytes_total", "");
    assert_eq!(delivered, 20.0 * f64::from(WINDOW), "only sent bytes are counted");
    let held = async || metric(&scene.metrics().await, "loangate_buffers_held_bytes", "");
    scene.until("the buffers are released", async || held().await == 0.0).await;
    // The connection still serves another reader.
    let (arrived, error) =
        read_to_end(get(&scene, &sender, &scene.token("ola")).await.into_body()).await;
    assert!(error.is_none() && arrived == ONE_CHUNK, "{arrived} {error:?}");
    scene.end().await;
}

#[tokio::test]
async fn return_resets_its_streams_alone_and_sends_nothing_more() {
    let scene = scene_with("[delivery]\nidle = \"60s\"\n\n[ledger]", ONE_CHUNK).await;
    let sender = connect(&scene).await;
    let (ended, lives) =
        (stalled(&scene, &sender, "kari").await, stalled(&scene, &sender, "ola").await);
    return_loan(&scene, "kari").await;
    let began = Instant::now();
    let (arrived, error) = read_to_end(ended).await;
    assert_eq!((arrived, error.unwrap().reason()), (0, Some(Reason::CANCEL)));
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    scene.until("the end is counted", async || closed(&scene, "cut").await == 1.0).await;
    // The first bytes closed the other reader's window as well.
    let mut lives = lives;
    lives.flow_control().release_capacity(WINDOW as usize).unwrap();
    let (arrived, error) = read_to_end(lives).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(arrived, ONE_CHUNK - u64::from(WINDOW));
    scene.until("it is complete", async || closed(&scene, "complete").await == 1.0).await;
    scene.end().await;
}

#[tokio::test]
async fn closed_windows_count_against_a_borrowers_streams() {
    let scene = scene_with("[delivery]\nstreams_per_borrower = 2\n\n[ledger]", ONE_CHUNK).await;
    let sender = connect(&scene).await;
    let one = stalled(&scene, &sender, "kari").await;
    let other = stalled(&scene, &connect(&scene).await, "kari").await;
    let token = scene.token("kari");
    assert_eq!(get(&scene, &sender, &token).await.status(), StatusCode::TOO_MANY_REQUESTS);
    drop(one); // resets the stream
    scene
        .until("another stream is allowed", async || {
            get(&scene, &sender, &token).await.status() == StatusCode::OK
        })
        .await;
    drop(other);
    scene.end().await;
}

#[tokio::test]
async fn stalled_stream_releases_the_origin_and_resumes_later() {
    let size = 4 << 20;
    let scene = scene_with("[delivery]\nidle = \"8s\"\n\n[ledger]", size).await;
    let sender = connect(&scene).await;
    let mut body = stalled(&scene, &sender, "kari").await;
    scene.until("the origin is released", async || scene.origin.bodies() == 0).await;
    assert_eq!(metric(&scene.metrics().await, "loangate_streams", ""), 1.0, "it is still open");
    let mut at = u64::from(WINDOW);
    body.flow_control().release_capacity(WINDOW as usize).unwrap();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        let end = at + data.len() as u64;
        assert!(data == File::of(size).part(at..end), "other bytes at {at}");
        body.flow_control().release_capacity(data.len()).unwrap();
        at = end;
    }
    assert_eq!(at, size);
    scene.end().await;
}

#[tokio::test]
async fn stalled_stream_ends_when_due_though_the_ledger_cannot_write() {
    let clock = movable_clock();
    let scene = Scene::start_with(Setting { clock: clock.clone(), ..Setting::default() }).await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(ONE_CHUNK));
    let sender = connect(&scene).await;
    let body = stalled(&scene, &sender, "kari").await;
    // Another writer locks the ledger, so that no end can be written.
    let file = scene.dir.path().join("data/loangate.db");
    let mut writer = SqliteConnectOptions::new().filename(file).connect().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut writer).await.unwrap();
    clock.advance(Duration::from_secs(366 * 86_400));
    let began = Instant::now();
    let (arrived, error) = read_to_end(body).await;
    assert_eq!((arrived, error.unwrap().reason()), (0, Some(Reason::CANCEL)));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    sqlx::query("ROLLBACK").execute(&mut writer).await.unwrap();
    writer.close().await.unwrap();
    scene
        .until("the end is written", async || scene.ledger().await[0]["state"] != "accepted")
        .await;
    scene.end().await;
}

/// Requests the file over HTTP/1.1 and reads nothing. Its receive buffer is small.
async fn unread(scene: &Scene, reader: &str) -> TlsStream<TcpStream> {
    let mut stream =
        raw_client::connect_with_buffer(scene.address(), &scene.ca(), "http/1.1", 4096).await;
    let token = scene.token(reader);
    let head = format!(
        "GET /files/{AUDIO}/audio.mp3 HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer \
         {token}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    stream
}

/// Reads until the body is complete or the connection closes. Returns the number of body bytes.
async fn body_bytes(mut stream: TlsStream<TcpStream>, length: u64) -> u64 {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let head = all.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        if let Some(head) = head.filter(|head| (all.len() - head) as u64 >= length) {
            return (all.len() - head) as u64;
        }
        match stream.read(&mut buffer).await {
            Ok(count @ 1..) => all.extend_from_slice(&buffer[..count]),
            _ => return head.map_or(0, |head| all.len() - head) as u64,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn return_discards_what_an_http1_reader_has_not_received() {
    let scene = scene_with("[delivery]\nidle = \"60s\"\n\n[ledger]", 0).await;
    // For some of these sizes the gate has the last chunk when the socket is full; for others the
    // kernel has all.
    let sizes: Vec<u64> = (2..40).map(|step| step * 32_000).collect();
    let mut streams = Vec::new();
    for size in &sizes {
        scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(*size));
        let opened = streams.len() as f64 + 1.0;
        streams.push((*size, unread(&scene, "kari").await));
        scene
            .until("the response has started", async || {
                let metrics = scene.metrics().await;
                let closed = metric(&metrics, "loangate_streams_closed_total", "");
                metric(&metrics, "loangate_streams", "") + closed == opened
            })
            .await;
    }
    let delivered = async || metric(&scene.metrics().await, "loangate_delivered_bytes_total", "");
    let last = std::cell::Cell::new(-1.0);
    scene
        .until("the sockets are full", async || {
            let now = delivered().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            last.replace(now) == now
        })
        .await;
    return_loan(&scene, "kari").await;
    let began = Instant::now();
    scene
        .until("all are closed", async || {
            metric(&scene.metrics().await, "loangate_streams", "") == 0.0
        })
        .await;
    assert!(began.elapsed() < 2 * SOON, "{:?}", began.elapsed());
    let (complete, cut) = (closed(&scene, "complete").await, closed(&scene, "cut").await);
    assert_eq!(complete + cut, sizes.len() as f64);
    assert!(cut > 0.0, "every response fitted into the sockets");
    let (mut whole, mut total) = (0, 0);
    for (size, stream) in streams {
        let arrived = body_bytes(stream, size).await;
        total += arrived;
        if arrived == size {
            whole += 1;
        } else {
            assert!(arrived < 64_000, "{arrived} bytes of {size} arrived after the return");
        }
    }
    assert_eq!(
        f64::from(whole),
        complete,
        "exactly the responses counted as complete arrive whole"
    );
    assert!(total as f64 <= delivered().await, "more arrived than is counted");
    scene.end().await;
}

/// Repeatedly opens many connections full of streams with closed windows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_windows_leak_no_memory() {
    let config = vec![("[ledger]", "[delivery]\nidle = \"2s\"\n\n[ledger]")];
    let mut scene = Scene::without_gate(Setting { config, ..Setting::default() }).await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(ONE_CHUNK));
    let mut gate = scene.spawn_gate().await;
    let mut before = None;
    for round in 1..=4 {
        let mut senders = Vec::new();
        let mut bodies = Vec::new();
        for _ in 0..4 {
            let sender = connect(&scene).await;
            for _ in 0..100 {
                bodies.push(stalled(&scene, &sender, "kari").await);
            }
            senders.push(sender);
        }
        scene
            .until("all are reset", async || {
                closed(&scene, "too_slow").await == f64::from(round) * 400.0
            })
            .await;
        for body in bodies {
            let (arrived, error) = read_to_end(body).await;
            assert_eq!((arrived, error.unwrap().reason()), (0, Some(Reason::CANCEL)));
        }
        let held = async || metric(&scene.metrics().await, "loangate_buffers_held_bytes", "");
        scene.until("the buffers are released", async || held().await == 0.0).await;
        // The first round fills the allocator's caches.
        let before = *before.get_or_insert_with(|| gate.memory());
        let more = gate.memory().saturating_sub(before);
        assert!(more < 30 * 1024, "round {round}: {more} KiB more");
    }
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

#[tokio::test]
async fn malformed_request_closes_only_its_stream() {
    let scene = scene_with("[ledger]", 500).await;
    let sender = connect(&scene).await;
    let token = scene.token("kari");
    let kept = get(&scene, &sender, &token).await;
    let authority = format!("localhost:{}", scene.address().port());
    // CONNECT has no path and opens no tunnel.
    let mut ready = sender.clone().ready().await.unwrap();
    let connect =
        Request::builder().method(Method::CONNECT).uri(authority.as_str()).body(()).unwrap();
    let answer = ready.send_request(connect, false).unwrap().0.await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    // A body of another length than announced.
    for (announced, sent) in [("5", &b""[..]), ("3", br#"{"fraction": 0.4}"#)] {
        let request = Request::builder()
            .method(Method::PUT)
            .uri(format!("https://{authority}/loans/{AUDIO}/progress"))
            .header("authorization", format!("Bearer {token}"))
            .header("content-length", announced)
            .body(())
            .unwrap();
        let mut ready = sender.clone().ready().await.unwrap();
        let (answer, mut body) = ready.send_request(request, sent.is_empty()).unwrap();
        if !sent.is_empty() {
            body.send_data(Bytes::from_static(sent), true).unwrap();
        }
        let refused = match answer.await {
            Ok(answer) => answer.status() == StatusCode::BAD_REQUEST,
            Err(error) => error.reason() == Some(Reason::PROTOCOL_ERROR) && error.is_reset(),
        };
        assert!(refused, "announced {announced}, sent {}", sent.len());
    }
    assert_eq!(kept.status(), StatusCode::OK);
    let (arrived, error) = read_to_end(kept.into_body()).await;
    assert!(error.is_none() && arrived == 500, "{arrived} {error:?}");
    let (arrived, error) = read_to_end(get(&scene, &sender, &token).await.into_body()).await;
    assert!(error.is_none() && arrived == 500, "{arrived} {error:?}");
    scene.end().await;
}
