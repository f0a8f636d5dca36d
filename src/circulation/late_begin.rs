//! Ends loans that a begin created after another process had decided that it created none.
//!
//! A process that lost its lease while a begin was in flight no longer decides the loan: another
//! one may have settled it. The driver of the begin calls this module with Bokbasen's response. If
//! the ledger does not have the loan that Bokbasen created, nobody can use it, and it holds a
//! licence. So it is cancelled at Bokbasen. [`search`] finds those whose process died before it
//! could.

mod search;

use tokio::time::Instant;

use super::schedule::{FIRST_WAIT, LONGEST_WAIT};
use super::{Circulation, log_ledger_failure};
use crate::ledger::LedgerError;
use crate::lending::{CallError, EndAck};
use crate::loan::{EndReason, Loan, LoanId};
use crate::telemetry::LateBeginFinder;
pub(super) use search::search_late_begins;

/// Why Bokbasen is requested to end such a loan.
const WHY: &str = "begun too late, by a process that had lost its lease";

impl Circulation {
    /// Ends a loan that Bokbasen created under this id, unless the ledger has it or its owner still
    /// has to decide. Runs in the background, until it is done or the process stops.
    pub(super) fn end_late_begin(&self, loan: LoanId, lending_id: String) {
        let circulation = self.clone();
        self.spawn(async move {
            if circulation.is_surplus(loan, &lending_id).await {
                circulation.end_surplus(loan, &lending_id, LateBeginFinder::Sender).await;
            }
        });
    }

    /// Reads the loan of a late begin again. Returns whether nobody will use the loan of this id.
    async fn is_surplus(&self, id: LoanId, lending_id: &str) -> bool {
        let mut wait = FIRST_WAIT;
        loop {
            match self.inner.ledger.loan(id).await {
                Ok(row) => return row.is_none_or(|row| lacks(&row, lending_id)),
                Err(error @ LedgerError::Damaged { .. }) => {
                    tracing::error!(loan = %id, lending_id, %error, "cannot end a late begin");
                    return false;
                }
                Err(error) => log_ledger_failure("reading the loan of a late begin", &error),
            }
            if !self.pause(wait).await {
                return false;
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Cancels a surplus loan at Bokbasen, or returns it if the time for cancelling is over. Counts
    /// and logs it.
    async fn end_surplus(&self, id: LoanId, lending_id: &str, finder: LateBeginFinder) {
        self.inner.metrics.late_begin(finder);
        tracing::error!(
            loan = %id,
            lending_id,
            "a begin reached Bokbasen after its loan was decided; ending it there"
        );
        let (found, mut wait) = (Instant::now(), FIRST_WAIT);
        loop {
            match self.end_at_bokbasen(lending_id).await {
                Ok(EndAck::Done) => return,
                // Reads may lag, so a 404 for a loan that Bokbasen has just named proves nothing.
                // Later it means that the loan is over (bokbasen-api §4).
                Ok(EndAck::NoSuchLoan) if found.elapsed() >= self.inner.settings.settle => return,
                Ok(ack) => tracing::warn!(lending_id, ?ack, "a late begin is not ended yet"),
                Err(error) => tracing::debug!(lending_id, %error, "cannot end a late begin yet"),
            }
            if !self.pause(wait).await {
                return;
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    async fn end_at_bokbasen(&self, lending_id: &str) -> Result<EndAck, CallError> {
        let (lending, now) = (&self.inner.lending, self.inner.clock.now());
        lending.cancel_or_return(lending_id, now, EndReason::Returned, WHY).await
    }
}

/// Returns whether the loan in the ledger is not, and cannot become, the one with this id of
/// Bokbasen. An undecided loan without an id is left to its owner, which searches for it.
fn lacks(row: &Loan, lending_id: &str) -> bool {
    match &row.lending_id {
        Some(other) => other != lending_id,
        None => !row.state.is_undecided(),
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod surplus_tests {
    use super::*;
    use crate::loan::{Borrower, Event, LoanKey, Refusal};

    fn intent() -> Loan {
        let key = LoanKey {
            library: "NO-0301000".parse().unwrap(),
            borrower: Borrower::from_bytes([1; 16]),
            isbn: "9780306406157".parse().unwrap(),
        };
        Loan::intend(key, jiff::Timestamp::UNIX_EPOCH)
    }

    fn after(events: &[Event]) -> Loan {
        let at = jiff::Timestamp::UNIX_EPOCH;
        events.iter().fold(intent(), |loan, event| loan.apply(event, at).unwrap())
    }

    #[test]
    fn decided_loan_without_the_id_makes_the_begin_surplus() {
        let begun = |id: &str| Event::Begun { lending_id: id.to_owned() };
        let refusal = Refusal { code: "X".into(), message: String::new(), retry_at: None };
        let refused = Event::Refused { lending_id: None, refusal };
        for (events, surplus) in [
            (vec![], false),
            (vec![Event::Lost], false),
            (vec![Event::Lost, Event::NotFound], true),
            (vec![Event::NotSent], true),
            (vec![refused], true),
            (vec![begun("L1")], false),
            (vec![Event::Lost, begun("L1")], false),
            (vec![Event::Lost, begun("L2")], true),
            (vec![begun("L1"), Event::Ending { reason: EndReason::Cancelled }], false),
        ] {
            assert_eq!(lacks(&after(&events), "L1"), surplus, "{events:?}");
        }
    }
}
