//! `[limits]`: the number of connections, which one is closed to make room, and limits per
//! connection.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::support::frames::{
    self, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, frame, preface,
};
use crate::support::scene::Setting;
use crate::support::storage::{Kind, Storage};
use crate::support::{AUDIO, BOOK, File, Process, Scene, metric, program};

async fn scene_with(limits: &'static str) -> Scene {
    let scene =
        Scene::start_with(Setting { config: vec![("[ledger]", limits)], ..Setting::default() })
            .await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene
}

async fn connections(scene: &Scene) -> f64 {
    metric(&scene.metrics().await, "loangate_connections_total", "")
}

/// Returns a client with a loopback address of its own.
fn client_at(scene: &Scene, last: u8) -> reqwest::Client {
    let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
    scene.client().local_address(address).http1_only().build().unwrap()
}

async fn silent(scene: &Scene, count: usize) -> Vec<TcpStream> {
    let mut silent = Vec::new();
    for _ in 0..count {
        silent.push(TcpStream::connect(scene.address()).await.unwrap());
    }
    silent
}

#[tokio::test]
async fn silent_connections_do_not_lock_readers_out() {
    let Some(prlimit) = program("prlimit", "util-linux") else {
        return;
    };
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let gate = serve_with(&mut scene, &prlimit, 300).await;

    let silent = silent(&scene, 400).await;
    for reader in 2..7 {
        let token = scene.token(&format!("reader-{reader}"));
        let request =
            scene.get(&client_at(&scene, reader), &format!("/files/{BOOK}/book.epub"), &token);
        let answer =
            request.send().await.unwrap_or_else(|error| panic!("reader {reader}: {error:?}"));
        assert_eq!(answer.status(), StatusCode::OK, "reader {reader}");
        assert_eq!(answer.bytes().await.unwrap(), File::of(1000).part(0..1000), "reader {reader}");
    }
    assert_eq!(scene.admin("/healthz").await.status(), StatusCode::OK);
    assert_eq!(scene.admin("/readyz").await.status(), StatusCode::OK);
    assert!(scene.limit_reached("connections_per_address").await > 300.0);
    // A reader behind the same address is served as well.
    let token = scene.token("kari");
    let same = scene
        .get(&scene.http2(), &format!("/files/{BOOK}/book.epub"), &token)
        .send()
        .await
        .unwrap();
    assert_eq!(same.status(), StatusCode::OK);
    let log = std::fs::read_to_string(&gate.log).unwrap();
    assert!(
        log.contains("fewer connections than configured") && log.contains("LimitNOFILE"),
        "{log}"
    );
    assert!(!log.contains("no file descriptor for"), "{log}");
    drop(silent);
}

#[tokio::test]
async fn stalled_streams_leave_descriptors_for_other_readers() {
    let Some(prlimit) = program("prlimit", "util-linux") else {
        return;
    };
    for is_directory in [false, true] {
        let mut scene = Scene::without_gate(Setting::default()).await;
        let large = File::of(4_000_000);
        scene.origin.put(&format!("{BOOK}/book.epub"), large.clone());
        let directory = Storage::start(Kind::Directory, &scene).await;
        directory.put(&scene, &format!("{BOOK}/book.epub"), &large);
        if is_directory {
            scene.replace_in_config(
                &format!("url = \"{}/\"", scene.origin.url),
                &format!("url = \"file://{}\"", directory.place("").display()),
            );
        }
        let gate = serve_with(&mut scene, &prlimit, 300).await;
        let path = format!("/files/{BOOK}/book.epub");
        // One reader has far more stalled streams than the gate has descriptors.
        let mut stalled = Vec::new();
        for _ in 0..4 {
            let client = scene.client().http2_initial_stream_window_size(65_535).build().unwrap();
            let token = scene.token("kari");
            // The first request opens the connection that the others share.
            let first = scene.get(&client, &path, &token).send().await.unwrap();
            let others = (0..99).map(|_| scene.get(&client, &path, &token).send());
            stalled.push((first, futures_util::future::join_all(others).await, client));
        }
        for reader in 2..6 {
            let token = scene.token(&format!("reader-{reader}"));
            let request =
                scene.get(&client_at(&scene, reader), &path, &token).header("range", "bytes=0-99");
            let answer =
                request.send().await.unwrap_or_else(|error| panic!("reader {reader}: {error:?}"));
            assert_eq!(
                answer.status(),
                StatusCode::PARTIAL_CONTENT,
                "reader {reader}, {is_directory}"
            );
        }
        assert_eq!(scene.admin("/healthz").await.status(), StatusCode::OK);
        assert!(open_files(&gate) < 290, "{}", open_files(&gate));
        let answers = stalled.iter().flat_map(|(_, others, _)| others);
        let served = answers
            .filter(|answer| answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::OK));
        assert!(served.count() > 100, "too few streams stalled beside the readers");
        drop(stalled);
    }
}

