//! Silent and nearly silent clients: each connection closes when the limit of its phase has passed.
//! Single bytes that still arrive do not extend it.

use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::support::frames::{self, END_HEADERS, END_STREAM, HEADERS, PING, frame, preface};
use crate::support::scene::Setting;
use crate::support::{AUDIO, Scene, raw_client};

/// Short limits, with different values where tests could confuse them.
const LIMITS: &str = "[limits]\nhandshake = \"1s\"\npreface = \"1s\"\nhead = \"1s\"\nbody = \
                      \"1s\"\nidle = \"3s\"\n\
                      send = \"2s\"\n\n[ledger]";
/// Tolerance after the limit of a connection.
const TOLERANCE: Duration = Duration::from_secs(2);
/// Interval between the single bytes of a slow client.
const DRIP: Duration = Duration::from_millis(300);

async fn scene() -> Scene {
    Scene::start_with(Setting { config: vec![("[ledger]", LIMITS)], ..Setting::default() }).await
}

/// Reads until the gate closes the connection, which must happen in time.
async fn is_closed(stream: &mut (impl AsyncRead + Unpin), limit: u64, what: &str) {
    let mut received = Vec::new();
    let closed = async {
        // A close without close_notify and a reset count as closes.
        let _ = stream.read_to_end(&mut received).await;
    };
    let within = Duration::from_secs(limit) + TOLERANCE;
    assert!(
        tokio::time::timeout(within, closed).await.is_ok(),
        "{what}: still open after {within:?}"
    );
}

/// Like [`is_closed`], while the client keeps sending these bytes one at a time.
async fn is_closed_despite(stream: TlsStream<TcpStream>, bytes: &[u8], limit: u64, what: &str) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let drip = async {
        for byte in bytes {
            if writer.write_all(std::slice::from_ref(byte)).await.is_err()
                || writer.flush().await.is_err()
            {
                break;
            }
            tokio::time::sleep(DRIP).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = drip => {}
        () = is_closed(&mut reader, limit, what) => {}
    }
}

