//! Tests of the schedule: the size of an entry, its waiters, and the order of polls.

use axum::{Json, Router};
use serde_json::{Value, json};
use url::Url;

use super::poll_backoff::LONGEST_IDLE_WAIT;
use super::*;
use crate::circulation::licences::MAX_CANDIDATE_BYTES;
use crate::circulation::wait::{OutcomeWait, Source};
use crate::circulation::{Licences, LoanRequest, Settings};
use crate::clock::Clock;
use crate::ledger::{self, AuditKey, Brake, Ledger};
use crate::lending::{self, Auth, Bokbasen};
use crate::loan::{Borrower, LoanKey};
use crate::process_handles::ProcessHandles;
use crate::telemetry::{Metrics, Tracer};

const ISBN: &str = "9780306406157";

/// The length of the licence's id, the longest that is accepted.
const LICENCE_ID_LENGTH: usize = 256;

/// Bokbasen's response: one free licence with a long id, and every loan is pending.
async fn answer(uri: http::Uri) -> Json<Value> {
    let id = "L".repeat(LICENCE_ID_LENGTH);
    let licence = json!({ "licenseId": id, "type": "PACKAGE", "free": 1 });
    Json(match uri.path() {
        "/token" => json!({ "access_token": "t", "expires_in": 3600 }),
        "/v1/loans" => json!({ "loanId": "BL1", "status": "PENDING" }),
        _ => json!([{ "isbn": ISBN, "available": true, "licenses": [licence] }]),
    })
}

/// A circulation with a ledger in this directory and Bokbasen at this address. It has a licence
/// policy, and no background tasks run.
pub(in crate::circulation) async fn circulation(
    directory: &std::path::Path,
    bokbasen: &Url,
) -> Circulation {
    let (clock, metrics) = (Clock::system(), Metrics::new().unwrap());
    let file = ledger::Settings::sqlite(directory.join("loans.db"), Brake::default());
    let audit_key = AuditKey::new(&[2; 32]);
    let ledger =
        Ledger::open(&file, &[1; 32], audit_key, clock.clone(), metrics.clone()).await.unwrap();
    let auth = Auth::OAuth {
        token_url: bokbasen.join("token").unwrap(),
        audience: "a".to_owned(),
        client_id: "c".to_owned(),
        client_secret: "s".into(),
    };
    let timeout = Duration::from_secs(10);
    let lending = lending::Settings { url: bokbasen.clone(), auth, concurrency: 8, timeout };
    let lending = Bokbasen::new(&lending, clock.clone(), metrics.clone()).unwrap();
    let settings = Settings {
        settle: Duration::from_secs(30),
        refusal_ttl: Duration::from_secs(60),
        availability_ttl: Duration::from_secs(60),
        retention: Duration::from_secs(86_400),
        licences: Licences { order: vec!["PACKAGE".to_owned()], ..Licences::default() },
        polls: 2,
    };
    let slow = tokio::runtime::Handle::current();
    Circulation::new(
        settings,
        ledger,
        lending,
        ProcessHandles { clock, metrics, tracer: Tracer::default(), slow },
    )
}

/// Adds a loan with this poll interval, with or without a waiting caller.
fn add(state: &mut State, backoff: PollBackoff, is_waited_for: bool) -> LoanId {
    let loan = LoanId::random();
    let waiters = is_waited_for.then(|| oneshot::channel().0).into_iter().collect();
    let entry = Entry { position: None, driver: Some(DriverState::default()), backoff, waiters };
    state.entries.insert(loan, Box::new(entry));
    state.reschedule(loan);
    loan
}

#[test]
fn entry_takes_at_most_one_kib() {
    // The map may be less than half full after growing; a tree's nodes may be half full.
    let map = 3 * (size_of::<LoanId>() + size_of::<Box<Entry>>() + 1);
    let entry = size_of::<Entry>() + 2 * size_of::<usize>();
    let order = 2 * size_of::<(Position, LoanId)>();
    assert!(map + entry + order + MAX_CANDIDATE_BYTES <= 1024, "{map} {entry} {order}");
}

#[tokio::test]
async fn entry_of_a_begun_loan_stores_no_unneeded_licence() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bokbasen = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
    let server =
        tokio::spawn(async { axum::serve(listener, Router::new().fallback(answer)).await });
    let directory = tempfile::tempdir().unwrap();
    let circulation = circulation(directory.path(), &bokbasen).await;
    let borrower = Borrower::from_bytes([1; 16]);
    let key =
        LoanKey { library: "NO-0301000".parse().unwrap(), borrower, isbn: ISBN.parse().unwrap() };
    let begun =
        circulation.begin(&LoanRequest { key, issued: None, issued_ahead: false }, "reader").await;
    assert!(matches!(begun, OutcomeWait(Source::Scheduled(_))), "{begun:?}");
    // The ledger has the licence that was used.
    let bytes = {
        let state = circulation.inner.schedule.lock();
        let entry = state.entries.values().next().expect("the loan is pending");
        entry.driver.as_ref().expect("no step is running").heap_bytes()
    };
    assert!(bytes < LICENCE_ID_LENGTH, "{bytes}");
    circulation.inner.ledger.close().await;
    server.abort();
}