#[tokio::test]
async fn accepted_credentials_keep_a_connection_open() {
    let scene =
        scene_with("[limits]\nconnections = 12\nconnections_per_address = 3\n\n[ledger]").await;
    let mut reader = scene.connect("http/1.1").await;
    let get = format!(
        "GET /files/{BOOK}/book.epub HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
         \r\n",
        scene.token("kari")
    );
    let mut answer = vec![0; 16 * 1024];
    let read = async |reader: &mut TlsStream<TcpStream>, answer: &mut Vec<u8>| {
        reader.write_all(get.as_bytes()).await.unwrap();
        let length = reader.read(answer).await.unwrap();
        assert!(
            answer[..length].starts_with(b"HTTP/1.1 200"),
            "{}",
            answer[..length].escape_ascii()
        );
    };
    read(&mut reader, &mut answer).await;
    let mut cookie = scene.connect("http/1.1").await;
    cookie.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(cookie.read(&mut answer).await.unwrap() > 0);
    let silent = silent(&scene, 20).await;
    let closed = async { while cookie.read(&mut answer).await.unwrap_or(0) > 0 {} };
    let closed = tokio::time::timeout(Duration::from_secs(10), closed).await;
    assert!(closed.is_ok(), "a request without credentials does not protect its connection");
    scene
        .until("the silent connections are closed", async || {
            scene.limit_reached("connections_per_address").await >= 18.0
        })
        .await;
    // The rest of the first response's body arrives first.
    while let Ok(Ok(1..)) =
        tokio::time::timeout(Duration::from_millis(300), reader.read(&mut answer)).await
    {}
    read(&mut reader, &mut answer).await;
    drop(silent);
    scene.end().await;
}

