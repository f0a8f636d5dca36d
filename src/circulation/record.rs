//! Writes events of undecided loans to the ledger.
//!
//! The driver and the adoption of orphans call this module. A response of Bokbasen is lost if it is
//! not written, so a write is retried while the ledger fails.

use super::schedule::{FIRST_WAIT, LONGEST_WAIT};
use super::{Circulation, log_ledger_failure};
use crate::ledger::{Cause, LedgerError};
use crate::loan::{Event, Loan, LoanId};

/// Why an event was not written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NotRecorded {
    /// Another process has taken the loan over, and decides it.
    Foreign,
    /// The loan changed, and the event no longer fits; or the ledger can never store it.
    Obsolete,
    /// The process stops.
    Stopping,
}

impl Circulation {
    /// Writes an event, and retries until the ledger accepts it.
    ///
    /// # Errors
    /// [`NotRecorded`]; the loan is unchanged, unless the process stops.
    pub(super) async fn record(
        &self,
        id: LoanId,
        event: Event,
        cause: Cause,
    ) -> Result<Loan, NotRecorded> {
        let mut wait = FIRST_WAIT;
        loop {
            let error = match self.inner.ledger.apply(id, event.clone(), cause.clone()).await {
                Ok(loan) => return Ok(loan),
                Err(error) => error,
            };
            let reason = match &error {
                LedgerError::NotOwner(_) => Some(NotRecorded::Foreign),
                LedgerError::Illegal(_)
                | LedgerError::NoSuchLoan(_)
                | LedgerError::Unwritable(_)
                | LedgerError::Damaged { .. } => Some(NotRecorded::Obsolete),
                LedgerError::Closed => Some(NotRecorded::Stopping),
                _ => None,
            };
            if let Some(reason) = reason {
                let event = event.name();
                tracing::warn!(loan = %id, event, %error, "cannot write an event of a loan");
                return Err(reason);
            }
            log_ledger_failure("writing a response of Bokbasen", &error);
            if !self.pause(wait).await {
                return Err(NotRecorded::Stopping);
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}
