//! From a reader's wish to a loan: where it stands, and beginning it.
//!
//! Called by the gate. What is read here may be old a moment later; what must hold is checked again
//! by the ledger, inside the transaction that writes the intent.

use std::time::Duration;

use jiff::Timestamp;

use super::wait::Waiting;
use super::{Circulation, Inner, Outcome, SOON, drive, log_ledger_failure};
use crate::clock;
use crate::ledger::{Cause, Intended, LedgerError};
use crate::loan::{EndReason, Loan, LoanId, LoanKey, LoanState};

/// How long a refusal holds at least and at most, whatever time Bokbasen names: no begin storm, and
/// no reader who is refused for good by one bad number.
const LEAST_REFUSED: Duration = Duration::from_secs(1);
const LONGEST_REFUSED: Duration = Duration::from_secs(86_400);

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
    /// Bokbasen refused, and that still holds; or it cannot be said whether a loan is due.
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
        let now = self.inner.clock.lending_now();
        match loan.state {
            LoanState::Accepted => match loan.open_until() {
                Some(until) if until > now => Ok(Standing::Open { loan: loan.id, until }),
                // Whether it is due is not certain: no answer to be cached.
                Some(_) if self.inner.lending.clock_is_off() => {
                    Ok(Standing::Refused(Outcome::Unavailable { retry_after: SOON }))
                }
                // It is due and the ender has not come to it yet.
                Some(_) | None => {
                    self.expire_now(loan.id);
                    Ok(Standing::Ended { at: self.inner.clock.now(), settled: false })
                }
            },
            LoanState::Intended | LoanState::Pending | LoanState::Unknown => {
                Ok(Standing::Undecided(Box::new(loan)))
            }
            LoanState::Ending => {
                let at = self.ended_at(key, loan.ended.unwrap_or(now));
                Ok(Standing::Ended { at, settled: false })
            }
            LoanState::Refused | LoanState::Ended => match self.refusal_that_holds(&loan, now) {
                Some(refused) => Ok(Standing::Refused(refused)),
                None => match self.inner.ledger.last_end(key).await? {
                    Some(at) => Ok(Standing::Ended { at: self.ended_at(key, at), settled: true }),
                    None => Ok(Standing::Nothing),
                },
            },
        }
    }

    /// Begins a loan, or finds the live one. The begin is sent and answered when this returns, and
    /// goes on when this is dropped. The ledger refuses the intent where a loan of this reader and
    /// title ended at or after the asker's credential was issued (invariant 7).
    pub async fn begin(&self, asker: &Asker, by: &'static str) -> Begun {
        // Checked first, so that an outage does not fill the ledger with intents that could never
        // be sent.
        if let Some(retry_after) = self.inner.lending.closed_for() {
            return Begun::Decided(Outcome::Unavailable { retry_after });
        }
        let (circulation, asker) = (self.clone(), *asker);
        let begun = self
            .spawn(async move { circulation.begin_now(&asker, Cause { by, detail: None }).await });
        begun.await.unwrap_or(Begun::Decided(Outcome::Unsure))
    }

    async fn begin_now(&self, asker: &Asker, cause: Cause) -> Begun {
        let intent = Loan::intend(asker.key, self.inner.clock.now());
        let issued = match self.issued_for_ledger(asker).await {
            Ok(issued) => issued,
            Err(error) => {
                log_ledger_failure("reading when the last loan ended", &error);
                return Begun::Decided(Outcome::Unsure);
            }
        };
        // Entered before it is durable, so that a loan whose driver dies is always found.
        let (work, waiting) = self.inner.schedule.enter(self, intent.id);
        let intended = self.inner.ledger.intend(intent, issued, cause).await;
        if let Ok(Intended::Written(loan)) = intended {
            drive::begin(self, work, loan).await;
            return Begun::Sent(waiting);
        }
        // After a failed commit the intent may be durable; `reconcile` finds it then.
        work.withdraw();
        match intended {
            Ok(Intended::Written(_)) => Begun::Decided(Outcome::Unsure),
            Ok(Intended::Live(loan)) => self.live(loan),
            Ok(Intended::EndedSince(at)) => {
                Begun::Decided(Outcome::Ended { at: self.ended_at(&asker.key, at) })
            }
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
            Some(until) if until > self.inner.clock.lending_now() => {
                Begun::Decided(Outcome::Accepted { loan: loan.id, until })
            }
            Some(_) => Begun::Decided(Outcome::Unsure),
            None => Begun::Live(Box::new(loan)),
        }
    }

    /// What a decided loan means to whoever waits for it; none while it is undecided.
    pub(super) fn outcome_of(&self, loan: &Loan) -> Option<Outcome> {
        let now = self.inner.clock.lending_now();
        match loan.state {
            LoanState::Intended | LoanState::Pending | LoanState::Unknown => None,
            LoanState::Accepted => {
                loan.open_until().map(|until| Outcome::Accepted { loan: loan.id, until })
            }
            // Whoever waited gets Bokbasen's no, even where its time has passed meanwhile.
            LoanState::Refused => {
                let until = self.refused_until(loan).max(clock::after(now, LEAST_REFUSED));
                loan.refusal.clone().map(|refusal| Outcome::Refused { refusal, until })
            }
            LoanState::Ending | LoanState::Ended => match (loan.accepted, loan.ended) {
                (Some(_), Some(at)) => Some(Outcome::Ended { at: self.ended_at(&loan.key, at) }),
                _ if loan.end_reason == Some(EndReason::Rejected) => Some(Outcome::NothingMade),
                _ => Some(Outcome::TakenBack),
            },
        }
    }

    fn refusal_that_holds(&self, loan: &Loan, now: Timestamp) -> Option<Outcome> {
        let (refusal, until) = (loan.refusal.clone()?, self.refused_until(loan));
        (until > now).then_some(Outcome::Refused { refusal, until })
    }

    /// Until when a refusal holds, by Bokbasen's clock: as long as it says, and otherwise, or where
    /// that time had passed already, for `gate.refusal_ttl`.
    fn refused_until(&self, loan: &Loan) -> Timestamp {
        let Inner { clock, settings, .. } = &*self.inner;
        let refused = loan.changed.checked_add(clock.lending_offset()).unwrap_or(loan.changed);
        let least = clock::after(refused, LEAST_REFUSED);
        let named = loan.refusal.as_ref().and_then(|refusal| refusal.retry_at);
        let until =
            named.filter(|at| *at > refused).unwrap_or(clock::after(refused, settings.refusal_ttl));
        until.clamp(least, clock::after(refused, LONGEST_REFUSED))
    }

    /// When an accepted loan ended, as tokens are compared with it. An end that lies ahead was
    /// written by a clock that was fast: it counts as having happened by the time that it is first
    /// seen, so that it blocks no later token.
    fn ended_at(&self, key: &LoanKey, at: Timestamp) -> Timestamp {
        // Ends are written by our clock: one lies ahead only where Bokbasen's clock says so too.
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

    /// The credential's issue time as the ledger compares it with the last end: later than an end
    /// that lies ahead, where it is later than that end counts as.
    async fn issued_for_ledger(&self, asker: &Asker) -> Result<Option<Timestamp>, LedgerError> {
        let (Some(issued), Some(end)) =
            (asker.issued, self.inner.ledger.last_end(&asker.key).await?)
        else {
            return Ok(asker.issued);
        };
        // A token from ahead of the clock may be older than an end that lies ahead as well: only
        // the two times themselves tell.
        let now = self.inner.clock.now().max(self.inner.clock.lending_now());
        let counts_as = if issued > now { end } else { self.ended_at(&asker.key, end) };
        let is_later = issued > counts_as;
        Ok(Some(if is_later {
            issued.max(clock::after(end, Duration::from_millis(1)))
        } else {
            issued
        }))
    }
}
