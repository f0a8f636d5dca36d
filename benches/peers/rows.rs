//! The measured rows: name, unit, limit relative to a peer, and load.

use std::time::Duration;

use http::Version;

use crate::shared::load::{Client, Crowd, Target};
use crate::shared::{Waits, cost};

/// Number of idle connections during the memory measurement.
const IDLE: usize = 2000;
/// Requests per second of the row with a fixed rate, and its duration.
const RATE: u32 = 2000;
const DURING: Duration = Duration::from_secs(4);

/// The load and the figure of a row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Load {
    /// CPU per request, in microseconds: file size, number of requests.
    Requests(u64, usize, Crowd),
    /// CPU per gigabyte, in seconds: number of 100 MiB files.
    Bytes(usize, Crowd),
    /// CPU per full handshake, in milliseconds.
    Handshakes(usize),
    /// CPU per resumed session with one request, in milliseconds.
    Resumptions(usize),
    /// CPU per request at a fixed rate, in microseconds.
    Rate,
    /// The 99th percentile of the same run's waits, in milliseconds.
    Wait,
    /// Memory per idle connection, in KiB.
    Idle(Version),
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) key: &'static str,
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) load: Load,
    /// Whether an access log file is written.
    pub(crate) lines: bool,
    /// Maximum ratio of the gate's cost to the cost of nginx and HAProxy, if the project sets one.
    pub(crate) bound: [Option<f64>; 2],
}

const fn crowd(version: Version, connections: usize, streams: usize) -> Crowd {
    Crowd { version, connections, streams }
}

const H1: Version = Version::HTTP_11;
const H2: Version = Version::HTTP_2;

pub(crate) const ROWS: [Row; 14] = [
    row(
        "1k-h1",
        "1 KiB, HTTP/1.1",
        "µs/request",
        Load::Requests(1 << 10, 24_000, crowd(H1, 32, 1)),
        [0.90, 0.95],
    ),
    row(
        "1k-h2",
        "1 KiB, HTTP/2",
        "µs/request",
        Load::Requests(1 << 10, 24_000, crowd(H2, 8, 8)),
        [0.90, 1.25],
    ),
    row(
        "64k-h1",
        "64 KiB, HTTP/1.1",
        "µs/request",
        Load::Requests(64 << 10, 10_000, crowd(H1, 32, 1)),
        [0.68, 0.68],
    ),
    row(
        "64k-h2",
        "64 KiB, HTTP/2",
        "µs/request",
        Load::Requests(64 << 10, 10_000, crowd(H2, 8, 4)),
        [0.72, 0.82],
    ),
    row("100m-h1", "100 MiB, HTTP/1.1", "s/GB", Load::Bytes(12, crowd(H1, 4, 1)), [0.66, 0.40]),
    row("100m-h2", "100 MiB, HTTP/2", "s/GB", Load::Bytes(12, crowd(H2, 4, 1)), [0.85, 0.60]),
    row("handshake", "full TLS handshake", "ms", Load::Handshakes(2000), [0.60, 0.55]),
    Row {
        bound: [None; 2],
        ..row(
            "resumed",
            "resumed TLS session, one request",
            "ms",
            Load::Resumptions(1500),
            [0.0; 2],
        )
    },
    row("rate", "1 KiB, HTTP/1.1, 2,000/s", "µs/request", Load::Rate, [1.05, 1.05]),
    row("wait", "the same: p99 of the wait", "ms", Load::Wait, [1.15, 1.2]),
    row("idle-h1", "idle TLS connection, HTTP/1.1", "KiB", Load::Idle(H1), [1.6, 1.7]),
    row("idle-h2", "idle TLS connection, HTTP/2", "KiB", Load::Idle(H2), [2.8, 2.4]),
    Row {
        bound: [None; 2],
        lines: true,
        ..row(
            "1k-h1-lines",
            "1 KiB, HTTP/1.1, access lines on",
            "µs/request",
            Load::Requests(1 << 10, 24_000, crowd(H1, 32, 1)),
            [0.0; 2],
        )
    },
    Row {
        bound: [None; 2],
        lines: true,
        ..row(
            "1k-h2-lines",
            "1 KiB, HTTP/2, access lines on",
            "µs/request",
            Load::Requests(1 << 10, 24_000, crowd(H2, 8, 8)),
            [0.0; 2],
        )
    },
];

const fn row(
    key: &'static str,
    name: &'static str,
    unit: &'static str,
    load: Load,
    bound: [f64; 2],
) -> Row {
    Row { key, name, unit, load, lines: false, bound: [Some(bound[0]), Some(bound[1])] }
}

impl Load {
    /// Returns whether the row needs a new process, since a used one would reuse memory.
    pub(crate) fn wants_new(self) -> bool {
        matches!(self, Load::Idle(_))
    }

    fn file(self) -> u64 {
        match self {
            Load::Requests(size, ..) => size,
            Load::Bytes(..) => 100 << 20,
            _ => 1 << 10,
        }
    }

    /// Applies the load to a proxy. Returns the figure of this row, and one of the next row if the
    /// same run yields it.
    pub(crate) async fn figures(
        self,
        client: &Client,
        to: &Target,
        process: u32,
    ) -> (f64, Option<f64>) {
        let size = self.file();
        let to = Target { path: format!("{}/{size}", to.path), size, ..to.clone() };
        let before = cost::cpu(process);
        let spent = || cost::cpu(process) - before;
        match self {
            Load::Requests(_, requests, crowd) => {
                client.closed(&to, crowd, requests).await;
                (spent() / sent(requests, crowd) * 1e6, None)
            }
            Load::Bytes(files, crowd) => {
                client.closed(&to, crowd, files).await;
                (spent() / (sent(files, crowd) * size as f64) * 1e9, None)
            }
            Load::Handshakes(count) => {
                client.handshakes(to.port, 4, count / 4).await;
                (spent() / count as f64 * 1e3, None)
            }
            Load::Resumptions(count) => {
                let resumed = client.resumptions(&to, 4, count / 4).await;
                assert!(
                    resumed * 10 >= count * 9,
                    "only {resumed} of {count} sessions were resumed"
                );
                (spent() / count as f64 * 1e3, None)
            }
            Load::Rate | Load::Wait => {
                let waits = client.at_rate(&to, crowd(H1, 50, 1), RATE, DURING).await;
                let each = spent() / waits.len() as f64 * 1e6;
                (each, Some(Waits::of(waits).at(0.99).as_secs_f64() * 1e3))
            }
            Load::Idle(version) => {
                // One connection first, so that costs per process do not count for a connection.
                drop(client.idle(&to, version, 20).await);
                let before = cost::memory(process);
                let open = client.idle(&to, version, IDLE).await;
                let after = cost::steady(process).await;
                drop(open);
                (after.saturating_sub(before) as f64 / IDLE as f64, None)
            }
        }
    }
}

/// Returns the number of requests that a crowd actually sends for this target number.
fn sent(requests: usize, crowd: Crowd) -> f64 {
    let lanes = crowd.connections * crowd.streams;
    (requests.div_ceil(lanes) * lanes) as f64
}
