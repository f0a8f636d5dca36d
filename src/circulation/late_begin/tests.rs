//! Begins whose lease is lost while they wait or are in flight, against a server that waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::{Json, Router};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use url::Url;

use crate::circulation::schedule::tests::circulation;
use crate::circulation::wait::OutcomeWait;
use crate::circulation::{Circulation, LoanOutcome, LoanRequest};
use crate::loan::{Borrower, Loan, LoanKey, LoanState};

const ISBN: &str = "9780306406157";

/// Bokbasen: logins and begins wait until the test lets them pass.
#[derive(Debug, Default)]
struct Server {
    logins: Gate,
    begins: Gate,
    cancels: AtomicUsize,
}

/// Counts the calls that have arrived, and holds them back.
#[derive(Debug)]
struct Gate {
    arrived: AtomicUsize,
    passes: Semaphore,
}

impl Default for Gate {
    fn default() -> Gate {
        Gate { arrived: AtomicUsize::new(0), passes: Semaphore::new(0) }
    }
}

impl Gate {
    async fn pass(&self) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        self.passes.acquire().await.unwrap().forget();
    }

    async fn until_arrived(&self) {
        until("a call arrives", || self.arrived.load(Ordering::SeqCst) > 0).await;
    }

    fn open(&self) {
        self.passes.add_permits(100);
    }
}

async fn answer(server: Arc<Server>, request: axum::extract::Request) -> (StatusCode, Json<Value>) {
    let path = request.uri().path().to_owned();
    let licence = json!({ "licenseId": "L1", "type": "PACKAGE", "free": 1 });
    (
        StatusCode::OK,
        Json(match (request.method(), path.as_str()) {
            (_, "/token") => {
                server.logins.pass().await;
                json!({ "access_token": "t", "expires_in": 3600 })
            }
            (&Method::POST, "/v1/loans") => {
                server.begins.pass().await;
                json!({ "loanId": "BL1", "status": "PENDING" })
            }
            (&Method::POST, "/v1/loans/BL1/cancel") => {
                server.cancels.fetch_add(1, Ordering::SeqCst);
                json!({})
            }
            _ => json!([{ "isbn": ISBN, "available": true, "licenses": [licence] }]),
        }),
    )
}

/// A gate's circulation with a begin that is under way.
struct Scene {
    server: Arc<Server>,
    circulation: Circulation,
    is_held: Arc<AtomicBool>,
    directory: TempDir,
    key: LoanKey,
    begin: JoinHandle<OutcomeWait>,
}

