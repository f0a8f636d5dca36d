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
    check_acknowledged(&evidence);
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
        while !cluster.read(gate, &reader).await.is_ok() {
            sleep(REQUEST_INTERVAL).await;
        }
        since.elapsed()
    }));
    let begins = async {
        let limit = RECOVERS_WITHIN + 2 * FRESHNESS;
        tokio::time::timeout(limit, begins).await.expect("each gate begins loans again")
    };
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

/// What a reader got as an outcome is in the ledger and in the books: a file was delivered under a
/// loan that both have, and a returned loan is live in neither.
fn check_acknowledged(evidence: &Evidence) {
    let text = |value: &serde_json::Value, name: &str| value[name].as_str().map(str::to_owned);
    let mut ledger = BTreeMap::<_, Vec<_>>::new();
    for loan in &evidence.ledger {
        let key = (text(loan, "borrower").unwrap(), text(loan, "isbn").unwrap());
        ledger.entry(key).or_default().push(loan);
    }
    let live = |status: &str| ["PENDING", "ACCEPTED"].contains(&status);
    let mut books = BTreeMap::<_, Vec<_>>::new();
    for loan in &evidence.books {
        let key = (text(loan, "borrower").unwrap(), text(loan, "isbn").unwrap());
        books.entry(key).or_default().push(loan);
    }
    let mut lost = Vec::new();
    let (mut reads, mut returns) = (0, 0);
    for exchange in evidence.exchanges.iter().filter(|exchange| exchange.is_ok()) {
        let (here, there) = (ledger.get(&exchange.key), books.get(&exchange.key));
        let (here, there) = (here.into_iter().flatten(), there.into_iter().flatten());
        let is_stored = match exchange.kind {
            Kind::Read | Kind::Begin => {
                reads += 1;
                let ids: BTreeSet<_> = here.filter_map(|loan| text(loan, "lending_id")).collect();
                there
                    .filter(|loan| loan["accepted"].is_string())
                    .any(|loan| text(loan, "loanId").is_some_and(|id| ids.contains(&id)))
            }
            Kind::Return => {
                returns += 1;
                here.clone().all(|loan| loan["state"] == "ended")
                    && !there.clone().any(|loan| live(loan["status"].as_str().unwrap()))
                    && here.count() > 0
            }
        };
        if !is_stored {
            lost.push(exchange);
        }
    }
    println!("acknowledged: {reads} reads under {} loans, {returns} returns", ledger.len());
    assert!(lost.is_empty(), "{} acknowledged outcomes are lost: {lost:#?}", lost.len());
}
