//! A gate in the test process, between the sandbox and a scripted origin.
//!
//! [`Scene::end`] compares the sandbox's books with the ledger. Each reference and each pair of
//! reader and title has at most one live loan. Every accepted loan of the ledger is in the books.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use loangate::app;
use loangate::clock::Clock;
use loangate::sandbox::{self, Bounds, Sandbox, World};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{Origin, Process, metric, raw_client};

/// ISIL of the readers' library, unless a test names another.
pub(crate) const LIBRARY: &str = "NO-0301000";

/// Repetitions of a hang fault, more than a test sends calls. The rest shows how many calls hung.
const MAX_HANGS: u64 = 1_000_000;

/// Parameters of a scene.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) bounds: Bounds,
    pub(crate) world: World,
    /// Replacements in the configuration: (old text, new text).
    pub(crate) config: Vec<(&'static str, &'static str)>,
    /// URL of an origin that replaces the scripted one.
    pub(crate) origin: Option<&'static str>,
    pub(crate) clock: Clock,
}

impl Default for Setting {
    /// Returns a setting with a fast sandbox that lends any title to any reader.
    fn default() -> Setting {
        Setting {
            bounds: Bounds::quick(),
            world: World { any_library_any_title: true, ..World::default() },
            config: Vec::new(),
            origin: None,
            clock: Clock::system(),
        }
    }
}

/// A gate with everything around it.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) gate: Option<app::Running>,
    pub(crate) sandbox: Option<sandbox::Running>,
    pub(crate) origin: Origin,
    pub(crate) dir: TempDir,
    pub(crate) base: String,
    pub(crate) admin: String,
    sandbox_url: String,
    setting: Setting,
}

impl Scene {
    pub(crate) async fn start() -> Scene {
        Scene::start_with(Setting::default()).await
    }

    pub(crate) async fn start_with(setting: Setting) -> Scene {
        let mut scene = Scene::without_gate(setting).await;
        scene.start_gate().await;
        scene
    }

    /// Starts everything except the gate. The test starts the gate, for example as a process.
    pub(crate) async fn without_gate(setting: Setting) -> Scene {
        let dir = initialised();
        let origin = Origin::start().await;
        let sandbox = start_sandbox(&setting, &origin.url, dir.path(), 0).await;
        let sandbox_url = sandbox.url().to_owned();
        let scene = Scene {
            gate: None,
            sandbox: Some(sandbox),
            origin,
            dir,
            base: String::new(),
            admin: String::new(),
            sandbox_url,
            setting,
        };
        scene.write_config();
        scene
    }

    /// Writes the configuration of `loangate init` with the addresses of this scene.
    fn write_config(&self) {
        let file = self.dir.path().join("config.toml");
        let mut text = std::fs::read_to_string(&file)
            .unwrap()
            .replace("127.0.0.1:8443", "127.0.0.1:0")
            .replace("127.0.0.1:9443", "127.0.0.1:0")
            .replace("http://127.0.0.1:9100", &self.sandbox_url)
            .replace(
                "http://127.0.0.1:9000/",
                self.setting.origin.unwrap_or(&format!("{}/", self.origin.url)),
            )
            .replace("[lending]", "[lending]\nsettle = \"500ms\"\ntimeout = \"2s\"");
        for (from, to) in &self.setting.config {
            assert!(text.contains(from), "the configuration has no {from}");
            text = text.replacen(from, to, 1);
        }
        std::fs::write(file, text).unwrap();
    }

