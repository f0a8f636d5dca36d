//! TLS of the admin listener: a certificate of its own, and certificates of operators.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use http::StatusCode;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::external_program::{free_ports, output_text, run};
use crate::support::{Scene, Setting};

/// An authority, with the file of its root.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
    name: &'static str,
}

impl Authority {
    fn new(dir: &Path, name: &'static str) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(dir.join(format!("{name}.pem")), issuer.pem()).unwrap();
        Authority { issuer, dir: dir.to_owned(), name }
    }

    fn root(&self) -> PathBuf {
        self.dir.join(format!("{}.pem", self.name))
    }

    /// Issues a certificate. Returns the files of the certificate and of its key.
    fn issue(&self, file: &str, names: &[&str], is_expired: bool) -> (PathBuf, PathBuf) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        if is_expired {
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |ending: &str| self.dir.join(format!("{file}.{ending}"));
        fs::write(path("crt"), certificate.pem()).unwrap();
        fs::write(path("key"), key.serialize_pem()).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(path("key"), private).unwrap();
        (path("crt"), path("key"))
    }
}

/// A gate whose operators need a certificate of `operators`.
struct Stage {
    scene: Scene,
    servers: Authority,
    operators: Authority,
}

impl Stage {
    async fn new() -> Stage {
        let scene = Scene::without_gate(Setting::default()).await;
        let dir = scene.dir.path();
        let (servers, operators) =
            (Authority::new(dir, "servers"), Authority::new(dir, "operators"));
        let (certificate, key) = servers.issue("admin", &["localhost", "127.0.0.1"], false);
        let keys = format!(
            "[admin]\ncertificate = \"{}\"\nkey = \"{}\"\nclient_ca = \"{}\"\n",
            certificate.display(),
            key.display(),
            operators.root().display()
        );
        scene.replace_in_config("[admin]\n", &keys);
        Stage { scene, servers, operators }
    }

    /// Returns a client with this certificate, which trusts the gate's.
    fn client(&self, identity: Option<&(PathBuf, PathBuf)>) -> reqwest::Client {
        let root = fs::read(self.servers.root()).unwrap();
        let root = reqwest::Certificate::from_pem(&root).unwrap();
        let mut client = reqwest::Client::builder().no_proxy().tls_certs_only([root]);
        if let Some((certificate, key)) = identity {
            let pem = [fs::read(key).unwrap(), fs::read(certificate).unwrap()].concat();
            client = client.identity(reqwest::Identity::from_pem(&pem).unwrap());
        }
        client.build().unwrap()
    }

    /// Returns the status of a request with this certificate; none if the gate refuses it.
    async fn status(
        &self,
        identity: Option<&(PathBuf, PathBuf)>,
        token: &str,
    ) -> Option<StatusCode> {
        let request = self.client(identity).get(format!("{}/api/v1/status", self.scene.admin));
        Some(request.bearer_auth(token).send().await.ok()?.status())
    }

    fn address(&self) -> SocketAddr {
        self.scene.admin.trim_start_matches("https://").parse().unwrap()
    }
}

#[tokio::test]
async fn operators_need_a_certificate_and_the_token() {
    let mut stage = Stage::new().await;
    stage.scene.start_gate().await;
    let token = stage.scene.admin_token();
    let own = stage.operators.issue("anne", &["anne"], false);
    let expired = stage.operators.issue("old", &["old"], true);
    let other = Authority::new(stage.scene.dir.path(), "others").issue("eve", &["anne"], false);
    // A certificate of the server's own authority is none of an operator.
    let server = stage.servers.issue("server", &["anne"], false);
    assert_eq!(stage.status(Some(&own), &token).await, Some(StatusCode::OK));
    assert_eq!(stage.status(Some(&own), "wrong").await, Some(StatusCode::UNAUTHORIZED));
    for (name, identity) in [
        ("none", None),
        ("expired", Some(&expired)),
        ("other", Some(&other)),
        ("server", Some(&server)),
    ] {
        assert_eq!(stage.status(identity, &token).await, None, "{name}");
    }
    // Health checks, too.
    let health = stage.client(None).get(format!("{}/healthz", stage.scene.admin)).send().await;
    assert!(health.is_err());
    let health =
        stage.client(Some(&own)).get(format!("{}/healthz", stage.scene.admin)).send().await;
    assert_eq!(health.unwrap().status(), StatusCode::OK);
    // Readers need none, and do not get the certificate of the admin listener.
    let readers = stage.scene.http1().get(format!("{}/files/x", stage.scene.base)).send().await;
    assert_eq!(readers.unwrap().status(), StatusCode::NOT_FOUND);
    stage.scene.stop_gate().await;
    stage.scene.stop_sandbox().await;
}

