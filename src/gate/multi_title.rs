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

use super::flight::{Landing, Stage};
use super::{Answer, COME_BACK, Gate, Known, Request, rules};
use crate::circulation::Asker;
use crate::loan::LoanKey;
use crate::problem::Problem;
use crate::telemetry::Via;

/// Results of the lookups if no loan opens the file.
#[derive(Debug, Default)]
struct Found {
    /// The ledger could not be read for one title: its loan may be live.
    unsure: bool,
    /// Too many flights were running to look up one title: its loan may be live.
    overloaded: bool,
    /// A loan has ended, and the credential is too old to begin another.
    ended: bool,
}

impl Gate {
    /// As [`Gate::admit`], where `first` is the cache's result for the first title.
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
            // After returning one of its titles, a reader needs a newer credential, as for a single
            // title. Otherwise an app that continues automatically would spend a licence of another
            // title.
            (Ok(None), None) if found.ended => closed(Problem::LoanEnded, Via::Ledger),
            (Ok(None), None) => self.fly(request, until).await,
        }
    }

    /// Queries the ledger for all titles at once: a title that waits for Bokbasen must not delay
    /// one with a live loan.
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
