//! Upgrades: a new process takes over the listening sockets of a running gate, and no download
//! breaks and no connection is refused or reset. Also what happens if the new process fails.

use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;
use loangate::sandbox::Bounds;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::external_program::free_ports;
use crate::support::{AUDIO, BOOK, File, Process, Scene, Setting, raw_client};

/// The size of a slow download: more than the sockets and the gate hold for a slow reader.
const SIZE: u64 = 6 << 20;
/// New connections in a second.
const RATE: u64 = 200;
/// New connections at once, fewer than `limits.connections_per_address`.
const AT_ONCE: usize = 150;
const PATIENCE: Duration = Duration::from_secs(60);

/// Returns the number in an environment variable, for a longer test.
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |number| number.parse().unwrap())
}

/// A scene whose gates have fixed addresses, so that they can hand over.
async fn scene(keys: &str) -> Scene {
    let mut scene =
        Scene::without_gate(Setting { bounds: Bounds::quick(), ..Setting::default() }).await;
    let first = free_ports(2);
    let (public, admin) = (format!("127.0.0.1:{first}"), format!("127.0.0.1:{}", first + 1));
    scene.replace_in_config("public = \"127.0.0.1:0\"", &format!("public = \"{public}\""));
    scene.replace_in_config("admin = \"127.0.0.1:0\"", &format!("admin = \"{admin}\""));
    let server = format!("[server]\ndrain = \"100s\"\n{keys}\n\n[admin]\n");
    scene.replace_in_config("[admin]\n", &server);
    scene.base = format!("https://{public}");
    scene.admin = format!("http://{admin}");
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(3000));
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(SIZE));
    scene
}

async fn serve(scene: &Scene) -> Process {
    Process::serve(&scene.config_file()).await
}

/// Writes another configuration, and starts a gate with it that does not become ready. Returns its
/// exit status and its log.
async fn failing(scene: &Scene, changes: &[(&str, &str)]) -> (ExitStatus, String) {
    let mut child = spawned(scene, changes);
    let began = Instant::now();
    let status = loop {
        match child.0.try_wait().unwrap() {
            Some(status) => break status,
            None if began.elapsed() > PATIENCE => panic!("it does not end"),
            None => sleep(Duration::from_millis(20)).await,
        }
    };
    (status, std::fs::read_to_string(&child.1).unwrap())
}

/// A child that is killed when it is dropped, and the file of its log.
struct Spawned(std::process::Child, PathBuf);

impl Drop for Spawned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawned(scene: &Scene, changes: &[(&str, &str)]) -> Spawned {
    let mut text = std::fs::read_to_string(scene.config_file()).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "the configuration has no {from}");
        text = text.replacen(from, to, 1);
    }
    let file = scene.dir.path().join("next.toml");
    std::fs::write(&file, text).unwrap();
    let log = scene.dir.path().join(format!("next-{}.log", fastrand::u64(..)));
    let errors = std::fs::File::create(&log).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_loangate"))
        .args(["serve", "--config"])
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .unwrap();
    Spawned(child, log)
}

/// Downloads that go on until they are released, and then complete at full speed.
struct Downloads {
    release: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Downloads {
    /// Starts downloads, one connection each, alternately of both protocols.
    async fn start(scene: &Scene, count: usize) -> Downloads {
        let mut downloads =
            Downloads { release: Arc::new(AtomicBool::new(false)), tasks: JoinSet::new() };
        let started = Arc::new(AtomicUsize::new(0));
        for number in 0..count {
            let token = scene.token(&format!("slow {number}"));
            let (release, started) = (downloads.release.clone(), started.clone());
            if number % 2 == 0 {
                let (address, ca) = (scene.address(), scene.ca());
                let stream =
                    raw_client::connect_with_buffer(address, &ca, "http/1.1", 32 << 10).await;
                downloads.tasks.spawn(http1_download(stream, token, release, started));
            } else {
                let client = scene.client().http2_prior_knowledge();
                let client = client.http2_initial_stream_window_size(32 << 10);
                let client = client.timeout(2 * PATIENCE).build().unwrap();
                let request = scene.get(&client, &format!("/files/{AUDIO}/audio.mp3"), &token);
                downloads.tasks.spawn(http2_download(request, release, started));
            }
        }
        let all = async || started.load(Ordering::Relaxed) == count;
        scene.until("all downloads have begun", all).await;
        downloads
    }

    /// Lets them complete. Panics if one broke off, or has other bytes.
    async fn complete(mut self) -> usize {
        self.release.store(true, Ordering::Relaxed);
        let mut completed = 0;
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
            completed += 1;
        }
        completed
    }

    /// Panics if one has ended.
    fn all_run(&mut self) {
        assert!(self.tasks.try_join_next().is_none(), "a download has ended");
    }
}

async fn slowly(release: &AtomicBool) {
    if !release.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(100)).await;
    }
}

