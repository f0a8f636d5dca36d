//! Writes events of undecided loans to the ledger.
//!
//! The driver and the adoption of orphans call this module. A response of Bokbasen is lost if it is
//! not written, so a write is retried while the ledger fails.

use super::schedule::{FIRST_WAIT, LONGEST_WAIT};
use super::{Circulation, log_ledger_failure};
use crate::ledger::{Cause, LedgerError};
use crate::loan::{Event, Loan, LoanId};

impl Circulation {
    /// Writes an event, and retries until the ledger accepts it. Returns none if the process stops
    /// first, or if the loan changed and the event no longer fits.
    pub(super) async fn record(&self, id: LoanId, event: Event, cause: Cause) -> Option<Loan> {
        let mut wait = FIRST_WAIT;
        loop {
            match self.inner.ledger.apply(id, event.clone(), cause.clone()).await {
                Ok(loan) => return Some(loan),
                Err(
                    error @ (LedgerError::Illegal(_)
                    | LedgerError::NoSuchLoan(_)
                    | LedgerError::NotOwner(_)
                    | LedgerError::Damaged { .. }
                    | LedgerError::Closed),
                ) => {
                    let event = event.name();
                    tracing::warn!(loan = %id, event, %error, "cannot write an event of a loan");
                    return None;
                }
                Err(error) => log_ledger_failure("writing a response of Bokbasen", &error),
            }
            if !self.pause(wait).await {
                return None;
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}
