//! From a reader's wish to a loan: where it stands, and beginning it.
//!
//! Called by the gate. What is read here may be old a moment later; what must hold is checked again by the
//! ledger, inside the transaction that writes the intent.

use jiff::Timestamp;

use super::wait::Waiting;
use super::{Circulation, Outcome, drive, log_ledger_failure};
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

/// What came of a begin.
#[derive(Debug)]
pub enum Begun {
    /// Nothing was sent, or nothing is left to wait for.
    Decided(Outcome),
    /// The begin has been sent; its outcome can be waited for.
    Sent(Waiting),
    /// An undecided loan lives already: see [`Circulation::join`].
    Live(Box<Loan>),
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

    /// Begins a loan, or finds the live one. The begin is sent and answered when this returns, and
    /// goes on when this is dropped. The ledger refuses the intent where a loan of this reader and
    /// title ended at or after the asker's credential was issued (invariant 7).
    pub async fn begin(&self, asker: &Asker, by: &'static str) -> Begun {
        // Checked first, so that an outage does not fill the ledger with intents that could never be sent.
        if let Some(retry_after) = self.inner.lending.closed_for() {
            return Begun::Decided(Outcome::Unavailable { retry_after });
        }
        let (circulation, asker) = (self.clone(), *asker);
        let begun =
            self.spawn(async move { circulation.begin_now(&asker, Cause { by, detail: None }).await });
        begun.await.unwrap_or(Begun::Decided(Outcome::Unsure))
    }

    async fn begin_now(&self, asker: &Asker, cause: Cause) -> Begun {
        let intent = Loan::intend(asker.key, self.inner.clock.now());
        // Entered before it is durable, so that a loan whose driver dies is always found.
        let (work, waiting) = self.inner.schedule.enter(self, intent.id);
        let intended = self.inner.ledger.intend(intent, asker.issued, cause).await;
        if let Ok(Intended::Written(loan)) = intended {
            drive::begin(self, work, loan).await;
            return Begun::Sent(waiting);
        }
        // After a failed commit the intent may be durable; `reconcile` finds it then.
        work.withdraw();
        match intended {
            Ok(Intended::Written(_)) => Begun::Decided(Outcome::Unsure),
            Ok(Intended::Live(loan)) => self.live(loan),
            Ok(Intended::EndedSince(at)) => Begun::Decided(Outcome::Ended { at }),
            Ok(Intended::Braked(until)) => Begun::Decided(Outcome::Braked { until }),
            Err(error) => {
                log_ledger_failure("writing an intent", &error);
                Begun::Decided(Outcome::Unsure)
            }
        }
    }

    /// What is known of a loan that lives already.
    fn live(&self, loan: Loan) -> Begun {
        match loan.open_until() {
            Some(until) if until > self.inner.clock.now() => {
                Begun::Decided(Outcome::Accepted { loan: loan.id, until })
            }
            Some(_) => Begun::Decided(Outcome::Unsure),
            None => Begun::Live(Box::new(loan)),
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
