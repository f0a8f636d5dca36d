//! Waits for the outcome of a loan, whichever process drives it.
//!
//! The gate's flights wait here. A loan that this process began or adopted has an entry in the
//! schedule. Each waiter registers a channel there, which exists only while it waits. During an
//! upgrade two processes share a ledger, and each drives its own loans. A loan of the other process
//! is only read from the ledger.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{Circulation, LoanOutcome, log_ledger_failure};
use crate::loan::{Loan, LoanId, LoanState};

/// Wait between two reads of another process's loan: the first, and the limit up to which it
/// doubles.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The outcome of a loan: known already, or still to be awaited.
#[derive(Debug)]
pub struct OutcomeWait(pub(super) Source);

/// Where an outcome comes from.
#[derive(Debug)]
pub(super) enum Source {
    Known(LoanOutcome),
    /// This process drives the loan.
    Scheduled(ScheduleWaiter),
    /// Any process may drive the loan.
    Undecided(Circulation, Box<Loan>),
}

impl OutcomeWait {
    pub(super) fn undecided(circulation: &Circulation, loan: Loan) -> OutcomeWait {
        OutcomeWait(Source::Undecided(circulation.clone(), Box::new(loan)))
    }

    /// Waits for the outcome. If this is dropped, the loan continues.
    pub async fn outcome(self) -> LoanOutcome {
        match self.0 {
            Source::Known(outcome) => outcome,
            Source::Scheduled(waiter) => {
                let (circulation, loan) = (waiter.circulation.clone(), waiter.loan);
                match waiter.outcome().await {
                    Some(outcome) => outcome,
                    None => circulation.poll_ledger(loan).await,
                }
            }
            Source::Undecided(circulation, loan) => circulation.wait_for(&loan).await,
        }
    }
}

impl From<LoanOutcome> for OutcomeWait {
    fn from(outcome: LoanOutcome) -> OutcomeWait {
        OutcomeWait(Source::Known(outcome))
    }
}

impl From<ScheduleWaiter> for OutcomeWait {
    fn from(waiter: ScheduleWaiter) -> OutcomeWait {
        OutcomeWait(Source::Scheduled(waiter))
    }
}

/// Registration of a waiter in the schedule. Dropping it unregisters the waiter.
#[derive(Debug)]
pub(super) struct ScheduleWaiter {
    circulation: Circulation,
    loan: LoanId,
    receiver: Option<oneshot::Receiver<LoanOutcome>>,
}

impl ScheduleWaiter {
    pub(super) fn new(
        circulation: Circulation,
        loan: LoanId,
        receiver: oneshot::Receiver<LoanOutcome>,
    ) -> ScheduleWaiter {
        ScheduleWaiter { circulation, loan, receiver: Some(receiver) }
    }

    /// Returns none if this process drives the loan no longer.
    async fn outcome(mut self) -> Option<LoanOutcome> {
        let circulation = self.circulation.clone();
        let receiver = self.receiver.as_mut()?;
        tokio::select! {
            biased;
            // An error: the schedule dropped the entry without an outcome.
            outcome = receiver => outcome.ok(),
            () = circulation.inner.stopping.cancelled() => Some(LoanOutcome::Undetermined),
        }
    }
}

impl Drop for ScheduleWaiter {
    fn drop(&mut self) {
        // Dropped first: the schedule recognises a waiter that has left by its closed channel.
        self.receiver = None;
        self.circulation.inner.schedule.waiter_left(self.loan);
    }
}

impl Circulation {
    async fn wait_for(&self, loan: &Loan) -> LoanOutcome {
        if let Some(outcome) = self.outcome_of(loan) {
            return outcome;
        }
        if let Some(waiter) = self.inner.schedule.wait(self, loan.id)
            && let Some(outcome) = waiter.outcome().await
        {
            return outcome;
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
    async fn poll_ledger(&self, id: LoanId) -> LoanOutcome {
        let mut wait = FIRST_WAIT;
        loop {
            if let Some(waiter) = self.inner.schedule.wait(self, id)
                && let Some(outcome) = waiter.outcome().await
            {
                return outcome;
            }
            match self.inner.ledger.loan(id).await {
                Ok(Some(loan)) => {
                    if let Some(outcome) = self.outcome_of(&loan) {
                        return outcome;
                    }
                }
                Ok(None) => return LoanOutcome::Undetermined,
                Err(error) => log_ledger_failure("reading a loan of another process", &error),
            }
            if !self.pause(wait).await {
                return LoanOutcome::Undetermined;
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}
