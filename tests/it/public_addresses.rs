//! A gate with several public addresses: each one serves the same files under the same limits.
//! `upgrade` changes the list, and `service_manager` passes sockets of several addresses.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::Command;

use http::StatusCode;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::support::external_program::{free_ports, output_text, run};
use crate::support::scene::Setting;
use crate::support::{AUDIO, BOOK, File, Process, Scene};

/// Larger than all sockets and windows together, so the gate cannot finish before the reader reads.
const SIZE: u64 = 64 << 20;
const LIST: &str = "public = [\"127.0.0.1:0\", \"[::1]:0\", \"127.0.0.1:0\"]";

/// A gate with [`LIST`] as a process, and the base URLs of its addresses.
async fn scene(limits: &'static str) -> (Scene, Process, Vec<String>) {
    let config = vec![("public = \"127.0.0.1:0\"", LIST), ("[ledger]", limits)];
    let mut scene = Scene::without_gate(Setting { config, ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(3000));
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(SIZE));
    let admin = format!("admin = \"127.0.0.1:{}\"", free_ports(1));
    scene.replace_in_config("admin = \"127.0.0.1:0\"", &admin);
    let gate = scene.spawn_gate().await;
    let bases = gate.ready["base_urls"].as_array().unwrap().iter();
    let bases: Vec<String> = bases.map(|base| base.as_str().unwrap().to_owned()).collect();
    assert_eq!((bases.len(), &bases[0]), (3, &scene.base));
    (scene, gate, bases)
}

fn address(base: &str) -> SocketAddr {
    base.trim_start_matches("https://").parse().unwrap()
}

fn request(
    scene: &Scene,
    base: &str,
    path: &str,
    client: &reqwest::Client,
) -> reqwest::RequestBuilder {
    client.get(format!("{base}/files/{path}")).bearer_auth(scene.token("kari"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_address_serves_and_is_shown() {
    let (scene, mut gate, bases) = scene("[ledger]").await;
    for base in &bases {
        // More connections than workers, so that every socket is connected to.
        for _ in 0..20 {
            for client in [scene.http1(), scene.http2()] {
                let book = format!("{BOOK}/book.epub");
                let response = request(&scene, base, &book, &client).send().await.unwrap();
                assert_eq!(response.status(), StatusCode::OK, "{base}");
                assert_eq!(response.bytes().await.unwrap(), File::of(3000).part(0..3000), "{base}");
            }
        }
    }
    let shown: Vec<String> = bases.iter().map(|base| address(base).to_string()).collect();
    let status: Value = scene.admin("/api/v1/status").await.json().await.unwrap();
    assert_eq!(status["public_addresses"], Value::from(shown.clone()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
    let screen = run(command.args(["status", "--config"]).arg(scene.config_file())).await;
    let screen = output_text(&screen);
    assert!(screen.contains(&format!("(at {})", shown.join(" and "))), "{screen}");
    let log = std::fs::read_to_string(&gate.log).unwrap();
    assert!(log.contains(&shown.join(", ")), "{log}");
    gate.terminate();
    assert!(gate.exit().await.success());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limit_of_a_client_counts_its_connections_to_all_addresses() {
    let limits = "[limits]\nconnections = 20\nconnections_per_address = 5\n\n[ledger]";
    let (scene, _gate, bases) = scene(limits).await;
    let mut silent = Vec::new();
    let open = async |silent: &mut Vec<TcpStream>, base: &str, count| {
        for _ in 0..count {
            silent.push(TcpStream::connect(address(base)).await.unwrap());
        }
    };
    let reached =
        async |number: f64| scene.limit_reached("connections_per_address").await == number;
    // The client of the first and the last address is the same one.
    open(&mut silent, &bases[0], 4).await;
    open(&mut silent, &bases[2], 4).await;
    scene.until("IPv4 connections were closed", async || reached(3.0).await).await;
    open(&mut silent, &bases[1], 5).await;
    open(&mut silent, &bases[1], 2).await;
    scene.until("IPv6 connections were closed", async || reached(5.0).await).await;
    let is_closed = |socket: &&TcpStream| match socket.try_read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    };
    let closed = async || silent.iter().filter(is_closed).count();
    scene.until("five connections are closed", async || closed().await == 5).await;
    for base in &bases {
        let book = format!("{BOOK}/book.epub");
        let response = request(&scene, base, &book, &scene.http1()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{base}");
    }
    drop(silent);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_ends_every_address_and_breaks_no_download() {
    let (scene, mut gate, bases) = scene("[ledger]").await;
    let mut downloads = Vec::new();
    for base in &bases {
        for client in [scene.http1(), scene.http2()] {
            let audio = format!("{AUDIO}/audio.mp3");
            let mut response = request(&scene, base, &audio, &client).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::OK, "{base}");
            let read = response.chunk().await.unwrap().unwrap().len() as u64;
            downloads.push((response, read));
        }
    }
    gate.terminate();
    for base in &bases {
        let refused = async || TcpStream::connect(address(base)).await.is_err();
        scene.until("no new connections", refused).await;
    }
    assert!(gate.runs());
    let file = File::of(SIZE);
    for (mut response, mut at) in downloads {
        while let Some(chunk) = response.chunk().await.unwrap() {
            let end = at + chunk.len() as u64;
            assert!(chunk == file.part(at..end), "other bytes at {at}");
            at = end;
        }
        assert_eq!(at, SIZE);
    }
    assert!(gate.exit().await.success());
    scene.end().await;
}
