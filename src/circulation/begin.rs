//! From a reader's wish to a loan: where it stands, and beginning it.
//!
//! Called by the gate. What is read here may be old a moment later; what must hold is checked again by the
//! ledger, inside the transaction that writes the intent.

use jiff::Timestamp;

use super::{Circulation, Outcome, log_ledger_failure};
use crate::clock;
use crate::ledger::{Cause, Intended, LedgerError};
use crate::loan::{EndReason, Loan, LoanId, LoanKey, LoanState};

/// For whom a loan may be begun, and on which word.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// Whose loan, of what.
    pub key: LoanKey,
    /// When the credential was issued; none counts as old (invariant 7).
    pub issued: Option<Timestamp>,
}

/// Where a reader and a title stand in the ledger.
#[derive(Clone, Debug)]
pub enum Standing {
    /// A live loan that opens files until then.
    Open {
        /// The loan.
        loan: LoanId,
        /// Its due time.
        until: Timestamp,
    },
    /// A loan on which Bokbasen's word is still out.
    Undecided(Box<Loan>),
    /// Bokbasen refused, and that still holds.
    Refused(Outcome),
    /// An accepted loan has ended; `settled` says whether Bokbasen knows.
    Ended {
        /// When.
        at: Timestamp,
        /// Whether its end has been acknowledged, so that another may be begun.
        settled: bool,
    },
    /// Nothing stands in the way of a loan.
    Nothing,
}

impl Circulation {
    /// Where this reader and title stand.
    ///
    /// # Errors
    /// The ledger's.
    pub async fn standing(&self, key: &LoanKey) -> Result<Standing, LedgerError> {
        let Some(loan) = self.inner.ledger.newest(key).await? else {
            return Ok(Standing::Nothing);
        };
        let now = self.inner.clock.now();
        match loan.state {
            LoanState::Accepted => match loan.open_until() {
                Some(until) if until > now => Ok(Standing::Open { loan: loan.id, until }),
                // It is due and the ender has not come to it yet.
                Some(_) | None => {
                    self.expire_now(loan.id);
                    Ok(Standing::Ended { at: now, settled: false })
                }
            },
            LoanState::Intended | LoanState::Pending | LoanState::Unknown => {
                Ok(Standing::Undecided(Box::new(loan)))
            }
            LoanState::Ending => Ok(Standing::Ended { at: loan.ended.unwrap_or(now), settled: false }),
            LoanState::Refused | LoanState::Ended => match self.refusal_that_holds(&loan, now) {
                Some(refused) => Ok(Standing::Refused(refused)),
                None => match self.inner.ledger.last_end(key).await? {
                    Some(at) => Ok(Standing::Ended { at, settled: true }),
                    None => Ok(Standing::Nothing),
                },
            },
        }
    }

    /// Begins a loan, or joins the one that is already on its way, and waits for what becomes of it.
    ///
    /// The loan goes on when the caller hangs up. The ledger refuses the intent where a loan of this reader
    /// and title ended at or after the asker's credential was issued (invariant 7).
    ///
    /// Also says whether the loan was begun by this very call: then nobody can have had a file under it before.
    pub async fn begin(&self, asker: &Asker, by: &'static str) -> (Outcome, bool) {
        // Asked first, so that an outage does not fill the ledger with intents that could never be sent.
        if let Some(retry_after) = self.inner.lending.closed_for() {
            return (Outcome::Unavailable { retry_after }, false);
        }
        let intent = Loan::intend(asker.key, self.inner.clock.now());
        let cause = Cause { by, detail: None };
        match self.inner.ledger.intend(intent, asker.issued, cause).await {
            Ok(Intended::Written(loan)) => (self.launch(loan).await, true),
            Ok(Intended::Live(loan)) => (self.live(loan).await, false),
            Ok(Intended::EndedSince(at)) => (Outcome::Ended { at }, false),
            Ok(Intended::Braked(until)) => (Outcome::Braked { until }, false),
            Err(error) => {
                log_ledger_failure("writing an intent", &error);
                (Outcome::Unsure, false)
            }
        }
    }

    /// What becomes of a loan that lives already.
    async fn live(&self, loan: Loan) -> Outcome {
        match loan.open_until() {
            Some(until) if until > self.inner.clock.now() => Outcome::Accepted { loan: loan.id, until },
            Some(_) => Outcome::Unsure,
            None => self.join(loan).await,
        }
    }

    /// What a decided loan means to whoever waits for it; none while it is undecided.
    pub(super) fn outcome_of(&self, loan: &Loan) -> Option<Outcome> {
        let now = self.inner.clock.now();
        match loan.state {
            LoanState::Intended | LoanState::Pending | LoanState::Unknown => None,
            LoanState::Accepted => loan.open_until().map(|until| Outcome::Accepted { loan: loan.id, until }),
            LoanState::Refused => self.refusal_that_holds(loan, now).or(Some(Outcome::NothingMade)),
            LoanState::Ending | LoanState::Ended => match (loan.accepted, loan.ended) {
                (Some(_), Some(at)) => Some(Outcome::Ended { at }),
                _ if loan.end_reason == Some(EndReason::Rejected) => Some(Outcome::NothingMade),
                _ => Some(Outcome::TakenBack),
            },
        }
    }

    fn refusal_that_holds(&self, loan: &Loan, now: Timestamp) -> Option<Outcome> {
        let refusal = loan.refusal.clone()?;
        let until =
            refusal.retry_at.unwrap_or_else(|| clock::after(loan.changed, self.inner.settings.refusal_ttl));
        (until > now).then_some(Outcome::Refused { refusal, until })
    }
}
