//! PostgreSQL fails over: the primary is killed, and Patroni makes the synchronous standby primary.
//!
//! `LOANGATE_FAILOVERS=10` kills the primary more often:
//!
//! ```sh
//! LOANGATE_FAILOVERS=10 cargo test --test it cluster::failover -- --nocapture
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::cluster::{Cluster, ClusterReader, Evidence, Exchange, Kind, Plan, Store};
use crate::support::{AUDIO, BOOK};

/// The first gate connects to PostgreSQL, the second one through PgBouncer.
const GATES: usize = 2;
/// Failovers, unless `LOANGATE_FAILOVERS` sets them.
const FAILOVERS: usize = 1;
/// Readers with a loan that all gates have cached.
const CACHED: usize = 4;
/// Tasks that each begin, read and return loans of new readers.
const BORROWERS: usize = 6;
/// Longer than a failover.
const FRESHNESS: Duration = Duration::from_secs(60);
/// Time between two requests of a reader.
const REQUEST_INTERVAL: Duration = Duration::from_millis(200);
/// Load before each kill.
const LOAD_TIME: Duration = Duration::from_secs(3);
/// Time after a kill within which each gate begins loans, whatever the state of the standby is.
const FAILS_OVER_WITHIN: Duration = Duration::from_secs(150);
/// Time after the standby has become synchronous within which each gate begins loans, on a machine
/// that is busy with other tests.
const RECOVERS_WITHIN: Duration = Duration::from_secs(30);
/// The problems of readers without a cached loan: the database is away, or the loan is not decided.
const CLEAR_PROBLEMS: [&str; 2] = ["ledger-unavailable", "loan-pending"];

