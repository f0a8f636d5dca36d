//! Admission to a file with several titles: a live loan of any title opens it, and only a loan of
//! the first is ever begun.
//!
//! The gate calls this module if the cache does not have a live loan of the first title. Each title
//! is looked up separately, in the same cache and by the same flights as a single title. So the
//! same rules apply to each loan.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::time::Instant;

use super::flight::{Overloaded, Stage};
use super::{Answer, Gate, PENDING_RETRY_AFTER, Request, rules};
use crate::circulation::LoanOutcome;
use crate::loan::LoanKey;
use crate::problem::Problem;
use crate::telemetry::Via;

/// Results of the lookups if no loan opens the file.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The ledger could not be read for one title: its loan may be live.
    undetermined: bool,
    /// Too many flights were running to look up one title: its loan may be live.
    overloaded: bool,
    /// A loan has ended, and the credential is too old to begin another.
    ended: bool,
}

impl Found {
    /// Notes a loan of one title that does not open the file.
    pub(super) fn note(&mut self, request: &Request<'_>, outcome: &LoanOutcome) {
        match outcome {
            LoanOutcome::Ended { at, .. } => self.ended |= rules::is_old(request.issued, *at),
            LoanOutcome::Undetermined => self.undetermined = true,
            LoanOutcome::Open { .. }
            | LoanOutcome::Refused { .. }
            | LoanOutcome::NoLoan
            | LoanOutcome::Withdrawn
            | LoanOutcome::Unavailable { .. }
            | LoanOutcome::Paused
            | LoanOutcome::Braked { .. } => {}
        }
    }

    /// Notes why an open loan of one title gave no permit.
    pub(super) fn note_problem(&mut self, problem: &Problem) {
        self.undetermined |= *problem == Problem::LedgerUnavailable;
        self.ended |= *problem == Problem::LoanEnded;
    }

    /// Returns why no loan may be begun; none if the first title decides. `first` is the problem
    /// that the cache has for it.
    pub(super) fn problem(&self, first: Option<Problem>) -> Option<(Problem, Via)> {
        match first {
            _ if self.overloaded => Some((Problem::Overloaded, Via::None)),
            _ if self.undetermined => Some((Problem::LedgerUnavailable, Via::Ledger)),
            Some(problem) => Some((problem, Via::Cache)),
            // After returning one of its titles, a reader needs a newer credential, as for a single
            // title. Otherwise an app that continues automatically would spend a licence of another
            // title.
            None => self.ended.then_some((Problem::LoanEnded, Via::Ledger)),
        }
    }
}

impl Gate {
    /// As [`Gate::admit`], where `first` is the problem that the cache has for the first title.
    pub(super) async fn admit_among(
        &self,
        request: &Request<'_>,
        first: Option<Problem>,
        now: Timestamp,
    ) -> Answer {
        let mut found = Found::default();
        let mut unknown: Vec<LoanKey> = Vec::with_capacity(1 + request.alternative_titles.len());
        for isbn in request.alternative_titles {
            let key = LoanKey { isbn: *isbn, ..request.key };
            match self.look_up(&key, request.issued, now) {
                Some(Ok(permit)) => {
                    return Answer { permit: Ok(permit), isbn: *isbn, via: Via::Cache };
                }
                Some(Err(problem)) => found.note_problem(&problem),
                None => unknown.push(key),
            }
        }
        if first.is_none() {
            unknown.push(request.key);
        }
        let until = self.patience();
        let lookups = self.look_up_all(request, &unknown, &mut found, until);
        let answer = tokio::time::timeout_at(until, lookups).await;
        let closed = |problem, via| Answer { permit: Err(problem), isbn: request.key.isbn, via };
        match answer {
            Ok(Some(answer)) => answer,
            Err(_) => closed(Problem::LoanPending { retry_after: PENDING_RETRY_AFTER }, Via::None),
            Ok(None) => match found.problem(first) {
                Some((problem, via)) => closed(problem, via),
                None => self.decide_by_flight(request, until).await,
            },
        }
    }

    /// Queries the ledger for all titles at once: a title that waits for Bokbasen must not delay
    /// one with a live loan.
    async fn look_up_all(
        &self,
        request: &Request<'_>,
        keys: &[LoanKey],
        found: &mut Found,
        until: Instant,
    ) -> Option<Answer> {
        let look_up = |key: LoanKey| async move {
            (key, self.flights.join(request.loan_request(key), Stage::LookUp).await)
        };
        let mut lookups: FuturesUnordered<_> = keys.iter().copied().map(look_up).collect();
        while let Some((key, result)) = lookups.next().await {
            match result {
                Ok(outcome @ LoanOutcome::Open { .. }) => {
                    match self.permit_for(request, &key, outcome, until).await {
                        Ok(permit) => {
                            return Some(Answer {
                                permit: Ok(permit),
                                isbn: key.isbn,
                                via: Via::Ledger,
                            });
                        }
                        Err(problem) => found.note_problem(&problem),
                    }
                }
                Ok(outcome) => found.note(request, &outcome),
                Err(Overloaded) => found.overloaded = true,
            }
        }
        None
    }
}
