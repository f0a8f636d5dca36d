//! Metrics of the ledger and of the counts of delivered bytes that are written to it.

use std::sync::Arc;
use std::time::Duration;

use metrics::Unit;

use super::Metrics;
use super::family::{Definition, Family};
use super::label::label_enum;
use crate::lock::lock;

/// Returns whether this process holds its lease.
pub(super) type LeaseProbe = Arc<dyn Fn() -> bool + Send + Sync>;

const FLUSHES: Family<FlushOutcome> = Family::counter(
    "loangate_metering_flushes_total",
    Unit::Count,
    "Writes of delivery counts to the ledger, by outcome",
);
const COMMANDS: Family<()> = Family::counter(
    "loangate_ledger_commands_total",
    Unit::Count,
    "Commands committed by the ledger",
);
const COMMIT: Family<()> =
    Family::histogram("loangate_ledger_commit_seconds", "Duration of a commit of the ledger");
const FAILURES: Family<()> = Family::counter(
    "loangate_ledger_failures_total",
    Unit::Count,
    "Failed transactions of the ledger",
);
pub(super) const WRITABLE: Family<()> = Family::gauge(
    "loangate_ledger_writable",
    Unit::Count,
    "0 while the ledger cannot be written, by the last write or /readyz: an alarm",
);
const DAMAGED_ROWS: Family<()> = Family::gauge(
    "loangate_ledger_damaged_rows",
    Unit::Count,
    "Damaged rows of the ledger, which are skipped",
);
pub(super) const MEMBERS: Family<()> = Family::gauge(
    "loangate_ledger_members",
    Unit::Count,
    "Live processes on a PostgreSQL ledger, this one included",
);
pub(super) const LEASE: Family<()> = Family::gauge(
    "loangate_ledger_lease_held",
    Unit::Count,
    "0 while this process holds no lease of a PostgreSQL ledger and begins no loan: an alarm",
);
pub(super) const FENCED: Family<FencedMember> = Family::counter(
    "loangate_ledger_members_fenced_total",
    Unit::Count,
    "Processes declared dead because they did not renew their lease, by whether it was this one",
);
pub(super) const CLOCK: Family<()> = Family::gauge(
    "loangate_ledger_clock_ahead_seconds",
    Unit::Seconds,
    "Certain lead of a PostgreSQL ledger's clock over this machine's: an alarm from 1",
);

const REQUESTS: Family<RequestStorage> = Family::counter(
    "loangate_stored_requests_total",
    Unit::Count,
    "Requests for the ledger, if server.store_requests is set, by whether they were stored",
);

pub(super) const DEFINITIONS: [Definition; 11] = [
    FLUSHES.definition,
    COMMANDS.definition,
    COMMIT.definition,
    FAILURES.definition,
    WRITABLE.definition,
    DAMAGED_ROWS.definition,
    MEMBERS.definition,
    LEASE.definition,
    FENCED.definition,
    CLOCK.definition,
    REQUESTS.definition,
];

label_enum! {
    /// The result of a write of delivery counts.
    pub enum FlushOutcome: "outcome" {
        /// The ledger has the counts.
        Written = "written",
        /// The counts wait for the next write.
        Failed = "failed",
    }
}

label_enum! {
    /// What became of a request that support may look for.
    pub enum RequestStorage: "outcome" {
        /// It is in the ledger.
        Stored = "stored",
        /// It was left out: there were too many.
        Dropped = "dropped",
    }
}

label_enum! {
    /// Which process was declared dead.
    pub enum FencedMember: "member" {
        /// This one, by another process.
        Own = "own",
        /// Another one, by this process.
        Other = "other",
    }
}

impl Metrics {
    /// Counts a write of delivery counts to the ledger.
    pub fn metering_flush(&self, outcome: FlushOutcome) {
        self.count(&FLUSHES, outcome);
    }

    /// Counts requests that were stored, or were too many to be stored.
    pub fn requests_stored(&self, outcome: RequestStorage, count: u64) {
        if count > 0 {
            self.inner.registry.counter(&REQUESTS, outcome).increment(count);
        }
    }

    /// Records a commit of the ledger: the number of commands and the duration.
    pub fn ledger_batch(&self, commands: usize, duration: Duration) {
        let commands = u64::try_from(commands).unwrap_or(u64::MAX);
        self.inner.registry.counter(&COMMANDS, ()).increment(commands);
        self.record_duration(&COMMIT, (), duration);
    }

    /// Records a failed transaction of the ledger.
    pub fn ledger_failed(&self) {
        self.count(&FAILURES, ());
    }

    /// Records how many rows of the ledger cannot be read.
    pub fn ledger_damaged_rows(&self, rows: usize) {
        self.set(&DAMAGED_ROWS, (), f64::from(u32::try_from(rows).unwrap_or(u32::MAX)));
    }

    /// Records whether the ledger can be written.
    pub fn ledger_writable(&self, writable: bool) {
        self.set(&WRITABLE, (), if writable { 1.0 } else { 0.0 });
    }

    /// Records the number of live processes on the ledger.
    pub fn members(&self, live: usize) {
        self.set(&MEMBERS, (), f64::from(u32::try_from(live).unwrap_or(u32::MAX)));
    }

    /// Sets how each reading of the metrics finds out whether this process holds its lease. A lease
    /// expires without any event.
    pub fn watch_lease(&self, is_held: impl Fn() -> bool + Send + Sync + 'static) {
        *lock(&self.inner.lease) = Some(Arc::new(is_held));
    }

    /// Records whether this process holds its lease.
    pub(super) fn read_lease(&self) {
        let is_held = lock(&self.inner.lease).clone();
        if let Some(is_held) = is_held {
            self.set(&LEASE, (), if is_held() { 1.0 } else { 0.0 });
        }
    }

    /// Counts a process that was declared dead.
    pub fn member_fenced(&self, member: FencedMember) {
        self.count(&FENCED, member);
    }

    /// Records by how many seconds the clock of the database is ahead of this machine's.
    pub fn ledger_clock(&self, ahead: f64) {
        self.set(&CLOCK, (), ahead);
    }
}
