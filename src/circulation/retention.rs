//! Retention: replaces the pseudonym of a loan by a random value `privacy.retention` after its end,
//! and removes loans that Bokbasen never accepted.
//!
//! Runs in the background. A forgotten loan remains, without its borrower: counts do not change,
//! and the audit trail still verifies. After a run the write-ahead log is emptied, so that no file
//! of the ledger contains the pseudonym.

use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{CLOCK_CHECK_INTERVAL, Circulation, log_ledger_failure};
use crate::clock;
use crate::ledger::{LedgerError, Prunable};
use crate::loan::{Borrower, LibraryId};

/// Maximum number of loans in one transaction, and the pause after it, which leaves the ledger to
/// readers' writes.
const BATCH: u32 = 500;
const BETWEEN: Duration = Duration::from_millis(200);
/// Interval at which loans that Bokbasen never accepted are removed.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// Forgets borrowers and removes loans that are old enough, until the process stops.
pub(super) async fn forget_in_time(circulation: Circulation) {
    // True at the start: the last process may have stopped before it emptied the log.
    let mut log_has_traces = true;
    let mut prune_at = Instant::now();
    loop {
        let mut wait = CLOCK_CHECK_INTERVAL;
        match forget(&circulation).await {
            Ok(0) => {}
            Ok(_) => {
                log_has_traces = true;
                wait = BETWEEN;
            }
            Err(error) => log_ledger_failure("forgetting borrowers", &error),
        }
        if Instant::now() >= prune_at {
            prune_at = Instant::now() + PRUNE_INTERVAL;
            match prune(&circulation).await {
                Ok(pruned) => log_has_traces |= pruned,
                Err(error) => log_ledger_failure("removing old refused loans", &error),
            }
            match prune_accesses(&circulation).await {
                Ok(pruned) => log_has_traces |= pruned,
                Err(error) => log_ledger_failure("removing old accesses", &error),
            }
        }
        log_has_traces |= circulation.inner.has_erased.swap(false, Ordering::AcqRel);
        if log_has_traces && wait == CLOCK_CHECK_INTERVAL {
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

impl Circulation {
    /// Erases a borrower: replaces the pseudonym in all of the borrower's loans that ended before
    /// this time. The borrower's credentials of before then must not open anything any more, since
    /// an erased loan no longer refuses them. Returns the number of loans.
    ///
    /// # Errors
    /// [`LedgerError`]; loans that were already erased stay erased.
    pub async fn erase_borrower(
        &self,
        library: LibraryId,
        borrower: Borrower,
        before: Timestamp,
    ) -> Result<u64, LedgerError> {
        let mut erased = 0;
        loop {
            let ledger = &self.inner.ledger;
            let now = ledger.forget_borrower(library, borrower, before, BATCH).await?;
            erased += now;
            if now > 0 {
                self.inner.has_erased.store(true, Ordering::Release);
            }
            if now < BATCH.into() || self.inner.stopping.is_cancelled() {
                return Ok(erased);
            }
        }
    }
}

async fn forget(circulation: &Circulation) -> Result<u64, LedgerError> {
    let inner = &circulation.inner;
    let before = clock::before(inner.clock.now(), inner.settings.retention);
    let forgotten = inner.ledger.forget(before, BATCH).await?;
    if forgotten > 0 {
        tracing::info!(forgotten, "forgot borrowers whose loans ended before privacy.retention");
    }
    Ok(forgotten)
}

/// Removes accesses that are older than `privacy.retention`, since they may name a pseudonym.
/// Returns whether any were removed.
async fn prune_accesses(circulation: &Circulation) -> Result<bool, LedgerError> {
    let inner = &circulation.inner;
    let before = clock::before(inner.clock.now(), inner.settings.retention);
    // Dropped when the process stops: the transaction is then rolled back.
    let pruned = tokio::select! {
        pruned = inner.ledger.prune_accesses(before) => pruned?,
        () = inner.stopping.cancelled() => return Ok(false),
    };
    if pruned > 0 {
        tracing::info!(pruned, "removed accesses that were older than privacy.retention");
    }
    Ok(pruned > 0)
}

/// Removes loans that Bokbasen never accepted; returns whether any were removed.
async fn prune(circulation: &Circulation) -> Result<bool, LedgerError> {
    let now = circulation.inner.clock.now();
    let before = clock::before(now, circulation.inner.settings.retention);
    let which = Prunable::NeverLent { before, now };
    // Dropped when the process stops: the transaction is then rolled back.
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