#[tokio::test]
async fn each_waiter_gets_the_outcome_if_others_leave() {
    let directory = tempfile::tempdir().unwrap();
    let nowhere = Url::parse("http://127.0.0.1:9/").unwrap();
    let circulation = circulation(directory.path(), &nowhere).await;
    let (schedule, loan) = (&circulation.inner.schedule, LoanId::random());
    let (work, first) = schedule.insert(&circulation, loan);
    let second = schedule.wait(&circulation, loan).unwrap();
    let third = schedule.wait(&circulation, loan).unwrap();
    drop(first);
    drop(third);
    assert_eq!(schedule.lock().entries[&loan].waiters.len(), 1, "the second still waits");
    work.finish(Next::Done(LoanOutcome::NoLoan));
    assert!(!schedule.contains(loan) && schedule.wait(&circulation, loan).is_none());
    let outcome = OutcomeWait::from(second).outcome().await;
    assert!(matches!(outcome, LoanOutcome::NoLoan), "{outcome:?}");

    let (work, waiter) = schedule.insert(&circulation, loan);
    work.withdraw();
    let outcome = OutcomeWait::from(waiter).outcome().await;
    assert!(matches!(outcome, LoanOutcome::Undetermined), "no outcome is known: {outcome:?}");
    circulation.inner.ledger.close().await;
}

#[test]
fn first_polls_pass_a_backlog_and_nothing_starves() {
    let mut state = State::default();
    let long_ago = Instant::now();
    let now = long_ago + Duration::from_secs(600);
    let old = PollBackoff::polled(50, long_ago);
    for _ in 0..700 {
        add(&mut state, old, true);
        add(&mut state, old, false);
    }
    // A burst of loans whose first polls are late as well.
    let burst: Vec<LoanId> =
        (0..700).map(|_| add(&mut state, PollBackoff::new(long_ago), true)).collect();
    let new: Vec<LoanId> = (0..15).map(|_| add(&mut state, PollBackoff::new(now), true)).collect();
    let picked: Vec<LoanId> =
        (0..80).map_while(|_| state.queue.take_due(now, 8)).map(|(_, loan)| loan).collect();
    assert_eq!(picked.len(), 80);
    let last = picked.iter().rposition(|loan| new.contains(loan)).unwrap();
    assert!(new.iter().all(|loan| picked.contains(loan)) && last < 60, "{last}");
    let from_burst = picked.iter().filter(|loan| burst.contains(loan)).count();
    let idle = picked.iter().filter(|loan| !state.entries[loan].is_waited_for()).count();
    let waited = picked.len() - idle - from_burst - new.len();
    assert!(from_burst >= 8 && idle >= 8 && waited >= 16, "{from_burst} {idle} {waited}");
}

#[test]
fn routine_polls_leave_half_of_the_tasks_to_urgent_ones() {
    let mut state = State::default();
    let long_ago = Instant::now();
    let now = long_ago + Duration::from_secs(600);
    let old = add(&mut state, PollBackoff::polled(50, long_ago), false);
    state.queue.set_running(8, 8);
    assert_eq!(state.queue.take_due(now, 8), None, "routine polls are at their limit");
    let new = add(&mut state, PollBackoff::new(now), true);
    assert_eq!(state.queue.take_due(now, 8), Some((Level::First, new)));
    state.queue.set_running(16, 7);
    assert_eq!(state.queue.take_due(now, 8), None, "all tasks are in use");
    state.queue.set_running(15, 7);
    assert_eq!(state.queue.take_due(now, 8), Some((Level::Idle, old)));
}

#[test]
fn new_caller_makes_an_idle_loan_due_soon() {
    let mut state = State::default();
    let now = Instant::now();
    let loan = add(&mut state, PollBackoff::longest_idle(now), false);
    assert_eq!(state.queue.first_due(), Some(now + LONGEST_IDLE_WAIT));
    let schedule = Schedule { state: Mutex::new(state), changed: Notify::new() };
    let mut state = schedule.lock();
    let entry = state.entries.get_mut(&loan).unwrap();
    entry.waiters = vec![oneshot::channel().0];
    state.reschedule(loan);
    assert_eq!(state.queue.first_due(), Some(now + LONGEST_WAIT));
    drop(state);
    schedule.waiter_left(loan);
    assert_eq!(schedule.lock().queue.first_due(), Some(now + LONGEST_IDLE_WAIT), "idle again");
    let capacity = schedule.lock().entries[&loan].waiters.capacity();
    assert_eq!(capacity, 0, "the caller's channel is freed");
}
