//! Waiting for the outcome of a loan, whoever drives it.
//!
//! The gate's flights call it. A loan that this process began or took over has an entry in the
//! schedule, and its waiters share one channel that exists only while somebody waits. A loan of
//! another live process is watched in the ledger and never touched: two processes share a ledger
//! during an upgrade, and each drives its own.

use std::time::Duration;

use tokio::sync::watch;

use super::{Circulation, Outcome, log_ledger_failure};
use crate::loan::{Loan, LoanId, LoanState};

/// The wait between two reads of a loan of another process: the first, and the longest that it
/// doubles up to.
const FIRST_READ: Duration = Duration::from_millis(50);
const LAST_READ: Duration = Duration::from_secs(1);

/// A caller that waits for a loan that this process drives. Dropped, it waits no more.
#[derive(Debug)]
pub struct Waiting {
    circulation: Circulation,
    loan: LoanId,
    receiver: Option<watch::Receiver<Option<Outcome>>>,
}

impl Waiting {
    pub(super) fn new(
        circulation: Circulation,
        loan: LoanId,
        receiver: watch::Receiver<Option<Outcome>>,
    ) -> Waiting {
        Waiting { circulation, loan, receiver: Some(receiver) }
    }

    /// The outcome, once there is one. The loan goes on where this is dropped.
    pub async fn outcome(mut self) -> Outcome {
        let circulation = self.circulation.clone();
        let Some(receiver) = &mut self.receiver else { return Outcome::Unsure };
        tokio::select! {
            biased;
            outcome = receiver.wait_for(Option::is_some) => match outcome {
                Ok(outcome) => outcome.clone().unwrap_or(Outcome::Unsure),
                Err(_) => Outcome::Unsure,
            },
            () = circulation.inner.stopping.cancelled() => Outcome::Unsure,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.receiver = None;
        self.circulation.inner.schedule.left(self.loan);
    }
}

impl Circulation {
    /// Waits for the outcome of an undecided loan. The loan goes on where this is dropped.
    pub async fn join(&self, loan: Loan) -> Outcome {
        if let Some(outcome) = self.outcome_of(&loan) {
            return outcome;
        }
        if let Some(waiting) = self.inner.schedule.wait(self, loan.id) {
            return waiting.outcome().await;
        }
        // Whoever writes an intent here enters it before: one without an entry is left to
        // `reconcile`.
        let is_ours = self.inner.ledger.is_ours(loan.id).await.unwrap_or(false);
        if is_ours && loan.state != LoanState::Intended {
            self.inner.schedule.take_up(loan.id);
        }
        self.watch(loan.id).await
    }

    /// Whether this process drives the loan.
    pub fn carries(&self, id: LoanId) -> bool {
        self.inner.schedule.has(id)
    }

    /// Reads the ledger until the loan is decided, or is driven here after all.
    async fn watch(&self, id: LoanId) -> Outcome {
        let mut wait = FIRST_READ;
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
                Ok(None) => return Outcome::Unsure,
                Err(error) => log_ledger_failure("watching a loan of another process", &error),
            }
            if !self.pause(wait).await {
                return Outcome::Unsure;
            }
            wait = (wait * 2).min(LAST_READ);
        }
    }
}
