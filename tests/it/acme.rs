//! `[tls.acme]`: certificates that the gate orders from an authority. It validates by connecting.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::StatusCode;
use loangate::clock::Clock;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::support::acme_server::{
    AcmeServer, EXTERNAL_ID, EXTERNAL_KEY, Fault, Script, presented,
};
use crate::support::external_program::free_ports;
use crate::support::{BOOK, File, Process, Scene, Setting, metric, raw_client};

const DAY: Duration = Duration::from_secs(86_400);
const FILES: &str = "certificate = \"certs/server.pem\"\nkey = \"certs/server.key\"\n";
const HTTP: &[&str] = &["http/1.1"];

/// A gate that orders its certificate, and the authority.
struct Stage {
    scene: Scene,
    authority: AcmeServer,
    clock: Clock,
}

/// Returns the keys of a gate that orders a certificate with these names.
fn keys(authority: &AcmeServer, names: &str, more: &str) -> String {
    let (directory, ca) = (authority.directory(), authority.ca.display());
    format!(
        "acme = {{ directory = \"{directory}\", names = [{names}], terms_agreed = true, \
         ca = \"{ca}\"{more} }}\n"
    )
}

impl Stage {
    /// Prepares a gate for localhost, with more keys of `[tls.acme]`.
    async fn new(more: &str) -> Stage {
        let clock = Clock::movable(Clock::system().now());
        let setting = Setting { clock: clock.clone(), ..Setting::default() };
        let scene = Scene::without_gate(setting).await;
        let authority = AcmeServer::start(scene.dir.path(), &clock).await;
        scene.replace_in_config(FILES, &keys(&authority, "\"localhost\"", more));
        Stage { scene, authority, clock }
    }

    /// Starts the gate, and waits for its first certificate.
    async fn started() -> Stage {
        let mut stage = Stage::new("").await;
        stage.scene.start_gate().await;
        stage.authority.leads("localhost", stage.scene.address());
        stage.scene.until("a certificate", async || stage.certificate().await.is_some()).await;
        stage
    }

    /// Returns the certificate that readers get.
    async fn certificate(&self) -> Option<Vec<u8>> {
        let presented = presented(self.scene.address(), "localhost", HTTP).await?;
        Some(presented.to_vec())
    }

    async fn counted(&self, outcome: &str) -> f64 {
        let label = format!("outcome=\"{outcome}\"");
        metric(&self.scene.metrics().await, "loangate_certificate_orders_total", &label)
    }

    async fn ready(&self) -> (StatusCode, String) {
        let response = self.scene.admin("/readyz").await;
        (response.status(), response.text().await.unwrap())
    }

    async fn until_other_than(&self, old: &[u8]) {
        let is_other = async || self.certificate().await.is_some_and(|now| now != old);
        self.scene.until("another certificate", is_other).await;
    }

    fn data(&self) -> PathBuf {
        self.scene.dir.path().join("data/acme")
    }
}

