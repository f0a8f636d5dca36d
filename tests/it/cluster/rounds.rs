//! Rounds of random faults under load, judged at the end.
//!
//! `LOANGATE_ROUNDS=500` runs more rounds, and `LOANGATE_TEST_SEED=…` repeats a run as far as the
//! timing of the processes permits:
//!
//! ```sh
//! LOANGATE_ROUNDS=500 cargo test --test it cluster::rounds -- --nocapture
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use loangate::sandbox::Bounds;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::faults::Fault;
use crate::support::cluster::{Cluster, ClusterReader, Exchange, Plan, Store};
use crate::support::{AUDIO, BOOK};

const GATES: usize = 4;
/// Rounds, unless `LOANGATE_ROUNDS` sets them. Four gates on one file are rare.
const SQLITE_ROUNDS: usize = 10;
const POSTGRES_ROUNDS: usize = 25;
/// New readers of a round. Half of them return their loans in the next round.
const READERS: usize = 6;
/// Requests of each reader in a round.
const REQUESTS: usize = 4;
/// The requests of a round are spread over this time.
const LOAD_TIME: Duration = Duration::from_millis(1500);
/// Shorter than the faults, so that gates also lose what they have cached.
const FRESHNESS: Duration = Duration::from_secs(3);
/// The longest time for which two loans of one key may be live: a begin that was delayed past its
/// lease is found by a query every 30 s, and then cancelled.
const DUPLICATE_BOUND: Duration = Duration::from_secs(35);
/// How long a gate without faults may need until it sees an end, on a busy machine.
const SEES_ENDS_WITHIN: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_rounds_of_faults_keep_the_books_clean() {
    rounds_of_faults_keep_the_books_clean(Store::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_rounds_of_faults_keep_the_books_clean() {
    rounds_of_faults_keep_the_books_clean(Store::Postgres).await;
}

async fn rounds_of_faults_keep_the_books_clean(store: Store) {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse().unwrap());
    let seed = number("LOANGATE_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    let usual = if store == Store::Sqlite { SQLITE_ROUNDS } else { POSTGRES_ROUNDS };
    let rounds = number("LOANGATE_ROUNDS").map_or(usual, |rounds| rounds.try_into().unwrap());
    println!("LOANGATE_TEST_SEED={seed} LOANGATE_ROUNDS={rounds}");
    let mut chance = fastrand::Rng::with_seed(seed);
    let bounds = Bounds {
        list_lag_ms: 60,
        post_bound_ms: 60,
        pending_polls: 1,
        pending_ms: 20,
        ..Bounds::quick()
    };
    let plan = Plan {
        bounds,
        freshness: FRESHNESS,
        duplicate_bound: DUPLICATE_BOUND,
        is_beside_others: true, // books and bounds are judged, and they take the longest
        ..Plan::new(GATES, store)
    };
    let Some(cluster) = Cluster::start(plan).await else { return };
    let began = Instant::now();
    let (mut returned, mut read_on) = (Vec::new(), Vec::new());
    let mut former: Vec<Arc<ClusterReader>> = Vec::new();
    for round in 0..rounds {
        let readers: Vec<_> = (0..READERS)
            .map(|number| {
                let isbn = if number % 2 == 0 { BOOK } else { AUDIO };
                cluster.reader(&format!("round-{round}-{number}"), isbn)
            })
            .collect();
        let returning: Vec<_> = former.drain(..READERS.min(former.len()) / 2).collect();
        read_on.append(&mut former);
        let faults: Vec<_> = (0..chance.usize(1..=2))
            .map(|_| Fault::draw(&mut chance, GATES, cluster.store.postgres().is_some()))
            .collect();
        println!("round {round}: {faults:?}");
        let delay = Duration::from_millis(chance.u64(..500));
        let load = load(&cluster, &readers, &returning, &mut chance);
        let inject = async {
            sleep(delay).await;
            for fault in &faults {
                fault.inject(&cluster).await;
            }
        };
        tokio::join!(load, inject);
        cluster.scene.no_faults().await;
        returned.extend(returning);
        former = readers;
    }
    read_on.append(&mut former);
    println!("{rounds} rounds took {:?}", began.elapsed());
    cluster.heal().await;
    cluster.settle().await;
    every_gate_agrees(&cluster, &returned, &read_on, &mut chance).await;
    let evidence = cluster.end().await;
    report(&evidence.exchanges, evidence.duplicates());
}

/// Sends the requests of a round: downloads at random gates, and returns with downloads after them.
async fn load(
    cluster: &Arc<Cluster>,
    readers: &[Arc<ClusterReader>],
    returning: &[Arc<ClusterReader>],
    chance: &mut fastrand::Rng,
) {
    let mut requests = JoinSet::new();
    for (reader, returns) in
        readers.iter().map(|reader| (reader, false)).chain(returning.iter().map(|one| (one, true)))
    {
        let mut chance = chance.fork();
        let (cluster, reader) = (Arc::clone(cluster), Arc::clone(reader));
        requests.spawn(async move {
            for number in 0..REQUESTS {
                let pause = LOAD_TIME / u32::try_from(REQUESTS).unwrap();
                sleep(pause.mul_f64(chance.f64())).await;
                let gate = cluster.any_gate(&mut chance);
                if returns && number == 0 {
                    cluster.return_loan(gate, &reader).await;
                } else {
                    cluster.read(gate, &reader).await;
                }
            }
        });
    }
    requests.join_all().await;
}

/// Without faults, each gate serves the readers with a loan and refuses those who returned it.
async fn every_gate_agrees(
    cluster: &Cluster,
    returned: &[Arc<ClusterReader>],
    read_on: &[Arc<ClusterReader>],
    chance: &mut fastrand::Rng,
) {
    for reader in returned {
        // The return may have failed in its round.
        let again = cluster.return_loan(cluster.any_gate(chance), reader).await;
        assert_eq!(again.status, Some(StatusCode::NO_CONTENT), "{again:?}");
    }
    cluster.settle().await;
    for gate in &cluster.gates {
        for reader in returned.iter().rev().take(READERS) {
            // The last return may be so recent that this gate has not read it yet.
            let deadline = Instant::now() + SEES_ENDS_WITHIN;
            loop {
                let read = cluster.read(gate, reader).await;
                if read.problem == "loan-ended" {
                    break;
                }
                assert!(Instant::now() < deadline, "{read:?}");
                sleep(POLL_INTERVAL).await;
            }
        }
        for reader in read_on.iter().rev().take(READERS) {
            let read = cluster.read(gate, reader).await;
            assert!(read.is_ok(), "{read:?}");
        }
    }
}

fn report(exchanges: &[Exchange], duplicates: (usize, Duration)) {
    let count =
        |holds: &dyn Fn(&Exchange) -> bool| exchanges.iter().filter(|one| holds(one)).count();
    println!(
        "{} requests: {} succeeded, {} got 503, {} got no response; {} duplicates were live, for \
         {:?} at most",
        exchanges.len(),
        count(&|one| one.is_ok()),
        count(&|one| one.status == Some(StatusCode::SERVICE_UNAVAILABLE)),
        count(&|one| one.status.is_none()),
        duplicates.0,
        duplicates.1,
    );
}
