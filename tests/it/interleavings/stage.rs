//! The gate of a case, on a runtime of its own: it can die at any moment, and be started anew on
//! the same ledger.
//!
//! A death is as hard as one within a process can be. The runtime of everything slow (the ledger's
//! writer, calls to Bokbasen, flights, the support API) is shut down at once, so that each of its
//! tasks ends at whatever it was waiting for; and the workers cut their connections. The lock by
//! which the next gate tells that this one is dead goes only when the last of its tasks has gone,
//! as it goes with a process.
//!
//! The gate's clock is moved by hand; Bokbasen's own is the system's, which nobody here can set.

use std::time::Duration;

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use loangate::cli::serve;
use loangate::clock::{self, Clock};
use loangate::ledger::AuditKey;
use loangate::reader::Readers;
use loangate::sandbox::Bounds;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::model::{Answered, Ask, BORROWERS, Key, SIZE, Token, What, moment, text};
use crate::support::scene::{check_books, movable};
use crate::support::{AUDIO, BOOK, File, LIBRARY, Scene, Setting};

/// The titles.
const TITLES: [&str; 2] = [BOOK, AUDIO];
/// How late a begin may be carried out whose connection was cut, and how long the listing lags:
/// both together far within the scene's 500 ms of `lending.settle`, also on a machine with much to
/// do.
pub(super) const LATE_MS: u64 = 40;
const LAG_MS: u64 = 40;
/// How long the end of a dead gate's last threads may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the ledger and the books say between two steps.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) ledger: Vec<Value>,
    pub(super) books: Vec<Value>,
    pseudonyms: [String; 2],
}

impl Seen {
    /// The reader and title of a loan, in the ledger or in the books.
    pub(super) fn key(&self, loan: &Value) -> Key {
        let place =
            |all: &[&str], name| all.iter().position(|one| *one == text(loan, name)).unwrap();
        (place(&self.pseudonyms.each_ref().map(String::as_str), "borrower"), place(&TITLES, "isbn"))
    }

    /// The loans of a reader and title in the ledger.
    pub(super) fn of(&self, key: Key) -> impl Iterator<Item = &Value> {
        self.ledger.iter().filter(move |row| self.key(row) == key)
    }

    /// The ledger's row of this id.
    pub(super) fn row(&self, id: &Value) -> Option<&Value> {
        self.ledger.iter().find(|row| row["id"] == *id)
    }

    /// The loan in the books that a row of the ledger is about.
    pub(super) fn booked(&self, row: &Value) -> Option<&Value> {
        self.books.iter().find(|loan| loan["loanId"] == row["lending_id"])
    }

    /// When the last of the loans ended.
    pub(super) fn last_end(&self) -> Option<Timestamp> {
        self.ledger.iter().filter_map(|row| moment(row, "ended")).max()
    }

    /// When the accepted loan of this reader and title is due.
    pub(super) fn due(&self, key: Key) -> Option<Timestamp> {
        self.of(key).find(|row| row["state"] == "accepted").and_then(|row| moment(row, "due"))
    }
}

/// A gate that runs, or one that is dying.
enum Gate {
    Alive { running: Box<serve::Running>, runtime: Slow },
    Dead(JoinHandle<()>),
}

/// A runtime that dies at once when it is dropped, also where a test fails.
struct Slow(Option<Runtime>);

impl Drop for Slow {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Everything around the gate, and the gate.
pub(super) struct Stage {
    pub(super) scene: Scene,
    /// The gate's.
    pub(super) clock: Clock,
    gate: Option<Gate>,
    /// Over HTTP/1.1, and over HTTP/2.
    clients: [reqwest::Client; 2],
    plain: reqwest::Client,
    admin_token: String,
    bokbasen_token: String,
    names: Readers,
    file: File,
}

impl Stage {
    pub(super) async fn set() -> Stage {
        let bounds =
            // Bokbasen's time says nothing here: it is not the gate's, which is moved by hand.
            Bounds {
                list_lag_ms: LAG_MS,
                post_bound_ms: LATE_MS,
                pending_polls: 1,
                useless_date: true,
                ..Bounds::quick()
            };
        let config = vec![
            // A call that hangs is given up soon, a request is sent away before a lost answer is
            // found again, and a gate that dies waits for nobody.
            ("timeout = \"2s\"", "timeout = \"400ms\""),
            ("[ledger]", "[gate]\npatience = \"300ms\"\n\n[server]\ndrain = \"0s\"\n\n[ledger]"),
        ];
        let scene = Scene::around(Setting { bounds, config, ..Setting::default() }).await;
        let file = File::of(SIZE as u64);
        for title in TITLES {
            scene.origin.put(&format!("{title}/book.epub"), file.clone());
        }
        let loaded = loangate::config::load(&scene.config_file()).unwrap();
        let plain = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut stage = Stage {
            clock: movable(),
            gate: None,
            clients: [scene.http1(), scene.http2()],
            admin_token: std::fs::read_to_string(scene.dir.path().join("certs/admin.token"))
                .unwrap(),
            bokbasen_token: bokbasen_token(&scene, &plain).await,
            plain,
            names: Readers::new(&loaded.config.readers, Clock::system()).unwrap(),
            file,
            scene,
        };
        stage.start().await;
        stage
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn start(&mut self) {
        let config = loangate::config::load(&self.scene.config_file()).unwrap().config;
        let clock = self.clock.clone();
        let started = tokio::task::spawn_blocking(move || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime = builder.worker_threads(2).enable_all().build().unwrap();
            let running = runtime.block_on(serve::start(config, clock)).unwrap();
            (running, runtime)
        });
        let (running, runtime) = started.await.unwrap();
        self.scene.base = format!("https://{}", running.public);
        self.scene.admin = running.admin_url.clone();
        self.gate = Some(Gate::Alive { running: Box::new(running), runtime: Slow(Some(runtime)) });
    }

