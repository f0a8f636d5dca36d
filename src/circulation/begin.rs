//! Looks up the loan of a reader and a title, and begins one.
//!
//! The gate calls this module. What it reads here may change a moment later. The ledger checks the
//! rules again in the transaction that writes the intent.

use std::time::Duration;

use jiff::Timestamp;

use super::wait::OutcomeWait;
use super::{Circulation, DEFAULT_RETRY_AFTER, LoanOutcome, drive, log_ledger_failure};
use crate::clock;
use crate::ledger::{Cause, Intended, LedgerError, Pause};
use crate::loan::{LibraryId, Loan, LoanId, LoanKey, LoanState};

/// Reader, title and credential of a request for a loan.
#[derive(Clone, Copy, Debug)]
pub struct LoanRequest {
    /// The library, the borrower and the title.
    pub key: LoanKey,
    /// When the credential was issued; without a time it counts as old (invariant 7).
    pub issued: Option<Timestamp>,
    /// Whether it was issued in the future when it was first seen.
    pub issued_ahead: bool,
}

/// What the newest loan of a reader and a title means.
enum Newest {
    Known(LoanOutcome),
    /// Its begin is not decided.
    Undecided(Box<Loan>),
    /// It is due, and the expiry task has not ended it yet.
    Due(LoanId),
}

impl Circulation {
    /// Looks up the loan of this reader and title. When this returns, the ledger has been read; an
    /// undecided loan still has to be awaited.
    pub async fn look_up(&self, key: &LoanKey) -> OutcomeWait {
        match self.read_newest(key).await {
            Newest::Known(outcome) => outcome.into(),
            Newest::Undecided(loan) => OutcomeWait::undecided(self, *loan),
            Newest::Due(loan) => {
                self.expire_now(loan);
                self.ended_now().into()
            }
        }
    }

    /// As [`Circulation::look_up`], but changes nothing and waits for no decision. Returns none if
    /// the loan is undecided.
    pub async fn peek(&self, key: &LoanKey) -> Option<LoanOutcome> {
        match self.read_newest(key).await {
            Newest::Known(outcome) => Some(outcome),
            Newest::Undecided(_) => None,
            Newest::Due(_) => Some(self.ended_now()),
        }
    }

    /// The outcome of a loan that is due.
    fn ended_now(&self) -> LoanOutcome {
        LoanOutcome::Ended { at: self.inner.clock.now(), settled: false }
    }

    async fn read_newest(&self, key: &LoanKey) -> Newest {
        self.try_read_newest(key).await.unwrap_or_else(|error| {
            log_ledger_failure("looking up a loan", &error);
            Newest::Known(LoanOutcome::Undetermined)
        })
    }

    async fn try_read_newest(&self, key: &LoanKey) -> Result<Newest, LedgerError> {
        let Some(loan) = self.inner.ledger.newest(key).await? else {
            return Ok(Newest::Known(LoanOutcome::NoLoan));
        };
        let now = self.inner.clock.lending_now();
        let outcome = match loan.state {
            LoanState::Intended | LoanState::Pending | LoanState::Unknown => {
                return Ok(Newest::Undecided(Box::new(loan)));
            }
            LoanState::Accepted => match loan.open_until() {
                Some(until) if until > now => LoanOutcome::Open { loan: loan.id, until },
                // It may not be due; this must not be cached.
                Some(_) if self.inner.lending.clock_is_off() => {
                    LoanOutcome::Unavailable { retry_after: DEFAULT_RETRY_AFTER }
                }
                Some(_) if !self.inner.ledger.clocks_agree() => LoanOutcome::Undetermined,
                // It is due, and the expiry task has not ended it yet.
                Some(_) | None => return Ok(Newest::Due(loan.id)),
            },
            LoanState::Ending => {
                let at = self.ended_at(key, loan.ended.unwrap_or(now));
                LoanOutcome::Ended { at, settled: false }
            }
            LoanState::Refused | LoanState::Ended => match self.refusal_that_holds(&loan, now) {
                Some(refused) => refused,
                None => match self.inner.ledger.last_end(key).await? {
                    Some(at) => LoanOutcome::Ended { at: self.ended_at(key, at), settled: true },
                    None => LoanOutcome::NoLoan,
                },
            },
        };
        Ok(Newest::Known(outcome))
    }

    /// Returns why no loan can be begun now, whoever asks for it.
    pub fn obstacle(&self) -> Option<LoanOutcome> {
        if let Some(retry_after) = self.inner.lending.closed_for() {
            return Some(LoanOutcome::Unavailable { retry_after });
        }
        let is_held = self.inner.ledger.lease().is_held();
        (!is_held || !self.inner.ledger.clocks_agree()).then_some(LoanOutcome::Undetermined)
    }

