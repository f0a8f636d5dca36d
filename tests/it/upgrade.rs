//! Upgrades: a new process takes over the listening sockets of a running gate, and no download
//! breaks and no connection is refused or reset. Also what happens if the new process fails.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;
use loangate::sandbox::Bounds;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::external_program::free_ports;
use crate::support::openid_provider::{Instead, OpenIdProvider, SigningKey};
use crate::support::scene::{LIBRARY, initialised};
use crate::support::{AUDIO, BOOK, File, Postgres, Process, Scene, Setting, raw_client};

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
pub(super) async fn scene(keys: &str) -> Scene {
    let mut scene =
        Scene::without_gate(Setting { bounds: Bounds::quick(), ..Setting::default() }).await;
    let first = free_ports(2);
    let (public, admin) = (format!("127.0.0.1:{first}"), format!("127.0.0.1:{}", first + 1));
    scene.replace_in_config("public = \"127.0.0.1:0\"", &format!("public = \"{public}\""));
    scene.replace_in_config("admin = \"127.0.0.1:0\"", &format!("admin = \"{admin}\""));
    let server = format!("[server]\ndrain = \"600s\"\n{keys}\n\n[admin]\n");
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
pub(super) struct Downloads {
    release: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Downloads {
    /// Starts downloads, one connection each, alternately of both protocols.
    pub(super) async fn start(scene: &Scene, count: usize) -> Downloads {
        let mut downloads =
            Downloads { release: Arc::new(AtomicBool::new(false)), tasks: JoinSet::new() };
        let started = Arc::new(AtomicUsize::new(0));
        for number in 0..count {
            let token = scene.token(&format!("slow {}", fastrand::u64(..)));
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
    pub(super) async fn complete(mut self) -> usize {
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
        sleep(Duration::from_millis(300)).await;
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
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    /// Requests that got the whole file.
    served: Arc<AtomicUsize>,
    failed: Arc<std::sync::Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    pub(super) fn start(scene: &Scene) -> Load {
        let client = scene.client().http1_only().pool_max_idle_per_host(0).build().unwrap();
        let token = scene.token("a new connection each time");
        let path = format!("/files/{BOOK}/book.epub");
        let of_reader = scene.get(&client, &path, &token);
        let admin = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0);
        let of_admin = admin.build().unwrap().get(format!("{}/healthz", scene.admin));
        let (stop, served) = <(Arc<AtomicBool>, Arc<AtomicUsize>)>::default();
        let failed = Arc::<std::sync::Mutex<Vec<String>>>::default();
        let (stopped, counted, recorded) = (stop.clone(), served.clone(), Arc::clone(&failed));
        let task = tokio::spawn(async move {
            let (slots, mut tasks) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
            let mut tick = tokio::time::interval(Duration::from_millis(1000 / RATE));
            let mut number = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                tick.tick().await;
                while tasks.try_join_next().is_some() {}
                let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
                number += 1;
                let request = if number.is_multiple_of(10) { &of_admin } else { &of_reader };
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
    pub(super) async fn more(&self, scene: &Scene, count: usize) {
        let target = self.served.load(Ordering::Relaxed) + count;
        let served = async || self.served.load(Ordering::Relaxed) >= target;
        scene.until("more requests are served", served).await;
    }

    /// Stops, and returns the number of requests. Panics if one failed.
    pub(super) async fn end(self) -> usize {
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
        StatusCode::OK if body == File::of(3000).part(0..3000) || body == "ok\n" => Ok(()),
        _ => Err(format!("{status}: {}", String::from_utf8_lossy(&body))),
    }
}

pub(super) async fn readiness(scene: &Scene) -> StatusCode {
    scene.admin("/readyz").await.status()
}

fn one_core() -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]);
    command
}

/// Two configurations that differ in every table that a reload applies, and two certificates.
struct Reloads {
    texts: [String; 2],
    /// Directories with `server.pem` and `server.key`.
    certificates: [TempDir; 2],
    count: usize,
}

impl Reloads {
    /// The clients of the scene trust both certificates from now on.
    fn of(scene: &Scene) -> Reloads {
        let other = initialised();
        let own = tempfile::tempdir().unwrap();
        let (certs, own_certs) = (scene.dir.path().join("certs"), own.path().join("certs"));
        std::fs::create_dir(&own_certs).unwrap();
        for file in CERTIFICATE {
            std::fs::copy(certs.join(file), own_certs.join(file)).unwrap();
        }
        let roots = [scene.ca(), other.path().join("certs/ca.pem")];
        let roots = roots.map(|file| std::fs::read_to_string(file).unwrap()).concat();
        std::fs::write(scene.ca(), roots).unwrap();
        std::fs::copy(certs.join("lending.secret"), certs.join("second.secret")).unwrap();
        let text = std::fs::read_to_string(scene.config_file()).unwrap();
        Reloads {
            texts: [0, 1].map(|number| configuration(&text, number)),
            certificates: [own, other],
            count: 0,
        }
    }

    /// Replaces the configuration and the certificate, and requests a reload.
    async fn next(&mut self, scene: &Scene) {
        self.count += 1;
        let number = self.count % 2;
        let certs = self.certificates[number].path().join("certs");
        for file in CERTIFICATE {
            let next = scene.dir.path().join("certs").join(format!("{file}.next"));
            std::fs::copy(certs.join(file), &next).unwrap();
            std::fs::rename(&next, next.with_extension("")).unwrap();
        }
        std::fs::write(scene.config_file(), &self.texts[number]).unwrap();
        let response = scene.admin_post("/api/v1/reload", &json!({})).await;
        let (status, answer) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, StatusCode::OK, "{answer}");
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["needs_restart"], json!([]), "{answer}");
        if self.count > 1 {
            let changed = answer["changed"].to_string();
            let missing: Vec<_> = TABLES.iter().filter(|table| !changed.contains(*table)).collect();
            assert!(missing.is_empty(), "{missing:?} did not change: {changed}");
        }
    }
}

const CERTIFICATE: [&str; 2] = ["server.pem", "server.key"];
/// Part of a key in each table that a reload applies.
const TABLES: [&str; 14] = [
    "access_log.",
    "brake.",
    "cors.",
    "delivery.",
    "lending.client_secret",
    "licences.",
    "limits.",
    "listen.proxy_protocol",
    "log.",
    "origins",
    "readers.",
    "routes",
    "server.hsts",
    "tls.",
];

/// Returns the configuration with the values of this number, 0 or 1.
fn configuration(text: &str, number: usize) -> String {
    let (other, spare) = (number == 1, number + 16);
    let secret = if other { "certs/second.secret" } else { "certs/lending.secret" };
    let minimum = if other { "1.3" } else { "1.2" };
    let level = if other { "debug" } else { "info" };
    let more = format!(
        "[cors]\norigins = [\"https://app-{number}.example.no\"]\n\n\
         [delivery]\nmax_ranges = {spare}\n\n[limits]\nh2_streams = 1{spare}\n\n\
         [log]\nlevel = \"{level}\"\n\n[brake]\nmode = \"shadow\"\n\
         borrower_per_hour = 1{spare}\n\n[licences]\nnever = {{ NO-{spare} = [\"PACKAGE\"] }}\n\n\
         [access_log]\nto = \"data/access-{number}.log\"\n\n\
         [readers]\nmax_lifetime = \"1{spare}d\"\n\n"
    );
    let mut text = text.to_owned();
    for (from, to) in [
        ("[server]\n", format!("{more}[server]\nhsts = \"{spare}d\"\n")),
        ("certs/lending.secret", secret.to_owned()),
        ("[tls]\n", format!("[tls]\nminimum_version = \"{minimum}\"\n")),
        ("[listen]\n", format!("[listen]\nproxy_protocol = [\"192.0.2.{spare}/32\"]\n")),
        ("name = \"files\"\n", format!("name = \"files\"\nfirst_byte = \"{spare}s\"\n")),
        ("path = \"/covers/{", format!("path = \"/covers-{number}/{{")),
    ] {
        assert!(text.contains(from), "the configuration has no {from}");
        text = text.replacen(from, &to, 1);
    }
    text
}

/// `LOANGATE_DOWNLOADS=200 LOANGATE_UPGRADES=20` runs it at full length, and
/// `LOANGATE_OTHER_VERSION=FILE` lets that program take over once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_and_a_drain_break_nothing() {
    let scene = scene("drain_delay = \"4s\"\nhandover_timeout = \"3s\"").await;
    let mut reloads = Reloads::of(&scene);
    let mut gates = vec![serve(&scene).await];
    let upgrades = number("LOANGATE_UPGRADES", 4);
    // Some of each process.
    let of_each = number("LOANGATE_DOWNLOADS", 50).div_ceil(upgrades + 1);
    let mut downloads = vec![Downloads::start(&scene, of_each).await];
    let load = Load::start(&scene);
    load.more(&scene, 50).await;
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
        gates.push(match (upgrade, std::env::var_os("LOANGATE_OTHER_VERSION")) {
            // One worker for both sockets.
            (0, _) => Process::serve_within(one_core(), &scene.config_file()).await,
            (3, Some(program)) => {
                println!("another version takes over: {}", program.display());
                Process::serve_by(&program, &scene.config_file()).await
            }
            _ => serve(&scene).await,
        });
        load.more(&scene, 50).await;
        reloads.next(&scene).await;
        load.more(&scene, 50).await;
        downloads.push(Downloads::start(&scene, of_each).await);
        downloads.iter_mut().for_each(Downloads::all_run);
        assert!(gates.iter_mut().all(Process::runs), "they still have downloads");
    }
    // A load balancer sends no new connections to a gate that is not ready.
    let last = gates.last().unwrap();
    last.terminate();
    let unready = async || readiness(&scene).await == StatusCode::SERVICE_UNAVAILABLE;
    scene.until("the gate reports that it stops", unready).await;
    load.more(&scene, 50).await;
    let served = load.end().await;
    let mut completed = 0;
    for downloads in downloads {
        completed += downloads.complete().await;
    }
    for gate in &mut gates {
        assert!(gate.exit().await.success());
    }
    println!("{completed} downloads and {served} new connections through {upgrades} upgrades");
    let left = std::fs::read_dir(scene.dir.path().join("data")).unwrap();
    let names: Vec<_> = left.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.contains("handover")), "{names:?}");
    scene.end().await;
}

