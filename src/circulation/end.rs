//! Ends loans: on request, and when they are due.
//!
//! The order is guaranteed. First the end is durable in the ledger. Then the listener is notified,
//! so that no cache opens the file any more. Only then the outbox sends the end to Bokbasen.

use std::time::Duration;

use jiff::Timestamp;

use super::{Circulation, Closed, log_ledger_failure};
use crate::clock;
use crate::ledger::{Cause, LedgerError};
use crate::loan::{EndReason, Event, Loan, LoanId, LoanKey, LoanState, Progress};

/// Longest time between two queries for due loans: a loan that was just accepted may be the next
/// due.
const MAX_QUERY_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of batches if many loans are due together, and the smallest batch: the cost of a commit
/// hardly depends on its size.
const BATCH_INTERVAL: Duration = Duration::from_secs(1);
const MIN_BATCH: u32 = 120;
/// Number of batches in which all loans that are due now are ended: within 90 seconds. Due loans
/// open nothing any more, so this work can wait and must not slow other readers.
const BATCHES: u32 = 90;

/// Why a loan was not ended.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// The ledger has no such loan.
    #[error("there is no such loan")]
    NoSuchLoan,
    /// The loan is neither pending nor accepted, so there is nothing to end.
    #[error("the loan is {0}; only a pending or an accepted loan can be ended")]
    NotLive(LoanState),
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Circulation {
    /// Ends a loan for `reason`. When this returns, the loan opens nothing any more and its end
    /// waits in the outbox. The history records who requested the end, and `why`. A cancel of a
    /// loan that any process has opened becomes a return.
    ///
    /// # Errors
    /// [`EndError`]; the loan is then unchanged.
    pub async fn end(
        &self,
        id: LoanId,
        reason: EndReason,
        by: &'static str,
        why: Option<String>,
    ) -> Result<Loan, EndError> {
        let cause = Cause { by, detail: why };
        match self.inner.ledger.apply(id, Event::Ending { reason }, cause).await {
            Ok(loan) => {
                self.announce(Closed { loan: loan.id, key: loan.key, at: loan.changed });
                self.inner.ends_waiting.notify_one();
                // Wakes callers that wait for its acceptance.
                self.inner.schedule.make_due(loan.id);
                Ok(loan)
            }
            Err(LedgerError::Illegal(illegal)) => Err(EndError::NotLive(illegal.from)),
            Err(LedgerError::NoSuchLoan(_)) => Err(EndError::NoSuchLoan),
            Err(error) => Err(EndError::Ledger(error)),
        }
    }

    /// Returns the live loan of this reader and title, or else the newest.
    ///
    /// # Errors
    /// Returns the error of the ledger.
    pub async fn newest(&self, key: &LoanKey) -> Result<Option<Loan>, LedgerError> {
        self.inner.ledger.newest(key).await
    }

    /// Returns the loan with this id.
    ///
    /// # Errors
    /// Returns the error of the ledger.
    pub async fn loan(&self, id: LoanId) -> Result<Option<Loan>, LedgerError> {
        self.inner.ledger.loan(id).await
    }

    /// Writes how far a reader has read a title, for the newest loan of it. Returns false if that
    /// loan was never accepted.
    ///
    /// # Errors
    /// Returns the error of the ledger.
    pub async fn note_progress(
        &self,
        key: &LoanKey,
        progress: Progress,
    ) -> Result<bool, LedgerError> {
        match self.inner.ledger.newest(key).await? {
            Some(loan) => self.inner.ledger.note_progress(loan.id, progress).await,
            None => Ok(false),
        }
    }

    /// Ends loans that are due at `now` by Bokbasen's clock; if there are many, one batch of them.
    /// Returns whether more can be ended. A damaged row cannot be ended; it opens nothing either,
    /// because it cannot be read.
    ///
    /// # Errors
    /// Returns the error of the ledger; loans that were ended before it stay ended.
    async fn expire(&self, now: Timestamp) -> Result<bool, LedgerError> {
        let waiting = self.inner.ledger.count_due(now).await?;
        if waiting == 0 {
            return Ok(false);
        }
        let batch = u32::try_from(waiting).unwrap_or(u32::MAX).div_ceil(BATCHES).max(MIN_BATCH);
        let due = self.inner.ledger.due(now, batch).await?;
        let more = due.len() == batch as usize;
        let expiries = due.iter().map(|loan| self.end(loan.id, EndReason::Expired, "expiry", None));
        for outcome in futures_util::future::join_all(expiries).await {
            match outcome {
                // Otherwise it was returned or its row was damaged since the query. The next query
                // reports damage.
                Ok(_)
                | Err(EndError::NotLive(_) | EndError::NoSuchLoan)
                | Err(EndError::Ledger(LedgerError::Damaged { .. })) => {}
                Err(EndError::Ledger(error)) => return Err(error),
            }
        }
        Ok(more)
    }

    /// Returns whether loans that seem due may be ended: this machine's clock agrees with those of
    /// Bokbasen and of the ledger.
    pub(super) fn clocks_can_end_loans(&self) -> bool {
        self.inner.lending.clock_can_end_loans() && self.inner.ledger.clocks_agree()
    }

    /// Ends a due loan before its batch, because its reader requests the title: so another can be
    /// begun sooner.
    pub(super) fn expire_now(&self, id: LoanId) {
        if !self.clocks_can_end_loans() {
            return; // it opens nothing, but may not be due
        }
        let circulation = self.clone();
        self.spawn(async move {
            if let Err(EndError::Ledger(error)) =
                circulation.end(id, EndReason::Expired, "expiry", None).await
            {
                log_ledger_failure("ending what is due", &error);
            }
        });
    }
}

/// Ends due loans, until the process stops.
pub(super) async fn expire_when_due(circulation: Circulation) {
    let mut more = false;
    // All due loans up to this time are ended or damaged; damaged ones must not keep this task
    // busy.
    let mut expired = Timestamp::MIN;
    loop {
        let wait = if more { BATCH_INTERVAL } else { until_next_due(&circulation, expired).await };
        if !circulation.pause(wait).await {
            return;
        }
        if !circulation.clocks_can_end_loans() {
            more = true;
            continue;
        }
        let now = circulation.inner.clock.lending_now();
        more = circulation.expire(now).await.unwrap_or_else(|error| {
            log_ledger_failure("ending what is due", &error);
            true
        });
        expired = now;
    }
}

/// Returns how long to wait for the next loan that becomes due after this time.
async fn until_next_due(circulation: &Circulation, after: Timestamp) -> Duration {
    match circulation.inner.ledger.next_due(after).await {
        Ok(Some(due)) => {
            let wait = clock::until(circulation.inner.clock.lending_now(), due);
            wait.clamp(Duration::from_millis(10), MAX_QUERY_INTERVAL)
        }
        Ok(None) => MAX_QUERY_INTERVAL,
        Err(error) => {
            log_ledger_failure("reading the next due time", &error);
            MAX_QUERY_INTERVAL
        }
    }
}
