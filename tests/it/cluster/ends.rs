//! A return at one gate ends streams and new requests at all others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::cluster::{Cluster, ClusterReader, Plan, Store};
use crate::support::{AUDIO, File};

const GATES: usize = 4;
const RETURNS: usize = 8;
/// Time after a return within which all access must stop, on a machine that is busy with other
/// tests. The printed times show what is usual.
const STOPS_WITHIN: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Time between two chunks of a stream, so that no stream reaches the end of its file.
const READ_INTERVAL: Duration = Duration::from_millis(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_return_ends_access_at_every_gate() {
    return_ends_access_at_every_gate(Store::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_return_ends_access_at_every_gate() {
    return_ends_access_at_every_gate(Store::Postgres).await;
}

async fn return_ends_access_at_every_gate(store: Store) {
    let Some(cluster) = Cluster::start(Plan::new(GATES, store)).await else { return };
    let (mut streams, mut requests) = (Vec::new(), Vec::new());
    for number in 0..RETURNS {
        let reader = cluster.reader(&format!("borrower-{number}"), AUDIO);
        cluster.scene.origin.put(&format!("{AUDIO}/stream.mp3"), File::of(1 << 30));
        let mut reading = JoinSet::new();
        for gate in &cluster.gates[1..] {
            open_stream(&cluster, &gate.base(), &reader, &mut reading).await;
        }
        let returned = cluster.return_loan(&cluster.gates[0], &reader).await;
        assert_eq!(returned.status, Some(StatusCode::NO_CONTENT), "{returned:?}");
        let since = Instant::now();
        let stopped = tokio::join!(
            streams_end(&cluster, since),
            requests_are_refused(&cluster, &reader, since),
            bokbasen_hears_last(&cluster, number, store),
        );
        streams.extend(stopped.0);
        requests.extend(stopped.1);
        reading.abort_all();
    }
    report("streams at other gates", streams);
    report("new requests at other gates", requests);
    cluster.end().await;
}

/// Starts a stream at a gate and reads it slowly in a task.
async fn open_stream(
    cluster: &Cluster,
    base: &str,
    reader: &ClusterReader,
    reading: &mut JoinSet<()>,
) {
    let request = cluster.scene.http1().get(format!("{base}/files/{AUDIO}/stream.mp3"));
    let mut body = request.bearer_auth(&reader.token).send().await.unwrap();
    assert_eq!(body.status(), StatusCode::OK);
    assert!(body.chunk().await.unwrap().is_some());
    reading.spawn(async move {
        while body.chunk().await.is_ok_and(|chunk| chunk.is_some()) {
            sleep(READ_INTERVAL).await;
        }
    });
}

/// Returns when the streams of each other gate had ended.
async fn streams_end(cluster: &Cluster, since: Instant) -> Vec<Duration> {
    let each = cluster.gates[1..].iter().map(async |gate| {
        while gate.metric("loangate_streams", "").await > 0.0 {
            assert!(since.elapsed() < STOPS_WITHIN, "gate {} streams a returned loan", gate.number);
            sleep(POLL_INTERVAL).await;
        }
        since.elapsed()
    });
    futures_util::future::join_all(each).await
}

/// Returns when each other gate refused a new request.
async fn requests_are_refused(
    cluster: &Arc<Cluster>,
    reader: &ClusterReader,
    since: Instant,
) -> Vec<Duration> {
    let each = cluster.gates[1..].iter().map(async |gate| {
        loop {
            let exchange = cluster.read(gate, reader).await;
            if exchange.problem == "loan-ended" {
                return since.elapsed();
            }
            assert!(since.elapsed() < STOPS_WITHIN, "a returned loan is open: {exchange:?}");
            sleep(POLL_INTERVAL).await;
        }
    });
    futures_util::future::join_all(each).await
}

/// Waits until Bokbasen has the end. By then, with PostgreSQL, no gate streams under the loan.
async fn bokbasen_hears_last(cluster: &Cluster, number: usize, store: Store) {
    let since = Instant::now();
    while cluster.scene.books().await[number]["ended"].is_null() {
        assert!(since.elapsed() < STOPS_WITHIN, "the end is not sent");
        sleep(POLL_INTERVAL).await;
    }
    if store == Store::Postgres {
        for gate in &cluster.gates {
            let streams = gate.metric("loangate_streams", "").await;
            assert_eq!(streams, 0.0, "gate {} streams after Bokbasen has the end", gate.number);
        }
    }
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let percentile = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "{what} ended {:?} (median), {:?} (p99) after a return; {} samples",
        percentile(50),
        percentile(99),
        times.len(),
    );
}