#[tokio::test]
async fn reload_cannot_change_whom_the_admin_listener_trusts() {
    let mut stage = Stage::new().await;
    stage.scene.start_gate().await;
    let token = stage.scene.admin_token();
    let own = stage.operators.issue("anne", &["anne"], false);
    let others = Authority::new(stage.scene.dir.path(), "others");
    let other = others.issue("eve", &["eve"], false);
    let (old, new) = (stage.operators.root(), others.root());
    stage.scene.replace_in_config(&old.display().to_string(), &new.display().to_string());
    let url = format!("{}/api/v1/reload", stage.scene.admin);
    let reloaded = stage.client(Some(&own)).post(url).bearer_auth(&token).send().await.unwrap();
    let reloaded: serde_json::Value = reloaded.json().await.unwrap();
    assert_eq!(reloaded["needs_restart"][0]["key"], "admin.client_ca", "{reloaded}");
    assert_eq!(stage.status(Some(&own), &token).await, Some(StatusCode::OK));
    assert_eq!(stage.status(Some(&other), &token).await, None);
    // The contents of the file of before are read again.
    fs::copy(&new, &old).unwrap();
    let url = format!("{}/api/v1/reload", stage.scene.admin);
    let reloaded = stage.client(Some(&own)).post(url).bearer_auth(&token).send().await.unwrap();
    assert_eq!(reloaded.status(), StatusCode::OK);
    assert_eq!(stage.status(Some(&own), &token).await, None);
    assert_eq!(stage.status(Some(&other), &token).await, Some(StatusCode::OK));
    stage.scene.stop_gate().await;
    stage.scene.stop_sandbox().await;
}

/// Connects and reads a response without a body of interest. Returns the kind of the handshake;
/// none if the server refuses the client.
async fn connected(address: SocketAddr, config: &Arc<ClientConfig>) -> Option<HandshakeKind> {
    let socket = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(config.clone()).connect(name, socket).await.ok()?;
    let request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.ok()?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await.ok()?;
    response.starts_with(b"HTTP/1.1 ").then(|| stream.get_ref().1.handshake_kind().unwrap())
}

#[tokio::test]
async fn session_of_a_reader_opens_no_admin_connection() {
    let mut stage = Stage::new().await;
    stage.scene.start_gate().await;
    let mut roots = RootCertStore::empty();
    for root in [stage.scene.ca(), stage.servers.root()] {
        roots.add(CertificateDer::from_pem_file(root).unwrap()).unwrap();
    }
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(8);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let config = Arc::new(config);
        let public = stage.scene.address();
        assert_eq!(connected(public, &config).await, Some(HandshakeKind::Full));
        assert_eq!(connected(public, &config).await, Some(HandshakeKind::Resumed));
        assert_eq!(connected(stage.address(), &config).await, None, "{version:?}");
    }
    stage.scene.stop_gate().await;
    stage.scene.stop_sandbox().await;
}

#[tokio::test]
async fn renewed_certificate_of_the_admin_listener_is_used() {
    let mut stage = Stage::new().await;
    stage.scene.start_gate().await;
    let own = stage.operators.issue("anne", &["anne"], false);
    let token = stage.scene.admin_token();
    // A renewed one of an authority that the client does not trust.
    let dir = stage.scene.dir.path().to_owned();
    let other = Authority::new(&dir, "others");
    other.issue("admin", &["localhost", "127.0.0.1"], false);
    let is_renewed = async || stage.status(Some(&own), &token).await.is_none();
    stage.scene.until("the new certificate", is_renewed).await;
    stage.servers.issue("admin", &["localhost", "127.0.0.1"], false);
    let is_back = async || stage.status(Some(&own), &token).await.is_some();
    stage.scene.until("a certificate of before", is_back).await;
    stage.scene.stop_gate().await;
    stage.scene.stop_sandbox().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_present_the_certificate_of_the_operator() {
    let mut stage = Stage::new().await;
    let admin = format!("admin = \"127.0.0.1:{}\"", free_ports(1));
    stage.scene.replace_in_config("admin = \"127.0.0.1:0\"", &admin);
    let (certificate, key) = stage.operators.issue("anne", &["anne"], false);
    let checked = loangate::config::check(&stage.scene.config_file(), false).await;
    assert!(checked.mistakes.is_empty(), "{:?}", checked.mistakes);
    let gate = stage.scene.spawn_gate().await;
    let loangate = async |command: &str, arguments: &[&Path]| {
        let mut running = Command::new(env!("CARGO_BIN_EXE_loangate"));
        running.args([command, "--config"]).arg(stage.scene.config_file()).args(arguments);
        let output = run(&mut running).await;
        (output.status.success(), output_text(&output))
    };
    let root = stage.servers.root();
    let (cert_option, key_option, ca_option) =
        (Path::new("--client-cert"), Path::new("--client-key"), Path::new("--admin-ca"));
    let own = [cert_option, &certificate, key_option, &key];
    let all = [&own[..], &[ca_option, &root]].concat();
    let (is_good, said) = loangate("status", &all).await;
    assert!(is_good && said.contains("serving"), "{said}");
    let (is_good, said) = loangate("status", &[ca_option, &root]).await;
    assert!(!is_good && said.contains("Add --client-cert and --client-key"), "{said}");
    let (is_good, said) = loangate("status", &own).await;
    assert!(!is_good && said.contains("UnknownIssuer"), "{said}");
    let (is_good, said) = loangate("healthcheck", &own).await;
    assert!(is_good && said.contains("is ready"), "{said}");
    assert!(!loangate("healthcheck", &[]).await.0);
    drop(gate);
    stage.scene.stop_sandbox().await;
}
