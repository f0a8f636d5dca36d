//! Retention: `privacy.retention` after its end a loan's pseudonym is replaced by a random value,
//! and loans that Bokbasen never accepted are removed.
//!
//! Runs in the background. What remains of a forgotten loan is a loan of a title by nobody: counts
//! stay as they were, and the audit trail verifies. After a run the write-ahead log is emptied, so
//! that no file of the ledger has the pseudonym.

use std::time::Duration;

use tokio::time::Instant;

use super::{Circulation, LOOK_AT_CLOCK, log_ledger_failure};
use crate::clock;
use crate::ledger::{LedgerError, Prunable};

/// How many loans are forgotten in one go, and how long readers' own writes have the ledger before
/// the next.
const BATCH: u32 = 500;
const BETWEEN: Duration = Duration::from_millis(200);
/// How often loans that Bokbasen never accepted are looked for.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// Forgets and removes what is old enough, until the process stops.
pub(super) async fn forget_in_time(circulation: Circulation) {
    // True at the start: the process before may have stopped between the two.
    let mut log_has_traces = true;
    let mut prune_at = Instant::now();
    loop {
        let mut wait = LOOK_AT_CLOCK;
        match forget(&circulation).await {
            Ok(0) => {}
            Ok(forgotten) => {
                log_has_traces = true;
                if forgotten == u64::from(BATCH) {
                    wait = BETWEEN;
                }
            }
            Err(error) => log_ledger_failure("forgetting who borrowed", &error),
        }
        if Instant::now() >= prune_at {
            prune_at = Instant::now() + PRUNE_INTERVAL;
            match prune(&circulation).await {
                Ok(pruned) => log_has_traces |= pruned,
                Err(error) => log_ledger_failure("removing old refused loans", &error),
            }
        }
        if log_has_traces && wait == LOOK_AT_CLOCK {
            match circulation.inner.ledger.empty_log().await {
                Ok(emptied) => log_has_traces = !emptied,
                Err(error) => log_ledger_failure("emptying the write-ahead log", &error),
            }
        }
        if !circulation.pause(wait).await {
            return;
        }
    }
}

async fn forget(circulation: &Circulation) -> Result<u64, LedgerError> {
    let inner = &circulation.inner;
    let before = clock::before(inner.clock.now(), inner.settings.retention);
    if !inner.ledger.has_to_forget(before).await? {
        return Ok(0);
    }
    let forgotten = inner.ledger.forget(before, BATCH).await?;
    tracing::info!(forgotten, "forgot borrowers whose loans ended before privacy.retention");
    Ok(forgotten)
}

/// Removes loans that Bokbasen never accepted; returns whether there were any.
async fn prune(circulation: &Circulation) -> Result<bool, LedgerError> {
    let now = circulation.inner.clock.now();
    let before = clock::before(now, circulation.inner.settings.retention);
    let which = Prunable::NeverLent { before, now };
    // Dropped at a stop: the transaction under way is rolled back.
    let pruned = tokio::select! {
        pruned = circulation.inner.ledger.prune(which) => pruned?,
        () = circulation.inner.stopping.cancelled() => return Ok(false),
    };
    for left in &pruned.left {
        tracing::error!(left, "an old refused loan was not removed; run `loangate ledger check`");
    }
    if pruned.loans > 0 {
        tracing::info!(loans = pruned.loans, "removed old loans that were refused or never sent");
    }
    Ok(pruned.loans > 0)
}
