//! Loans that expire at once: all gates share the work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use sqlx::Executor;

use crate::support::BOOK;
use crate::support::cluster::{Cluster, Plan, Store};

const GATES: usize = 2;
/// Loans that expire, unless `LOANGATE_EXPIRIES` sets their number.
const LOANS: usize = 1_000;
const CONCURRENT_BEGINS: usize = 32;
/// Time for all ends, on a machine that is busy with other tests.
const ENDS_WITHIN: Duration = Duration::from_secs(180);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gates_share_simultaneous_expiries() {
    let number = std::env::var("LOANGATE_EXPIRIES").ok();
    let loans = number.map_or(LOANS, |text| text.parse().unwrap());
    let Some(cluster) = Cluster::start(Plan::new(GATES, Store::Postgres)).await else { return };
    futures_util::stream::iter(0..loans)
        .for_each_concurrent(CONCURRENT_BEGINS, |number| begin(Arc::clone(&cluster), number))
        .await;
    let ended = async |number: usize| {
        cluster.gates[number].metric("loangate_loan_events_total", "event=\"ending\"").await
    };
    let mut database = cluster.store.postgres().unwrap().database.connect().await;
    // All become due at this moment, as a sandbox of days-long loans does not let them.
    let due = "UPDATE loans SET due = (extract(epoch FROM now()) * 1000)::bigint + 1000";
    database.execute(due).await.unwrap();
    let since = Instant::now();
    while ended(0).await + ended(1).await < loans as f64 {
        assert!(since.elapsed() < ENDS_WITHIN, "{} and {}", ended(0).await, ended(1).await);
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let share = ended(0).await / loans as f64;
    println!("{loans} expiries took {:?}; one gate had {share:.2} of them", since.elapsed());
    assert!((0.4..=0.6).contains(&share), "{share}");
    cluster.heal().await;
    cluster.settle().await;
    let findings = cluster.evidence().await.findings();
    assert!(findings.is_empty(), "{findings:#?}");
}

async fn begin(cluster: Arc<Cluster>, number: usize) {
    let reader = cluster.reader(&format!("borrower-{number}"), BOOK);
    while !cluster.begin(&cluster.gates[number % GATES], &reader).await.is_ok() {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
