//! A returning reader resumes the TLS session: at another node, after a restart and after a key
//! change, while the ticket's key is configured.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::scene::Setting;
use crate::support::{Process, Scene};

const ALL: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
const KEYS: &str = "ticket_keys = [{ file = \"certs/ticket.key\" }]";

/// A reader's app, which caches its sessions.
struct App(Arc<ClientConfig>);

impl App {
    fn new(scene: &Scene, version: &'static SupportedProtocolVersion) -> App {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(scene.dir.path().join("certs/ca.pem")).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.enable_early_data = true;
        App(Arc::new(config))
    }

    /// Connects and returns the kind of handshake. It reads a response, to receive the tickets.
    async fn connect(&self, scene: &Scene) -> HandshakeKind {
        let socket = TcpStream::connect(scene.address()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(self.0.clone()).connect(name, socket).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 404"), "{}", answer.escape_ascii());
        assert!(!stream.get_ref().1.is_early_data_accepted(), "a request could be replayed");
        stream.get_ref().1.handshake_kind().unwrap()
    }
}

/// Sends SIGHUP and waits until the keys have been reloaded `times` times since the start.
async fn reload(scene: &Scene, gate: &Process, times: usize) {
    gate.reload();
    let reloaded = async || {
        std::fs::read_to_string(&gate.log)
            .unwrap()
            .matches("the configuration was reloaded")
            .count()
            == times
    };
    scene.until("the keys are reloaded", reloaded).await;
}

#[tokio::test]
async fn sessions_resume_across_nodes_restarts_and_key_changes() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    let mut one = scene.spawn_gate().await;
    let apps = ALL.map(|version| App::new(&scene, version));
    let of_old = ALL.map(|version| App::new(&scene, version));
    for app in apps.iter().chain(&of_old) {
        assert_eq!(app.connect(&scene).await, HandshakeKind::Full);
    }
    for app in &apps {
        assert_eq!(app.connect(&scene).await, HandshakeKind::Resumed);
    }
    let mut other = scene.spawn_gate().await;
    for app in &apps {
        assert_eq!(app.connect(&scene).await, HandshakeKind::Resumed, "at another node");
    }
    one.kill();
    other.kill();
    let gate = scene.spawn_gate().await;
    for app in &apps {
        assert_eq!(app.connect(&scene).await, HandshakeKind::Resumed, "after a restart");
    }

    std::fs::write(
        scene.dir.path().join("certs/new.key"),
        "a new ticket key of more than thirty-two bytes",
    )
    .unwrap();
    let both = "ticket_keys = [{ file = \"certs/new.key\" }, { file = \"certs/ticket.key\" }]";
    scene.replace_in_config(KEYS, both);
    reload(&scene, &gate, 1).await;
    for app in &apps {
        assert_eq!(app.connect(&scene).await, HandshakeKind::Resumed, "with the old key second");
    }
    scene.replace_in_config(both, "ticket_keys = [{ file = \"certs/new.key\" }]");
    reload(&scene, &gate, 2).await;
    for (app, of_old) in apps.iter().zip(&of_old) {
        assert_eq!(
            app.connect(&scene).await,
            HandshakeKind::Resumed,
            "its last ticket uses the new key"
        );
        assert_eq!(of_old.connect(&scene).await, HandshakeKind::Full, "its key is removed");
        assert_eq!(of_old.connect(&scene).await, HandshakeKind::Resumed);
    }
}

#[tokio::test]
async fn without_ticket_keys_sessions_end_with_the_process() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.replace_in_config(KEYS, "");
    let mut gate = scene.spawn_gate().await;
    let apps = ALL.map(|version| App::new(&scene, version));
    for app in &apps {
        assert_eq!(app.connect(&scene).await, HandshakeKind::Full);
        assert_eq!(app.connect(&scene).await, HandshakeKind::Resumed);
    }
    gate.kill();
    let _gate = scene.spawn_gate().await;
    for app in &apps {
        assert_eq!(app.connect(&scene).await, HandshakeKind::Full);
    }
}
