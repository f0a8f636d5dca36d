//! A gate whose ledger was moved delivers nothing more, and its process ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use loangate::clock::Clock;
use loangate::config::{self, Config};
use loangate::ledger::{self, AuditKey, Keys, StoreSettings};
use loangate::reader::Readers;
use sqlx::Executor;
use tokio::time::{sleep, timeout};

use crate::support::cluster::{Cluster, ClusterReader, Plan, Store};
use crate::support::{AUDIO, File};

const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Larger than all buffers between the origin and a reader who does not read.
const FILE_SIZE: u64 = 1 << 30;

/// Opens a stream, of which the reader reads nothing yet.
async fn open_stream(cluster: &Cluster, reader: &ClusterReader) -> reqwest::Response {
    cluster.scene.origin.put(&format!("{AUDIO}/stream.mp3"), File::of(FILE_SIZE));
    let url = format!("{}/files/{AUDIO}/stream.mp3", cluster.gates[0].base());
    let request = cluster.scene.http1().get(url).bearer_auth(&reader.token);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    response
}

/// Reads the stream to its end, which must be early.
async fn assert_aborted(mut stream: reqwest::Response) {
    let mut received = 0;
    let reading = async {
        while let Ok(Some(chunk)) = stream.chunk().await {
            received += chunk.len() as u64;
        }
    };
    timeout(PATIENCE, reading).await.expect("the stream ends");
    assert!(received < FILE_SIZE, "the whole file was delivered");
}

/// Starts a gate that would deliver this long without its ledger.
async fn start(freshness: Duration) -> Option<(Arc<Cluster>, Arc<ClusterReader>)> {
    let plan = Plan { freshness, ..Plan::new(1, Store::Postgres) };
    let cluster = Cluster::start(plan).await?;
    let reader = cluster.reader("kari", AUDIO);
    Some((cluster, reader))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gate_that_was_suspended_during_a_copy_ends() {
    // The copy waits for as long as the gate could deliver.
    let Some((cluster, reader)) = start(Duration::from_secs(10)).await else { return };
    let stream = open_stream(&cluster, &reader).await;
    let gate = &cluster.gates[0];
    gate.pause();
    let Config { ledger, readers, .. } = config::load(&gate.config).unwrap().config;
    let readers = Readers::new(&readers, Clock::system()).unwrap();
    let audit = AuditKey::new(&readers.audit_key());
    let keys = Keys { fingerprint: readers.key_fingerprint(), audit };
    let file = cluster.scene.dir.path().join("there.db");
    let to = StoreSettings::Sqlite(file.clone());
    let now = Clock::system().now();
    ledger::copy(&ledger.store, &to, &keys, now, &mut |_| {}).await.unwrap();
    gate.resume();
    let (status, log) = gate.exit().await;
    assert_eq!(status.code(), Some(1), "{log}");
    let sentence = format!("the ledger was moved to {}, which", file.display());
    assert!(log.lines().last().is_some_and(|line| line.starts_with(&sentence)), "{log}");
    assert_aborted(stream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gate_of_a_moved_ledger_delivers_nothing() {
    let Some((cluster, reader)) = start(5 * PATIENCE).await else { return };
    let gate = &cluster.gates[0];
    // In this process, nothing ends it.
    gate.replace(config::load(&gate.config).unwrap()).await;
    let stream = open_stream(&cluster, &reader).await;
    assert!(cluster.read(gate, &reader).await.is_ok());
    let mut connection = cluster.store.postgres().unwrap().database.connect().await;
    let moved = "INSERT INTO meta VALUES ('moved', ''); UPDATE members SET fenced = 1";
    connection.execute(moved).await.unwrap();
    let began = Instant::now();
    while !gate.readiness().await.contains("The ledger was moved") {
        assert!(began.elapsed() < PATIENCE, "{}", gate.readiness().await);
        sleep(POLL_INTERVAL).await;
    }
    while gate.metric("loangate_streams", "").await > 0.0 {
        assert!(began.elapsed() < PATIENCE, "a stream continues");
        sleep(POLL_INTERVAL).await;
    }
    assert_aborted(stream).await;
    let refused = cluster.read(gate, &reader).await;
    assert_eq!(refused.problem, "ledger-unavailable", "{refused:?}");
    gate.abort().await;
}
