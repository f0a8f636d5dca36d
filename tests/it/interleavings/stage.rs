//! The gate of a case, on a separate runtime: it can crash at any moment, and restart on the same
//! ledger.
//!
//! A crash is as hard as possible within a process. The runtime of the slow work shuts down at
//! once, so each of its tasks ends at its current await: the ledger's writer, calls to Bokbasen,
//! flights, the support API. The workers abort their connections. The lock that marks a process as
//! alive is released with the last task, as with a real process.
//!
//! A test moves the gate's clock; Bokbasen's is the system's clock.

use std::time::Duration;

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use loangate::app;
use loangate::clock::{self, Clock};
use loangate::ledger::{AuditKey, StoreSettings};
use loangate::reader::Readers;
use loangate::sandbox::Bounds;
use serde_json::{Value, json};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::model::{
    Answered, BORROWERS, Key, ReaderRequest, RequestKind, SIZE, Token, moment, text,
};
use crate::support::scene::{check_books, movable_clock};
use crate::support::{AUDIO, BOOK, File, LIBRARY, Scene, Setting, metric};

/// ISBNs of the two titles.
const TITLES: [&str; 2] = [BOOK, AUDIO];
/// Maximum delay of a begin whose connection was aborted, and lag of the listing, in milliseconds.
/// Both together are far below the scene's 500 ms of `lending.settle`, also on a busy machine.
pub(super) const LATE_MS: u64 = 40;
const LAG_MS: u64 = 40;
/// Timeout for the threads of a crashed gate.
const PATIENCE: Duration = Duration::from_secs(30);

/// State of the ledger and the books between two steps.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) ledger: Vec<Value>,
    pub(super) books: Vec<Value>,
    /// Whether a flight ran before the ledger was read. It may begin a loan without its callers.
    pub(super) has_flights: bool,
    pseudonyms: [String; 2],
}

impl Seen {
    /// Returns the reader and title of a loan from the ledger or the books.
    pub(super) fn key(&self, loan: &Value) -> Key {
        let place =
            |all: &[&str], name| all.iter().position(|one| *one == text(loan, name)).unwrap();
        (place(&self.pseudonyms.each_ref().map(String::as_str), "borrower"), place(&TITLES, "isbn"))
    }

    /// Returns the loans of a reader and title in the ledger.
    pub(super) fn of(&self, key: Key) -> impl Iterator<Item = &Value> {
        self.ledger.iter().filter(move |row| self.key(row) == key)
    }

    /// Returns the ledger's row with this id.
    pub(super) fn row(&self, id: &Value) -> Option<&Value> {
        self.ledger.iter().find(|row| row["id"] == *id)
    }

    /// Returns the loan in the books for a row of the ledger.
    pub(super) fn booked(&self, row: &Value) -> Option<&Value> {
        self.books.iter().find(|loan| loan["loanId"] == row["lending_id"])
    }

    /// Returns the time of the last end.
    pub(super) fn last_end(&self) -> Option<Timestamp> {
        self.ledger.iter().filter_map(|row| moment(row, "ended")).max()
    }

    /// Returns the due time of the accepted loan of this reader and title.
    pub(super) fn due(&self, key: Key) -> Option<Timestamp> {
        self.of(key).find(|row| row["state"] == "accepted").and_then(|row| moment(row, "due"))
    }
}

/// A running gate, or one that is shutting down after a crash.
enum Gate {
    Alive { running: Box<app::Running>, runtime: Slow },
    Dead(JoinHandle<()>),
}

/// A runtime that shuts down at once when dropped, also in a failing test.
struct Slow(Option<Runtime>);

