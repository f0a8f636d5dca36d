//! What every transaction of this process uses, and the time of its changes.
//!
//! `open` creates it, and all executors share it.

use std::sync::Arc;

use jiff::Timestamp;

use crate::clock::{self, Clock};
use crate::ledger::audit::AuditKey;
use crate::ledger::brake::Brake;
use crate::ledger::membership::Membership;
use crate::reload::Current;
use crate::telemetry::Metrics;

/// What every transaction of this process uses.
pub(in crate::ledger) struct ExecutorContext {
    pub(in crate::ledger) clock: Clock,
    pub(in crate::ledger) metrics: Metrics,
    pub(in crate::ledger) membership: Arc<dyn Membership>,
    pub(in crate::ledger) brake: Current<Brake>,
    pub(in crate::ledger) audit_key: AuditKey,
    /// The name of the ledger, for the log.
    pub(in crate::ledger) ledger: String,
}

impl ExecutorContext {
    /// Returns the time of a change: the later of this machine's clock and the database's. An end
    /// then bars every credential that was issued before it, by whichever clock (invariant 7).
    pub(in crate::ledger) fn now(&self) -> Timestamp {
        clock::after(self.clock.now(), self.membership.clock_lag())
    }
}