#[tokio::test]
async fn idle_readers_make_room_for_new_ones() {
    const CONNECTIONS: usize = 16;
    let scene = scene_with("[limits]\nconnections = 16\n\n[ledger]").await;
    let path = format!("/files/{BOOK}/book.epub");
    let get = async |client: reqwest::Client, reader: &str| {
        let answer = scene.get(&client, &path, &scene.token(reader)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{reader}");
        assert_eq!(answer.bytes().await.unwrap(), File::of(1000).part(0..1000), "{reader}");
        client
    };
    // One reader occupies every connection, over both HTTP versions.
    let mut held = Vec::new();
    for number in 0..CONNECTIONS {
        held.push(get(if number % 2 == 0 { scene.http1() } else { scene.http2() }, "kari").await);
    }
    // Twice as many other readers, from other addresses, are still served.
    for number in 0..2 * CONNECTIONS {
        let client = client_at(&scene, u8::try_from(number + 2).unwrap());
        held.push(get(client, &format!("reader-{number}")).await);
    }
    assert!(scene.limit_reached("connections").await >= 32.0);
    // A reader whose connection was closed is served on a new one.
    get(held.remove(0), "kari").await;
    scene.end().await;
}

/// Sends bytes until the gate has closed the connection. The gate keeps a connection whose client
/// reads the rest of a response open for longer than this waits.
async fn send_until_closed(mut stream: TcpStream) {
    let sending = async {
        while stream.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(12), sending).await.expect("still open");
}

#[tokio::test]
async fn evicted_http2_connection_is_closed_though_its_client_sends() {
    const CONNECTIONS: usize = 4;
    let scene = scene_with("[limits]\nconnections = 4\n\n[ledger]").await;
    let path = format!("/files/{BOOK}/book.epub");
    let head = frames::head("GET", "localhost", &path, Some(&scene.token("kari")));
    let request = [preface(&[]), frame(HEADERS, END_HEADERS | END_STREAM, 1, &head)].concat();
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = scene.connect("h2").await;
        stream.write_all(&request).await.unwrap();
        stream.flush().await.unwrap();
        while let Some((kind, flags, ..)) = frames::next(&mut stream).await {
            if kind == frames::DATA && flags & END_STREAM != 0 {
                break;
            }
        }
        held.push(stream);
    }
    // The first one makes room for another reader.
    let other = scene.get(&client_at(&scene, 2), &path, &scene.token("ola")).send().await.unwrap();
    assert_eq!(other.status(), StatusCode::OK);
    let evicted = held.remove(0);
    send_until_closed(evicted.into_inner().0).await;
    scene.end().await;
}

#[tokio::test]
async fn http2_connection_with_an_error_is_closed_though_its_client_sends() {
    let scene = Scene::start().await;
    let mut stream = scene.connect("h2").await;
    // DATA on stream 0 is a protocol error (RFC 9113 §6.1).
    stream.write_all(&[preface(&[]), frame(frames::DATA, 0, 0, &[0; 8])].concat()).await.unwrap();
    stream.flush().await.unwrap();
    send_until_closed(stream.into_inner().0).await;
    scene.end().await;
}

#[tokio::test]
async fn exempt_network_has_no_limit_per_address() {
    let limits = "[limits]\nconnections = 40\nconnections_per_address = 3\nexempt_networks = \
                  [\"127.0.0.0/8\"]\n\n[ledger]";
    let scene = scene_with(limits).await;
    let mut silent = silent(&scene, 20).await;
    let request =
        scene.get(&scene.http1(), &format!("/files/{BOOK}/book.epub"), &scene.token("kari"));
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    let mut byte = [0];
    for socket in &mut silent {
        let read = tokio::time::timeout(Duration::from_millis(1), socket.read(&mut byte)).await;
        assert!(read.is_err(), "an exempt connection was closed");
    }
    assert_eq!(scene.limit_reached("connections_per_address").await, 0.0);
    scene.end().await;
}

#[tokio::test]
async fn connection_closes_after_its_last_allowed_request() {
    let scene = scene_with("[limits]\nrequests_per_connection = 3\n\n[ledger]").await;
    let mut stream = scene.connect("http/1.1").await;
    let mut answers = Vec::new();
    stream.write_all(&b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(3)).await.unwrap();
    // Reads until the gate closes the connection.
    let read =
        tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answers)).await;
    assert!(read.is_ok(), "the connection stays open");
    let text = String::from_utf8_lossy(&answers).to_ascii_lowercase();
    assert_eq!(text.matches("http/1.1 404").count(), 3, "{text}");
    assert_eq!(text.matches("connection: close").count(), 1, "{text}");
    assert_eq!(scene.limit_reached("requests_per_connection").await, 1.0);

    let client = scene.http2();
    let before = connections(&scene).await;
    for _ in 0..10 {
        let request = scene.get(&client, &format!("/files/{BOOK}/book.epub"), &scene.token("kari"));
        assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    }
    assert!(connections(&scene).await >= before + 3.0, "the client had to reconnect");
    scene.end().await;
}