impl Drop for Slow {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// The gate with everything around it.
pub(super) struct Stage {
    pub(super) scene: Scene,
    /// Clock of the gate.
    pub(super) clock: Clock,
    gate: Option<Gate>,
    /// Clients for HTTP/1.1 and for HTTP/2.
    clients: [reqwest::Client; 2],
    plain: reqwest::Client,
    admin_token: String,
    bokbasen_token: String,
    names: Readers,
    file: File,
}

impl Stage {
    pub(super) async fn set_up() -> Stage {
        let bounds =
            // Bokbasen's time must be ignored: the test moves the gate's clock only.
            Bounds {
                list_lag_ms: LAG_MS,
                post_bound_ms: LATE_MS,
                pending_polls: 1,
                useless_date: true,
                ..Bounds::quick()
            };
        let config = vec![
            // A hanging call times out early, a request is refused before a lost response is found,
            // and a crashing gate does not drain.
            ("timeout = \"2s\"", "timeout = \"400ms\""),
            ("[ledger]", "[gate]\npatience = \"300ms\"\n\n[server]\ndrain = \"0s\"\n\n[ledger]"),
        ];
        let scene = Scene::without_gate(Setting { bounds, config, ..Setting::default() }).await;
        let file = File::of(SIZE as u64);
        for title in TITLES {
            scene.origin.put(&format!("{title}/book.epub"), file.clone());
        }
        let loaded = loangate::config::load(&scene.config_file()).unwrap();
        let plain = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut stage = Stage {
            clock: movable_clock(),
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
        let file = self.scene.config_file();
        let loaded = loangate::config::load(&file).unwrap();
        let clock = self.clock.clone();
        let started = tokio::task::spawn_blocking(move || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime = builder.worker_threads(2).enable_all().build().unwrap();
            let running = runtime.block_on(app::start(&file, loaded, clock)).unwrap();
            (running, runtime)
        });
        let (running, runtime) = started.await.unwrap();
        self.scene.base = format!("https://{}", running.public.first());
        self.scene.admin = running.admin_url.clone();
        self.gate = Some(Gate::Alive { running: Box::new(running), runtime: Slow(Some(runtime)) });
    }

    /// Crashes the gate at this moment.
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

    /// Waits until the crashed gate is completely gone.
    async fn wait_for_death(&mut self) {
        if let Some(Gate::Dead(stopping)) = self.gate.take() {
            tokio::time::timeout(PATIENCE, stopping)
                .await
                .expect("a crashed gate did not end")
                .unwrap();
        }
        let mut processes = self.ledger_file().into_os_string();
        processes.push(".processes");
        let is_alone = async || std::fs::read_dir(&processes).unwrap().next().is_none();
        self.scene.until("the crashed gate's lock is released", is_alone).await;
    }

    /// Blocks the gate's writes to the ledger for this long.
    pub(super) async fn block_ledger(&self, duration: Duration) {
        let file = SqliteConnectOptions::new().filename(self.ledger_file());
        let mut other = SqliteConnection::connect_with(&file).await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
        tokio::spawn(async move {
            // No wait for a condition: the ledger is blocked for this long.
            tokio::time::sleep(duration).await;
            drop(other);
        });
    }

    fn ledger_file(&self) -> std::path::PathBuf {
        loangate::config::load(&self.scene.config_file())
            .unwrap()
            .config
            .ledger
            .sqlite_file()
            .unwrap()
            .to_owned()
    }

    /// Starts a gate in place of the crashed one.
    pub(super) async fn restart(&mut self) {
        self.wait_for_death().await;
        self.start().await;
    }

    /// Sets the clock to a loan's due time or later, and never back.
    pub(super) fn pass(&self, due: Timestamp, late_ms: u64) {
        self.clock.set(clock::after(due, Duration::from_millis(late_ms)).max(self.now()));
    }

    pub(super) fn jump(&self, seconds: i64) {
        self.clock.set(self.now().checked_add(SignedDuration::from_secs(seconds)).unwrap());
    }