    /// Returns the outcome of a begin for a library whose lending is paused; none if it is not.
    pub async fn pause_of(&self, library: LibraryId) -> Option<LoanOutcome> {
        match self.inner.ledger.pauses().await {
            Ok(pauses) => {
                let is_of = |pause: &Pause| pause.library.is_none_or(|paused| paused == library);
                pauses.iter().any(is_of).then_some(LoanOutcome::Paused)
            }
            Err(error) => {
                log_ledger_failure("reading the pauses of lending", &error);
                Some(LoanOutcome::Undetermined)
            }
        }
    }

    /// Begins a loan, or finds the live one. When this returns, the begin is sent and answered; its
    /// outcome may still have to be awaited. If this is dropped, the begin continues. The ledger
    /// refuses the intent if a loan of this reader and title ended when or after the credential was
    /// issued (invariant 7).
    pub async fn begin(&self, loan_request: &LoanRequest, by: &'static str) -> OutcomeWait {
        // Checked first, so that an outage does not fill the ledger with intents that are never
        // sent.
        if let Some(obstacle) = self.obstacle() {
            return obstacle.into();
        }
        let (circulation, loan_request) = (self.clone(), *loan_request);
        let begun = self.spawn(async move {
            circulation.begin_now(&loan_request, Cause { by, detail: None }).await
        });
        begun.await.unwrap_or(LoanOutcome::Undetermined.into())
    }

    async fn begin_now(&self, loan_request: &LoanRequest, cause: Cause) -> OutcomeWait {
        let lease = self.inner.ledger.lease();
        // Checked before the intent is written, and again before its begin is sent.
        if !lease.is_held() || !self.inner.ledger.clocks_agree() {
            return LoanOutcome::Undetermined.into();
        }
        let intent = Loan::intend(loan_request.key, self.inner.clock.now());
        // Scheduled before it is durable, so that a loan whose driver dies is always found.
        let (work, wait) = self.inner.schedule.insert(self, intent.id);
        let not_written = match self.intend(intent, loan_request, cause).await {
            Ok(Intended::Written(loan)) => {
                drive::begin(self, work, loan, lease).await;
                return wait.into();
            }
            Ok(Intended::Live(loan)) => self.wait_for_live(loan),
            Ok(Intended::EndedSince(at)) => {
                let at = self.ended_at(&loan_request.key, at);
                LoanOutcome::Ended { at, settled: true }.into()
            }
            Ok(Intended::Paused) => LoanOutcome::Paused.into(),
            Ok(Intended::Braked(until)) => LoanOutcome::Braked { until }.into(),
            // After a failed commit the intent may be durable; then `reconcile` finds it.
            Err(error) => {
                log_ledger_failure("writing an intent", &error);
                LoanOutcome::Undetermined.into()
            }
        };
        work.withdraw();
        not_written
    }

    /// Returns the outcome of a loan that was live when another begin was to be written.
    fn wait_for_live(&self, loan: Loan) -> OutcomeWait {
        match loan.open_until() {
            Some(until) if until > self.inner.clock.lending_now() => {
                LoanOutcome::Open { loan: loan.id, until }.into()
            }
            Some(_) => LoanOutcome::Undetermined.into(),
            None => OutcomeWait::undecided(self, loan),
        }
    }

    /// Writes an intent. An end in the future counts from the time when it was first seen. So if
    /// one bars the intent and the credential is later than that time, the intent is written with
    /// an issue time after the end.
    async fn intend(
        &self,
        intent: Loan,
        loan_request: &LoanRequest,
        cause: Cause,
    ) -> Result<Intended, LedgerError> {
        let LoanRequest { key, issued, issued_ahead } = loan_request;
        let ledger = &self.inner.ledger;
        let barred = ledger.intend(intent.clone(), *issued, cause.clone()).await?;
        let (Intended::EndedSince(end), Some(issued)) = (&barred, *issued) else {
            return Ok(barred);
        };
        // If the credential is of the future too, it may be older than the end.
        let now = self.inner.clock.now().max(self.inner.clock.lending_now());
        if *issued_ahead || issued > now || issued <= self.ended_at(key, *end) {
            return Ok(barred);
        }
        let after_end = clock::after(*end, Duration::from_millis(1));
        ledger.intend(intent.after_end(*end), Some(after_end), cause).await
    }
}