    /// The gate dies now, whatever it is doing.
    pub(super) fn crash(&mut self) {
        self.gate = match self.gate.take() {
            Some(Gate::Alive { running, runtime }) => {
                drop(runtime);
                Some(Gate::Dead(tokio::spawn(running.stop())))
            }
            other => other,
        };
    }

    pub(super) fn is_dead(&self) -> bool {
        matches!(self.gate, Some(Gate::Dead(_)))
    }

    /// Waits until nothing is left of the dead gate.
    async fn bury(&mut self) {
        if let Some(Gate::Dead(stopping)) = self.gate.take() {
            tokio::time::timeout(PATIENCE, stopping)
                .await
                .expect("a dead gate never ends")
                .unwrap();
        }
        let mut processes = self.ledger_file().into_os_string();
        processes.push(".processes");
        let is_alone = async || std::fs::read_dir(&processes).unwrap().next().is_none();
        self.scene.until("the dead gate's lock is gone", is_alone).await;
    }

    fn ledger_file(&self) -> std::path::PathBuf {
        loangate::config::load(&self.scene.config_file()).unwrap().config.ledger.file
    }

    /// A new gate in the dead one's place.
    pub(super) async fn restart(&mut self) {
        self.bury().await;
        self.start().await;
    }

    /// Sets the clock to a loan's due time, or past it; never back.
    pub(super) fn pass(&self, due: Timestamp, late_ms: u64) {
        self.clock.set(clock::after(due, Duration::from_millis(late_ms)).max(self.now()));
    }

    pub(super) fn jump(&self, seconds: i64) {
        self.clock.set(self.now().checked_add(SignedDuration::from_secs(seconds)).unwrap());
    }

    /// Sends a request on its way.
    pub(super) fn send(&self, ask: Ask, token: Token) -> JoinHandle<Answered> {
        let request = self.request(ask, token);
        let whole = self.file.part(0..SIZE as u64);
        tokio::spawn(async move {
            let (mut status, mut body, mut ended) = (None, Vec::new(), false);
            if let Ok(mut answer) = request.send().await {
                status = Some(answer.status());
                ended = loop {
                    match answer.chunk().await {
                        Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                        Ok(None) => break true,
                        Err(_) => break false,
                    }
                };
            }
            let wanted = match status {
                Some(StatusCode::OK) => &whole[..],
                Some(StatusCode::PARTIAL_CONTENT) => &whole[SIZE / 2..],
                _ => &[],
            };
            let is_file = !wanted.is_empty() && matches!(ask.what, What::Read | What::Continue);
            if is_file {
                assert!(
                    wanted.starts_with(&body) && (!ended || body.len() == wanted.len()),
                    "other bytes"
                );
            }
            Answered { ask, token, status, bytes: if is_file { body.len() } else { 0 } }
        })
    }

    fn request(&self, ask: Ask, token: Token) -> reqwest::RequestBuilder {
        // They last for longer than any loan, so that what is too old about a token is only when it
        // was issued.
        let lasts = token.issued + 360 * 86_400;
        let claims = json!({ "sub": BORROWERS[ask.reader], "iat": token.issued, "exp": lasts });
        let title = TITLES[ask.title];
        let path = match ask.what {
            What::Read | What::Continue => format!("/files/{title}/book.epub"),
            What::Begin | What::Return => format!("/loans/{title}"),
        };
        let method = match ask.what {
            What::Read | What::Continue => http::Method::GET,
            What::Begin => http::Method::PUT,
            What::Return => http::Method::DELETE,
        };
        let client = &self.clients[usize::from(ask.http2)];
        let request = client.request(method, format!("{}{path}", self.scene.base));
        let request = request.bearer_auth(self.scene.token_with(&claims));
        match ask.what {
            What::Continue => {
                request.header("range", format!("bytes={}-", SIZE / 2)).header("if-range", "\"v1\"")
            }
            What::Read | What::Begin | What::Return => request,
        }
    }

