//! SIGTERM: bodies under way arrive whole, nobody new comes in, and there is an end to it.

use http::StatusCode;
use loangate::sandbox::Bounds;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{AUDIO, File, Process, Scene, Setting, frames, raw_client};

/// More than the sockets and windows between the two can hold, so that the gate is not done before
/// the reader is.
const SIZE: u64 = 64 << 20;

/// A scene with a long file and its gate as a process of its own.
async fn scene(config: Vec<(&'static str, &'static str)>) -> (Scene, Process) {
    let mut scene =
        Scene::around(Setting { bounds: Bounds::quick(), config, ..Setting::default() }).await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(SIZE));
    let gate = scene.spawn_gate().await;
    (scene, gate)
}

/// A body that is under way: its head has come and a bit of it.
async fn under_way(scene: &Scene, client: &reqwest::Client) -> (reqwest::Response, u64) {
    let request = scene.get(client, &format!("/files/{AUDIO}/audio.mp3"), &scene.token("kari"));
    let mut answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let bit = answer.chunk().await.unwrap().unwrap();
    assert_eq!(bit, File::of(SIZE).part(0..bit.len() as u64));
    (answer, bit.len() as u64)
}

async fn refuses_connections(scene: &Scene) -> bool {
    TcpStream::connect(scene.base.trim_start_matches("https://")).await.is_err()
}

async fn readiness(scene: &Scene) -> StatusCode {
    scene.admin("/readyz").await.status()
}

#[tokio::test]
async fn a_body_under_way_arrives_whole_and_nobody_new_comes_in() {
    for version in [http::Version::HTTP_11, http::Version::HTTP_2] {
        let (scene, mut gate) = scene(Vec::new()).await;
        let client = if version == http::Version::HTTP_2 { scene.http2() } else { scene.http1() };
        assert_eq!(readiness(&scene).await, StatusCode::OK);
        let (mut answer, mut at) = under_way(&scene, &client).await;
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
async fn a_second_signal_ends_it_at_once() {
    let (scene, mut gate) = scene(Vec::new()).await;
    let (mut answer, mut at) = under_way(&scene, &scene.http1()).await;
    gate.terminate();
    scene
        .until("draining", async || readiness(&scene).await == StatusCode::SERVICE_UNAVAILABLE)
        .await;
    assert!(gate.runs());
    gate.terminate();
    // The minute of server.drain is longer than an end is waited for.
    assert_eq!(gate.exit().await.code(), Some(0));
    // What was under way broke off, and shows it.
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
async fn a_reader_who_reads_nothing_is_cut_when_the_time_for_draining_is_over() {
    for version in [http::Version::HTTP_11, http::Version::HTTP_2] {
        let (scene, mut gate) =
            scene(vec![("[admin]", "[server]\ndrain = \"1s\"\n\n[admin]")]).await;
        let client = if version == http::Version::HTTP_2 { scene.http2() } else { scene.http1() };
        let (mut answer, mut at) = under_way(&scene, &client).await;
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
async fn silent_connections_do_not_hold_up_a_drain() {
    let (scene, mut gate) = scene(Vec::new()).await;
    let address = scene.base.trim_start_matches("https://").parse().unwrap();
    let ca = scene.dir.path().join("certs/ca.pem");
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
    // Longer than the time for draining would be too long by far: the head has 20 seconds, and idle
    // time 75.
    let began = std::time::Instant::now();
    gate.terminate();
    assert_eq!(gate.exit().await.code(), Some(0));
    assert!(began.elapsed() < std::time::Duration::from_secs(9), "{:?}", began.elapsed());
    assert_eq!(shaking.read(&mut [0]).await.unwrap_or(0), 0);
    drop(silent);
    scene.end().await;
}