    /// Makes the configuration private to its owner, which a file with a literal secret must be.
    pub(crate) fn make_config_private(&self) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(self.config_file(), std::fs::Permissions::from_mode(0o600))
            .unwrap();
    }

    /// Replaces text in the configuration before the gate starts.
    pub(crate) fn replace_in_config(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.config_file()).unwrap();
        assert!(text.contains(from), "the configuration has no {from}");
        std::fs::write(self.config_file(), text.replacen(from, to, 1)).unwrap();
    }

    /// Turns usage reports on, with these lists and further keys, before the gate starts.
    pub(crate) fn report_usage(&self, prices: &str, sizes: &str, keys: &str) {
        std::fs::write(self.dir.path().join("prices.csv"), prices).unwrap();
        std::fs::write(self.dir.path().join("sizes.csv"), sizes).unwrap();
        let reports = format!(
            "[reports]\nenabled = true\nurl = \"{}\"\nsince = \"2020-01-01\"\n\
             prices = \"prices.csv\"\nsizes = \"sizes.csv\"\ninterval = \"100ms\"\n{keys}\n\n\
             [metering]\nflush = \"50ms\"\n\n[ledger]",
            self.sandbox_url
        );
        self.replace_in_config("[ledger]", &reports);
    }

    /// Returns the usage reports that the sandbox has recorded.
    pub(crate) async fn booked_reports(&self) -> Vec<Value> {
        let books: Value = self.sandbox_get("/sandbox/books").await;
        books["reports"].as_array().unwrap().clone()
    }

    /// Returns the usage reports in the ledger, page by page from the admin API.
    pub(crate) async fn reports(&self) -> Vec<Value> {
        let (mut reports, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/api/v1/reports?limit=500{cursor}");
            let page: Value = self.admin(&path).await.json().await.unwrap();
            reports.extend(page["reports"].as_array().unwrap().iter().cloned());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={}", next.replace(' ', "%20")),
                None => return reports,
            }
        }
    }

    /// Inserts a proxy that rewrites the sandbox's responses, before the gate starts.
    pub(crate) async fn rewritten(&self) -> super::Bokbasen {
        let front = super::Bokbasen::start(&self.sandbox_url).await;
        let url = |url: &str| format!("\nurl = \"{url}\"");
        self.replace_in_config(&url(&self.sandbox_url), &url(&front.url));
        front
    }

    /// Returns the path of the configuration file.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    pub(crate) async fn start_gate(&mut self) {
        let file = self.config_file();
        let loaded = loangate::config::load(&file).unwrap();
        let gate = app::start(&file, loaded, self.setting.clock.clone()).await.unwrap();
        self.base = format!("https://{}", gate.public.first());
        self.admin = gate.admin_url.clone();
        self.gate = Some(gate);
    }

    /// Starts the gate as a separate process. Further requests of this scene go to it.
    pub(crate) async fn spawn_gate(&mut self) -> Process {
        let process = Process::serve(&self.config_file()).await;
        self.base = process.ready_field("base_url");
        self.admin = process.ready_field("admin_url");
        process
    }

    /// Like [`Scene::spawn_gate`]. The process aborts itself at this point.
    pub(crate) async fn spawn_gate_until(&mut self, place: &str) -> Process {
        let process = Process::serve_until(&self.config_file(), place).await;
        self.base = process.ready_field("base_url");
        self.admin = process.ready_field("admin_url");
        process
    }

    /// Like [`Scene::spawn_gate`], with this environment variable.
    pub(crate) async fn spawn_gate_with(&mut self, variable: &str, value: &str) -> Process {
        let process = Process::serve_with(&self.config_file(), variable, value).await;
        self.base = process.ready_field("base_url");
        self.admin = process.ready_field("admin_url");
        process
    }

    /// Like [`Scene::spawn_gate_until`]. Returns none if the gate ended before it was ready.
    pub(crate) async fn try_spawn_gate_until(&mut self, place: &str) -> Option<Process> {
        let process = Process::try_serve_until(&self.config_file(), place).await?;
        self.base = process.ready_field("base_url");
        self.admin = process.ready_field("admin_url");
        Some(process)
    }

    /// Puts the ledger into this database, with a short lease, before the gate starts.
    pub(crate) fn use_database(&self, url: &str) {
        let lease = format!("{url}\"\nlease = \"3s\"");
        self.replace_in_config("sqlite:data/loangate.db\"", &lease);
        self.make_config_private();
    }

    pub(crate) async fn stop_gate(&mut self) {
        self.gate.take().unwrap().stop().await;
    }

    pub(crate) async fn stop_sandbox(&mut self) {
        self.sandbox.take().unwrap().stop().await;
    }

    /// Restarts the sandbox with its books and address.
    pub(crate) async fn start_sandbox(&mut self) {
        let port = self.sandbox_url.rsplit(':').next().unwrap().parse().unwrap();
        self.sandbox =
            Some(start_sandbox(&self.setting, &self.origin.url, self.dir.path(), port).await);
    }

    /// Returns a reader's token as a login service would sign it.
    pub(crate) fn token(&self, borrower: &str) -> String {
        self.token_with(&json!({ "sub": borrower }))
    }

    /// Returns a token with these claims in addition to the usual ones.
    pub(crate) fn token_with(&self, claims: &Value) -> String {
        let now = self.setting.clock.now().as_second();
        let mut all = json!({
            "iss": "https://login.example.no",
            "aud": "loangate",
            "library": LIBRARY,
            "iat": now,
            "exp": now + 3600,
        });
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        let pem = std::fs::read(self.dir.path().join("certs/jwt.key")).unwrap();
        let key = EncodingKey::from_ed_pem(&pem).unwrap();
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &all, &key).unwrap()
    }

    /// Returns a signed link token for kari, made by `loangate token link` with these arguments.
    pub(crate) fn link(&self, arguments: &[&str]) -> String {
        let made = Command::new(env!("CARGO_BIN_EXE_loangate"))
            .args(["token", "link", "--library", LIBRARY, "--borrower", "kari", "--config"])
            .arg(self.config_file())
            .args(arguments)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    }

    /// Returns the address of the public listener.
    pub(crate) fn address(&self) -> SocketAddr {
        self.base.trim_start_matches("https://").parse().unwrap()
    }

    /// Returns the file of the CA that signed the gate's certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("certs/ca.pem")
    }

    /// Opens a TLS connection to the gate for this protocol, without a client on it.
    pub(crate) async fn connect(&self, protocol: &str) -> TlsStream<TcpStream> {
        raw_client::connect(self.address(), &self.ca(), "localhost", protocol).await
    }

    /// Returns how often the gate has reached this limit.
    pub(crate) async fn limit_reached(&self, limit: &str) -> f64 {
        let label = format!("limit=\"{limit}\"");
        metric(&self.metrics().await, "loangate_limit_reached_total", &label)
    }

    /// Returns an HTTP/1.1 client that trusts this gate.
    pub(crate) fn http1(&self) -> reqwest::Client {
        self.client().http1_only().build().unwrap()
    }

    /// Returns an HTTP/2 client that trusts this gate.
    pub(crate) fn http2(&self) -> reqwest::Client {
        self.client().http2_prior_knowledge().build().unwrap()
    }

    /// Returns a builder for clients that trust this gate.
    pub(crate) fn client(&self) -> reqwest::ClientBuilder {
        let ca = std::fs::read(self.dir.path().join("certs/ca.pem")).unwrap();
        reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only(reqwest::Certificate::from_pem_bundle(&ca).unwrap())
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(60))
    }

    /// Returns a GET request with this reader's token.
    pub(crate) fn get(
        &self,
        client: &reqwest::Client,
        path: &str,
        token: &str,
    ) -> reqwest::RequestBuilder {
        client.get(format!("{}{path}", self.base)).bearer_auth(token)
    }

    /// Sends a request to the readers' API. Returns the status and the JSON body, or null.
    pub(crate) async fn call_api(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: &str,
    ) -> (StatusCode, Value) {
        let request = self.http2().request(method.parse().unwrap(), format!("{}{path}", self.base));
        let answer = request.bearer_auth(token).body(body.to_owned()).send().await.unwrap();
        let (status, body) = (answer.status(), answer.bytes().await.unwrap());
        (status, if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() })
    }

    /// Returns every loan in the sandbox's books.
    pub(crate) async fn books(&self) -> Vec<Value> {
        let books: Value = self.sandbox_get("/sandbox/books").await;
        books["loans"].as_array().unwrap().clone()
    }

    pub(crate) async fn sandbox_get(&self, path: &str) -> Value {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(format!("{}{path}", self.sandbox_url)).send().await.unwrap();
        answer.json().await.unwrap()
    }

    /// Calls the sandbox's control API.
    pub(crate) async fn control(&self, method: &str, path: &str, body: &Value) {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("{}{path}", self.sandbox_url);
        let request = client.request(method.parse().unwrap(), url).json(body);
        request.send().await.unwrap().error_for_status().unwrap();
    }

    /// Adds a fault to the sandbox.
    pub(crate) async fn fault(&self, fault: &Value) {
        self.control("POST", "/sandbox/faults", fault).await;
    }

    /// Makes calls of this name for a title hang. Removes other faults. See [`Scene::hung`].
    pub(crate) async fn hang(&self, call: &str, isbn: &str) {
        let hang = json!({ "call": call, "isbn": isbn, "times": MAX_HANGS, "effect": "hang" });
        self.control("PUT", "/sandbox/faults", &hang).await;
    }

    /// Returns how many calls of this name [`Scene::hang`] has left without a response.
    pub(crate) async fn hung(&self, call: &str) -> u64 {
        let faults = self.sandbox_get("/sandbox/faults").await;
        let hangs = |fault: &&Value| fault["call"] == call && fault["effect"].get("hang").is_some();
        let faults = faults.as_array().unwrap().iter().filter(hangs);
        faults.map(|fault| MAX_HANGS - fault["times"].as_u64().unwrap()).sum()
    }

    pub(crate) async fn no_faults(&self) {
        self.control("DELETE", "/sandbox/faults", &Value::Null).await;
    }

    /// Returns the admin token.
    pub(crate) fn admin_token(&self) -> String {
        let token = std::fs::read_to_string(self.dir.path().join("certs/admin.token")).unwrap();
        token.trim().to_owned()
    }

    /// Sends an authorized GET to the admin listener.
    pub(crate) async fn admin(&self, path: &str) -> reqwest::Response {
        let token = self.admin_token();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        client.get(format!("{}{path}", self.admin)).bearer_auth(token).send().await.unwrap()
    }

    /// Sends an authorized POST with a JSON body to the admin listener.
    pub(crate) async fn admin_post(&self, path: &str, body: &Value) -> reqwest::Response {
        let token = self.admin_token();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.post(format!("{}{path}", self.admin)).bearer_auth(token);
        request.json(body).send().await.unwrap()
    }

    /// Returns every loan in the ledger, page by page from the admin API.
    pub(crate) async fn ledger(&self) -> Vec<Value> {
        let mut loans = Vec::new();
        let mut cursor = String::new();
        loop {
            let page: Value =
                self.admin(&format!("/api/v1/loans?limit=500{cursor}")).await.json().await.unwrap();
            loans.extend(page["loans"].as_array().unwrap().iter().cloned());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return loans,
            }
        }
    }

    pub(crate) async fn metrics(&self) -> String {
        self.admin("/metrics").await.text().await.unwrap()
    }

    /// Polls until this holds. Panics after 30 seconds.
    pub(crate) async fn until<F: Future<Output = bool>>(&self, what: &str, holds: impl Fn() -> F) {
        super::until(what, holds).await;
    }

    /// Compares the books with the ledger of a gate in any process.
    pub(crate) async fn check(&self) {
        check_books(&self.books().await, &self.ledger().await);
    }

    /// Ends the scene and checks what must hold after every test.
    pub(crate) async fn end(mut self) {
        if self.gate.is_some() && self.sandbox.is_some() {
            self.check().await;
        }
        if self.gate.is_some() {
            self.stop_gate().await;
        }
        if self.sandbox.is_some() {
            self.stop_sandbox().await;
        }
    }
}

