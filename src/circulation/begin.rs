//! Looks up the loan of a reader and a title, and begins one.
//!
//! The gate calls this module. What it reads here may change a moment later. The ledger checks the
//! rules again in the transaction that writes the intent.

use std::time::Duration;

use jiff::Timestamp;

use super::wait::LoanWaiter;
use super::{Circulation, DEFAULT_RETRY_AFTER, Inner, Outcome, drive, log_ledger_failure};
use crate::clock;
use crate::ledger::{Cause, Intended, LedgerError};
use crate::loan::{EndReason, Loan, LoanId, LoanKey, LoanState};

/// Shortest and longest time for which a refusal holds, whatever Bokbasen sends. The lower limit
/// prevents a storm of begins. The upper limit prevents that one wrong value refuses a reader for
/// ever.
const LEAST_REFUSED: Duration = Duration::from_secs(1);
const LONGEST_REFUSED: Duration = Duration::from_secs(86_400);

/// Reader, title and credential of a request for a loan.
#[derive(Clone, Copy, Debug)]
pub struct LoanRequest {
    /// The library, the borrower and the title.
    pub key: LoanKey,
    /// When the credential was issued; without a time it counts as old (invariant 7).
    pub issued: Option<Timestamp>,
}

/// State of a reader and a title in the ledger.
#[derive(Clone, Debug)]
pub enum LedgerStatus {
    /// An accepted loan that opens files until its due time.
    Open {
        /// Id of the loan in the ledger.
        loan: LoanId,
        /// Its due time, by Bokbasen's clock.
        until: Timestamp,
    },
    /// A loan that Bokbasen has not decided.
    Undecided(Box<Loan>),
    /// Bokbasen refused and the refusal still holds, or the clocks differ too much to tell whether
    /// the loan is due.
    Refused(Outcome),
    /// An accepted loan has ended.
    Ended {
        /// When that loan ended, as tokens are compared with it.
        at: Timestamp,
        /// Whether Bokbasen acknowledged the end, so that another loan may be begun.
        settled: bool,
    },
    /// A loan may be begun.
    Nothing,
}

/// Result of a begin.
#[derive(Debug)]
pub enum BeginResult {
    /// The outcome is known.
    Decided(Outcome),
    /// The begin was sent; wait for its outcome.
    Sent(LoanWaiter),
    /// An undecided loan exists already: see [`Circulation::join`].
    Live(Box<Loan>),
}

impl Circulation {
    /// Returns the state of this reader and title in the ledger.
    ///
    /// # Errors
    /// Returns the error of the ledger.
    pub async fn ledger_status(&self, key: &LoanKey) -> Result<LedgerStatus, LedgerError> {
        let Some(loan) = self.inner.ledger.newest(key).await? else {
            return Ok(LedgerStatus::Nothing);
        };
        let now = self.inner.clock.lending_now();
        match loan.state {
            LoanState::Accepted => match loan.open_until() {
                Some(until) if until > now => Ok(LedgerStatus::Open { loan: loan.id, until }),
                // It may not be due; this must not be cached.
                Some(_) if self.inner.lending.clock_is_off() => {
                    Ok(LedgerStatus::Refused(Outcome::Unavailable {
                        retry_after: DEFAULT_RETRY_AFTER,
                    }))
                }
                // It is due, and the expiry task has not ended it yet.
                Some(_) | None => {
                    self.expire_now(loan.id);
                    Ok(LedgerStatus::Ended { at: self.inner.clock.now(), settled: false })
                }
            },
            LoanState::Intended | LoanState::Pending | LoanState::Unknown => {
                Ok(LedgerStatus::Undecided(Box::new(loan)))
            }
            LoanState::Ending => {
                let at = self.ended_at(key, loan.ended.unwrap_or(now));
                Ok(LedgerStatus::Ended { at, settled: false })
            }
            LoanState::Refused | LoanState::Ended => match self.refusal_that_holds(&loan, now) {
                Some(refused) => Ok(LedgerStatus::Refused(refused)),
                None => match self.inner.ledger.last_end(key).await? {
                    Some(at) => {
                        Ok(LedgerStatus::Ended { at: self.ended_at(key, at), settled: true })
                    }
                    None => Ok(LedgerStatus::Nothing),
                },
            },
        }
    }

