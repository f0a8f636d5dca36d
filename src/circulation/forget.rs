//! Forgetting who borrowed: `privacy.retention` after its end a loan's pseudonym is replaced by a random value.
//!
//! Runs in the background. What remains is a loan of a title by nobody: counts and the audit trail stay as they were.

use std::time::Duration;

use super::{Circulation, LOOK_AT_CLOCK, log_ledger_failure};
use crate::clock;

/// How many loans are forgotten in one go, and how long readers' own writes have the ledger before the next.
const BATCH: u32 = 500;
const BETWEEN: Duration = Duration::from_millis(200);

/// Forgets whose loans ended long ago, until the process stops.
pub(super) async fn forget_in_time(circulation: Circulation) {
    loop {
        let wait = match forget(&circulation).await {
            Ok(forgotten) if forgotten == u64::from(BATCH) => BETWEEN,
            Ok(_) => LOOK_AT_CLOCK,
            Err(error) => {
                log_ledger_failure("forgetting who borrowed", &error);
                LOOK_AT_CLOCK
            }
        };
        if !circulation.pause(wait).await {
            return;
        }
    }
}

async fn forget(circulation: &Circulation) -> Result<u64, crate::ledger::LedgerError> {
    let inner = &circulation.inner;
    let before = clock::before(inner.clock.now(), inner.settings.retention);
    if !inner.ledger.has_to_forget(before).await? {
        return Ok(0);
    }
    let forgotten = inner.ledger.forget(before, BATCH).await?;
    tracing::info!(forgotten, "borrowers were forgotten whose loans ended before privacy.retention");
    Ok(forgotten)
}