type Key = (String, String);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_loses_no_acknowledged_outcome() {
    let number = std::env::var("LOANGATE_FAILOVERS").ok();
    let failovers = number.map_or(FAILOVERS, |text| text.parse().unwrap());
    let plan = Plan { freshness: FRESHNESS, ..Plan::new(GATES, Store::Patroni) };
    let Some(cluster) = Cluster::start(plan).await else { return };
    let cached: Vec<_> =
        (0..CACHED).map(|number| cluster.reader(&format!("cached-{number}"), BOOK)).collect();
    for reader in &cached {
        for gate in &cluster.gates {
            assert!(cluster.read(gate, reader).await.is_ok());
        }
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    for reader in &cached {
        load.spawn(read_on(Arc::clone(&cluster), Arc::clone(reader), Arc::clone(&is_over)));
    }
    for number in 0..BORROWERS {
        load.spawn(borrow(Arc::clone(&cluster), number, Arc::clone(&is_over)));
    }
    for number in 0..failovers {
        sleep(LOAD_TIME).await;
        fail_over(&cluster, number).await;
    }
    is_over.store(true, Ordering::Relaxed);
    load.join_all().await;

    let evidence = cluster.end().await;
    let cached: BTreeSet<Key> = cached.iter().map(|reader| reader.key()).collect();
    check_responses(&evidence.exchanges, &cached);
    let lost = lost_outcomes(&evidence);
    assert!(lost.is_empty(), "{} acknowledged outcomes are lost: {lost:#?}", lost.len());
}

/// Kills the primary, and waits until the other node is primary, each gate begins loans, and the
/// killed node is a synchronous standby.
async fn fail_over(cluster: &Arc<Cluster>, number: usize) {
    let patroni = cluster.store.patroni().unwrap();
    let killed = patroni.kill_primary().await;
    let since = Instant::now();
    let promoted = async {
        patroni.until_another_is_primary(&killed).await;
        since.elapsed()
    };
    let synchronous = async {
        patroni.until_another_is_primary(&killed).await;
        patroni.until_synchronous().await;
        since.elapsed()
    };
    let begins = futures_util::future::join_all(cluster.gates.iter().map(async |gate| {
        let reader = cluster.reader(&format!("after-{number}-{}", gate.number), AUDIO);
        loop {
            let exchange = cluster.read(gate, &reader).await;
            if exchange.is_ok() {
                return since.elapsed();
            }
            assert!(since.elapsed() < FAILS_OVER_WITHIN, "gate {}: {exchange:?}", gate.number);
            sleep(REQUEST_INTERVAL).await;
        }
    }));
    let (promoted, synchronous, begins) = tokio::join!(promoted, synchronous, begins);
    println!(
        "failover {number}: {killed} killed; the other is primary after {promoted:.1?} and has a \
         standby after {synchronous:.1?}; the gates begin loans after {begins:.1?}"
    );
    for begin in begins {
        assert!(begin < synchronous + RECOVERS_WITHIN, "a gate does not find the new primary");
    }
}

/// Requests a reader's file again and again at all gates.
async fn read_on(cluster: Arc<Cluster>, reader: Arc<ClusterReader>, is_over: Arc<AtomicBool>) {
    while !is_over.load(Ordering::Relaxed) {
        for gate in &cluster.gates {
            cluster.read(gate, &reader).await;
        }
        sleep(REQUEST_INTERVAL).await;
    }
}

/// Begins loans of new readers, and returns every second one. Repeats what fails, as an app does.
async fn borrow(cluster: Arc<Cluster>, task: usize, is_over: Arc<AtomicBool>) {
    let mut chance = fastrand::Rng::new();
    let goes_on = || !is_over.load(Ordering::Relaxed);
    for number in 0.. {
        let reader = cluster.reader(&format!("borrower-{task}-{number}"), AUDIO);
        while goes_on() && !cluster.read(cluster.any_gate(&mut chance), &reader).await.is_ok() {
            sleep(REQUEST_INTERVAL).await;
        }
        sleep(REQUEST_INTERVAL).await;
        let returns = number % 2 == 0;
        while returns
            && goes_on()
            && !cluster.return_loan(cluster.any_gate(&mut chance), &reader).await.is_ok()
        {
            sleep(REQUEST_INTERVAL).await;
        }
        if !goes_on() {
            return;
        }
    }
}

/// Readers with a cached loan see no error, and others at most a clear 503.
fn check_responses(exchanges: &[Exchange], cached: &BTreeSet<Key>) {
    let mut outcomes = BTreeMap::<_, usize>::new();
    for exchange in exchanges {
        let is_cached = cached.contains(&exchange.key);
        let status = exchange.status.map(|status| status.as_u16());
        *outcomes.entry((is_cached, status, exchange.problem.as_str())).or_default() += 1;
    }
    println!("responses by whether the loan was cached, status and problem: {outcomes:?}");
    for exchange in exchanges.iter().filter(|exchange| !exchange.is_ok()) {
        let is_clear = exchange.status == Some(StatusCode::SERVICE_UNAVAILABLE)
            && CLEAR_PROBLEMS.contains(&exchange.problem.as_str());
        assert!(is_clear && !cached.contains(&exchange.key), "{exchange:?}");
    }
}

/// Loans by their key, of the ledger or of the books.
fn by_key(loans: &[Value]) -> BTreeMap<Key, Vec<&Value>> {
    let mut by_key = BTreeMap::<_, Vec<_>>::new();
    for loan in loans {
        by_key.entry((text(loan, "borrower"), text(loan, "isbn"))).or_default().push(loan);
    }
    by_key
}

fn text(loan: &Value, name: &str) -> String {
    loan[name].as_str().unwrap_or_default().to_owned()
}

/// Returns the successful responses whose effect is not both in the ledger and in the books: a file
/// was delivered under a loan that both have, and a returned loan is live in neither. No reader
/// borrows again after a return.
fn lost_outcomes(evidence: &Evidence) -> Vec<&Exchange> {
    let (ledger, books) = (by_key(&evidence.ledger), by_key(&evidence.books));
    let is_lost = |exchange: &&Exchange| {
        let here = ledger.get(&exchange.key).map_or(&[][..], Vec::as_slice);
        let there = books.get(&exchange.key).map_or(&[][..], Vec::as_slice);
        let mut common = there.iter().filter(|booked| {
            let is_same = |loan: &&Value| loan["lending_id"] == booked["loanId"];
            booked["accepted"].is_string() && here.iter().any(is_same)
        });
        match exchange.kind {
            Kind::Read | Kind::Begin => common.next().is_none(),
            Kind::Return => {
                let is_live = |booked: &&Value| {
                    ["PENDING", "ACCEPTED"].contains(&text(booked, "status").as_str())
                };
                common.next().is_none()
                    || here.iter().any(|loan| loan["state"] != "ended")
                    || there.iter().any(is_live)
            }
        }
    };
    evidence.exchanges.iter().filter(|exchange| exchange.is_ok()).filter(is_lost).collect()
}

#[test]
fn lost_outcome_is_found() {
    let evidence = || {
        let mut evidence = super::judge::clean();
        evidence.ledger[0]["borrower"] = "kari".into();
        evidence.ledger[0]["isbn"] = BOOK.into();
        evidence
    };
    assert_eq!(lost_outcomes(&evidence()).len(), 0);
    // The ledger has lost the loan or the return, or the books have lost the return.
    let mut lost = evidence();
    lost.ledger.clear();
    assert_eq!(lost_outcomes(&lost).len(), 2);
    let mut lost = evidence();
    lost.ledger[0]["state"] = "accepted".into();
    assert_eq!(lost_outcomes(&lost).len(), 1);
    let mut lost = evidence();
    lost.books[0]["status"] = "ACCEPTED".into();
    assert_eq!(lost_outcomes(&lost).len(), 1);
}