#[tokio::test]
async fn silent_handshake_is_closed() {
    let scene = scene().await;
    let nothing = async {
        let mut socket = TcpStream::connect(scene.address()).await.unwrap();
        is_closed(&mut socket, 1, "no ClientHello").await;
    };
    let byte_by_byte = async {
        let (mut reader, mut writer) =
            TcpStream::connect(scene.address()).await.unwrap().into_split();
        let drip = async {
            // The header of a 512-byte record, and then zeros for as long as the gate allows.
            for byte in [0x16, 0x03, 0x01, 0x02, 0x00, 0x01].into_iter().chain(std::iter::repeat(0))
            {
                if writer.write_all(&[byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(DRIP).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = drip => {}
            () = is_closed(&mut reader, 1, "a ClientHello byte by byte") => {}
        }
    };
    tokio::join!(nothing, byte_by_byte);
    assert_eq!(scene.limit_reached("handshake").await, 2.0);
    scene.end().await;
}

#[tokio::test]
async fn silent_http1_connection_is_closed() {
    let scene = scene().await;
    let silent = async { is_closed(&mut scene.connect("http/1.1").await, 3, "no request").await };
    let after_an_answer = async {
        let mut stream = scene.connect("http/1.1").await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        is_closed(&mut stream, 3, "after an answer").await;
    };
    // A body that arrives after its head must not count as the next head.
    let after_a_body = async {
        let mut stream = scene.connect("http/1.1").await;
        let (token, body) = (scene.token("kari"), "{\"fraction\": 0.4}");
        let head = format!(
            "PUT /loans/{AUDIO}/progress HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer \
             {token}\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        tokio::time::sleep(DRIP).await;
        stream.write_all(body.as_bytes()).await.unwrap();
        is_closed(&mut stream, 3, "after a body").await;
    };
    // Fragments of a TLS record wake the gate, but are not a request.
    let tls_bytes = async {
        let mut stream = scene.connect("http/1.1").await;
        let began = Instant::now();
        let (socket, _) = stream.get_mut();
        let mut record = [0x17, 0x03, 0x03, 0x40, 0x00].into_iter().chain(std::iter::repeat(0));
        while socket.write_all(&[record.next().unwrap()]).await.is_ok() {
            assert!(
                began.elapsed() < Duration::from_secs(3) + TOLERANCE,
                "one TLS byte at a time keeps it open"
            );
            tokio::time::sleep(DRIP).await;
        }
    };
    tokio::join!(silent, after_an_answer, after_a_body, tls_bytes);
    assert_eq!(scene.limit_reached("idle").await, 4.0);
    let half_a_head = async {
        let mut stream = scene.connect("http/1.1").await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: local").await.unwrap();
        is_closed(&mut stream, 1, "half a head").await;
    };
    let byte_by_byte = async {
        let head = b"GET / HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\n\r\n";
        is_closed_despite(scene.connect("http/1.1").await, head, 1, "a head byte by byte").await;
    };
    let empty_lines = async {
        is_closed_despite(scene.connect("http/1.1").await, &[b'\n'; 60], 1, "empty lines").await;
    };
    tokio::join!(half_a_head, byte_by_byte, empty_lines);
    assert_eq!(scene.limit_reached("head").await, 3.0);
    scene.end().await;
}

#[tokio::test]
async fn silent_http2_connection_is_closed() {
    let scene = scene().await;
    let no_preface = async { is_closed(&mut scene.connect("h2").await, 1, "no preface").await };
    let half_a_preface = async {
        let mut stream = scene.connect("h2").await;
        stream.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
        is_closed(&mut stream, 1, "half a preface").await;
    };
    let no_settings = async {
        is_closed_despite(
            scene.connect("h2").await,
            &preface(&[])[..30],
            1,
            "a preface byte by byte",
        )
        .await;
    };
    tokio::join!(no_preface, half_a_preface, no_settings);
    assert_eq!(scene.limit_reached("preface").await, 3.0);

    let request =
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::head("GET", "localhost", "/", None));
    let half_a_head = async {
        let mut stream = scene.connect("h2").await;
        stream.write_all(&[&preface(&[]), &request[..20]].concat()).await.unwrap();
        is_closed(&mut stream, 1, "half a head").await;
    };
    let open_head = async {
        let mut stream = scene.connect("h2").await;
        let block = frames::head("GET", "localhost", "/", None);
        stream
            .write_all(&[preface(&[]), frame(HEADERS, END_STREAM, 1, &block)].concat())
            .await
            .unwrap();
        is_closed(&mut stream, 1, "a head without its end").await;
    };
    tokio::join!(half_a_head, open_head);
    assert_eq!(scene.limit_reached("head").await, 2.0);

    let pings = async {
        let (mut reader, mut writer) = tokio::io::split(scene.connect("h2").await);
        writer.write_all(&[preface(&[]), request.clone()].concat()).await.unwrap();
        let pinging = async {
            while writer.write_all(&frame(PING, 0, 0, &[7; 8])).await.is_ok() {
                writer.flush().await.unwrap_or_default();
                tokio::time::sleep(DRIP).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = pinging => {}
            () = is_closed(&mut reader, 3, "PINGs between requests") => {}
        }
    };
    pings.await;
    assert_eq!(scene.limit_reached("idle").await, 1.0);
    scene.end().await;
}

#[tokio::test]
async fn incomplete_request_body_times_out() {
    let scene = scene().await;
    let (path, token) = (format!("/loans/{AUDIO}/progress"), scene.token("kari"));
    let http1 = async {
        let mut stream = scene.connect("http/1.1").await;
        let request = format!(
            "PUT {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\
             content-length: 100\r\n\r\n{{\"fr"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(
            Duration::from_secs(1) + TOLERANCE,
            stream.read_to_end(&mut answer),
        )
        .await;
        assert!(read.is_ok(), "an incomplete body over HTTP/1.1 keeps the connection open");
        assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", answer.escape_ascii());
    };
    let http2 = async {
        let mut stream = scene.connect("h2").await;
        let head =
            frame(HEADERS, END_HEADERS, 1, &frames::head("PUT", "localhost", &path, Some(&token)));
        let data = frame(frames::DATA, 0, 1, b"{\"fr");
        stream.write_all(&[preface(&[]), head, data].concat()).await.unwrap();
        let ended = async {
            loop {
                let (kind, flags, number, _) = frames::next(&mut stream).await.unwrap();
                let is_end = kind == frames::RST_STREAM || flags & END_STREAM != 0;
                if number == 1
                    && is_end
                    && matches!(kind, frames::DATA | HEADERS | frames::RST_STREAM)
                {
                    return;
                }
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(1) + TOLERANCE, ended).await;
        assert!(ended.is_ok(), "an incomplete body over HTTP/2 keeps its stream open");
    };
    tokio::join!(http1, http2);
    assert_eq!(scene.limit_reached("body").await, 2.0);
    scene.end().await;
}

#[tokio::test]
async fn unread_answers_close_the_connection() {
    let scene = scene().await;
    let http1 = async {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let socket = socket.connect(scene.address()).await.unwrap();
        let mut stream =
            raw_client::connect_over(socket, &scene.ca(), "localhost", "http/1.1").await;
        let requests = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(100);
        // Sends requests until the gate stops reading, since its responses fill the socket.
        let stalls = async {
            loop {
                let written =
                    tokio::time::timeout(Duration::from_millis(500), stream.write_all(&requests))
                        .await;
                let Ok(written) = written else { break };
                written.unwrap();
            }
        };
        assert!(
            tokio::time::timeout(Duration::from_secs(60), stalls).await.is_ok(),
            "the gate did not stop reading"
        );
        let began = Instant::now();
        scene
            .until("the connection is closed", async || scene.limit_reached("send").await == 1.0)
            .await;
        assert!(began.elapsed() < Duration::from_secs(2) + TOLERANCE, "{:?}", began.elapsed());
    };
    http1.await;
    // Over HTTP/2 the client's window is closed, while it acknowledges and sends PINGs.
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let (mut reader, mut writer) = tokio::io::split(scene.connect("h2").await);
    let request =
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::head("GET", "localhost", "/", None));
    writer.write_all(&[preface(&[(INITIAL_WINDOW_SIZE, 0)]), request].concat()).await.unwrap();
    let pinging = async {
        while writer.write_all(&frame(PING, 0, 0, &[7; 8])).await.is_ok() {
            writer.flush().await.unwrap_or_default();
            tokio::time::sleep(DRIP).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = pinging => {}
        () = is_closed(&mut reader, 2, "an answer without a window") => {}
    }
    assert_eq!(scene.limit_reached("send").await, 2.0);
    scene.end().await;
}

#[tokio::test]
async fn silent_admin_connection_is_closed() {
    let scene = scene().await;
    let admin = || TcpStream::connect(scene.admin.trim_start_matches("http://").to_owned());
    let silent = async { is_closed(&mut admin().await.unwrap(), 10, "no request").await };
    let after_an_answer = async {
        let mut socket = admin().await.unwrap();
        socket.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        is_closed(&mut socket, 10, "after an answer").await;
    };
    let half_a_head = async {
        let mut socket = admin().await.unwrap();
        socket.write_all(b"GET /healthz HTTP/1.1\r\nho").await.unwrap();
        is_closed(&mut socket, 10, "half a head").await;
    };
    let half_a_body = async {
        let mut socket = admin().await.unwrap();
        let token = std::fs::read_to_string(scene.dir.path().join("certs/admin.token")).unwrap();
        let request = format!(
            "POST /api/v1/links HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: 100\r\n\r\n{{\"lib"
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        is_closed(&mut socket, 10, "half a body").await;
    };
    tokio::join!(silent, after_an_answer, half_a_head, half_a_body);
    scene.end().await;
}