/// The gates listen at one address, at both, at both, and at the other one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_are_added_and_dropped_without_a_break() {
    let mut scene = scene("").await;
    let (one, other) =
        (scene.address(), SocketAddr::from((Ipv6Addr::LOCALHOST, scene.address().port())));
    let list = |public: &[SocketAddr]| {
        let quoted: Vec<String> = public.iter().map(|each| format!("\"{each}\"")).collect();
        format!("public = [{}]", quoted.join(", "))
    };
    let lists = [list(&[one]), list(&[one, other]), list(&[other, one]), list(&[other])];
    scene.replace_in_config(&format!("public = \"{one}\""), &lists[0]);
    let (mut gates, mut downloads) = (vec![serve(&scene).await], Vec::new());
    downloads.push(Downloads::start(&scene, 4).await);
    let mut loads = vec![Load::start(&scene)];
    for upgrade in 1..lists.len() {
        if upgrade == 3 {
            // Nobody connects to the address that is dropped.
            loads.remove(0).end().await;
        }
        scene.replace_in_config(&lists[upgrade - 1], &lists[upgrade]);
        gates.push(serve(&scene).await);
        for load in &loads {
            load.more(&scene, 50).await;
        }
        if upgrade == 1 {
            scene.base = format!("https://{other}");
            loads.push(Load::start(&scene));
        }
        for address in if upgrade == 3 { vec![other] } else { vec![one, other] } {
            scene.base = format!("https://{address}");
            downloads.push(Downloads::start(&scene, 4).await);
        }
        downloads.iter_mut().for_each(Downloads::all_run);
        assert!(gates.iter_mut().all(Process::runs), "they still have downloads");
    }
    let refused = async || TcpStream::connect(one).await.is_err();
    scene.until("the dropped address is closed", refused).await;
    for load in loads {
        load.more(&scene, 50).await;
        load.end().await;
    }
    for downloads in downloads {
        downloads.complete().await;
    }
    gates.last().unwrap().terminate();
    for gate in &mut gates {
        assert!(gate.exit().await.success());
    }
    scene.end().await;
}

