//! Ending loans: on someone's wish, and when they are due.
//!
//! The order is the promise: the end is durable in the ledger, then the listener is told, so that no cache
//! opens the file any more, and only then the outbox sends it to Bokbasen.

use std::time::Duration;

use jiff::Timestamp;

use super::carry::wait_until;
use super::{Circulation, Closed, log_ledger_failure};
use crate::ledger::{Cause, LedgerError};
use crate::loan::{EndReason, Event, Loan, LoanId, LoanKey, LoanState, Progress};

/// How often to look for what is due, at least: the next due time may be a loan that was just accepted.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How many due loans are ended in one go.
const BATCH: u32 = 500;

/// Why a loan could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// There is no such loan.
    #[error("there is no such loan")]
    NoSuchLoan,
    /// It is not accepted and not pending, so that there is nothing to end.
    #[error("the loan is {0}; only a pending or an accepted loan can be ended")]
    NotLive(LoanState),
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Circulation {
    /// Ends a loan for `reason`: when this returns, it opens nothing any more and its end is on its way. The history
    /// has who wished it, and why in words.
    ///
    /// # Errors
    /// [`EndError`]; the loan is then as it was.
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
                Ok(loan)
            }
            Err(LedgerError::Illegal(illegal)) => Err(EndError::NotLive(illegal.from)),
            Err(LedgerError::NoSuchLoan(_)) => Err(EndError::NoSuchLoan),
            Err(error) => Err(EndError::Ledger(error)),
        }
    }

    /// The loan of this reader and title that stands now, or the newest that stood.
    ///
    /// # Errors
    /// The ledger's.
    pub async fn newest(&self, key: &LoanKey) -> Result<Option<Loan>, LedgerError> {
        self.inner.ledger.newest(key).await
    }

    /// The loan of this id.
    ///
    /// # Errors
    /// The ledger's.
    pub async fn loan(&self, id: LoanId) -> Result<Option<Loan>, LedgerError> {
        self.inner.ledger.loan(id).await
    }

    /// Writes how far a reader has read a title, for the newest loan of it: false where it never was accepted.
    ///
    /// # Errors
    /// The ledger's.
    pub async fn note_progress(&self, key: &LoanKey, progress: Progress) -> Result<bool, LedgerError> {
        match self.inner.ledger.newest(key).await? {
            Some(loan) => self.inner.ledger.note_progress(loan.id, progress).await,
            None => Ok(false),
        }
    }

    /// Ends every loan that is due at `now`, and says how many those were.
    ///
    /// # Errors
    /// The ledger's; what was ended until then stays ended.
    pub async fn expire(&self, now: Timestamp) -> Result<usize, LedgerError> {
        let mut ended = 0;
        loop {
            let due = self.inner.ledger.due(now, BATCH).await?;
            if due.is_empty() {
                return Ok(ended);
            }
            let expiries = due.iter().map(|loan| self.end(loan.id, EndReason::Expired, "expiry", None));
            for outcome in futures_util::future::join_all(expiries).await {
                match outcome {
                    Ok(_) => ended += 1,
                    Err(EndError::Ledger(error)) => return Err(error),
                    // Returned between the question and now.
                    Err(EndError::NotLive(_) | EndError::NoSuchLoan) => {}
                }
            }
        }
    }
}

/// Ends what is due, until the process stops.
pub(super) async fn expire_when_due(circulation: Circulation) {
    loop {
        let wait = match circulation.inner.ledger.next_due().await {
            Ok(Some(due)) => wait_until(&circulation, due, LOOK_AGAIN),
            Ok(None) => LOOK_AGAIN,
            Err(error) => {
                log_ledger_failure("looking for the next due loan", &error);
                LOOK_AGAIN
            }
        };
        if !circulation.pause(wait.max(Duration::from_millis(10))).await {
            return;
        }
        if let Err(error) = circulation.expire(circulation.inner.clock.now()).await {
            log_ledger_failure("ending what is due", &error);
        }
    }
}