#[tokio::test]
async fn connection_age_limit_aborts_no_download() {
    const SIZE: u64 = 8 << 20;
    let scene = scene_with("[limits]\nconnection_age = \"1s\"\n\n[ledger]").await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(SIZE));
    for (number, client) in [scene.http1(), scene.http2()].into_iter().enumerate() {
        let path = format!("/files/{AUDIO}/audio.mp3");
        let mut answer = scene.get(&client, &path, &scene.token("kari")).send().await.unwrap();
        let mut received = answer.chunk().await.unwrap().unwrap().len() as u64;
        if number == 1 {
            // Over HTTP/1.1 the age is rarely checked during a response, and takes effect after it.
            scene
                .until("both connections are too old", async || {
                    scene.limit_reached("connection_age").await >= 2.0
                })
                .await;
        } else {
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
        while let Some(chunk) = answer.chunk().await.unwrap() {
            received += chunk.len() as u64;
        }
        assert_eq!(received, SIZE, "the download broke off");
        let ended = async || scene.limit_reached("connection_age").await == (number + 1) as f64;
        scene.until("the connection ends", ended).await;
        let open =
            async || metric(&scene.metrics().await, "loangate_connections", "worker=") == 0.0;
        scene.until("the connection is closed", open).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn idle_http2_connection_closes_with_a_goaway() {
    let scene = scene_with("[limits]\nidle = \"1s\"\n\n[ledger]").await;
    let mut stream = scene.connect("h2").await;
    stream.write_all(&preface(&[])).await.unwrap();
    let mut has_goaway = false;
    let frames = async {
        while let Some((kind, ..)) = frames::next(&mut stream).await {
            has_goaway |= kind == frames::GOAWAY;
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(10), frames).await.is_ok(),
        "the connection stays open"
    );
    assert!(
        has_goaway,
        "without a GOAWAY the client cannot know whether a request in flight was handled"
    );
    scene.end().await;
}

#[tokio::test]
async fn rapid_reset_closes_the_connection() {
    let scene = scene_with("[limits]\nh2_resets_per_minute = 50\n\n[ledger]").await;
    let mut stream = scene.connect("h2").await;
    // The responses wait for a window, so each stream is open when it is reset.
    const INITIAL_WINDOW_SIZE: u16 = 4;
    stream.write_all(&preface(&[(INITIAL_WINDOW_SIZE, 0)])).await.unwrap();
    let block = frames::head("GET", "localhost", "/", None);
    let resets = async {
        for number in 0..1000_u32 {
            let id = number * 2 + 1;
            let request = frame(HEADERS, END_HEADERS | END_STREAM, id, &block);
            if stream.write_all(&request).await.is_err() || stream.flush().await.is_err() {
                return number;
            }
            loop {
                match frames::next(&mut stream).await {
                    Some((HEADERS, _, answered, _)) if answered == id => break,
                    Some(_) => {}
                    None => return number,
                }
            }
            let reset = frame(RST_STREAM, 0, id, &8_u32.to_be_bytes());
            let _ = stream.write_all(&reset).await;
        }
        1000
    };
    let resets = tokio::time::timeout(Duration::from_secs(60), resets).await.unwrap();
    assert!((50..60).contains(&resets), "{resets} resets were accepted");
    scene
        .until("the limit is counted", async || {
            scene.limit_reached("h2_resets_per_minute").await == 1.0
        })
        .await;
    scene.end().await;
}

#[tokio::test]
async fn frames_that_do_no_work_close_the_connection() {
    let scene = scene_with("[limits]\nidle = \"60s\"\n\n[ledger]").await;
    let (mut reader, mut writer) = tokio::io::split(scene.connect("h2").await);
    writer.write_all(&preface(&[])).await.unwrap();
    let pings = frame(PING, 0, 0, &[1; 8]).repeat(1000);
    let flood = async {
        // Two MiB, of which one is allowed.
        for _ in 0..130 {
            if writer.write_all(&pings).await.is_err() || writer.flush().await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let mut answers = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(60), reader.read_to_end(&mut answers));
    tokio::select! {
        () = flood => {}
        closed = closed => assert!(closed.is_ok(), "a flood of PINGs does not close the \
             connection"),
    }
    assert_eq!(scene.limit_reached("h2_frames").await, 1.0);
    scene.end().await;
}

/// Starts the built gate with this limit of open files.
async fn serve_with(scene: &mut Scene, prlimit: &Path, files: usize) -> Process {
    let mut limited = Command::new(prlimit);
    limited.arg(format!("--nofile={files}:{files}"));
    let gate = Process::serve_within(limited, &scene.config_file()).await;
    scene.base = gate.ready_field("base_url");
    scene.admin = gate.ready_field("admin_url");
    gate
}

fn open_files(gate: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", gate.child.id())).unwrap().count()
}

#[tokio::test]
async fn running_out_of_descriptors_is_logged_once() {
    let Some(prlimit) = program("prlimit", "util-linux") else {
        return;
    };
    let mut scene = Scene::without_gate(Setting::default()).await;
    let mut gate = serve_with(&mut scene, &prlimit, 300).await;
    assert_eq!(scene.admin("/readyz").await.status(), StatusCode::OK);
    let at_rest = open_files(&gate);
    gate.kill();
    // Too few for even the smallest number of connections that a gate accepts.
    let gate = serve_with(&mut scene, &prlimit, at_rest + 8).await;
    let mut silent = Vec::new();
    for number in 0..60 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 1, number], 0))).unwrap();
        silent.push(socket.connect(scene.address()).await.unwrap());
    }
    let logged = async || {
        std::fs::read_to_string(&gate.log)
            .unwrap()
            .contains("no file descriptor for a new connection")
    };
    scene.until("the shortage is logged", logged).await;
    assert_eq!(
        scene.admin("/healthz").await.status(),
        StatusCode::OK,
        "the admin listener has a reserve"
    );
    // Each new connection is accepted eventually, since a silent one is closed for it.
    let mut reader = scene.connect("http/1.1").await;
    reader.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(reader.read(&mut [0; 100]).await.unwrap() > 0);
    let log = std::fs::read_to_string(&gate.log).unwrap();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("no file descriptor")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(
        lines[0].contains("LimitNOFILE") && lines[0].contains(&format!("limit={}", at_rest + 8)),
        "{log}"
    );
    drop(silent);
}

