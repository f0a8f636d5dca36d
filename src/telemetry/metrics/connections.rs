//! Metrics of readers' connections and of the buffers that their streams share.

use metrics::{Counter, Gauge, SharedString, Unit};

use super::Metrics;
use super::family::{CounterPer, Definition, Family, Registry};
use super::label::{Label, LabelValues, label_enum};

const HANDSHAKES: Family<Handshake> =
    Family::counter("loangate_handshakes_total", Unit::Count, "TLS handshakes, by outcome");
const CONNECTIONS_TOTAL: Family<()> = Family::counter(
    "loangate_connections_total",
    Unit::Count,
    "Connections with a successful handshake",
);
pub(super) const CONNECTIONS: Family<Worker> =
    Family::gauge("loangate_connections", Unit::Count, "Open connections, by worker thread");
const CONNECTIONS_LIMIT: Family<()> = Family::gauge(
    "loangate_connections_limit",
    Unit::Count,
    "Connections that may be open: limits.connections, or what the file descriptors allow",
);
const LIMIT_REACHED: Family<Limit> = Family::counter(
    "loangate_limit_reached_total",
    Unit::Count,
    "Connections that reached a limit in [limits], by limit",
);
const BUFFERS_HELD: Family<()> = Family::gauge(
    "loangate_buffers_held_bytes",
    Unit::Bytes,
    "Buffer memory that streams hold beyond their minimum",
);
const BUFFERS: Family<()> = Family::gauge(
    "loangate_buffers_bytes",
    Unit::Bytes,
    "Buffer memory that all streams may hold (server.buffers)",
);

pub(super) const DEFINITIONS: [Definition; 7] = [
    HANDSHAKES.definition,
    CONNECTIONS_TOTAL.definition,
    CONNECTIONS.definition,
    CONNECTIONS_LIMIT.definition,
    LIMIT_REACHED.definition,
    BUFFERS_HELD.definition,
    BUFFERS.definition,
];

label_enum! {
    /// The result of a TLS handshake.
    pub enum Handshake: "outcome" {
        /// The connection is open.
        Ok = "ok",
        /// A certificate authority has validated a name, and the connection is closed.
        Challenge = "challenge",
        /// The client failed, or a limit was reached.
        Failed = "failed",
    }
}

label_enum! {
    /// A limit that a connection reached. The name is the key in `[limits]`, if there is one.
    pub enum Limit: "limit" {
        /// Open connections of all readers.
        Connections = "connections",
        /// Connections from one address without accepted credentials.
        ConnectionsPerAddress = "connections_per_address",
        /// The time of the TLS handshake.
        Handshake = "handshake",
        /// The time of the HTTP/2 preface.
        Preface = "preface",
        /// The time of a request's head.
        Head = "head",
        /// The time of a request's body.
        Body = "body",
        /// The time between requests.
        Idle = "idle",
        /// The time without progress on a response that is not a file.
        Send = "send",
        /// The number of requests on one connection.
        Requests = "requests_per_connection",
        /// The age of a connection.
        Age = "connection_age",
        /// The rate of streams that a client resets.
        H2Resets = "h2_resets_per_minute",
        /// The budget of HTTP/2 frames that do no work.
        H2Frames = "h2_frames",
    }
}

/// The number of a worker thread.
pub(super) struct Worker(usize);

impl Label for Worker {
    const KEY: &'static str = "worker";

    fn values() -> LabelValues {
        LabelValues::Configured("the number of a worker thread, from 0")
    }

    fn value(&self) -> SharedString {
        SharedString::from_owned(self.0.to_string())
    }
}

/// The handles that each connection uses.
pub(super) struct Handles {
    handshakes: CounterPer<Handshake>,
    connections: Counter,
}

impl Handles {
    pub(super) fn new(registry: &Registry) -> Handles {
        Handles {
            handshakes: CounterPer::new(|outcome| registry.counter(&HANDSHAKES, outcome)),
            connections: registry.counter(&CONNECTIONS_TOTAL, ()),
        }
    }
}

impl Metrics {
    /// Counts a TLS handshake.
    pub fn handshake(&self, outcome: Handshake) {
        self.inner.connections.handshakes.increment(outcome);
    }

    /// Records an opened connection of this worker.
    pub fn connection_opened(&self, worker: usize) {
        self.inner.connections.connections.increment(1);
        self.open_connections(worker).increment(1.0);
    }

    /// Records a closed connection of this worker.
    pub fn connection_closed(&self, worker: usize) {
        self.open_connections(worker).decrement(1.0);
    }

    fn open_connections(&self, worker: usize) -> Gauge {
        self.inner.registry.gauge(&CONNECTIONS, Worker(worker))
    }

    /// Counts a connection that reached this limit.
    pub fn limit_reached(&self, limit: Limit) {
        self.count(&LIMIT_REACHED, limit);
    }

    /// Records how many connections may be open.
    pub fn connections_limit(&self, limit: usize) {
        self.set(&CONNECTIONS_LIMIT, (), limit as f64);
    }

    /// Records the buffer bytes that streams hold, and the bytes that they may hold together.
    pub fn buffers(&self, held: usize, total: usize) {
        self.set(&BUFFERS_HELD, (), held as f64);
        self.set(&BUFFERS, (), total as f64);
    }
}