/// Returns the files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn first_certificate_is_validated_and_served_after_a_restart() {
    let mut stage = Stage::new(", contact = [\"drift@example.no\"]").await;
    stage.scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    stage.scene.start_gate().await;
    // Until the authority has validated the name, nobody else can connect.
    assert_eq!(stage.certificate().await, None);
    let (status, detail) = stage.ready().await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(detail.contains("There is no certificate yet"), "{detail}");

    stage.authority.leads("localhost", stage.scene.address());
    stage.scene.until("a certificate", async || stage.certificate().await.is_some()).await;
    assert_eq!(stage.authority.validated(), ["localhost"]);
    assert_eq!(stage.authority.refused(), Vec::<String>::new());
    assert_eq!(stage.authority.replayed(), 0);
    assert_eq!(stage.authority.contacts(), [serde_json::json!(["mailto:drift@example.no"])]);
    assert_eq!(stage.ready().await.0, StatusCode::OK);
    assert_eq!(stage.counted("issued").await, 1.0);
    let handshakes = stage.scene.metrics().await;
    assert_eq!(metric(&handshakes, "loangate_handshakes_total", "outcome=\"challenge\""), 1.0);
    assert_eq!(read(&stage).await, StatusCode::OK);

    // Only its user reads the keys, and no challenge is left.
    assert_eq!(mode(&stage.data()), 0o700);
    let files = files(&stage.data());
    assert!(files.len() >= 3, "{files:?}");
    for file in &files {
        assert_eq!(mode(file), 0o600, "{}", file.display());
        assert!(!file.starts_with(stage.data().join("challenges")), "{}", file.display());
    }

    let certificate = stage.certificate().await;
    stage.scene.stop_gate().await;
    stage.scene.start_gate().await;
    assert_eq!(stage.certificate().await, certificate, "it is served at once");
    assert_eq!(stage.ready().await.0, StatusCode::OK);
    assert_eq!((stage.authority.orders(), stage.authority.accounts()), (1, 1));
    stage.scene.end().await;
}

/// Reads a book with a client that trusts the authority.
async fn read(stage: &Stage) -> StatusCode {
    let root = reqwest::Certificate::from_pem(&fs::read(&stage.authority.root).unwrap()).unwrap();
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([root]).build().unwrap();
    let port = stage.scene.address().port();
    let url = format!("https://localhost:{port}/files/{BOOK}/book.epub");
    client.get(url).bearer_auth(stage.scene.token("kari")).send().await.unwrap().status()
}

#[tokio::test]
async fn connection_without_a_pending_challenge_is_as_any_other() {
    let stage = Stage::started().await;
    let address = stage.scene.address();
    let own = stage.certificate().await;
    let of = async |name: &str, protocols: &[&str]| {
        presented(address, name, protocols).await.map(|found| found.to_vec())
    };
    assert_eq!(of("localhost", &["acme-tls/1"]).await, None, "there is no challenge");
    // A challenge of localhost, and a file of a name that is not ordered.
    let certs = stage.scene.dir.path().join("certs");
    let challenge = ["server.pem", "server.key"].map(|file| fs::read(certs.join(file)).unwrap());
    for name in ["localhost", "other.example.no"] {
        let file = stage.data().join("challenges").join(format!("{name}.pem"));
        fs::write(file, challenge.concat()).unwrap();
    }
    let answer = CertificateDer::from_pem_slice(&challenge[0]).unwrap().to_vec();
    for (name, protocols, expected) in [
        ("localhost", &["acme-tls/1"][..], Some(&answer)),
        ("LOCALHOST", &["acme-tls/1"], Some(&answer)),
        ("other.example.no", &["acme-tls/1"], None),
        ("localhost", &["acme-tls/1", "http/1.1"], own.as_ref()),
        ("localhost", &["h2", "acme-tls/1"], own.as_ref()),
        ("localhost", &[], own.as_ref()),
        ("other.example.no", &["h2"], own.as_ref()),
    ] {
        assert_eq!(of(name, protocols).await.as_ref(), expected, "{name} {protocols:?}");
    }
    // Of the authority, or of anybody who offers only its protocol: no request is served.
    let socket = TcpStream::connect(address).await.unwrap();
    assert!(is_only_closed(socket, &stage.scene.ca(), "localhost", "acme-tls/1").await);
    stage.scene.end().await;
}

/// Sends a request over a connection with this protocol. Returns whether the server only closes it.
async fn is_only_closed(socket: TcpStream, ca: &Path, name: &str, protocol: &str) -> bool {
    let mut stream = raw_client::connect_over(socket, ca, name, protocol).await;
    let mut response = Vec::new();
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let _ = stream.read_to_end(&mut response).await;
    response.is_empty()
}

