//! `listen.proxy_protocol`: connections from a load balancer count for the clients that it names.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::external_program::{OwnedProcess, direct, free_ports};
use crate::support::scene::Setting;
use crate::support::{BOOK, File, Scene, program, raw_client};

const LOCAL: (&str, &str) = ("[listen]", "[listen]\nproxy_protocol = [\"127.0.0.0/8\"]");
const LIMITS: (&str, &str) =
    ("[ledger]", "[limits]\nconnections = 400\nconnections_per_address = 3\n\n[ledger]");

async fn scene_with(config: Vec<(&'static str, &'static str)>) -> Scene {
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene
}

/// Opens a connection that begins with this header.
async fn begun(scene: &Scene, header: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(scene.address()).await.unwrap();
    socket.write_all(header).await.unwrap();
    socket
}

fn of_client(address: &str) -> String {
    format!("PROXY TCP4 {address} 198.51.100.1 40000 443\r\n")
}

/// Sends a request on this connection, and returns the first line of the response.
async fn status_line(scene: &Scene, socket: TcpStream, reader: &str) -> String {
    let ca = scene.dir.path().join("certs/ca.pem");
    let tls = raw_client::connect_over(socket, &ca, "localhost", "http/1.1").await;
    ask(tls, scene, reader).await
}