/// Checks that no reference and no reader and title has two live loans, and that every accepted
/// loan of the ledger is accepted in the books.
pub(crate) fn check_books(books: &[Value], ledger: &[Value]) {
    let mut live: BTreeMap<String, usize> = BTreeMap::new();
    for loan in
        books.iter().filter(|loan| matches!(loan["status"].as_str(), Some("PENDING" | "ACCEPTED")))
    {
        *live.entry(format!("reference {}", loan["reference"])).or_default() += 1;
        let reader = format!("{} {} {}", loan["library"], loan["borrower"], loan["isbn"]);
        *live.entry(reader).or_default() += 1;
    }
    let twice: Vec<_> = live.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "two live loans at Bokbasen: {twice:?}");
    for loan in ledger.iter().filter(|loan| loan["state"] == "accepted") {
        let booked = books.iter().find(|other| other["loanId"] == loan["lending_id"]);
        let booked = booked.unwrap_or_else(|| panic!("Bokbasen does not have {loan}"));
        assert_eq!(booked["status"], "ACCEPTED", "{loan}");
        assert_eq!(booked["reference"], loan["reference"], "{loan}");
    }
}

/// Returns a new directory with the files of `loangate init`.
pub(crate) fn initialised() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new(env!("CARGO_BIN_EXE_loangate"))
        .args(["init", "--dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    dir
}

async fn start_sandbox(setting: &Setting, origin: &str, dir: &Path, port: u16) -> sandbox::Running {
    let settings = sandbox::Settings {
        listen: ([127, 0, 0, 1], port).into(),
        dir: Some(dir.join("sandbox")),
        world: setting.world.clone(),
        bounds: setting.bounds.clone(),
        storage: Some(origin.parse().unwrap()),
        ..sandbox::Settings::default()
    };
    Sandbox::start(settings, setting.clock.clone()).await.unwrap()
}

/// Returns a clock that a test moves, starting at a time within the sandbox's world.
pub(crate) fn movable_clock() -> Clock {
    Clock::movable(Timestamp::from_second(1_790_000_000).unwrap())
}
