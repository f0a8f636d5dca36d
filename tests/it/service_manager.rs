//! A gate under a service manager such as systemd: sockets that it passes, and reports to it.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use http::StatusCode;
use loangate::sandbox::Bounds;
use rustix::io::{FdFlags, fcntl_setfd};

use crate::support::external_program::free_ports;
use crate::support::{BOOK, File, Process, Scene, Setting};

/// Timeout for a report.
const PATIENCE: Duration = Duration::from_secs(30);

async fn scene(public: SocketAddr, admin: SocketAddr) -> Scene {
    let mut scene =
        Scene::without_gate(Setting { bounds: Bounds::quick(), ..Setting::default() }).await;
    let key = |name: &str, address| format!("{name} = \"{address}\"");
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    scene.replace_in_config(&key("public", any), &key("public", public));
    scene.replace_in_config(&key("admin", any), &key("admin", admin));
    scene.base = format!("https://{public}");
    scene.admin = format!("http://{admin}");
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(3000));
    scene
}

/// Returns a command that passes the sockets on to its arguments, as systemd does.
fn activating(sockets: &[&TcpListener], names: &str) -> Command {
    let redirections: Vec<String> = sockets
        .iter()
        .enumerate()
        .map(|(number, socket)| format!("{}<&{}", number + 3, socket.as_raw_fd()))
        .collect();
    let script = format!(
        "exec {}; export LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES={names}; exec \"$0\" \"$@\"",
        redirections.join(" "),
        sockets.len()
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script]);
    command
}

/// Starts a gate with these sockets.
async fn activated(sockets: &[&TcpListener], names: &str, config: &Path) -> Process {
    for socket in sockets {
        fcntl_setfd(socket.as_fd(), FdFlags::empty()).unwrap();
    }
    let started = Process::serve_within(activating(sockets, names), config).await;
    for socket in sockets {
        fcntl_setfd(socket.as_fd(), FdFlags::CLOEXEC).unwrap();
    }
    started
}

async fn request_ended(
    request: tokio::task::JoinHandle<reqwest::Result<reqwest::Response>>,
) -> StatusCode {
    request.await.unwrap().unwrap().status()
}