impl Scene {
    async fn begin() -> Scene {
        let server = Arc::new(Server::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bokbasen = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
        let answering = server.clone();
        let router = Router::new().fallback(move |request| answer(answering.clone(), request));
        tokio::spawn(async { axum::serve(listener, router).await });
        let directory = tempfile::tempdir().unwrap();
        let mut circulation = circulation(directory.path(), &bokbasen).await;
        let is_held = Arc::new(AtomicBool::new(true));
        let inner = Arc::get_mut(&mut circulation.inner).unwrap();
        inner.ledger = inner.ledger.with_lease_switch(is_held.clone());
        let borrower = Borrower::from_bytes([1; 16]);
        let library = "NO-0301000".parse().unwrap();
        let key = LoanKey { library, borrower, isbn: ISBN.parse().unwrap() };
        let beginning = circulation.clone();
        let begin = tokio::spawn(async move {
            beginning.begin(&LoanRequest { key, issued: None, issued_ahead: false }, "reader").await
        });
        Scene { server, circulation, is_held, directory, key, begin }
    }

    async fn loan(&self) -> Loan {
        self.circulation.newest(&self.key).await.unwrap().unwrap()
    }

    /// Changes the row as another process would.
    async fn change(&self, columns: &str) {
        let file = self.directory.path().join("loans.db");
        let mut other = SqliteConnectOptions::new().filename(file).connect().await.unwrap();
        let update = format!("UPDATE loans SET {columns}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(update)).execute(&mut other).await.unwrap();
        other.close().await.unwrap();
    }

    fn late_begins(&self) -> usize {
        let text = self.circulation.inner.metrics.render();
        let name = "loangate_late_begins_total{finder=\"sender\"} ";
        text.lines().find_map(|line| line.strip_prefix(name)).map_or(0, |n| n.parse().unwrap())
    }

    fn cancels(&self) -> usize {
        self.server.cancels.load(Ordering::SeqCst)
    }
}

/// Waits until a condition holds, at most ten seconds.
pub(super) async fn until(what: &str, is_true: impl Fn() -> bool) {
    for _ in 0..1000 {
        if is_true() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("did not happen: {what}");
}

/// Waits until no begin and no end of a late begin is under way.
async fn until_idle(circulation: &Circulation) {
    until("the tasks end", || circulation.inner.tasks.is_empty()).await;
}

const DECIDED: &str = "owner = 'other', state = 'ended', end_reason = 'rejected', ended = begun";

#[tokio::test]
async fn late_begin_of_a_decided_loan_is_cancelled() {
    let scene = Scene::begin().await;
    scene.server.logins.open();
    scene.server.begins.until_arrived().await;
    scene.change(DECIDED).await;
    scene.server.begins.open();
    until("the loan is cancelled at Bokbasen", || scene.cancels() == 1).await;
    assert_eq!(scene.late_begins(), 1);
    assert_eq!(scene.loan().await.state, LoanState::Ended);
    scene.circulation.inner.ledger.close().await;
}

#[tokio::test]
async fn late_begin_of_an_undecided_loan_is_left_to_its_owner() {
    let scene = Scene::begin().await;
    scene.server.logins.open();
    scene.server.begins.until_arrived().await;
    scene.change("owner = 'other', state = 'unknown'").await;
    scene.server.begins.open();
    let waiting = scene.begin.await.unwrap();
    let id = scene.circulation.newest(&scene.key).await.unwrap().unwrap().id;
    assert!(!scene.circulation.inner.schedule.contains(id), "another process drives it");
    let outcome = tokio::spawn(waiting.outcome());
    until_idle(&scene.circulation).await;
    // Reads after those of the reader who waits.
    for _ in 0..10 {
        scene.circulation.newest(&scene.key).await.unwrap().unwrap();
    }
    assert!(!outcome.is_finished(), "the reader waits for the owner");
    assert_eq!(scene.server.cancels.load(Ordering::SeqCst), 0);
    let file = scene.directory.path().join("loans.db");
    let mut other = SqliteConnectOptions::new().filename(file).connect().await.unwrap();
    let update = format!("UPDATE loans SET {DECIDED}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(update)).execute(&mut other).await.unwrap();
    let outcome = outcome.await.unwrap();
    assert!(matches!(outcome, LoanOutcome::NoLoan), "{outcome:?}");
    scene.circulation.inner.ledger.close().await;
}

#[tokio::test]
async fn late_begin_with_the_id_in_the_ledger_is_left_alone() {
    let mut scene = Scene::begin().await;
    scene.server.logins.open();
    scene.server.begins.until_arrived().await;
    scene.change("owner = 'other', state = 'pending', lending_id = 'BL1'").await;
    scene.server.begins.open();
    (&mut scene.begin).await.unwrap();
    until_idle(&scene.circulation).await;
    assert_eq!((scene.cancels(), scene.late_begins()), (0, 0));
    scene.circulation.inner.ledger.close().await;
}

#[tokio::test]
async fn begin_is_not_sent_once_its_lease_is_lost() {
    let scene = Scene::begin().await;
    // The intent is durable, and the begin waits for its login.
    scene.server.logins.until_arrived().await;
    scene.is_held.store(false, Ordering::SeqCst);
    scene.server.logins.open();
    scene.server.begins.open();
    let (circulation, key) = (scene.circulation.clone(), scene.key);
    let outcome = scene.begin.await.unwrap().outcome().await;
    assert!(matches!(outcome, LoanOutcome::Unavailable { .. }), "{outcome:?}");
    assert_eq!(scene.server.begins.arrived.load(Ordering::SeqCst), 0, "no begin was sent");
    let loan = circulation.newest(&key).await.unwrap().unwrap();
    assert_eq!(loan.state, LoanState::Ended);
    circulation.inner.ledger.close().await;
}

#[tokio::test]
async fn process_without_a_lease_writes_no_intent() {
    let scene = Scene::begin().await;
    scene.server.logins.until_arrived().await;
    scene.is_held.store(false, Ordering::SeqCst);
    let key = LoanKey { borrower: Borrower::from_bytes([2; 16]), ..scene.key };
    let request = LoanRequest { key, issued: None, issued_ahead: false };
    let outcome = scene.circulation.begin(&request, "reader").await.outcome().await;
    assert!(matches!(outcome, LoanOutcome::Undetermined), "{outcome:?}");
    assert!(scene.circulation.newest(&key).await.unwrap().is_none());
    scene.circulation.inner.ledger.close().await;
}

#[tokio::test]
async fn begin_whose_lease_lapsed_in_flight_counts_if_nobody_fenced() {
    let scene = Scene::begin().await;
    scene.server.logins.open();
    scene.server.begins.until_arrived().await;
    scene.is_held.store(false, Ordering::SeqCst);
    scene.server.begins.open();
    let circulation = scene.circulation.clone();
    drop(scene.begin.await.unwrap());
    let loan = circulation.newest(&scene.key).await.unwrap().unwrap();
    assert_eq!((loan.state, loan.lending_id.as_deref()), (LoanState::Pending, Some("BL1")));
    circulation.inner.ledger.close().await;
}
