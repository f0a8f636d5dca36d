//! The three deployments, the machines they use, and what people do.

/// A group of libraries and their borrowers.
pub(crate) struct Deployment {
    pub(crate) name: &'static str,
    pub(crate) people: f64,
    pub(crate) libraries: usize,
    /// The part of the people in each region. A library lives in one region.
    pub(crate) regions: &'static [f64],
}

pub(crate) const DEPLOYMENTS: [Deployment; 3] = [
    Deployment { name: "Norway", people: 5.5e6, libraries: 357, regions: &[1.0] },
    Deployment { name: "Nordic", people: 28e6, libraries: 1_250, regions: &[1.0] },
    Deployment {
        name: "Every library",
        people: 1e9,
        libraries: 100_000,
        regions: &[0.2, 0.18, 0.15, 0.13, 0.1, 0.1, 0.08, 0.06],
    },
];

/// Sizes of libraries follow Zipf's law with this exponent. Norway's largest then has one loan in
/// 12.
pub(crate) const LIBRARY_EXPONENT: f64 = 0.8;
/// Number of titles, and the exponent of their popularity.
pub(crate) const TITLES: usize = 200_000;
pub(crate) const TITLE_EXPONENT: f64 = 0.9;

/// Loans of each inhabitant in a year. Few countries reach this, so the tables are upper bounds.
pub(crate) const LOANS_PER_YEAR: f64 = 10.0;

/// How a loan is read.
pub(crate) struct Kind {
    /// Least and most sessions of a reader who reads to the end.
    pub(crate) sessions: (u32, u32),
    /// Mean days between sessions.
    pub(crate) gap: f64,
    pub(crate) requests: u32,
    /// Seconds between two requests of a session. The connection stays open.
    pub(crate) pace: f64,
    /// Bytes of a request.
    pub(crate) bytes: f64,
    /// Days until the loan is due.
    pub(crate) days: u64,
}

/// Half of all loans: ten hours at 64 kbit/s, streamed in parts of half a minute, for 30 minutes.
pub(crate) const AUDIOBOOK: Kind =
    Kind { sessions: (4, 22), gap: 1.1, requests: 60, pace: 30.0, bytes: 240e3, days: 21 };
/// The other half: chapters and pictures of an EPUB, over 20 minutes.
pub(crate) const E_BOOK: Kind =
    Kind { sessions: (2, 10), gap: 1.5, requests: 15, pace: 80.0, bytes: 60e3, days: 28 };
pub(crate) const AUDIOBOOKS: f64 = 0.5;
/// The part of readers who return a book that they have finished. The others' loans expire.
pub(crate) const RETURNED: f64 = 0.5;

/// One machine of each kind. Use beyond `BUDGET` is kept for failures and growth.
pub(crate) const BUDGET: f64 = 0.6;
pub(crate) const GATE_CORES: usize = 4;
pub(crate) const GATE_BITS: f64 = 10e9;
/// `limits.connections`: ten times its default.
pub(crate) const GATE_CONNECTIONS: f64 = 100_000.0;
pub(crate) const DATABASE_CORES: usize = 8;
/// The largest database that is restored, vacuumed and moved in a few hours.
pub(crate) const SHARD_BYTES: f64 = 2e12;
/// Days that a loan stays in the ledger after its end, until `ledger prune`.
pub(crate) const KEPT_DAYS: f64 = 400.0;
/// Connections of a gate to the database, and connections that PgBouncer opens at one server.
pub(crate) const NODE_CONNECTIONS: usize = 20;
pub(crate) const SERVER_CONNECTIONS: usize = 100;
/// `lending.concurrency`, of one gate.
pub(crate) const LENDING_CALLS: usize = 32;
/// `metering.flush`, in seconds.
pub(crate) const METERING_FLUSH: u64 = 5;

/// Prices for a month, in euros. Only their order matters; put in your own.
pub(crate) const GATE_PRICE: f64 = 150.0;
/// A primary with one synchronous standby, without disks.
pub(crate) const DATABASE_PRICE: f64 = 1_000.0;
/// Fast disks for primary, standby and backup, for each TB of ledger.
pub(crate) const STORAGE_PRICE: f64 = 300.0;
/// Each TB that leaves the region.
pub(crate) const TRAFFIC_PRICE: f64 = 5.0;