#[tokio::test]
async fn descriptor_shortage_is_not_blamed_on_the_origin() {
    let Some(prlimit) = program("prlimit", "util-linux") else {
        return;
    };
    let mut scene = Scene::without_gate(Setting::default()).await;
    let directory = Storage::start(Kind::Directory, &scene).await;
    directory.put(&scene, &format!("{BOOK}/book.epub"), &File::of(1000));
    scene.replace_in_config(
        &format!("url = \"{}/\"", scene.origin.url),
        &format!("url = \"file://{}\"", directory.place("").display()),
    );
    let gate = serve_with(&mut scene, &prlimit, 1000).await;
    let allow = |files: u32| {
        let pid = gate.child.id().to_string();
        let ran =
            Command::new(&prlimit).args(["--pid", &pid, &format!("--nofile={files}:")]).status();
        assert!(ran.unwrap().success());
    };
    let client = scene.http2();
    let get = async || {
        let request = scene.get(&client, &format!("/files/{BOOK}/book.epub"), &scene.token("kari"));
        let answer = request.send().await.unwrap();
        (answer.status(), answer.bytes().await.unwrap())
    };
    assert_eq!(get().await.0, StatusCode::OK);
    allow(1);
    for _ in 0..40 {
        let (status, problem) = get().await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{problem:?}");
        assert!(problem.windows(10).any(|part| part == b"overloaded"), "{problem:?}");
    }
    allow(1000);
    assert_eq!(
        get().await,
        (StatusCode::OK, File::of(1000).part(0..1000).into()),
        "a breaker has opened"
    );
}
