//! Waits for the outcome of a loan, whichever process drives it.
//!
//! The gate's flights call this module. A loan that this process began or adopted has an entry in
//! the schedule. Its waiters share one channel, which exists only while a caller waits. During an
//! upgrade two processes share a ledger, and each drives its own loans. A loan of the other process
//! is only read from the ledger.

use std::time::Duration;

use tokio::sync::watch;

use super::{Circulation, Outcome, log_ledger_failure};
use crate::loan::{Loan, LoanId, LoanState};

/// Wait between two reads of another process's loan: the first, and the limit up to which it
/// doubles.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// A caller's registration for the outcome of a loan that this process drives. Dropping it
/// unregisters the caller.
#[derive(Debug)]
pub struct LoanWaiter {
    circulation: Circulation,
    loan: LoanId,
    receiver: Option<watch::Receiver<Option<Outcome>>>,
}

impl LoanWaiter {
    pub(super) fn new(
        circulation: Circulation,
        loan: LoanId,
        receiver: watch::Receiver<Option<Outcome>>,
    ) -> LoanWaiter {
        LoanWaiter { circulation, loan, receiver: Some(receiver) }
    }

    /// Waits for the outcome. If this is dropped, the loan continues.
    pub async fn outcome(mut self) -> Outcome {
        let circulation = self.circulation.clone();
        let Some(receiver) = &mut self.receiver else { return Outcome::Undetermined };
        tokio::select! {
            biased;
            outcome = receiver.wait_for(Option::is_some) => match outcome {
                Ok(outcome) => outcome.clone().unwrap_or(Outcome::Undetermined),
                Err(_) => Outcome::Undetermined,
            },
            () = circulation.inner.stopping.cancelled() => Outcome::Undetermined,
        }
    }
}

impl Drop for LoanWaiter {
    fn drop(&mut self) {
        self.receiver = None;
        self.circulation.inner.schedule.waiter_left(self.loan);
    }
}

impl Circulation {
    /// Waits for the outcome of an undecided loan. If this is dropped, the loan continues.
    pub async fn join(&self, loan: Loan) -> Outcome {
        if let Some(outcome) = self.outcome_of(&loan) {
            return outcome;
        }
        if let Some(waiting) = self.inner.schedule.wait(self, loan.id) {
            return waiting.outcome().await;
        }
        // An intent of this process is scheduled before it is written. One without an entry is left
        // to `reconcile`.
        let is_ours = self.inner.ledger.is_ours(loan.id).await.unwrap_or(false);
        if is_ours && loan.state != LoanState::Intended {
            self.inner.schedule.add(loan.id);
        }
        self.poll_ledger(loan.id).await
    }

    /// Reads the ledger until the loan is decided or scheduled in this process.
    async fn poll_ledger(&self, id: LoanId) -> Outcome {
        let mut wait = FIRST_WAIT;
        loop {
            if let Some(waiting) = self.inner.schedule.wait(self, id) {
                return waiting.outcome().await;
            }
            match self.inner.ledger.loan(id).await {
                Ok(Some(loan)) => {
                    if let Some(outcome) = self.outcome_of(&loan) {
                        return outcome;
                    }
                }
                Ok(None) => return Outcome::Undetermined,
                Err(error) => log_ledger_failure("reading a loan of another process", &error),
            }
            if !self.pause(wait).await {
                return Outcome::Undetermined;
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}