#[tokio::test]
async fn certificate_is_renewed_when_a_third_of_its_time_is_left() {
    let stage = Stage::started().await;
    let first = stage.certificate().await.unwrap();
    stage.clock.advance(DAY * 61);
    stage.until_other_than(&first).await;
    assert_eq!((stage.authority.orders(), stage.authority.accounts()), (2, 1));
    assert_eq!(stage.counted("issued").await, 2.0);
    stage.scene.end().await;
}

#[tokio::test]
async fn authority_may_want_an_earlier_renewal_once_a_day() {
    let stage = Stage::started().await;
    let first = stage.certificate().await.unwrap();
    stage.clock.advance(DAY * 2);
    stage.scene.until("the question", async || stage.authority.asked_about().len() == 1).await;
    assert_eq!(stage.authority.asked_about(), [renewal_id(&first)]);
    assert_eq!(stage.authority.orders(), 1, "its window begins later");
    stage.authority.behave(Script { wants_renewal: true, ..Script::default() });
    stage.clock.advance(Duration::from_secs(6 * 3600));
    stage.until_other_than(&first).await;
    let second = stage.certificate().await.unwrap();
    assert_eq!((stage.authority.orders(), stage.authority.asked_about().len()), (2, 2));
    // It wants the next renewal at once, too.
    stage.clock.advance(DAY);
    stage.until_other_than(&second).await;
    assert_eq!(stage.authority.asked_about()[2], renewal_id(&second));
    stage.scene.end().await;
}

/// Returns the id of a certificate for its authority (RFC 9773 §4.1).
fn renewal_id(certificate: &[u8]) -> String {
    let (_, parsed) = X509Certificate::from_der(certificate).unwrap();
    let issuer = parsed.extensions().iter().find_map(|one| match one.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(issuer) => issuer.key_identifier.as_ref(),
        _ => None,
    });
    let encode = |bytes: &[u8]| data_encoding::BASE64URL_NOPAD.encode(bytes);
    format!("{}.{}", encode(issuer.unwrap().0), encode(parsed.raw_serial()))
}

#[tokio::test]
async fn failing_authority_leaves_the_certificate_and_gets_few_orders() {
    let mut stage = Stage::started().await;
    let first = stage.certificate().await.unwrap();
    stage.authority.fault(Fault::RateLimited(1800));
    stage.clock.advance(DAY * 61);
    stage.scene.until("a failure", async || stage.counted("failed").await == 1.0).await;
    let (status, detail) = stage.ready().await;
    assert_eq!(status, StatusCode::OK, "readers are served");
    assert!(
        detail.contains("The last order of a certificate from localhost has failed"),
        "{detail}"
    );
    assert!(detail.contains("rateLimited"), "{detail}");
    let problems = async || {
        let status: Value = stage.scene.admin("/api/v1/problems").await.json().await.unwrap();
        status.to_string().contains("certificate-orders")
    };
    stage.scene.until("the problem", problems).await;

    // It waits as the authority wants, also after a restart.
    for minutes in [20, 9] {
        stage.clock.advance(Duration::from_secs(minutes * 60));
        stage.scene.stop_gate().await;
        stage.scene.start_gate().await;
        let is_known = async || stage.ready().await.1.contains("has failed");
        stage.scene.until("the failure is known", is_known).await;
        assert_eq!(stage.authority.orders(), 2);
        assert_eq!(stage.certificate().await.as_ref(), Some(&first));
    }
    // The time has passed.
    stage.authority.fault(Fault::Broken);
    stage.clock.advance(DAY);
    stage.scene.until("a failure", async || stage.counted("failed").await == 1.0).await;
    stage.authority.behave(Script::default());
    stage.clock.advance(Duration::from_secs(6 * 3600));
    stage.authority.leads("localhost", stage.scene.address());
    stage.until_other_than(&first).await;
    let (status, detail) = stage.ready().await;
    assert!(status == StatusCode::OK && !detail.contains("order"), "{detail}");
    stage.scene.end().await;
}

