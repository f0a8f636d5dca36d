//! Counts the ends that wait, for metrics and the log.

use crate::circulation::{Circulation, log_ledger_failure};
use crate::clock;
use crate::loan::OVERDUE_AFTER;

/// Counts the waiting ends and the overdue ones, and reports both.
pub(super) async fn count_ends(circulation: &Circulation) {
    let inner = &circulation.inner;
    let counted = inner.ledger.count_ends(clock::before(inner.clock.now(), OVERDUE_AFTER)).await;
    match counted {
        Ok((waiting, overdue)) => {
            inner.metrics.ends_waiting(waiting, overdue);
            if overdue > 0 {
                tracing::error!(
                    overdue,
                    "Bokbasen has not acknowledged ends of loans for a day; \
                     `loangate loans list --state ending` lists them"
                );
            }
        }
        Err(error) => log_ledger_failure("counting the ends that wait", &error),
    }
}
