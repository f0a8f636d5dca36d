//! Outcomes: what a loan in the ledger means for its reader.
//!
//! The gate gets every result of circulation as a [`LoanOutcome`]. It caches some of them, and
//! turns the rest into problem documents.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Circulation, Inner};
use crate::clock;
use crate::loan::{EndReason, Loan, LoanId, LoanKey, LoanState};

/// Shortest and longest time for which a refusal holds, whatever Bokbasen sends. The lower limit
/// prevents a storm of begins. The upper limit prevents that one wrong value refuses a reader for
/// ever.
const LEAST_REFUSED: Duration = Duration::from_secs(1);
const LONGEST_REFUSED: Duration = Duration::from_secs(86_400);

/// Whether a reader has a loan of a title, or why not.
#[derive(Clone, Debug)]
pub enum LoanOutcome {
    /// An accepted loan opens the title. The ledger has it.
    Open {
        /// Id of the loan in the ledger.
        loan: LoanId,
        /// Its due time, by Bokbasen's clock.
        until: Timestamp,
    },
    /// Bokbasen refused the loan.
    Refused {
        /// Bokbasen's code.
        reason: Arc<str>,
        /// Until when the refusal holds, by Bokbasen's clock.
        until: Timestamp,
    },
    /// An accepted loan has ended.
    Ended {
        /// When that loan ended, as tokens are compared with it.
        at: Timestamp,
        /// Whether Bokbasen acknowledged the end, so that another loan may be begun.
        settled: bool,
    },
    /// There is no loan, here or at Bokbasen. One may be begun.
    NoLoan,
    /// The loan was ended before it was accepted, by the reader or at Bokbasen. Only a later
    /// request may begin another.
    Withdrawn,
    /// Bokbasen is unavailable; no loan was created.
    Unavailable {
        /// When the caller should retry.
        retry_after: Duration,
    },
    /// An operator has paused lending of the library; no begin was sent.
    Paused,
    /// The spending brake is on; no begin was sent.
    Braked {
        /// Until when the brake stays on, by the project's clock.
        until: Timestamp,
    },
    /// The ledger failed, or the gate is stopping. The reader may have a loan.
    Undetermined,
}

impl Circulation {
    /// Returns the outcome of a decided loan, for a caller that waited for it; none while it is
    /// undecided.
    pub(super) fn outcome_of(&self, loan: &Loan) -> Option<LoanOutcome> {
        let now = self.inner.clock.lending_now();
        match loan.state {
            LoanState::Intended | LoanState::Pending | LoanState::Unknown => None,
            LoanState::Accepted => {
                loan.open_until().map(|until| LoanOutcome::Open { loan: loan.id, until })
            }
            // A waiter gets the refusal even if its time has passed.
            LoanState::Refused => {
                let until = self.refused_until(loan).max(clock::after(now, LEAST_REFUSED));
                let refusal = loan.refusal.as_ref()?;
                Some(LoanOutcome::Refused { reason: refusal.code.as_str().into(), until })
            }
            LoanState::Ending | LoanState::Ended => match (loan.accepted, loan.ended) {
                (Some(_), Some(at)) => Some(LoanOutcome::Ended {
                    at: self.ended_at(&loan.key, at),
                    settled: loan.state == LoanState::Ended,
                }),
                _ if loan.end_reason == Some(EndReason::Rejected) => Some(LoanOutcome::NoLoan),
                _ => Some(LoanOutcome::Withdrawn),
            },
        }
    }

    pub(super) fn refusal_that_holds(&self, loan: &Loan, now: Timestamp) -> Option<LoanOutcome> {
        let (refusal, until) = (loan.refusal.as_ref()?, self.refused_until(loan));
        (until > now).then(|| LoanOutcome::Refused { reason: refusal.code.as_str().into(), until })
    }

    /// Returns until when a refusal holds, by Bokbasen's clock. That is the time that Bokbasen
    /// sent. If it sent none, or one in the past, `gate.refusal_ttl` applies.
    fn refused_until(&self, loan: &Loan) -> Timestamp {
        let Inner { clock, settings, .. } = &*self.inner;
        let refused = loan.changed.checked_add(clock.lending_offset()).unwrap_or(loan.changed);
        let least = clock::after(refused, LEAST_REFUSED);
        let named = loan.refusal.as_ref().and_then(|refusal| refusal.retry_at);
        let until =
            named.filter(|at| *at > refused).unwrap_or(clock::after(refused, settings.refusal_ttl));
        until.clamp(least, clock::after(refused, LONGEST_REFUSED))
    }

    /// Returns the end of an accepted loan for the comparison with tokens. A fast clock may have
    /// written an end in the future. Such an end counts from the time when it is first seen, so
    /// that it does not block later tokens.
    pub(super) fn ended_at(&self, key: &LoanKey, at: Timestamp) -> Timestamp {
        // Our clock writes ends, so an end is in the future only if it is later than Bokbasen's
        // clock too.
        let now = self.inner.clock.now().max(self.inner.clock.lending_now());
        if at <= now {
            return at;
        }
        let seen = self.inner.future_ends.get_with((*key, at), || now);
        if seen <= now {
            return seen;
        }
        self.inner.future_ends.insert((*key, at), now);
        now
    }
}