#[tokio::test]
async fn one_certificate_has_all_names_and_a_reload_changes_them() {
    let mut stage = Stage::new("").await;
    let (one, two) = ("\"localhost\"", "\"localhost\", \"files.example.no\"");
    stage.scene.replace_in_config(&format!("names = [{one}]"), &format!("names = [{two}]"));
    stage.scene.start_gate().await;
    for name in ["localhost", "files.example.no", "other.example.no"] {
        stage.authority.leads(name, stage.scene.address());
    }
    stage.scene.until("a certificate", async || stage.certificate().await.is_some()).await;
    let mut validated = stage.authority.validated();
    validated.sort();
    assert_eq!(validated, ["files.example.no", "localhost"]);
    let first = stage.certificate().await.unwrap();
    let address = stage.scene.address();
    let other = presented(address, "files.example.no", HTTP).await.unwrap();
    assert_eq!(other.to_vec(), first);

    // The old certificate serves until there is one with the new names.
    stage.authority.fault(Fault::Broken);
    let three = format!("{two}, \"other.example.no\"");
    stage.scene.replace_in_config(&format!("names = [{two}]"), &format!("names = [{three}]"));
    let reloaded = stage.scene.admin_post("/api/v1/reload", &Value::Null).await;
    assert_eq!(reloaded.status(), StatusCode::OK);
    stage.scene.until("a failure", async || stage.counted("failed").await == 1.0).await;
    assert_eq!(stage.certificate().await.unwrap(), first);
    stage.authority.behave(Script::default());
    stage.clock.advance(Duration::from_secs(3600));
    stage.until_other_than(&first).await;
    assert!(stage.authority.validated().contains(&"other.example.no".to_owned()));
    stage.scene.end().await;
}

