//! Waiting for what becomes of a loan, whoever carries it.
//!
//! The gate's flights come here. A loan that this process began or took over is carried by one task of its own, which
//! is found or started here; a loan of another process that lives is watched in the ledger, and never touched: two
//! processes share a ledger during an upgrade, and each carries its own.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::watch;

use super::carry::{From, carry};
use super::{Circulation, Outcome, log_ledger_failure};
use crate::loan::{Loan, LoanId, LoanState};

/// How long to wait between two looks at a loan of another process: the first, and the longest that it doubles up to.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LAST_LOOK: Duration = Duration::from_secs(1);

type Landing = watch::Receiver<Option<Outcome>>;

impl Circulation {
    /// Carries the loan of an intent that the caller has just written, and waits for what becomes of it. Nowhere else
    /// is a begin sent.
    pub(super) async fn launch(&self, loan: Loan) -> Outcome {
        landed(self.carried(loan, From::Intent)).await
    }

    /// Waits for what becomes of a loan that is on its way.
    pub async fn join(&self, loan: Loan) -> Outcome {
        if let Some(outcome) = self.outcome_of(&loan) {
            return outcome;
        }
        if let Some(landing) = self.find_carried(loan.id) {
            return landed(landing).await;
        }
        // An intent of ours that nobody carries yet was written a moment ago, and its writer is about to.
        let is_ours = self.inner.ledger.is_ours(loan.id).await.unwrap_or(false);
        if is_ours && loan.state != LoanState::Intended {
            return landed(self.resume(loan)).await;
        }
        self.watch(loan.id).await
    }

    /// Carries on with a loan of ours that is half-way.
    pub(super) fn resume(&self, loan: Loan) -> Landing {
        self.carried(loan, From::HalfWay)
    }

    /// Whether this process is carrying the loan.
    pub fn carries(&self, id: LoanId) -> bool {
        self.find_carried(id).is_some()
    }

    fn find_carried(&self, id: LoanId) -> Option<Landing> {
        self.inner.carried.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// The task that carries this loan, found or started.
    fn carried(&self, loan: Loan, from: From) -> Landing {
        let mut carried = self.inner.carried.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(landing) = carried.get(&loan.id) {
            return landing.clone();
        }
        let (land, landing) = watch::channel(None);
        carried.insert(loan.id, landing.clone());
        let guard = Carrying { circulation: self.clone(), loan: loan.id };
        let circulation = self.clone();
        self.spawn(async move {
            let outcome = carry(&circulation, loan, from).await;
            // First the word, then the name off the list: whoever looks in between still finds the word.
            land.send_replace(Some(outcome));
            drop(guard);
        });
        landing
    }

    /// Looks in the ledger until the loan is decided, or is carried here after all.
    async fn watch(&self, id: LoanId) -> Outcome {
        let mut wait = FIRST_LOOK;
        loop {
            if let Some(landing) = self.find_carried(id) {
                return landed(landing).await;
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
            wait = (wait * 2).min(LAST_LOOK);
        }
    }
}

async fn landed(mut landing: Landing) -> Outcome {
    match landing.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or(Outcome::Unsure),
        // The task went without a word: the process is stopping.
        Err(_) => Outcome::Unsure,
    }
}

/// Takes the loan off the list of those being carried, also when its task dies.
struct Carrying {
    circulation: Circulation,
    loan: LoanId,
}

impl Drop for Carrying {
    fn drop(&mut self) {
        let mut carried = self.circulation.inner.carried.lock().unwrap_or_else(PoisonError::into_inner);
        carried.remove(&self.loan);
    }
}