async fn read(scene: &Scene) -> StatusCode {
    let path = format!("/files/{BOOK}/book.epub");
    let client = scene.http1();
    let response = scene.get(&client, &path, &scene.token("kari")).send().await.unwrap();
    let status = response.status();
    assert_eq!(response.bytes().await.unwrap().len(), 3000);
    status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_of_the_service_manager_survive_restarts() {
    let (public, admin) = (TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0"));
    let (public, admin) = (public.unwrap(), admin.unwrap());
    let scene = scene(public.local_addr().unwrap(), admin.local_addr().unwrap()).await;
    let config = scene.config_file();
    let mut waiting = None;
    for names in ["public:admin", "loangate.socket:loangate.socket", "public:admin"] {
        let mut gate = activated(&[&public, &admin], names, &config).await;
        assert_eq!(gate.ready_field("base_url"), scene.base);
        assert_eq!(gate.ready_field("admin_url"), scene.admin);
        if let Some(waiting) = waiting.take() {
            let response = request_ended(waiting).await;
            assert_eq!(response, StatusCode::OK, "it waited for this gate");
        }
        for _ in 0..10 {
            assert_eq!(read(&scene).await, StatusCode::OK);
        }
        assert_eq!(scene.admin("/readyz").await.status(), StatusCode::OK);
        gate.terminate();
        assert!(gate.exit().await.success());
        // No gate runs, and the connection waits in the queue of the socket.
        let url = format!("{}/files/{BOOK}/book.epub", scene.base);
        let request = scene.http1().get(url).bearer_auth(scene.token("kari")).send();
        waiting = Some(tokio::spawn(request));
    }
    drop(waiting);
    scene.end().await;
}

/// One of the two public addresses has no socket. It is bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_of_several_addresses_are_used() {
    let listen = |address: &str| TcpListener::bind(address).unwrap();
    let (ipv4, ipv6) = (listen("127.0.0.1:0"), listen("[::1]:0"));
    let first = free_ports(2);
    let admin = SocketAddr::from(([127, 0, 0, 1], first));
    let bound = SocketAddr::from(([127, 0, 0, 1], first + 1));
    let public = [ipv6.local_addr().unwrap(), bound, ipv4.local_addr().unwrap()];
    let mut scene = scene(public[0], admin).await;
    let list = public.map(|address| format!("\"{address}\"")).join(", ");
    scene.replace_in_config(&format!("public = \"{}\"", public[0]), &format!("public = [{list}]"));
    for (sockets, names) in
        [([&ipv4, &ipv6], "public:public"), ([&ipv6, &ipv4], "loangate.socket:loangate.socket")]
    {
        let mut gate = activated(&sockets, names, &scene.config_file()).await;
        let bases = public.map(|address| format!("https://{address}"));
        assert_eq!(gate.ready["base_urls"], serde_json::json!(bases));
        for base in bases {
            scene.base = base;
            for _ in 0..10 {
                assert_eq!(read(&scene).await, StatusCode::OK, "{}", scene.base);
            }
        }
        gate.terminate();
        assert!(gate.exit().await.success());
    }
    // The system keeps the sockets open, and the gate has closed the address that it bound.
    assert!(std::net::TcpStream::connect(public[0]).is_ok());
    assert!(std::net::TcpStream::connect(bound).is_err());
    scene.end().await;
}

#[tokio::test]
async fn socket_without_an_address_is_refused() {
    let (public, other) = (TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0"));
    let (public, other) = (public.unwrap(), other.unwrap());
    let admin = SocketAddr::from(([127, 0, 0, 1], free_ports(1)));
    let scene = scene(public.local_addr().unwrap(), admin).await;
    for (sockets, names, sentence) in [
        (vec![&public, &other], "public:admin", "Write the same addresses"),
        (vec![&public], "admin", "Write the same addresses"),
        (vec![&public], "public:admin", "has not 1 names"),
    ] {
        for socket in &sockets {
            fcntl_setfd(socket.as_fd(), FdFlags::empty()).unwrap();
        }
        let mut command = activating(&sockets, names);
        command.arg(env!("CARGO_BIN_EXE_loangate")).args(["serve", "--config"]);
        let refused = command.arg(scene.config_file()).output().unwrap();
        let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && errors.contains(sentence), "{errors}");
    }
    // One that is meant for another process does not count.
    let mut command = Command::new("env");
    command.args(["LISTEN_PID=1", "LISTEN_FDS=7"]);
    drop(public);
    let mut gate = Process::serve_within(command, &scene.config_file()).await;
    assert_eq!(read(&scene).await, StatusCode::OK);
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

/// The reports that a service manager receives.
struct Reports(UnixDatagram);

impl Reports {
    /// Waits for the next report that is no sign of life.
    fn next(&self) -> String {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let report = self.any();
            if report != "WATCHDOG=1" {
                return report;
            }
        }
        panic!("no report but signs of life");
    }

    fn any(&self) -> String {
        let mut buffer = [0; 1000];
        let length = self.0.recv(&mut buffer).expect("a report");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    fn wait_for_sign_of_life(&self) {
        while self.any() != "WATCHDOG=1" {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_manager_follows_the_state_of_the_gate() {
    let first = free_ports(2);
    let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let scene = scene(address(first), address(first + 1)).await;
    let socket = scene.dir.path().join("notify");
    let reports = Reports(UnixDatagram::bind(&socket).unwrap());
    reports.0.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Command::new("env");
    command.arg(format!("NOTIFY_SOCKET={}", socket.display())).arg("WATCHDOG_USEC=900000");
    let mut old = Process::serve_within(command, &scene.config_file()).await;
    let ready = |process: u32| {
        format!(
            "READY=1\nMAINPID={process}\nSTATUS=serving readers at {}, admin at {}",
            address(first),
            scene.admin
        )
    };
    assert_eq!(reports.next(), ready(old.child.id()));
    reports.wait_for_sign_of_life();
    old.reload();
    let reloading = reports.next();
    let (word, at) = reloading.split_once("\nMONOTONIC_USEC=").unwrap();
    assert!(word == "RELOADING=1" && at.parse::<u64>().unwrap() > 0, "{reloading}");
    assert_eq!(reports.next(), "READY=1\nSTATUS=serving; the configuration was reloaded");

    // The successor has the service manager of its predecessor. It reloads once, and neither waits
    // for the reports of the other.
    let mut new = Process::serve(&scene.config_file()).await;
    let mut all: Vec<String> = (0..4).map(|_| reports.next()).collect();
    all.sort();
    let process = new.child.id();
    let reloaded = "READY=1\nSTATUS=serving; the configuration was reloaded";
    assert_eq!(all[..3], [format!("MAINPID={process}"), ready(process), reloaded.to_owned()]);
    assert!(all[3].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{}", all[3]);
    assert!(old.exit().await.success());
    while reports.0.set_nonblocking(true).is_ok() && reports.0.recv(&mut [0; 10]).is_ok() {}
    reports.0.set_nonblocking(false).unwrap();
    reports.wait_for_sign_of_life();
    new.terminate();
    assert_eq!(reports.next(), "STOPPING=1\nSTATUS=draining");
    assert!(new.exit().await.success());
    scene.end().await;
}
