//! What the gate would decide on a request, for support: nothing is begun, marked or awaited.
//!
//! The server's explanations call it. It reads the same cache and the same rows, and judges them by
//! the same rules as [`Gate::admit`].

use jiff::Timestamp;

use super::multi_title::Found;
use super::rules::{self, Judged};
use super::{Gate, Request};
use crate::circulation::LoanOutcome;
use crate::loan::{Isbn, LibraryId, LoanId, LoanKey};
use crate::problem::Problem;

/// What the gate would decide.
#[derive(Debug)]
pub struct Preview {
    /// The decision.
    pub decision: Previewed,
    /// The title whose loan is decisive.
    pub isbn: Isbn,
}

/// A decision that was not made.
#[derive(Debug)]
pub enum Previewed {
    /// A loan opens the file.
    Permitted {
        /// Its id in the ledger.
        loan: LoanId,
    },
    /// A begin is under way, and Bokbasen has not decided.
    Undecided,
    /// The request would begin a loan.
    WouldBegin,
    /// The request would be refused.
    Refused(Problem),
}

impl Gate {
    /// Returns what [`Gate::admit`] would decide. Bokbasen's own decision on a new loan, and the
    /// spending brake, are not predicted.
    pub async fn preview(&self, request: &Request<'_>) -> Preview {
        let now = self.clock.lending_now();
        let cached = self.preview_cached(&request.key, request.issued, now);
        match cached {
            Some(decision @ Previewed::Permitted { .. }) => {
                Preview { decision, isbn: request.key.isbn }
            }
            cached if !request.alternative_titles.is_empty() => {
                self.preview_among(request, cached, now).await
            }
            Some(decision) => Preview { decision, isbn: request.key.isbn },
            None => self.preview_ledger(request).await,
        }
    }

    fn preview_cached(
        &self,
        key: &LoanKey,
        issued: Option<Timestamp>,
        now: Timestamp,
    ) -> Option<Previewed> {
        Some(match self.look_up(key, issued, now)? {
            Ok(permit) => Previewed::Permitted { loan: permit.loan() },
            Err(problem) => Previewed::Refused(problem),
        })
    }

    /// As [`Gate::preview`], where the cache decides nothing.
    async fn preview_ledger(&self, request: &Request<'_>) -> Preview {
        let decision = match self.peek(request.key).await {
            None => Previewed::Undecided,
            Some(newest) => match rules::judge(request, newest) {
                Judged::MayBegin => match self.preview_obstacle(request.key.library).await {
                    Some(obstacle) => Previewed::Refused(self.refusal(request, obstacle)),
                    None => Previewed::WouldBegin,
                },
                Judged::MayNot(problem) => Previewed::Refused(problem),
                Judged::Decided(outcome) => self.preview_outcome(request, outcome),
            },
        };
        Preview { decision, isbn: request.key.isbn }
    }

    /// Returns why no loan of this library begins now.
    async fn preview_obstacle(&self, library: LibraryId) -> Option<LoanOutcome> {
        let circulation = self.flights.circulation.clone();
        if let Some(obstacle) = circulation.obstacle() {
            return Some(obstacle);
        }
        let paused = self.flights.run(async move { circulation.pause_of(library).await });
        paused.await.unwrap_or(Some(LoanOutcome::Undetermined))
    }

    fn preview_outcome(&self, request: &Request<'_>, outcome: LoanOutcome) -> Previewed {
        match self.open_loan(request, outcome) {
            Ok((loan, _)) => Previewed::Permitted { loan },
            Err(problem) => Previewed::Refused(problem),
        }
    }

    /// As [`Gate::preview`], for a file with several titles.
    async fn preview_among(
        &self,
        request: &Request<'_>,
        first: Option<Previewed>,
        now: Timestamp,
    ) -> Preview {
        let (mut found, mut is_undecided) = (Found::default(), false);
        let mut unknown = Vec::with_capacity(1 + request.alternative_titles.len());
        for isbn in request.alternative_titles {
            let key = LoanKey { isbn: *isbn, ..request.key };
            match self.preview_cached(&key, request.issued, now) {
                Some(Previewed::Refused(problem)) => found.note_problem(&problem),
                Some(decision) => return Preview { decision, isbn: *isbn },
                None => unknown.push(key),
            }
        }
        if first.is_none() {
            unknown.push(request.key);
        }
        for key in unknown {
            match self.peek(key).await {
                None => is_undecided = true,
                Some(open @ LoanOutcome::Open { .. }) => {
                    match self.preview_outcome(request, open) {
                        Previewed::Refused(problem) => found.note_problem(&problem),
                        decision => return Preview { decision, isbn: key.isbn },
                    }
                }
                Some(outcome) => found.note(request, &outcome),
            }
        }
        let isbn = request.key.isbn;
        if is_undecided {
            return Preview { decision: Previewed::Undecided, isbn };
        }
        let first = first.and_then(|decision| match decision {
            Previewed::Refused(problem) => Some(problem),
            _ => None,
        });
        match found.problem(first) {
            Some((problem, _)) => Preview { decision: Previewed::Refused(problem), isbn },
            None => self.preview_ledger(request).await,
        }
    }

    /// Reads the newest loan of a reader and a title; none if it is undecided.
    async fn peek(&self, key: LoanKey) -> Option<LoanOutcome> {
        let circulation = self.flights.circulation.clone();
        let peeked = self.flights.run(async move { circulation.peek(&key).await });
        peeked.await.unwrap_or(Some(LoanOutcome::Undetermined))
    }
}
