//! `loangate healthcheck`: what a container or a script learns of the gate on its machine.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use crate::support::external_program::{free_ports, output_text, run};
use crate::support::{Scene, Setting};

/// Runs a check; returns whether it succeeded, and what it printed.
async fn checked(config: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
    command.args(["healthcheck", "--config"]).arg(config).args(arguments);
    let output = run(&mut command).await;
    (output.status.success(), output_text(&output))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_follows_the_gate_and_not_its_configuration() {
    let ports = free_ports(2);
    let mut scene = Scene::without_gate(Setting::default()).await;
    let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
    scene
        .replace_in_config("public = \"127.0.0.1:0\"", &format!("public = \"{}\"", address(ports)));
    let admin = address(ports + 1);
    scene.replace_in_config("admin = \"127.0.0.1:0\"", &format!("admin = \"{admin}\""));
    let config = scene.config_file();
    for arguments in [&[][..], &["--live"]] {
        let (good, said) = checked(&config, arguments).await;
        assert!(!good && said.starts_with(&format!("no gate answers at {admin}: ")), "{said}");
    }
    let mut gate = scene.spawn_gate().await;
    let ready = (true, format!("the gate at {admin} is ready\n"));
    assert_eq!(checked(&config, &[]).await, ready);
    assert_eq!(
        checked(&config, &["--live"]).await,
        (true, format!("the gate at {admin} responds\n"))
    );
    // Somebody saves a mistake and removes a secret. The gate runs on, so it is not restarted.
    scene.replace_in_config("[tls]", "[tls]\nmistake = nothing");
    let token = config.with_file_name("certs").join("admin.token");
    std::fs::rename(&token, token.with_extension("old")).unwrap();
    assert_eq!(checked(&config, &[]).await, ready);
    // Its last streams drain: no new readers, but no restart either.
    scene.replace_in_config("[tls]\nmistake = nothing", "[tls]");
    std::fs::rename(token.with_extension("old"), &token).unwrap();
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.replace_in_config("[tls]", "[server]\ndrain_delay = \"60s\"\n\n[tls]");
    let mut gate = scene.spawn_gate().await;
    gate.terminate();
    scene.until("the gate stops", async || !checked(&config, &[]).await.0).await;
    let (_, said) = checked(&config, &[]).await;
    let stopping = format!("the gate at {admin} is not ready: The gate is stopping: ");
    assert!(said.starts_with(&stopping) && said.lines().count() == 1, "{said}");
    assert!(checked(&config, &["--live"]).await.0);
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

/// The gate's certificate has no address, and its authority is not among those of the machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admin_listener_with_tls_is_checked_at_loopback() {
    let port = free_ports(1);
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.replace_in_config("admin = \"127.0.0.1:0\"", &format!("admin = \"0.0.0.0:{port}\""));
    let gate = scene.spawn_gate().await;
    let ready = (true, format!("the gate at 127.0.0.1:{port} is ready\n"));
    assert_eq!(checked(&scene.config_file(), &[]).await, ready);
    drop(gate);
    scene.end().await;
}

/// Answers each connection with these bytes; without any, it stays silent.
fn other_server(response: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let _ = socket.read(&mut [0; 1000]);
            let _ = socket.write_all(response.as_bytes());
            if response.is_empty() {
                open.push(socket);
            }
        }
    });
    address
}

#[tokio::test]
async fn other_servers_are_no_healthy_gate() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("gate.toml");
    let (no_gate, broken) = ("is no gate", "was interrupted");
    for (response, live, sentence) in [
        ("", "did not respond within 5 seconds", "did not respond within 5 seconds"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", no_gate, no_gate),
        ("HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{\"ready\":false}", no_gate, no_gate),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 14\r\n\r\n{\"ready\":true}", no_gate, no_gate),
        ("HTTP/1.1 302 Found\r\nlocation: /healthz\r\ncontent-length: 0\r\n\r\n", no_gate, no_gate),
        ("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"ready\":true}", broken, broken),
        ("nonsense\r\n\r\n", "no gate answers", "no gate answers"),
    ] {
        let address = other_server(response);
        std::fs::write(&config, format!("[listen]\nadmin = \"{address}\"\n")).unwrap();
        let (good, said) = checked(&config, &[]).await;
        assert!(!good && said.contains(sentence), "{response:?}: {said}");
        let (good, said) = checked(&config, &["--live"]).await;
        assert!(!good && said.contains(live), "{response:?}: {said}");
    }
    let endless = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
    let long = Box::leak(format!("{endless}{}", "x".repeat(100_000)).into_boxed_str());
    std::fs::write(&config, format!("[listen]\nadmin = \"{}\"\n", other_server(long))).unwrap();
    let (good, said) = checked(&config, &[]).await;
    assert!(!good && said.contains("too long"), "{said}");
}