    /// Asks again, as an app does, until the file comes. Nothing but a 503 may come before.
    pub(super) async fn until_served(&self, ask: Ask, token: Token) {
        let served = async || {
            let answer = self.send(ask, token).await.unwrap();
            let may_come_yet = answer.status == Some(StatusCode::SERVICE_UNAVAILABLE);
            assert!(answer.bytes == SIZE || may_come_yet, "{answer:?}");
            answer.bytes == SIZE
        };
        self.scene.until("the reader is served", served).await;
    }

    /// Looks at the ledger and the books, and checks what must hold of them at any moment.
    pub(super) async fn look(&self) -> Seen {
        let first = self.ledger("").await;
        let books: Value = self
            .plain
            .get(self.bokbasen("/sandbox/books"))
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        let books = books["loans"].as_array().unwrap().clone();
        let ledger = self.ledger("").await;
        // What is accepted before and after the look at the books was so at that moment.
        let mut accepted = ledger.clone();
        accepted.retain(|row| {
            row["state"] == "accepted"
                && first
                    .iter()
                    .any(|other| other["id"] == row["id"] && other["state"] == "accepted")
        });
        check_books(&books, &accepted);
        let pseudonym =
            |borrower: &str| self.names.pseudonym(LIBRARY.parse().unwrap(), borrower).to_string();
        let seen = Seen { ledger, books, pseudonyms: BORROWERS.map(pseudonym) };
        self.check_terms(&accepted).await;
        seen
    }

    /// What the ledger has as granted is what Bokbasen granted.
    async fn check_terms(&self, accepted: &[Value]) {
        for row in accepted {
            let url = self.bokbasen(&format!("/v1/loans/{}", text(row, "lending_id")));
            let answer =
                self.plain.get(url).bearer_auth(&self.bokbasen_token).send().await.unwrap();
            let there: Value = answer.error_for_status().unwrap().json().await.unwrap();
            assert_eq!(moment(row, "due"), moment(&there, "due"), "{row} {there}");
        }
    }

    fn bokbasen(&self, path: &str) -> String {
        format!("{}{path}", self.scene.sandbox.as_ref().unwrap().url())
    }

    async fn ledger(&self, filter: &str) -> Vec<Value> {
        let url = format!("{}/api/v1/loans?limit=1000{filter}", self.scene.admin);
        let answer = self.plain.get(url).bearer_auth(&self.admin_token).send().await.unwrap();
        let page: Value = answer.error_for_status().unwrap().json().await.unwrap();
        page["loans"].as_array().unwrap().clone()
    }

    /// Waits until nothing is under way any more: every loan is decided, every end acknowledged,
    /// nothing due.
    pub(super) async fn until_quiet(&self) {
        let is_quiet = async || {
            let rows = self.ledger("").await;
            rows.iter().all(|row| match text(row, "state") {
                "accepted" => moment(row, "due") > Some(self.now()),
                state => matches!(state, "ended" | "refused"),
            })
        };
        self.scene.until("everything has come to rest", is_quiet).await;
    }

    /// The end: the trail that all these deaths have left is one, and nothing in the ledger is
    /// amiss.
    pub(super) async fn end(mut self) {
        if let Some(Gate::Alive { running, runtime }) = self.gate.take() {
            running.stop().await;
            drop(runtime);
        }
        let ledger = self.ledger_file();
        let verified = loangate::ledger::verify(&ledger, &AuditKey::new(&self.names.audit_key()))
            .await
            .unwrap();
        assert_eq!(verified.findings, Vec::<String>::new());
        assert_eq!(loangate::ledger::check(&ledger).await.unwrap(), Vec::<String>::new());
        self.scene.end().await;
    }
}

/// A token of Bokbasen's, to ask for a loan as its client does.
async fn bokbasen_token(scene: &Scene, plain: &reqwest::Client) -> String {
    let sandbox = scene.sandbox.as_ref().unwrap();
    let settings = sandbox.settings();
    let asked = json!({
        "client_id": settings.client_id,
        "client_secret": secrecy::ExposeSecret::expose_secret(&settings.client_secret),
        "audience": settings.audience,
        "grant_type": "client_credentials",
    });
    let answer = plain.post(sandbox.token_url()).json(&asked).send().await.unwrap();
    let given: Value = answer.error_for_status().unwrap().json().await.unwrap();
    text(&given, "access_token").to_owned()
}