    /// Begins a loan, or finds the live one. When this returns, the begin is sent and answered. If
    /// this is dropped, the begin continues. The ledger refuses the intent if a loan of this reader
    /// and title ended when or after the credential was issued (invariant 7).
    pub async fn begin(&self, loan_request: &LoanRequest, by: &'static str) -> BeginResult {
        // Checked first, so that an outage does not fill the ledger with intents that are never
        // sent.
        if let Some(retry_after) = self.inner.lending.closed_for() {
            return BeginResult::Decided(Outcome::Unavailable { retry_after });
        }
        let (circulation, loan_request) = (self.clone(), *loan_request);
        let begun = self.spawn(async move {
            circulation.begin_now(&loan_request, Cause { by, detail: None }).await
        });
        begun.await.unwrap_or(BeginResult::Decided(Outcome::Undetermined))
    }

    async fn begin_now(&self, loan_request: &LoanRequest, cause: Cause) -> BeginResult {
        let intent = Loan::intend(loan_request.key, self.inner.clock.now());
        let issued = match self.issued_for_ledger(loan_request).await {
            Ok(issued) => issued,
            Err(error) => {
                log_ledger_failure("reading when the last loan ended", &error);
                return BeginResult::Decided(Outcome::Undetermined);
            }
        };
        // Scheduled before it is durable, so that a loan whose driver dies is always found.
        let (work, waiting) = self.inner.schedule.insert(self, intent.id);
        let intended = self.inner.ledger.intend(intent, issued, cause).await;
        if let Ok(Intended::Written(loan)) = intended {
            drive::begin(self, work, loan).await;
            return BeginResult::Sent(waiting);
        }
        // After a failed commit the intent may be durable; then `reconcile` finds it.
        work.withdraw();
        match intended {
            Ok(Intended::Written(_)) => BeginResult::Decided(Outcome::Undetermined),
            Ok(Intended::Live(loan)) => self.live(loan),
            Ok(Intended::EndedSince(at)) => {
                BeginResult::Decided(Outcome::Ended { at: self.ended_at(&loan_request.key, at) })
            }
            Ok(Intended::Braked(until)) => BeginResult::Decided(Outcome::Braked { until }),
            Err(error) => {
                log_ledger_failure("writing an intent", &error);
                BeginResult::Decided(Outcome::Undetermined)
            }
        }
    }

    /// Returns the result for a live loan.
    fn live(&self, loan: Loan) -> BeginResult {
        match loan.open_until() {
            Some(until) if until > self.inner.clock.lending_now() => {
                BeginResult::Decided(Outcome::Accepted { loan: loan.id, until })
            }
            Some(_) => BeginResult::Decided(Outcome::Undetermined),
            None => BeginResult::Live(Box::new(loan)),
        }
    }

    /// Returns the outcome of a decided loan; none while it is undecided.
    pub(super) fn outcome_of(&self, loan: &Loan) -> Option<Outcome> {
        let now = self.inner.clock.lending_now();
        match loan.state {
            LoanState::Intended | LoanState::Pending | LoanState::Unknown => None,
            LoanState::Accepted => {
                loan.open_until().map(|until| Outcome::Accepted { loan: loan.id, until })
            }
            // A waiter gets the refusal even if its time has passed.
            LoanState::Refused => {
                let until = self.refused_until(loan).max(clock::after(now, LEAST_REFUSED));
                loan.refusal.clone().map(|refusal| Outcome::Refused { refusal, until })
            }
            LoanState::Ending | LoanState::Ended => match (loan.accepted, loan.ended) {
                (Some(_), Some(at)) => Some(Outcome::Ended { at: self.ended_at(&loan.key, at) }),
                _ if loan.end_reason == Some(EndReason::Rejected) => Some(Outcome::NotCreated),
                _ => Some(Outcome::Withdrawn),
            },
        }
    }

    fn refusal_that_holds(&self, loan: &Loan, now: Timestamp) -> Option<Outcome> {
        let (refusal, until) = (loan.refusal.clone()?, self.refused_until(loan));
        (until > now).then_some(Outcome::Refused { refusal, until })
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
    fn ended_at(&self, key: &LoanKey, at: Timestamp) -> Timestamp {
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

    /// Returns the credential's issue time for the ledger's comparison with the last end. If the
    /// end is in the future and the credential is later than the time from which it counts, the
    /// result is later than the end.
    async fn issued_for_ledger(
        &self,
        loan_request: &LoanRequest,
    ) -> Result<Option<Timestamp>, LedgerError> {
        let (Some(issued), Some(end)) =
            (loan_request.issued, self.inner.ledger.last_end(&loan_request.key).await?)
        else {
            return Ok(loan_request.issued);
        };
        // If the token is in the future too, only the two times themselves can be compared.
        let now = self.inner.clock.now().max(self.inner.clock.lending_now());
        let counts_as = if issued > now { end } else { self.ended_at(&loan_request.key, end) };
        let is_later = issued > counts_as;
        Ok(Some(if is_later {
            issued.max(clock::after(end, Duration::from_millis(1)))
        } else {
            issued
        }))
    }
}