/// Where the gates of the scene hand over.
fn handover_file(scene: &Scene) -> PathBuf {
    scene.dir.path().join(format!("data/loangate.db.handover-{}", scene.address().port()))
}

#[tokio::test]
async fn killed_successor_leaves_the_gate_serving() {
    let scene = scene("").await;
    let mut old = serve(&scene).await;
    let unreachable = (
        "sqlite:data/loangate.db\"",
        "postgres://gate@127.0.0.1:1/loans?sslmode=disable\"\nlease = \"60s\"",
    );
    let file = format!("[server]\nhandover = \"{}\"", handover_file(&scene).display());
    let load = Load::start(&scene);
    for _ in 0..3 {
        let mut next = spawned(&scene, &[unreachable, ("[server]", &file)]);
        let log = || std::fs::read_to_string(&next.1).unwrap();
        scene.until("it waits", async || log().contains("waiting for the ledger")).await;
        next.0.kill().unwrap();
        next.0.wait().unwrap();
        load.more(&scene, 30).await;
    }
    let mut new = serve(&scene).await;
    load.more(&scene, 30).await;
    load.end().await;
    assert!(old.exit().await.success());
    new.terminate();
    assert!(new.exit().await.success());
    scene.end().await;
}

#[tokio::test]
async fn frozen_gate_is_not_doubled() {
    let scene = scene("").await;
    let mut gate = serve(&scene).await;
    gate.pause();
    let (status, log) = failing(&scene, &[]).await;
    assert!(!status.success() && log.contains("does not respond"), "{log}");
    gate.resume();
    assert_eq!(readiness(&scene).await, StatusCode::OK);
    // Nor one that hands over nothing.
    let (status, log) = failing(&scene, &[("[server]", "[server]\nhandover = \"\"")]).await;
    assert!(!status.success() && log.contains("in use"), "{log}");
    assert!(gate.runs());
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

#[tokio::test]
async fn gate_with_keys_is_not_replaced_by_one_without() {
    let provider = OpenIdProvider::start().await;
    let scene = scene("").await;
    let of_file = "jwks = \"certs/jwks.json\"\nalgorithms = [\"EdDSA\"]\n\
                   issuer = \"https://login.example.no\"";
    let fetched = format!("issuer = \"{}\"\nalgorithms = [\"ES256\"]\n", provider.url);
    scene.replace_in_config(of_file, &fetched);
    let mut old = serve(&scene).await;
    let token = || {
        let now = loangate::clock::Clock::system().now().as_second();
        SigningKey::usual().sign(&json!({
            "iss": provider.url, "aud": "loangate", "sub": "kari", "library": LIBRARY,
            "iat": now, "exp": now + 3600, "jti": fastrand::u64(..),
        }))
    };
    let client = scene.http1();
    let status = async || {
        let path = format!("/files/{BOOK}/book.epub");
        scene.get(&client, &path, &token()).send().await.unwrap().status()
    };
    scene.until("the keys", async || status().await == StatusCode::OK).await;
    provider.say(|script| script.instead = Some(("/jwks", Instead::Status(500))));
    let (ended, log) = failing(&scene, &[]).await;
    assert!(!ended.success() && log.contains("There are no keys of the login"), "{log}");
    assert!(old.runs());
    assert_eq!(status().await, StatusCode::OK);
    // A provider that answers late delays the upgrade, and refuses nobody.
    provider.say(|script| script.delay = Duration::from_secs(2));
    let mut new = serve(&scene).await;
    assert_eq!(status().await, StatusCode::OK);
    assert!(old.exit().await.success());
    new.terminate();
    assert!(new.exit().await.success());
    scene.end().await;
}

#[tokio::test]
async fn gate_starts_while_another_drains() {
    let scene = scene("").await;
    let mut old = serve(&scene).await;
    let mut downloads = Downloads::start(&scene, 2).await;
    old.terminate();
    let refused = async || TcpStream::connect(scene.address()).await.is_err();
    scene.until("no new connections", refused).await;
    assert_eq!(readiness(&scene).await, StatusCode::SERVICE_UNAVAILABLE);
    let mut new = serve(&scene).await;
    assert_eq!(readiness(&scene).await, StatusCode::OK);
    let load = Load::start(&scene);
    load.more(&scene, 30).await;
    load.end().await;
    downloads.all_run();
    assert!(old.runs());
    downloads.complete().await;
    assert!(old.exit().await.success());
    new.terminate();
    assert!(new.exit().await.success());
    scene.end().await;
}

/// Both processes use the ledger until the old one has drained.
async fn loans_of_both_processes(scene: Scene) {
    let old = serve(&scene).await;
    let mut client = scene.client().http2_prior_knowledge();
    client = client.http2_initial_stream_window_size(32 << 10).timeout(PATIENCE);
    let client = client.build().unwrap();
    let path = format!("/files/{AUDIO}/audio.mp3");
    let (returned, kept) = (scene.token("returned"), scene.token("kept"));
    let mut responses = Vec::new();
    for token in [&returned, &kept] {
        let mut response = scene.get(&client, &path, token).send().await.unwrap();
        assert!(response.chunk().await.unwrap().is_some());
        responses.push(response);
    }
    // A begin that the old process has sent, and Bokbasen answers later.
    scene.fault(&json!({ "call": "begin", "effect": { "delay": { "ms": 1500 } } })).await;
    let url = format!("{}/loans/{BOOK}", scene.base);
    let begin = client.put(&url).bearer_auth(scene.token("late")).send();
    let begin = tokio::spawn(begin);
    scene.until("it is sent", async || scene.ledger().await.len() == 3).await;
    let mut new = serve(&scene).await;
    scene.no_faults().await;
    let begun = begin.await.unwrap().unwrap().status();
    assert!(begun.is_success(), "{begun}");

    let loan = format!("{}/loans/{AUDIO}", scene.base);
    let ended = scene.http1().delete(loan).bearer_auth(&returned).send().await.unwrap();
    assert_eq!(ended.status(), StatusCode::NO_CONTENT);
    let mut kept = responses.pop().unwrap();
    let mut stopped = responses.pop().unwrap();
    let over = async { while stopped.chunk().await.is_ok_and(|chunk| chunk.is_some()) {} };
    tokio::time::timeout(PATIENCE, over).await.expect("the old process stops the download");
    while kept.chunk().await.unwrap().is_some() {}
    drop((client, stopped, kept));

    let mut old = old;
    assert!(old.exit().await.success());
    let is_returned = async || {
        let books = scene.books().await;
        books.iter().filter(|loan| loan["status"] == "RETURNED").count() == 1
    };
    scene.until("the return is at Bokbasen", is_returned).await;
    let books = scene.books().await;
    assert_eq!(books.len(), 3, "each loan was begun once: {books:?}");
    let ends: u64 = books.iter().map(|loan| loan["ends"].as_u64().unwrap()).sum();
    assert_eq!(ends, 1, "the return was sent once: {books:?}");
    scene.check().await;
    new.terminate();
    assert!(new.exit().await.success());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_processes_use_a_ledger_file() {
    loans_of_both_processes(scene("").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_processes_use_a_database() {
    let Some(postgres) = Postgres::shared().await else { return };
    let database = postgres.database().await;
    let scene = scene("").await;
    scene.use_database(&format!("{}?sslmode=disable", database.url()));
    loans_of_both_processes(scene).await;
}

/// Sends these bytes, and returns what the gate answers until it closes.
fn answer(file: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(file).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_clients_of_the_handover_socket_get_nothing() {
    let scene = scene("").await;
    let mut gate = serve(&scene).await;
    let file = handover_file(&scene);
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let framed =
        |json: &str| [&u32::try_from(json.len()).unwrap().to_be_bytes(), json.as_bytes()].concat();
    for bytes in [
        b"GET /metrics HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 100_000],
        vec![0; 64],
        framed("\"ready\""),
        framed("\"serving\""),
        framed("{\"hello\":{\"version\":1}}"),
        framed("{\"hello\":{\"version\":\"1\",\"public\":1,\"admin\":2}}"),
    ] {
        let file = file.clone();
        let answered = tokio::task::spawn_blocking(move || answer(&file, &bytes)).await.unwrap();
        let text = String::from_utf8_lossy(&answered).into_owned();
        assert!(answered.is_empty() || text.contains("refused"), "{text}");
    }
    let silent: Vec<_> = (0..100).map(|_| UnixStream::connect(&file).unwrap()).collect();
    let load = Load::start(&scene);
    load.more(&scene, 30).await;
    drop(silent);
    other_user_gets_nothing(&scene, &file);
    // A successor that skips a step.
    let hello = format!(
        "{{\"hello\":{{\"version\":1,\"public\":\"{}\",\"admin\":\"127.0.0.1:1\"}}}}",
        scene.address()
    );
    let skipping = [framed(&hello), framed("\"serving\"")].concat();
    let sent = tokio::task::spawn_blocking({
        let file = file.clone();
        move || answer(&file, &skipping)
    });
    let answered = String::from_utf8_lossy(&sent.await.unwrap()).into_owned();
    assert!(answered.contains("public") && !answered.contains("draining"), "{answered}");
    let mut new = serve(&scene).await;
    load.more(&scene, 30).await;
    load.end().await;
    assert!(gate.exit().await.success());
    new.terminate();
    assert!(new.exit().await.success());
    scene.end().await;
}

/// Connects as another user, first with the permissions of the file, and then without them.
fn other_user_gets_nothing(scene: &Scene, file: &Path) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let script = "$SIG{PIPE} = 'IGNORE'; my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or exit 3;
                  syswrite($s, pack('N', 7) . '\"ready\"'); exit(sysread($s, my $b, 1) ? 0 : 4)";
    let connect = || {
        let status = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "perl"])
            .args(["-MIO::Socket::UNIX", "-e", script])
            .arg(file)
            .status();
        status.unwrap().code()
    };
    for open in [scene.dir.path(), file.parent().unwrap()] {
        std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    assert_eq!(connect(), Some(3), "another user must not connect");
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(connect(), Some(4), "another user must get no answer");
}