async fn ask(mut tls: TlsStream<TcpStream>, scene: &Scene, reader: &str) -> String {
    let head = format!(
        "GET /files/{BOOK}/book.epub HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Authorization: Bearer {}\r\n\r\n",
        scene.token(reader)
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tls.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

/// Waits until the gate has closed the connection.
async fn closed(mut socket: TcpStream) {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), async {
        socket.read_to_end(&mut rest).await
    });
    let _ = read.await.expect("the gate closes the connection");
    let is_content = rest.windows(5).any(|window| window == b"HTTP/");
    assert!(!is_content, "it answered: {}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn balancer_must_name_its_clients_and_nobody_else_may() {
    let scene = scene_with(vec![LOCAL]).await;
    let named = begun(&scene, of_client("192.0.2.7").as_bytes()).await;
    assert_eq!(status_line(&scene, named, "kari").await, "HTTP/1.1 200 OK");
    let local = begun(&scene, b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00").await;
    assert_eq!(status_line(&scene, local, "kari").await, "HTTP/1.1 200 OK", "a check");
    let request =
        scene.get(&scene.http1(), &format!("/files/{BOOK}/book.epub"), &scene.token("kari"));
    assert!(request.send().await.is_err(), "a connection without a header is closed");
    for malformed in ["PROXY TCP4 192.0.2.7\r\n", "PROXY TCP4 192.0.2.7 192.0.2.8 1 99999\r\n"] {
        closed(begun(&scene, malformed.as_bytes()).await).await;
    }
    scene.end().await;

    let scene = scene_with(Vec::new()).await;
    for spoofed in [of_client("192.0.2.7").as_bytes(), b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"] {
        closed(begun(&scene, spoofed).await).await;
    }
    // Networks that a reload adds count for the next connection.
    scene.replace_in_config(LOCAL.0, LOCAL.1);
    let reloaded = scene.admin_post("/api/v1/reload", &serde_json::Value::Null).await;
    let reloaded: serde_json::Value = reloaded.json().await.unwrap();
    assert_eq!(reloaded["changed"][0]["key"], "listen.proxy_protocol", "{reloaded}");
    let named = begun(&scene, of_client("192.0.2.7").as_bytes()).await;
    assert_eq!(status_line(&scene, named, "kari").await, "HTTP/1.1 200 OK");
    scene.end().await;
}

/// A header is required at one address and refused at the other, from the same network.
#[tokio::test]
async fn header_is_expected_at_the_listed_addresses_only() {
    let public = ("public = \"127.0.0.1:0\"", "public = [\"127.0.0.1:0\", \"127.0.0.2:0\"]");
    let here = (
        "[listen]",
        "[listen]\nproxy_protocol = [\"127.0.0.0/8\"]\nproxy_protocol_at = [\"127.0.0.2:0\"]",
    );
    let config = vec![public, here];
    let mut scene = Scene::without_gate(Setting { config, ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let gate = scene.spawn_gate().await;
    let bases = gate.ready["base_urls"].as_array().unwrap().iter();
    let bases: Vec<&str> = bases.map(|base| base.as_str().unwrap()).collect();
    let connect = async |base: usize, header: &str| {
        let address = bases[base].trim_start_matches("https://");
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(header.as_bytes()).await.unwrap();
        socket
    };
    let header = of_client("192.0.2.7");
    for (base, header) in [(0, ""), (1, &*header)] {
        let socket = connect(base, header).await;
        assert_eq!(status_line(&scene, socket, "kari").await, "HTTP/1.1 200 OK", "{base}");
    }
    let as_listed = async || {
        closed(connect(0, &header).await).await;
        closed(connect(1, "GET / HTTP/1.1\r\n\r\n").await).await;
    };
    as_listed().await;
    let (networks, addresses) = ("listen.proxy_protocol", "listen.proxy_protocol_at");
    // They belong to the sockets, which a reload does not change either. Nor does it trust other
    // networks at the old ones, and says so, whatever the gate started with.
    let first = ("at = [\"127.0.0.2:0\"]", "at = [\"127.0.0.1:0\"]");
    let also_ten = ("[\"127.0.0.0/8\"]", "[\"127.0.0.0/8\", \"10.0.0.0/8\"]");
    let only_ten = ("[\"127.0.0.0/8\"]", "[\"10.0.0.0/8\"]");
    let another = ("public = [\"127.0.0.1:0\",", "public = [\"127.0.0.3:0\", \"127.0.0.1:0\",");
    let back = |(before, after)| (after, before);
    let no_keys: &[&str] = &[];
    for (edits, changed, waiting) in [
        (&[also_ten][..], &[networks][..], no_keys),
        (&[first, back(also_ten)], no_keys, &[networks, addresses]),
        (&[back(first)], &[networks], no_keys),
        (&[first, only_ten], no_keys, &[networks, addresses]),
        (&[back(first), another], no_keys, &[networks, "listen.public"]),
    ] {
        edits.iter().for_each(|(before, after)| scene.replace_in_config(before, after));
        let reloaded = scene.admin_post("/api/v1/reload", &serde_json::Value::Null).await;
        let reloaded: serde_json::Value = reloaded.json().await.unwrap();
        let keys = |list: &str| -> Vec<String> {
            let list = reloaded[list].as_array().unwrap().iter();
            list.map(|changed| changed["key"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(keys("changed"), changed, "{edits:?}");
        assert_eq!(keys("needs_restart"), waiting, "{edits:?}");
        as_listed().await;
        let socket = connect(1, &header).await;
        assert_eq!(status_line(&scene, socket, "kari").await, "HTTP/1.1 200 OK", "{edits:?}");
    }
    drop(gate);
    scene.end().await;
}

#[tokio::test]
async fn limit_per_address_is_that_of_the_client() {
    let scene = scene_with(vec![LOCAL, LIMITS]).await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(begun(&scene, of_client("192.0.2.7").as_bytes()).await);
    }
    while scene.limit_reached("connections_per_address").await < 5.0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let other = begun(&scene, of_client("192.0.2.8").as_bytes()).await;
    assert_eq!(status_line(&scene, other, "kari").await, "HTTP/1.1 200 OK");
    let own = begun(&scene, of_client("192.0.2.7").as_bytes()).await;
    assert_eq!(status_line(&scene, own, "ola").await, "HTTP/1.1 200 OK");
    assert_eq!(scene.limit_reached("connections_per_address").await, 6.0);
    drop(silent);
    scene.end().await;
}

#[tokio::test]
async fn header_that_does_not_end_is_cut_off() {
    let limits = "[limits]\nhandshake = \"200ms\"\n\n[ledger]";
    let scene = scene_with(vec![LOCAL, ("[ledger]", limits)]).await;
    for unended in [&b"PROXY TCP4 "[..], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x10\x00", b""] {
        closed(begun(&scene, unended).await).await;
    }
    assert_eq!(scene.limit_reached("handshake").await, 3.0);
    scene.end().await;
}

/// Starts an HAProxy that forwards TCP to the gate, with `option` on its server.
fn haproxy(program: &Path, dir: &Path, port: u16, scene: &Scene, option: &str) -> OwnedProcess {
    let file = dir.join(format!("{port}.cfg"));
    let text = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
         listen gate\n bind 127.0.0.1:{port}\n server gate {} {option}\n",
        scene.address()
    );
    std::fs::write(&file, text).unwrap();
    let mut command = direct(program);
    command.arg("-db").arg("-f").arg(file).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    OwnedProcess(command.spawn().unwrap())
}

#[tokio::test]
async fn haproxy_names_its_clients_in_both_versions() {
    let Some(program) = program("haproxy", "haproxy") else {
        return;
    };
    let scene = scene_with(vec![LOCAL, LIMITS]).await;
    let (dir, port) = (TempDir::new().unwrap(), free_ports(2));
    for (port, option) in [(port, "send-proxy"), (port + 1, "send-proxy-v2")] {
        let _balancer = haproxy(&program, dir.path(), port, &scene, option);
        let socket = loop {
            match TcpStream::connect(("127.0.0.1", port)).await {
                Ok(socket) => break socket,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        assert_eq!(status_line(&scene, socket, "kari").await, "HTTP/1.1 200 OK", "{option}");
    }
    scene.end().await;
}
