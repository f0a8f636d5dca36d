//! The database fails: readers with a loan read on, others get a clear 503, and no end is sent
//! while a gate may still open its loan.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::cluster::{Cluster, ClusterReader, Exchange, Plan, PostgresStore, Store};
use crate::support::{AUDIO, BOOK};

const GATES: usize = 2;
/// Readers with a loan, and simultaneous requests of others.
const READERS: usize = 8;
/// Time for which the database is down, unless `LOANGATE_OUTAGE_SECONDS` sets it. At most 50 s:
/// cached loans are valid for `gate.freshness`.
const OUTAGE: Duration = Duration::from_secs(6);
const FRESHNESS: Duration = Duration::from_secs(60);
/// Time within which a request that needs the database fails: 2 s, and the delays of a machine that
/// is busy with other tests.
const FAILS_WITHIN: Duration = Duration::from_secs(4);
/// Time after the database's return within which all is normal: 5 s on an idle machine.
const RECOVERS_WITHIN: Duration = Duration::from_secs(30);
const REQUEST_INTERVAL: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_database_spares_readers_with_a_loan() {
    let down = async |store: &PostgresStore| store.server.stop().await;
    let up = async |store: &PostgresStore| store.server.restart().await;
    outage_spares_readers_with_a_loan(down, up).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_database_spares_readers_with_a_loan() {
    let down = async |store: &PostgresStore| store.server.pause();
    let up = async |store: &PostgresStore| store.server.resume();
    outage_spares_readers_with_a_loan(down, up).await;
}

async fn outage_spares_readers_with_a_loan(
    down: impl AsyncFn(&PostgresStore),
    up: impl AsyncFn(&PostgresStore),
) {
    let seconds = std::env::var("LOANGATE_OUTAGE_SECONDS").ok();
    let outage = seconds.map_or(OUTAGE, |text| Duration::from_secs(text.parse().unwrap()));
    let plan = Plan { freshness: FRESHNESS, ..Plan::new(GATES, Store::Postgres) };
    let Some(cluster) = Cluster::start(plan).await else { return };
    let store = cluster.store.postgres().unwrap();
    let cached: Vec<_> =
        (0..READERS).map(|number| cluster.reader(&format!("cached-{number}"), BOOK)).collect();
    for reader in &cached {
        for gate in &cluster.gates {
            assert!(cluster.read(gate, reader).await.is_ok());
        }
    }
    let mut reading = JoinSet::new();
    down(store).await;
    let (began, until) = (Instant::now(), Instant::now() + outage);
    for reader in cached {
        reading.spawn(read_until(Arc::clone(&cluster), reader, until));
    }
    let mut slowest = Duration::ZERO;
    for round in 0.. {
        if Instant::now() > until {
            break;
        }
        let others = (0..READERS).map(|number| {
            let reader = cluster.reader(&format!("other-{round}-{number}"), AUDIO);
            let cluster = &cluster;
            async move {
                let sent = Instant::now();
                let refused = cluster.read(&cluster.gates[number % GATES], &reader).await;
                assert_eq!(refused.status, Some(StatusCode::SERVICE_UNAVAILABLE), "{refused:?}");
                assert_eq!(refused.problem, "ledger-unavailable", "{refused:?}");
                sent.elapsed()
            }
        });
        let times = futures_util::future::join_all(others).await;
        slowest = times.into_iter().max().unwrap().max(slowest);
    }
    for exchange in reading.join_all().await.into_iter().flatten() {
        assert!(exchange.is_ok(), "a reader with a loan: {exchange:?}");
    }
    println!("an outage of {:?}: the slowest 503 took {slowest:?}", began.elapsed());
    assert!(slowest < FAILS_WITHIN, "{slowest:?}");
    up(store).await;
    let returned = Instant::now();
    for gate in &cluster.gates {
        let reader = cluster.reader(&format!("after-{}", gate.number), AUDIO);
        while !cluster.read(gate, &reader).await.is_ok() {
            assert!(returned.elapsed() < RECOVERS_WITHIN, "gate {} does not recover", gate.number);
            sleep(REQUEST_INTERVAL).await;
        }
    }
    println!("both gates begin loans {:?} after the database's return", returned.elapsed());
    cluster.end().await;
}

/// Requests a reader's file again and again at all gates.
async fn read_until(
    cluster: Arc<Cluster>,
    reader: Arc<ClusterReader>,
    until: Instant,
) -> Vec<Exchange> {
    let mut exchanges = Vec::new();
    while Instant::now() < until {
        for gate in &cluster.gates {
            exchanges.push(cluster.read(gate, &reader).await);
        }
        sleep(REQUEST_INTERVAL).await;
    }
    exchanges
}

/// Gates and their database may start in any order. Meanwhile the gate says what it waits for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gate_waits_for_the_database_at_its_start() {
    let Some(cluster) = Cluster::start(Plan::new(1, Store::Postgres)).await else { return };
    let (gate, store) = (&cluster.gates[0], cluster.store.postgres().unwrap());
    gate.kill();
    store.server.stop().await;
    // A fixed address, since the gate reports its addresses only once it is ready.
    let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = std::fs::read_to_string(&gate.config).unwrap();
    let fixed = config.replace("admin = \"127.0.0.1:0\"", &format!("admin = \"{admin}\""));
    assert_ne!(fixed, config);
    std::fs::write(&gate.config, fixed).unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let reported = async {
        let answer = loop {
            match client.get(format!("http://{admin}/readyz")).send().await {
                Ok(answer) => break answer,
                Err(_) => sleep(REQUEST_INTERVAL).await,
            }
        };
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.text().await.unwrap().contains("the gate waits for it"));
        store.server.restart().await;
    };
    tokio::join!(gate.restart(), reported);
    assert!(cluster.read(gate, &cluster.reader("kari", BOOK)).await.is_ok());
    cluster.end().await;
}

/// A gate without the database serves what it has cached. An end must wait for it, although it has
/// lost its lease long before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_waits_for_a_gate_without_the_database() {
    let plan = Plan { freshness: Duration::from_secs(8), ..Plan::new(GATES, Store::Postgres) };
    let Some(cluster) = Cluster::start(plan).await else { return };
    let link = &cluster.store.postgres().unwrap().links[1];
    let reader = cluster.reader("kari", BOOK);
    for gate in &cluster.gates {
        assert!(cluster.read(gate, &reader).await.is_ok());
    }
    link.refuse(true);
    link.abort();
    let returned = cluster.return_loan(&cluster.gates[0], &reader).await;
    assert_eq!(returned.status, Some(StatusCode::NO_CONTENT), "{returned:?}");
    let since = Instant::now();
    let mut served = 0;
    // The judge compares the times of these requests with the end in the books.
    while cluster.scene.books().await[0]["ended"].is_null() {
        served += usize::from(cluster.read(&cluster.gates[1], &reader).await.is_ok());
        assert!(since.elapsed() < Duration::from_secs(90), "the end is not sent");
        sleep(REQUEST_INTERVAL).await;
    }
    println!("served {served} times from the cache; the end was sent after {:?}", since.elapsed());
    assert!(served > 0, "the gate had cached nothing");
    let after = cluster.read(&cluster.gates[1], &reader).await;
    assert!(!after.is_ok(), "{after:?}");
    cluster.end().await;
}
