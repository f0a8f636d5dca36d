//! Ending loans: on someone's wish, and when they are due.
//!
//! The order is the promise: the end is durable in the ledger, then the listener is told, so that
//! no cache opens the file any more, and only then the outbox sends it to Bokbasen.

use std::time::Duration;

use jiff::Timestamp;

use super::{Circulation, Closed, log_ledger_failure};
use crate::clock;
use crate::ledger::{Cause, LedgerError};
use crate::loan::{EndReason, Event, Loan, LoanId, LoanKey, LoanState, Progress};

/// How often to look for what is due, at least: the next due time may be a loan that was just
/// accepted.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often loans are ended where many are due together, and how many of them at least: a commit
/// costs much the same whatever is in it.
const TICK: Duration = Duration::from_secs(1);
const AT_LEAST: u32 = 120;
/// In so many ticks all are ended that are due now: within a minute and a half. They open nothing
/// since the moment that they fell due; so what is left is work, which must not slow the readers of
/// other loans.
const TICKS: u32 = 90;

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
    /// Ends a loan for `reason`: when this returns, it opens nothing any more and its end is on its
    /// way. The history has who wished it, and why in words. A cancel of a loan that any process
    /// has opened is a return.
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
                // Callers who wait for its acceptance are answered.
                self.inner.schedule.hurry(loan.id);
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

    /// Writes how far a reader has read a title, for the newest loan of it: false where it never
    /// was accepted.
    ///
    /// # Errors
    /// The ledger's.
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

    /// Ends loans that are due at `now` by Bokbasen's clock, a share of them where they are many,
    /// and returns whether more are left that can be ended. A damaged row cannot; it opens nothing
    /// either, since whoever looks at it cannot read it.
    ///
    /// # Errors
    /// The ledger's; what was ended until then stays ended.
    async fn expire(&self, now: Timestamp) -> Result<bool, LedgerError> {
        let waiting = self.inner.ledger.count_due(now).await?;
        if waiting == 0 {
            return Ok(false);
        }
        let share = u32::try_from(waiting).unwrap_or(u32::MAX).div_ceil(TICKS).max(AT_LEAST);
        let due = self.inner.ledger.due(now, share).await?;
        let more = due.len() == share as usize;
        let expiries = due.iter().map(|loan| self.end(loan.id, EndReason::Expired, "expiry", None));
        for outcome in futures_util::future::join_all(expiries).await {
            match outcome {
                // Otherwise it was returned meanwhile, or its row was damaged meanwhile, which the
                // next query reports.
                Ok(_)
                | Err(EndError::NotLive(_) | EndError::NoSuchLoan)
                | Err(EndError::Ledger(LedgerError::Damaged { .. })) => {}
                Err(EndError::Ledger(error)) => return Err(error),
            }
        }
        Ok(more)
    }

    /// Ends a loan at once whose turn has not come yet, since its reader asks: another can be begun
    /// the sooner.
    pub(super) fn expire_now(&self, id: LoanId) {
        if !self.inner.lending.clock_can_end_loans() {
            return; // it opens nothing, but its end is not certain
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

/// Ends what is due, until the process stops.
pub(super) async fn expire_when_due(circulation: Circulation) {
    let mut more = false;
    // Until when everything was ended that can be: what is left of that is damaged, and must not
    // keep this task busy.
    let mut expired = Timestamp::MIN;
    loop {
        let wait = if more { TICK } else { until_next_due(&circulation, expired).await };
        if !circulation.pause(wait).await {
            return;
        }
        if !circulation.inner.lending.clock_can_end_loans() {
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

/// How long to wait for the next loan that falls due after this moment.
async fn until_next_due(circulation: &Circulation, after: Timestamp) -> Duration {
    match circulation.inner.ledger.next_due(after).await {
        Ok(Some(due)) => {
            let wait = clock::until(circulation.inner.clock.lending_now(), due);
            wait.clamp(Duration::from_millis(10), LOOK_AGAIN)
        }
        Ok(None) => LOOK_AGAIN,
        Err(error) => {
            log_ledger_failure("looking for the next due loan", &error);
            LOOK_AGAIN
        }
    }
}
