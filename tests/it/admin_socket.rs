//! The Unix socket of the admin listener: who may use it, what it serves, the commands that use it,
//! and what becomes of its file.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;
use loangate::sandbox::Bounds;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use tokio::task::JoinSet;

use crate::support::external_program::{OwnedProcess, free_ports, output_text, run};
use crate::support::{Process, Scene, Setting, program};

/// The clients that connect again and again during an upgrade.
const CLIENTS: usize = 8;
/// A ledger that no gate can open, so that the start waits.
const UNREACHABLE: (&str, &str) = (
    "sqlite:data/loangate.db\"",
    "postgres://gate@127.0.0.1:1/loans?sslmode=disable\"\nlease = \"60s\"",
);

/// A scene whose gates have fixed addresses and a Unix socket.
async fn scene() -> Scene {
    let scene =
        Scene::without_gate(Setting { bounds: Bounds::quick(), ..Setting::default() }).await;
    let ports = free_ports(2);
    let public = format!("public = \"127.0.0.1:{ports}\"");
    let admin = format!("admin = \"127.0.0.1:{}\"\nadmin_socket = \"admin.sock\"", ports + 1);
    scene.replace_in_config("public = \"127.0.0.1:0\"", &public);
    scene.replace_in_config("admin = \"127.0.0.1:0\"", &admin);
    scene
}

fn socket(scene: &Scene) -> PathBuf {
    scene.dir.path().join("admin.sock")
}

/// Returns a client whose connections all go to the socket.
fn client(scene: &Scene) -> reqwest::Client {
    let client = reqwest::Client::builder().no_proxy().unix_socket(socket(scene));
    client.timeout(Duration::from_secs(30)).build().unwrap()
}

/// Requests a path by the socket, with these header fields.
async fn status(scene: &Scene, path: &str, fields: &[(&str, &str)]) -> u16 {
    let request = client(scene).get(format!("http://localhost{path}"));
    let request = fields.iter().fold(request, |request, (name, text)| request.header(*name, *text));
    request.send().await.unwrap().status().as_u16()
}

/// Runs a command with the configuration of the scene.
async fn command(scene: &Scene, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
    command.args(arguments).arg("--config").arg(scene.config_file());
    let output = run(&mut command).await;
    (output.status.success(), output_text(&output))
}

/// Starts a gate that does not become ready, and returns what it said.
async fn failed_start(scene: &Scene, config: &Path) -> String {
    let mut serve = Command::new(env!("CARGO_BIN_EXE_loangate"));
    serve.args(["serve", "--config"]).arg(config).current_dir(scene.dir.path());
    let output = run(&mut serve).await;
    assert!(!output.status.success(), "{}", output_text(&output));
    output_text(&output)
}

/// Writes a configuration with changes, beside that of the scene.
fn changed(scene: &Scene, changes: &[(&str, &str)]) -> PathBuf {
    let mut text = fs::read_to_string(scene.config_file()).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "the configuration has no {from}");
        text = text.replacen(from, to, 1);
    }
    let file = scene.dir.path().join("changed.toml");
    fs::write(&file, text).unwrap();
    file
}