#[tokio::test]
async fn certificate_of_before_serves_until_the_first_is_issued() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    let authority = AcmeServer::start(scene.dir.path(), &Clock::system()).await;
    scene.start_gate().await;
    let of_files = presented(scene.address(), "localhost", HTTP).await.unwrap();
    scene.replace_in_config(FILES, &keys(&authority, "\"localhost\"", ""));
    let reloaded = scene.admin_post("/api/v1/reload", &Value::Null).await;
    assert_eq!(reloaded.status(), StatusCode::OK);
    // The authority waits until it knows where the name leads.
    scene.until("an order", async || authority.orders() == 1).await;
    assert_eq!(presented(scene.address(), "localhost", HTTP).await.unwrap(), of_files);
    assert_eq!(scene.admin("/readyz").await.status(), StatusCode::OK);
    authority.leads("localhost", scene.address());
    let is_ordered =
        async || presented(scene.address(), "localhost", HTTP).await.unwrap() != of_files;
    scene.until("the ordered certificate", is_ordered).await;
    // And back to the files.
    let text = fs::read_to_string(scene.config_file()).unwrap();
    let ordered = text.lines().find(|line| line.starts_with("acme = ")).unwrap();
    scene.replace_in_config(&format!("{ordered}\n"), FILES);
    let reloaded = scene.admin_post("/api/v1/reload", &Value::Null).await;
    assert_eq!(reloaded.status(), StatusCode::OK);
    assert_eq!(presented(scene.address(), "localhost", HTTP).await.unwrap(), of_files);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn successor_serves_the_certificate_and_orders_the_next() {
    let scene = Scene::without_gate(Setting::default()).await;
    let authority = AcmeServer::start(scene.dir.path(), &Clock::system()).await;
    let first = free_ports(2);
    let (public, admin) = (format!("127.0.0.1:{first}"), format!("127.0.0.1:{}", first + 1));
    scene.replace_in_config("public = \"127.0.0.1:0\"", &format!("public = \"{public}\""));
    scene.replace_in_config("admin = \"127.0.0.1:0\"", &format!("admin = \"{admin}\""));
    scene.replace_in_config(FILES, &keys(&authority, "\"localhost\"", ""));
    let address = public.parse().unwrap();
    authority.leads("localhost", address);
    let mut old = Process::serve(&scene.config_file()).await;
    let certificate = async || presented(address, "localhost", HTTP).await;
    scene.until("a certificate", async || certificate().await.is_some()).await;
    let before = certificate().await;
    let new = Process::serve(&scene.config_file()).await;
    assert!(old.exit().await.success(), "it has handed over");
    assert_eq!(certificate().await, before);
    // The successor answers the authority, too.
    authority.leads("files.example.no", address);
    let more = "names = [\"localhost\", \"files.example.no\"]";
    scene.replace_in_config("names = [\"localhost\"]", more);
    new.reload();
    scene.until("the next certificate", async || certificate().await != before).await;
    assert_eq!((authority.issued(), authority.accounts()), (2, 1));
    drop(new);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gate_without_a_certificate_takes_over_from_none() {
    let scene = Scene::without_gate(Setting::default()).await;
    let authority = AcmeServer::start(scene.dir.path(), &Clock::system()).await;
    let first = free_ports(2);
    let (public, admin) = (format!("127.0.0.1:{first}"), format!("127.0.0.1:{}", first + 1));
    scene.replace_in_config("public = \"127.0.0.1:0\"", &format!("public = \"{public}\""));
    scene.replace_in_config("admin = \"127.0.0.1:0\"", &format!("admin = \"{admin}\""));
    let old = Process::serve(&scene.config_file()).await;
    let address = public.parse().unwrap();
    let before = presented(address, "localhost", HTTP).await;
    assert!(before.is_some());
    scene.replace_in_config(FILES, &keys(&authority, "\"localhost\"", ""));
    let status = Process::serve_until_death(&scene.config_file(), "none").await;
    assert!(!status.success());
    assert_eq!(presented(address, "localhost", HTTP).await, before, "the old gate serves");
    assert_eq!(authority.orders(), 0, "the gate without the sockets orders nothing");
    drop(old);
    scene.end().await;
}

#[tokio::test]
async fn gate_answers_the_challenge_of_another_one_with_its_directory() {
    let mut stage = Stage::new("").await;
    let shared = tempfile::tempdir().unwrap();
    let data = shared.path().join("acme");
    let keys = keys(&stage.authority, "\"localhost\"", &format!(", data = \"{}\"", data.display()));
    let config = fs::read_to_string(stage.scene.config_file()).unwrap();
    let old = config.lines().find(|line| line.starts_with("acme = ")).unwrap();
    stage.scene.replace_in_config(&format!("{old}\n"), &keys);
    stage.scene.start_gate().await;
    stage.scene.until("an order", async || stage.authority.orders() == 1).await;
    let setting = Setting { clock: stage.clock.clone(), ..Setting::default() };
    let mut other = Scene::without_gate(setting).await;
    other.replace_in_config(FILES, &keys);
    other.start_gate().await;
    // The name leads to the gate that has not ordered.
    stage.authority.leads("localhost", other.address());
    stage.scene.until("a certificate", async || stage.certificate().await.is_some()).await;
    let of_other = async || presented(other.address(), "localhost", HTTP).await.is_some();
    stage.scene.until("the certificate of the other gate", of_other).await;
    let certificate = stage.certificate().await.unwrap();
    assert_eq!(presented(other.address(), "localhost", HTTP).await.unwrap().to_vec(), certificate);
    // Both see that it is due, and one of them orders.
    stage.clock.advance(DAY * 61);
    stage.until_other_than(&certificate).await;
    let is_renewed = async || {
        let now = presented(other.address(), "localhost", HTTP).await.unwrap();
        now.to_vec() != certificate
    };
    stage.scene.until("the other gate sees it", is_renewed).await;
    assert_eq!((stage.authority.orders(), stage.authority.accounts()), (2, 1));
    other.end().await;
    stage.scene.end().await;
}

#[tokio::test]
async fn authority_refuses_a_server_without_the_challenge() {
    let mut stage = Stage::new("").await;
    stage.authority.fault(Fault::OtherDigest);
    stage.scene.start_gate().await;
    stage.authority.leads("localhost", stage.scene.address());
    stage.scene.until("a failure", async || stage.counted("failed").await == 1.0).await;
    let refused = stage.authority.refused();
    assert_eq!(refused, ["the acmeIdentifier is that of another challenge"]);
    let (status, detail) = stage.ready().await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(detail.contains(&refused[0]), "the authority's reason is reported: {detail}");
    // Another server of the name.
    let other = Scene::start().await;
    stage.authority.behave(Script::default());
    stage.authority.leads("localhost", other.address());
    stage.clock.advance(Duration::from_secs(3600));
    stage.scene.until("a failure", async || stage.counted("failed").await == 2.0).await;
    assert_eq!(stage.authority.refused().len(), 2);
    assert_eq!(stage.authority.issued(), 0);
    assert_eq!(stage.certificate().await, None);
    other.end().await;
    stage.scene.end().await;
}

#[tokio::test]
async fn hostile_answers_leave_the_certificate_in_use() {
    let stage = Stage::started().await;
    let first = stage.certificate().await.unwrap();
    stage.clock.advance(DAY * 61);
    let faults = [
        (Fault::RateLimited(u64::MAX), "rateLimited"),
        (Fault::Broken, "it answers with the status 500"),
        (Fault::OtherName, "a name that was not ordered"),
        (Fault::MoreNames, "more names than were ordered"),
        (Fault::OtherChallenges, "does not validate localhost by TLS-ALPN-01"),
        (Fault::OtherServer, "names an address of another server"),
        (Fault::PlainHttp, "names an address of another server"),
        (Fault::NoUrl, "names an address of another server"),
        (Fault::OrderElsewhere, "names an address of another server"),
        (Fault::Redirects, "it answers with the status 307"),
        (Fault::Huge, "the response is larger than 256 KiB"),
        (Fault::OtherKey, "a certificate for another key"),
        (Fault::LessNames, "a certificate without the name localhost"),
        (Fault::WrongName, "a certificate without the name localhost"),
        (Fault::Expired, "a certificate that is not valid by this clock"),
        (Fault::Early, "a certificate that is not valid by this clock"),
        (Fault::Garbage, "a certificate that cannot be used"),
        (Fault::Nothing, "no certificate in PEM"),
    ];
    for (number, (fault, expected)) in faults.into_iter().enumerate() {
        stage.authority.fault(fault);
        stage.clock.advance(DAY);
        let failed = (number + 1) as f64;
        let has_failed = async || stage.counted("failed").await == failed;
        stage.scene.until(&format!("{fault:?} fails"), has_failed).await;
        let (status, detail) = stage.ready().await;
        assert_eq!(status, StatusCode::OK);
        assert!(detail.contains(expected), "{fault:?}: {detail}");
        assert_eq!(stage.certificate().await.as_ref(), Some(&first), "{fault:?}");
        let temporary = files(&stage.data())
            .into_iter()
            .find(|file| file.extension().is_some_and(|it| it == "new"));
        assert_eq!(temporary, None, "{fault:?}");
    }
    stage.authority.behave(Script::default());
    stage.clock.advance(DAY);
    stage.until_other_than(&first).await;
    stage.scene.end().await;
}

#[tokio::test]
async fn undecided_order_ends_with_the_gate() {
    let mut stage = Stage::new("").await;
    stage.authority.fault(Fault::Undecided);
    stage.scene.start_gate().await;
    stage
        .scene
        .until("a challenge", async || stage.data().join("challenges/localhost.pem").exists())
        .await;
    // Each answer names more seconds than fit into a date, and the order goes on.
    stage.scene.until("two polls", async || stage.authority.polls() >= 2).await;
    let restarts = metric(&stage.scene.metrics().await, "loangate_task_restarts_total", "");
    assert_eq!(restarts, 0.0);
    stage.scene.stop_gate().await;
    // It counts as one that failed: a gate that restarts orders no more often.
    stage.authority.behave(Script::default());
    stage.scene.start_gate().await;
    let is_waiting = async || stage.ready().await.1.contains("the gate ended during the order");
    stage.scene.until("it waits", is_waiting).await;
    assert_eq!(stage.authority.orders(), 1);
    stage.authority.leads("localhost", stage.scene.address());
    stage.clock.advance(Duration::from_secs(120));
    stage.scene.until("a certificate", async || stage.certificate().await.is_some()).await;
    assert_eq!(stage.authority.accounts(), 1, "the key was stored before");
    stage.scene.end().await;
}

/// Starts a gate whose authority wants an external account, and returns its first certificate.
async fn with_external_account() -> (Stage, Vec<u8>) {
    let more = format!(", eab_key_id = \"{EXTERNAL_ID}\", eab_hmac_key = \"{EXTERNAL_KEY}\"");
    let mut stage = Stage::new(&more).await;
    stage.scene.make_config_private();
    stage.authority.behave(Script { needs_external_account: true, ..Script::default() });
    stage.scene.start_gate().await;
    stage.authority.leads("localhost", stage.scene.address());
    stage.scene.until("a certificate", async || stage.certificate().await.is_some()).await;
    let first = stage.certificate().await.unwrap();
    (stage, first)
}

#[tokio::test]
async fn account_is_bound_to_an_external_one() {
    let (stage, first) = with_external_account().await;
    stage.clock.advance(DAY * 61);
    stage.until_other_than(&first).await;
    assert_eq!((stage.authority.orders(), stage.authority.accounts()), (2, 1));
    stage.scene.end().await;
}

#[tokio::test]
async fn account_that_the_authority_does_not_know_is_bound_again() {
    let (stage, first) = with_external_account().await;
    let is_key = |file: &PathBuf| file.extension().is_some_and(|it| it == "key");
    let key = files(&stage.data()).into_iter().find(is_key).unwrap();
    fs::write(key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    stage.clock.advance(DAY * 61);
    stage.until_other_than(&first).await;
    assert_eq!((stage.authority.orders(), stage.authority.accounts()), (2, 2));
    stage.scene.end().await;
}

#[tokio::test]
async fn admin_listener_with_tls_is_reached_before_the_first_certificate() {
    let mut stage = Stage::new("").await;
    stage.scene.replace_in_config("[admin]\n", "[admin]\ntls = true\n");
    stage.scene.start_gate().await;
    let address = stage.scene.admin.trim_start_matches("https://").parse().unwrap();
    assert!(presented(address, "localhost", HTTP).await.is_some(), "probes do not verify it");
    assert_eq!(stage.certificate().await, None);
    stage.scene.stop_gate().await;
    stage.scene.stop_sandbox().await;
}

#[tokio::test]
async fn reload_without_acme_ends_an_order_in_flight() {
    let mut stage = Stage::new("").await;
    stage.scene.start_gate().await;
    // The authority waits until it knows where the name leads.
    stage.scene.until("an order", async || stage.authority.orders() == 1).await;
    let text = fs::read_to_string(stage.scene.config_file()).unwrap();
    let ordered = text.lines().find(|line| line.starts_with("acme = ")).unwrap();
    stage.scene.replace_in_config(&format!("{ordered}\n"), FILES);
    let reloaded = stage.scene.admin_post("/api/v1/reload", &Value::Null).await;
    assert_eq!(reloaded.status(), StatusCode::OK);
    let lock = fs::File::open(stage.data().join("lock")).unwrap();
    stage.scene.until("the end of the order", async || lock.try_lock().is_ok()).await;
    let (status, detail) = stage.ready().await;
    assert!(status == StatusCode::OK && !detail.contains("order"), "{detail}");
    stage.scene.end().await;
}

#[tokio::test]
async fn gates_that_share_a_directory_keep_the_certificates_of_their_names() {
    let mut stage = Stage::started().await;
    let first = stage.certificate().await.unwrap();
    let setting = Setting { clock: stage.clock.clone(), ..Setting::default() };
    let mut other = Scene::without_gate(setting).await;
    let data = format!(", data = \"{}\"", stage.data().display());
    other.replace_in_config(FILES, &keys(&stage.authority, "\"files.example.no\"", &data));
    other.start_gate().await;
    stage.authority.leads("files.example.no", other.address());
    let of_other = async || presented(other.address(), "files.example.no", HTTP).await;
    stage.scene.until("the other certificate", async || of_other().await.is_some()).await;
    assert_ne!(of_other().await.unwrap().to_vec(), first);
    stage.scene.stop_gate().await;
    stage.scene.start_gate().await;
    assert_eq!(stage.certificate().await.unwrap(), first);
    assert_eq!(stage.authority.orders(), 2);
    other.end().await;
    stage.scene.end().await;
}

#[tokio::test]
async fn damaged_files_are_replaced_and_shared_ones_refused() {
    let mut stage = Stage::started().await;
    stage.scene.stop_gate().await;
    let is_certificate =
        |file: &PathBuf| file.file_name().unwrap().to_str().unwrap().starts_with("certificate-");
    let certificate = files(&stage.data()).into_iter().find(is_certificate).unwrap();
    fs::write(certificate, "nothing").unwrap();
    stage.scene.start_gate().await;
    stage.authority.leads("localhost", stage.scene.address());
    stage.scene.until("a certificate", async || stage.certificate().await.is_some()).await;
    assert_eq!(stage.authority.orders(), 2);
    stage.scene.stop_gate().await;

    fs::set_permissions(stage.data(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = stage.scene.config_file();
    let loaded = loangate::config::load(&file).unwrap();
    let started = loangate::app::start(&file, loaded, stage.clock.clone()).await;
    let sentences = started.unwrap_err().into_sentences().concat();
    assert!(sentences.contains("other users have access to"), "{sentences}");
    let checked = loangate::config::check(&file, false).await;
    let mistake = &checked.mistakes[0];
    assert_eq!(mistake.key, "tls.acme.data", "{:?}", checked.mistakes);
    stage.scene.stop_sandbox().await;
}

#[tokio::test]
async fn check_online_requests_the_directory_and_orders_nothing() {
    let mut stage = Stage::new("").await;
    let file = stage.scene.config_file();
    let checked = loangate::config::check(&file, true).await;
    let expected = format!("certificate authority {}: responds", stage.authority.directory());
    assert!(checked.found.contains(&expected), "{:?} {:?}", checked.found, checked.mistakes);
    assert!(!stage.data().exists(), "it changes nothing");
    for (fault, why) in [
        (Fault::Broken, "it answers with the status 500"),
        (Fault::PlainHttp, "it names an address of another server"),
    ] {
        stage.authority.fault(fault);
        let checked = loangate::config::check(&file, true).await;
        let mistake = checked.mistakes.iter().find(|one| one.key == "tls.acme.directory").unwrap();
        assert!(mistake.sentence.contains(why), "{mistake}");
    }
    stage.authority.behave(Script::default());
    let ca = stage.authority.ca.display().to_string();
    stage.scene.replace_in_config(&ca, &stage.scene.ca().display().to_string());
    let checked = loangate::config::check(&file, true).await;
    let mistake = checked.mistakes.iter().find(|one| one.key == "tls.acme.directory").unwrap();
    assert!(mistake.sentence.contains("UnknownIssuer"), "{mistake}");
    assert_eq!((stage.authority.orders(), stage.authority.accounts()), (0, 0));
    stage.scene.stop_sandbox().await;
}
