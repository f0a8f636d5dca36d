//! Simultaneous first requests at all gates: one loan for each reader and title.

use std::collections::BTreeMap;
use std::sync::Arc;

use loangate::sandbox::Bounds;
use tokio::task::JoinSet;

use crate::support::cluster::{Cluster, Plan, Store};
use crate::support::{AUDIO, BOOK};

const GATES: usize = 4;
const BORROWERS: usize = 25;
/// Simultaneous requests for each pair of reader and title, spread over all gates.
const REQUESTS_PER_PAIR: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_gates_begin_each_loan_once() {
    first_requests_begin_each_loan_once(Store::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_gates_begin_each_loan_once() {
    first_requests_begin_each_loan_once(Store::Postgres).await;
}

async fn first_requests_begin_each_loan_once(store: Store) {
    let bounds = Bounds { pending_polls: 1, pending_ms: 20, ..Bounds::quick() };
    let plan = Plan { bounds, ..Plan::new(GATES, store) };
    let Some(cluster) = Cluster::start(plan).await else { return };
    let readers: Vec<_> = (0..BORROWERS)
        .flat_map(|number| [BOOK, AUDIO].map(|isbn| (number, isbn)))
        .map(|(number, isbn)| cluster.reader(&format!("borrower-{number}"), isbn))
        .collect();
    let mut requests = JoinSet::new();
    for attempt in 0..REQUESTS_PER_PAIR {
        for reader in &readers {
            let (cluster, reader) = (Arc::clone(&cluster), Arc::clone(reader));
            requests.spawn(async move {
                let gate = &cluster.gates[attempt % GATES];
                cluster.read_until_served(gate, &reader, &mut fastrand::Rng::new()).await
            });
        }
    }
    let first = requests.join_all().await;
    let mut outcomes = BTreeMap::<_, usize>::new();
    for exchange in &first {
        let status = exchange.status.map(|status| status.as_u16());
        *outcomes.entry((status, exchange.problem.as_str())).or_default() += 1;
    }
    println!("first requests by status and problem: {outcomes:?}");
    let evidence = cluster.end().await;
    assert_eq!(evidence.books.len(), readers.len(), "loans in the books");
}