/// Lets only operators with a certificate connect by TCP.
fn demand_certificates(scene: &Scene) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap();
    fs::write(scene.dir.path().join("operators.pem"), root.pem()).unwrap();
    scene.replace_in_config("[admin]", "[admin]\nclient_ca = \"operators.pem\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn socket_needs_the_token_and_no_certificate() {
    let scene = scene().await;
    demand_certificates(&scene);
    let mut gate = Process::serve(&scene.config_file()).await;
    let file = fs::symlink_metadata(socket(&scene)).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    let token = scene.admin_token();
    let (good, wrong) = (format!("Bearer {token}"), format!("Bearer {}", &token[1..]));
    for path in ["/healthz", "/readyz", "/status.json", "/sign-in"] {
        assert_eq!(status(&scene, path, &[]).await, 200, "{path}");
    }
    for path in ["/metrics", "/api/v1/status", "/api/v1/loans", "/openapi.json"] {
        assert_eq!(status(&scene, path, &[]).await, 401, "{path}");
        assert_eq!(status(&scene, path, &[("authorization", &wrong)]).await, 401, "{path}");
        assert_eq!(status(&scene, path, &[("authorization", &good)]).await, 200, "{path}");
    }
    // A page of another site that is behind a tunnel to the socket.
    let rebound = [("authorization", good.as_str()), ("host", "rebound.example.com")];
    assert_eq!(status(&scene, "/api/v1/status", &rebound).await, 421);
    let form = client(&scene).post("http://localhost/sign-in").header("origin", "http://evil.no");
    let form = form.header("content-type", "application/x-www-form-urlencoded");
    let refused = form.body(format!("token={token}")).send().await.unwrap().status();
    assert_eq!(refused, StatusCode::FORBIDDEN);
    gate.terminate();
    assert!(gate.exit().await.success());
    assert!(!socket(&scene).exists(), "it removes its file");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_use_the_socket_unless_tcp_is_wanted() {
    let scene = scene().await;
    demand_certificates(&scene);
    let path = socket(&scene).display().to_string();
    let (good, said) = command(&scene, &["status"]).await;
    assert!(!good && said.starts_with(&format!("no gate answers at {path}: ")), "{said}");
    assert!(said.contains("--tcp"), "{said}");
    let (good, said) = command(&scene, &["healthcheck"]).await;
    assert!(!good && said.starts_with("no gate answers at 127.0.0.1:"), "{said}");
    let mut gate = Process::serve(&scene.config_file()).await;
    for (arguments, expected) in [
        (&["status"][..], "serving    reading ok"),
        (&["problems"], ""),
        (&["loans", "list"], ""),
        (&["lending", "list"], ""),
        (&["reload"], ""),
        (&["top", "--count", "1", "--interval", "100ms"], "requests"),
        (&["healthcheck"], &format!("the gate at {path} is ready")),
        (&["healthcheck", "--live"], &format!("the gate at {path} responds")),
    ] {
        let (good, said) = command(&scene, arguments).await;
        assert!(good && said.contains(expected), "{arguments:?}: {said}");
    }
    for arguments in [&["status", "--tcp"][..], &["loans", "list", "--tcp"]] {
        let (good, said) = command(&scene, arguments).await;
        assert!(!good && said.contains("Add --client-cert and --client-key"), "{said}");
    }
    let (good, said) = command(&scene, &["healthcheck", "--tcp"]).await;
    assert!(!good && said.contains("127.0.0.1:"), "{said}");
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

/// Another user cannot connect, and the command says who can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_user_of_the_gate_opens_the_socket() {
    if !rustix::process::geteuid().is_root() || program("setpriv", "util-linux").is_none() {
        return;
    }
    let scene = scene().await;
    let mut gate = Process::serve(&scene.config_file()).await;
    // The other user may read the configuration and its secrets, and nothing else.
    for file in [scene.dir.path(), &scene.dir.path().join("certs")] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for secret in fs::read_dir(scene.dir.path().join("certs")).unwrap() {
        let everybody = fs::Permissions::from_mode(0o644);
        fs::set_permissions(secret.unwrap().path(), everybody).unwrap();
    }
    // Of a copy, since the directory of the build may be closed to others.
    let copy = scene.dir.path().join("loangate");
    fs::copy(env!("CARGO_BIN_EXE_loangate"), &copy).unwrap();
    let as_nobody = async |name| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy);
        let output = run(command.arg(name).arg("--config").arg(scene.config_file())).await;
        (output.status.success(), output_text(&output))
    };
    let (good, said) = as_nobody("status").await;
    let expected = format!("this user may not open {}.", socket(&scene).display());
    assert!(!good && said.contains(&expected), "{said}");
    assert!(said.contains("sudo -u 'root' loangate"), "{said}");
    // It sends no token, so it may call the other listener.
    let (good, said) = as_nobody("healthcheck").await;
    assert!(good && said.contains("is ready"), "{said}");
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_the_way_ends_the_start_and_stays() {
    let scene = scene().await;
    let (config, path) = (scene.config_file(), socket(&scene));
    fs::write(&path, "kept").unwrap();
    let said = failed_start(&scene, &config).await;
    assert!(said.contains("a file that is not a socket is there. Move it away"), "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    let (good, said) = command(&scene, &["check"]).await;
    assert!(!good && said.contains("listen.admin_socket: cannot use"), "{said}");
    fs::remove_file(&path).unwrap();

    let other = UnixListener::bind(&path).unwrap();
    let said = failed_start(&scene, &config).await;
    assert!(said.contains("another process listens there. Stop it"), "{said}");
    UnixStream::connect(&path).unwrap();
    let (good, said) = command(&scene, &["check"]).await;
    assert!(good, "it may be the running gate: {said}");
    drop(other);

    let shared = scene.dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
    for (name, sentence) in [
        ("shared/admin.sock", "other users can write to the directory"),
        ("missing/admin.sock", "does not exist. Create it"),
    ] {
        let name = format!("admin_socket = \"{name}\"");
        let config = changed(&scene, &[("admin_socket = \"admin.sock\"", &name)]);
        let said = failed_start(&scene, &config).await;
        assert!(said.contains(sentence), "{said}");
        let checked = loangate::config::check(&config, false).await;
        let found: Vec<String> = checked.mistakes.iter().map(ToString::to_string).collect();
        assert!(found.len() == 1 && found[0].contains(sentence), "{found:?}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn socket_of_a_killed_gate_is_replaced() {
    let scene = scene().await;
    for _ in 0..2 {
        let mut gate = Process::serve(&scene.config_file()).await;
        assert_eq!(status(&scene, "/readyz", &[]).await, 200);
        gate.kill();
        assert!(UnixStream::connect(socket(&scene)).is_err() && socket(&scene).exists());
    }
    let mut gate = Process::serve(&scene.config_file()).await;
    assert_eq!(status(&scene, "/readyz", &[]).await, 200);
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn socket_says_what_a_waiting_gate_waits_for() {
    let scene = scene().await;
    scene.replace_in_config(UNREACHABLE.0, UNREACHABLE.1);
    let mut serve = Command::new(env!("CARGO_BIN_EXE_loangate"));
    serve.args(["serve", "--config"]).arg(scene.config_file());
    let serve = serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut serve = OwnedProcess(serve.spawn().unwrap());
    let waits = async || command(&scene, &["healthcheck"]).await.1.contains("database");
    scene.until("the socket says so", waits).await;
    let process = rustix::process::Pid::from_child(&serve.0);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    let ended = async || !socket(&scene).exists();
    scene.until("it removes its file", ended).await;
    assert!(serve.0.wait().unwrap().success());
    scene.end().await;
}

/// Clients that open a connection for each request, and never stop.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Load {
    fn start(scene: &Scene) -> Load {
        let mut load = Load { stop: Arc::default(), served: Arc::default(), tasks: JoinSet::new() };
        for _ in 0..CLIENTS {
            let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0);
            let client = client.unix_socket(socket(scene)).timeout(Duration::from_secs(30));
            let client = client.build().unwrap();
            let token = scene.admin_token();
            let (stop, served) = (load.stop.clone(), load.served.clone());
            load.tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let request = client.get("http://localhost/api/v1/status").bearer_auth(&token);
                    let response = request.send().await.expect("a connection is refused or reset");
                    assert_eq!(response.status(), StatusCode::OK);
                    response.bytes().await.expect("a response breaks off");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        load
    }

    async fn more(&self, scene: &Scene) {
        let target = self.served.load(Ordering::Relaxed) + 5 * CLIENTS;
        let served = async || self.served.load(Ordering::Relaxed) >= target;
        scene.until("more requests are served", served).await;
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_refuse_no_connection_to_the_socket() {
    let scene = scene().await;
    let mut gate = Process::serve(&scene.config_file()).await;
    let load = Load::start(&scene);
    load.more(&scene).await;
    for _ in 0..3 {
        let mut next = Process::serve(&scene.config_file()).await;
        assert!(gate.exit().await.success());
        load.more(&scene).await;
        std::mem::swap(&mut gate, &mut next);
    }
    // One that fails, and one that is killed while it starts.
    let said = failed_start(&scene, &changed(&scene, &[("server.pem", "missing.pem")])).await;
    assert!(said.contains("missing.pem"), "{said}");
    load.more(&scene).await;
    let base = gate.ready_field("base_url");
    let port = base.rsplit(':').next().unwrap();
    let file = format!("[server]\nhandover = \"data/loangate.db.handover-{port}\"\n\n[admin]\n");
    let mut waiting = Command::new(env!("CARGO_BIN_EXE_loangate"));
    waiting.args(["serve", "--config"]).arg(changed(&scene, &[UNREACHABLE, ("[admin]\n", &file)]));
    let log = scene.dir.path().join("waiting.log");
    let waiting = waiting.stdin(Stdio::null()).stdout(Stdio::null());
    let waiting = waiting.stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    let waiting = OwnedProcess(waiting);
    let waits = async || fs::read_to_string(&log).unwrap().contains("waiting for the ledger");
    scene.until("it waits", waits).await;
    drop(waiting);
    load.more(&scene).await;
    load.end().await;
    let said = command(&scene, &["status"]).await.1;
    assert!(said.contains(&format!("process {}", gate.child.id())), "{said}");
    gate.terminate();
    assert!(gate.exit().await.success());
    assert!(!socket(&scene).exists());
    scene.end().await;
}

/// A signal that stops the old gate at once leaves the file to the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_predecessor_leaves_the_file() {
    let scene = scene().await;
    scene.replace_in_config("[admin]\n", "[server]\ndrain = \"600s\"\n\n[admin]\n");
    let mut old = Process::serve(&scene.config_file()).await;
    let base = old.ready_field("base_url");
    let address = base.trim_start_matches("https://").parse().unwrap();
    // It drains for as long as this connection has a request.
    let mut stream =
        crate::support::raw_client::connect(address, &scene.ca(), "localhost", "http/1.1").await;
    let head = b"PUT /loans/9788299999014 HTTP/1.1\r\nhost: localhost\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, head).await.unwrap();
    let mut new = Process::serve(&scene.config_file()).await;
    old.terminate();
    old.terminate();
    old.exit().await;
    assert_eq!(status(&scene, "/readyz", &[]).await, 200);
    new.terminate();
    assert!(new.exit().await.success());
    assert!(!socket(&scene).exists());
    drop(stream);
    scene.end().await;
}
