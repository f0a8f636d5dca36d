//! Compares the database's clock with this machine's, and warns of a difference.
//!
//! Only the keeper calls it, with the time in the response to each join and renewal.

use std::time::Duration;

use jiff::Timestamp;

use super::Keeper;
use crate::telemetry::LogLimit;

/// From this difference on, an operator should set one of the clocks.
const WARNING_DIFFERENCE: Duration = Duration::from_secs(1);

impl<T> Keeper<T> {
    pub(super) fn compare_clocks(&self, sent: Timestamp, database: Timestamp) {
        static LIMIT: LogLimit = LogLimit::per_minute();
        let difference = self.standing.compare_clocks(sent, database, self.clock.machine_now());
        self.metrics.ledger_clock(difference.seconds());
        if difference.amount() <= WARNING_DIFFERENCE {
            return;
        }
        let Some(_) = LIMIT.permit("clock") else { return };
        let seconds = difference.seconds();
        if difference.is_too_large() {
            tracing::error!(
                seconds,
                "the clocks of this machine and of the database differ by more than 10 s; no loan \
                 is begun or expires until one of them is set"
            );
        } else {
            tracing::warn!(
                seconds,
                "the clocks of this machine and of the database differ; synchronize them"
            );
        }
    }
}
