//! A file of several titles: a live loan of any opens it, and only the first-named is ever begun.
//!
//! The gate comes here where the cache does not say that the first one lives. Each title is asked
//! about for itself, by the same cache and the same flights as a title alone; so what holds of one
//! loan holds of each.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::time::Instant;

use super::flight::{Landing, Stage};
use super::{Answer, COME_BACK, Gate, Known, Request, rules};
use crate::circulation::Asker;
use crate::loan::LoanKey;
use crate::problem::Problem;
use crate::telemetry::Via;

/// What was found out where no title's loan opens the file.
#[derive(Debug, Default)]
struct Found {
    /// The ledger could not be asked about one: its loan may live.
    unsure: bool,
    /// Too many flights were under way to query the ledger about one: its loan may live.
    overloaded: bool,
    /// A loan has ended that the credential is too old to follow.
    ended: bool,
}

impl Gate {
    /// As [`Gate::admit`], where of the first title the cache knows this.
    pub(super) async fn admit_among(
        &self,
        request: &Request<'_>,
        first: Known,
        now: Timestamp,
    ) -> Answer {
        let mut found = Found::default();
        let mut unknown: Vec<LoanKey> = Vec::with_capacity(1 + request.further.len());
        for isbn in request.further {
            let key = LoanKey { isbn: *isbn, ..request.key };
            match self.known(&key, request.issued, now) {
                Known::Open(permit) => {
                    return Answer { permit: Ok(permit), isbn: *isbn, via: Via::Cache };
                }
                Known::Closed(problem) => found.ended |= problem == Problem::LoanEnded,
                Known::Nothing => unknown.push(key),
            }
        }
        let first = match first {
            Known::Closed(problem) => Some(problem),
            Known::Open(_) | Known::Nothing => {
                unknown.push(request.key);
                None
            }
        };
        let until = self.patience();
        let looks = self.look_at(request, &unknown, &mut found, until);
        let looked = tokio::time::timeout_at(until, looks).await;
        let closed = |problem, via| Answer { permit: Err(problem), isbn: request.key.isbn, via };
        match (looked, first) {
            (Ok(Some(answer)), _) => answer,
            (Err(_), _) => closed(Problem::LoanPending { retry_after: COME_BACK }, Via::None),
            (Ok(None), _) if found.overloaded => closed(Problem::Overloaded, Via::None),
            (Ok(None), _) if found.unsure => closed(Problem::LedgerUnavailable, Via::Ledger),
            (Ok(None), Some(problem)) => closed(problem, Via::Cache),
            // Who gave the file back under one title gets it again by a later credential only, as
            // under one alone: else an app that goes on by itself would spend a licence of the
            // other title.
            (Ok(None), None) if found.ended => closed(Problem::LoanEnded, Via::Ledger),
            (Ok(None), None) => self.fly(request, until).await,
        }
    }

    /// Asks the ledger about all of them at once: one that waits for Bokbasen must not hold up one
    /// that lives.
    async fn look_at(
        &self,
        request: &Request<'_>,
        keys: &[LoanKey],
        found: &mut Found,
        until: Instant,
    ) -> Option<Answer> {
        let look = |key: LoanKey| async move {
            (key, self.flights.join(Asker { key, issued: request.issued }, Stage::Look).await)
        };
        let mut looks: FuturesUnordered<_> = keys.iter().copied().map(look).collect();
        while let Some((key, landing)) = looks.next().await {
            match landing {
                Landing::Open { .. } => match self.answer(request, &key, landing, until).await {
                    Ok(permit) => {
                        return Some(Answer {
                            permit: Ok(permit),
                            isbn: key.isbn,
                            via: Via::Ledger,
                        });
                    }
                    Err(problem) => {
                        found.unsure |= problem == Problem::LedgerUnavailable;
                        found.ended |= problem == Problem::LoanEnded;
                    }
                },
                Landing::Unsure => found.unsure = true,
                Landing::Overloaded => found.overloaded = true,
                Landing::Ended { at, .. } => found.ended |= rules::is_old(request.issued, at),
                Landing::Refused { .. }
                | Landing::Forbidden(_)
                | Landing::Nothing
                | Landing::TakenBack
                | Landing::Unavailable { .. }
                | Landing::Braked { .. } => {}
            }
        }
        None
    }
}