    /// Sends a request in a task.
    pub(super) fn send(&self, sent: ReaderRequest, token: Token) -> JoinHandle<Answered> {
        let request = self.request(sent, token);
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
            let is_file = !wanted.is_empty()
                && matches!(sent.what, RequestKind::Read | RequestKind::Continue);
            if is_file {
                assert!(
                    wanted.starts_with(&body) && (!ended || body.len() == wanted.len()),
                    "other bytes"
                );
            }
            Answered { request: sent, token, status, bytes: if is_file { body.len() } else { 0 } }
        })
    }

    fn request(&self, sent: ReaderRequest, token: Token) -> reqwest::RequestBuilder {
        // Tokens last longer than any loan, so a token is too old only by its time of issue.
        let lasts = token.issued + 360 * 86_400;
        let claims = json!({
            "sub": BORROWERS[sent.reader],
            "iat": token.issued,
            "exp": lasts,
            "jti": token.number.to_string(),
        });
        let title = TITLES[sent.title];
        let path = match sent.what {
            RequestKind::Read | RequestKind::Continue => format!("/files/{title}/book.epub"),
            RequestKind::Begin | RequestKind::Return => format!("/loans/{title}"),
        };
        let method = match sent.what {
            RequestKind::Read | RequestKind::Continue => http::Method::GET,
            RequestKind::Begin => http::Method::PUT,
            RequestKind::Return => http::Method::DELETE,
        };
        let client = &self.clients[usize::from(sent.http2)];
        let request = client.request(method, format!("{}{path}", self.scene.base));
        let request = request.bearer_auth(self.scene.token_with(&claims));
        match sent.what {
            RequestKind::Continue => {
                request.header("range", format!("bytes={}-", SIZE / 2)).header("if-range", "\"v1\"")
            }
            RequestKind::Read | RequestKind::Begin | RequestKind::Return => request,
        }
    }

    /// Repeats the request, as an app does, until the file is served. Only a 503 may occur before.
    pub(super) async fn until_served(&self, sent: ReaderRequest, token: Token) {
        let served = async || {
            let answer = self.send(sent, token).await.unwrap();
            let may_be_served_later = answer.status == Some(StatusCode::SERVICE_UNAVAILABLE);
            assert!(answer.bytes == SIZE || may_be_served_later, "{answer:?}");
            answer.bytes == SIZE
        };
        self.scene.until("the reader is served", served).await;
    }

    /// Reads the ledger and the books, and checks what must hold of them at any time.
    pub(super) async fn observe(&self) -> Seen {
        let has_flights = metric(&self.scene.metrics().await, "loangate_flights", "") > 0.0;
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
        // A loan that is accepted before and after the read of the books was accepted during it.
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
        let seen = Seen { ledger, books, has_flights, pseudonyms: BORROWERS.map(pseudonym) };
        self.check_terms(&accepted).await;
        seen
    }

    /// Checks that the ledger's terms are those that Bokbasen granted.
    async fn check_terms(&self, accepted: &[Value]) {
        for row in accepted {
            let url = self.bokbasen(&format!("/v1/loans/{}", text(row, "lending_id")));
            let answer =
                self.plain.get(url).bearer_auth(&self.bokbasen_token).send().await.unwrap();
            let booked: Value = answer.error_for_status().unwrap().json().await.unwrap();
            assert_eq!(moment(row, "due"), moment(&booked, "due"), "{row} {booked}");
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

    /// Waits until all work is done: every loan is decided, every end acknowledged, nothing due.
    pub(super) async fn until_quiet(&self) {
        let is_quiet = async || {
            let rows = self.ledger("").await;
            rows.iter().all(|row| match text(row, "state") {
                "accepted" => moment(row, "due") > Some(self.now()),
                state => matches!(state, "ended" | "refused"),
            })
        };
        self.scene.until("all work is done", is_quiet).await;
    }

    /// Ends the case: the audit trail is unbroken, and the ledger has no findings.
    pub(super) async fn end(mut self) {
        if let Some(Gate::Alive { running, runtime }) = self.gate.take() {
            running.stop().await;
            drop(runtime);
        }
        let store = StoreSettings::Sqlite(self.ledger_file());
        let key = AuditKey::new(&self.names.audit_key());
        let verified =
            loangate::ledger::verify(&store, &key, &loangate::ledger::RowsRead::default())
                .await
                .unwrap();
        assert_eq!(verified.findings, Vec::<String>::new());
        assert_eq!(
            loangate::ledger::check(&store, &key, &loangate::ledger::RowsRead::default())
                .await
                .unwrap(),
            Vec::<String>::new()
        );
        self.scene.end().await;
    }
}

/// Returns an access token of Bokbasen, to read a loan as its client does.
async fn bokbasen_token(scene: &Scene, plain: &reqwest::Client) -> String {
    let sandbox = scene.sandbox.as_ref().unwrap();
    let settings = sandbox.settings();
    let credentials = json!({
        "client_id": settings.client_id,
        "client_secret": secrecy::ExposeSecret::expose_secret(&settings.client_secret),
        "audience": settings.audience,
        "grant_type": "client_credentials",
    });
    let answer = plain.post(sandbox.token_url()).json(&credentials).send().await.unwrap();
    let given: Value = answer.error_for_status().unwrap().json().await.unwrap();
    text(&given, "access_token").to_owned()
}