async fn http1_download(
    mut stream: tokio_rustls::client::TlsStream<TcpStream>,
    token: String,
    release: Arc<AtomicBool>,
    started: Arc<AtomicUsize>,
) {
    let request = format!(
        "GET /files/{AUDIO}/audio.mp3 HTTP/1.1\r\nhost: localhost\r\n\
         authorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
    started.fetch_add(1, Ordering::Relaxed);
    let (file, mut at, mut buffer) = (File::of(SIZE), 0, vec![0; 8 << 10]);
    while at < SIZE {
        let length = stream.read(&mut buffer).await.unwrap();
        assert!(length > 0, "it broke off at {at}");
        assert!(buffer[..length] == file.part(at..at + length as u64), "other bytes at {at}");
        at += length as u64;
        slowly(&release).await;
    }
}

async fn http2_download(
    request: reqwest::RequestBuilder,
    release: Arc<AtomicBool>,
    started: Arc<AtomicUsize>,
) {
    let mut response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    started.fetch_add(1, Ordering::Relaxed);
    let (file, mut at) = (File::of(SIZE), 0);
    while let Some(chunk) = response.chunk().await.unwrap() {
        let end = at + chunk.len() as u64;
        assert!(chunk == file.part(at..end), "other bytes at {at}");
        at = end;
        slowly(&release).await;
    }
    assert_eq!(at, SIZE, "it broke off");
}

/// Opens a new connection for each request, at a fixed rate.
struct Load {
    stop: Arc<AtomicBool>,
    /// Requests that got the whole file.
    served: Arc<AtomicUsize>,
    failed: Arc<std::sync::Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    fn start(scene: &Scene) -> Load {
        let client = scene.client().http1_only().pool_max_idle_per_host(0).build().unwrap();
        let token = scene.token("a new connection each time");
        let path = format!("/files/{BOOK}/book.epub");
        let request = scene.get(&client, &path, &token);
        let (stop, served) = <(Arc<AtomicBool>, Arc<AtomicUsize>)>::default();
        let failed = Arc::<std::sync::Mutex<Vec<String>>>::default();
        let (stopped, counted, recorded) = (stop.clone(), served.clone(), Arc::clone(&failed));
        let task = tokio::spawn(async move {
            let (slots, mut tasks) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
            let mut tick = tokio::time::interval(Duration::from_millis(1000 / RATE));
            while !stopped.load(Ordering::Relaxed) {
                tick.tick().await;
                while tasks.try_join_next().is_some() {}
                let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
                let request = request.try_clone().unwrap();
                let (counted, recorded) = (counted.clone(), Arc::clone(&recorded));
                tasks.spawn(async move {
                    match one_request(request).await {
                        Ok(()) => drop(counted.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => recorded.lock().unwrap().push(error),
                    }
                    drop(slot);
                });
            }
            while tasks.join_next().await.is_some() {}
        });
        Load { stop, served, failed, task }
    }

    /// Waits until this many more requests were served.
    async fn more(&self, scene: &Scene, count: usize) {
        let target = self.served.load(Ordering::Relaxed) + count;
        let served = async || self.served.load(Ordering::Relaxed) >= target;
        scene.until("more requests are served", served).await;
    }

    /// Stops, and returns the number of requests. Panics if one failed.
    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        let failed = self.failed.lock().unwrap();
        assert_eq!(*failed, [""; 0], "{} connections failed", failed.len());
        self.served.load(Ordering::Relaxed)
    }
}

async fn one_request(request: reqwest::RequestBuilder) -> Result<(), String> {
    let response = request.send().await.map_err(|error| format!("{error:?}"))?;
    let status = response.status();
    let body = response.bytes().await.map_err(|error| format!("{error:?}"))?;
    match status {
        StatusCode::OK if body == File::of(3000).part(0..3000) => Ok(()),
        _ => Err(format!("{status}: {}", String::from_utf8_lossy(&body))),
    }
}

async fn readiness(scene: &Scene) -> StatusCode {
    scene.admin("/readyz").await.status()
}

/// `LOANGATE_DOWNLOADS=200 LOANGATE_UPGRADES=20` runs it at full length.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_and_a_drain_break_nothing() {
    let scene = scene("drain_delay = \"4s\"\nhandover_timeout = \"3s\"").await;
    let mut gates = vec![serve(&scene).await];
    let mut downloads = Downloads::start(&scene, number("LOANGATE_DOWNLOADS", 50)).await;
    let load = Load::start(&scene);
    load.more(&scene, 50).await;
    let upgrades = number("LOANGATE_UPGRADES", 4);
    for upgrade in 0..upgrades {
        if upgrade == 1 {
            // It fails after it has received the sockets.
            let missing = ("certs/server.pem", "certs/missing.pem");
            let (status, log) = failing(&scene, &[missing]).await;
            assert!(!status.success() && log.contains("missing.pem"), "{log}");
            load.more(&scene, 50).await;
        }
        if upgrade == 2 {
            // It waits for a database, until the running gate gives up.
            let unreachable = (
                "sqlite:data/loangate.db\"",
                "postgres://gate@127.0.0.1:1/loans?sslmode=disable\"\nlease = \"60s\"",
            );
            let port = scene.address().port();
            let file = format!("[server]\nhandover = \"data/loangate.db.handover-{port}\"");
            let changes = [unreachable, ("[server]", &file)];
            let (status, log) = failing(&scene, &changes).await;
            assert!(!status.success() && log.contains("serve"), "{log}");
            load.more(&scene, 50).await;
        }
        gates.push(serve(&scene).await);
        load.more(&scene, 50).await;
        downloads.all_run();
        let old = &mut gates[upgrade];
        assert!(old.runs(), "it still has downloads");
    }
    // A load balancer sends no new connections to a gate that is not ready.
    let last = gates.last().unwrap();
    last.terminate();
    let unready = async || readiness(&scene).await == StatusCode::SERVICE_UNAVAILABLE;
    scene.until("the gate reports that it stops", unready).await;
    load.more(&scene, 50).await;
    let served = load.end().await;
    let completed = downloads.complete().await;
    for gate in &mut gates {
        assert!(gate.exit().await.success());
    }
    println!("{completed} downloads and {served} new connections through {upgrades} upgrades");
    let left = std::fs::read_dir(scene.dir.path().join("data")).unwrap();
    let names: Vec<_> = left.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.contains("handover")), "{names:?}");
    scene.end().await;
}
