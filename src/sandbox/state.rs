//! The state of the sandbox, and the effect of each call on it.
//!
//! Each call locks the state for one operation. Nothing here waits or uses HTTP. When a function
//! returns a loan, the books have it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::api_types::{Begin, Return, ReturnReason};
use super::auth::Tokens;
use super::error_response::Rejected;
use super::faults::{Faults, Plan, Subject};
use super::licence_pools::Pools;
use super::loan::{Loan, Status, Verdict};
use super::loan_store::Books;
use super::lookup::{WorldIndex, licences_of};
use super::{Bounds, Title};

/// All data behind one lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) bounds: Bounds,
    pub(super) faults: Faults,
    pub(super) world_index: WorldIndex,
    pub(super) tokens: Tokens,
    pub(super) books: Books,
    pub(super) pools: Pools,
}

impl State {
    /// Creates a pending loan, and assigns a licence if the loan will be accepted.
    ///
    /// # Errors
    /// Fails with 403 without a contract, 404 for an unknown title. A refusal is no error.
    pub(super) fn begin(
        &mut self,
        begin: &Begin,
        plan: &Plan,
        now: Timestamp,
    ) -> Result<Loan, Rejected> {
        self.world_index.library(begin.library)?;
        let title = self.world_index.title(begin.isbn).ok_or_else(|| unknown_title(begin.isbn))?;
        let verdict = match &plan.refuse {
            Some((code, message, retry_after)) => refuse(code, message.clone(), *retry_after),
            None => self.verdict(begin, &title, now),
        };
        let loan = Loan {
            id: self.books.next_id(),
            reference: begin.reference.clone(),
            library: begin.library,
            isbn: begin.isbn,
            borrower: begin.borrower.clone(),
            begin: begin.begin,
            made: now,
            decide_from: later(now, self.bounds.pending_ms),
            decide_by: later(now, self.bounds.pending_limit_ms.max(self.bounds.pending_ms)),
            polls_left: plan.pending_polls.unwrap_or(self.bounds.pending_polls),
            verdict,
            status: Status::Pending,
            accepted: None,
            ended: None,
            end_received: None,
            ends: 0,
        };
        self.books.store(loan.clone())?;
        self.pools.assign(&loan);
        Ok(loan)
    }

    /// Decides a loan: by the rules first, then by free licences.
    fn verdict(&mut self, begin: &Begin, title: &Title, now: Timestamp) -> Verdict {
        if let Some(code) = self.world_index.refusal(begin.library, &begin.borrower.0, title) {
            return refuse(&code, None, None);
        }
        let mut some = false;
        let mut next_free: Option<Timestamp> = None;
        for licence in licences_of(title, begin.library) {
            if begin.license_id.as_ref().is_some_and(|requested| *requested != licence.licence_id) {
                continue;
            }
            some = true;
            let pool_status = self.pools.status(begin.library, begin.isbn, licence, now);
            if pool_status.free > 0 {
                return Verdict::Accept {
                    licence_id: licence.licence_id.clone(),
                    licence_type: licence.kind.clone(),
                    due: later(begin.begin, u64::from(title.loan_days) * 86_400_000),
                };
            }
            next_free = [next_free, pool_status.next_free].into_iter().flatten().min();
        }
        match (some, &begin.license_id) {
            (true, _) => {
                let longest = self.bounds.no_free_retry_after_seconds;
                let wait = next_free
                    .map(|at| u64::try_from(at.duration_since(now).as_secs()).unwrap_or(0));
                refuse("NO_FREE_LICENSE", None, Some(wait.unwrap_or(longest).min(longest)))
            }
            (false, Some(_)) => refuse("LICENSE_NOT_FOUND", None, None),
            (false, None) => refuse("TITLE_NOT_LENDABLE", None, None),
        }
    }

    /// Returns the current state of a loan.
    ///
    /// # Errors
    /// Fails with 404 `LOAN_NOT_FOUND`.
    pub(super) fn loan(&mut self, id: &str, now: Timestamp) -> Result<Loan, Rejected> {
        let Some(loan) = self.books.loan(id) else {
            return Err(loan_not_found(id));
        };
        match loan.decided(now) {
            None => Ok(loan.clone()),
            Some(decided) => {
                self.books.store(decided.clone())?;
                Ok(decided)
            }
        }
    }

    /// Fails like an unknown id while the loan's age is below `lag`.
    ///
    /// # Errors
    /// Fails with 404 `LOAN_NOT_FOUND`.
    pub(super) fn check_lag(
        &self,
        id: &str,
        lag: Duration,
        now: Timestamp,
    ) -> Result<(), Rejected> {
        match self.books.loan(id) {
            Some(loan) if crate::clock::after(loan.made, lag) > now => Err(loan_not_found(id)),
            Some(_) | None => Ok(()),
        }
    }

    /// Returns the current state of the loan at an index of the books, or none.
    pub(super) fn loan_at(
        &mut self,
        place: usize,
        now: Timestamp,
    ) -> Result<Option<Loan>, Rejected> {
        match self.books.at(place).map(|loan| loan.id.clone()) {
            Some(id) => self.loan(&id, now).map(Some),
            None => Ok(None),
        }
    }

    /// Shows all verdicts that are due, before an export of the whole books.
    pub(super) fn decide_all(&mut self, now: Timestamp) -> Result<(), Rejected> {
        let decided: Vec<Loan> =
            self.books.all().iter().filter_map(|loan| loan.decided(now)).collect();
        for loan in decided {
            self.books.store(loan)?;
        }
        Ok(())
    }

    /// Ends a loan with a return.
    ///
    /// # Errors
    /// Fails with 404, 409 `LOAN_PENDING`, or 409 `ALREADY_ENDED` (refused or cancelled).
    pub(super) fn return_loan(
        &mut self,
        id: &str,
        end: &Return,
        now: Timestamp,
    ) -> Result<Loan, Rejected> {
        let mut loan = self.loan(id, now)?;
        match loan.status {
            Status::Accepted => {
                self.pools.release(&loan, false);
                loan.status = match end.reason {
                    ReturnReason::Returned => Status::Returned,
                    ReturnReason::Expired => Status::Expired,
                };
                loan.ended = Some(end.ended);
            }
            Status::Returned | Status::Expired => {}
            Status::Pending => {
                let message = format!("The loan {id} is pending; it can be cancelled.");
                return Err(Rejected::conflict("LOAN_PENDING", message));
            }
            Status::Cancelled | Status::Refused => {
                let message = format!("The loan {id} was cancelled or refused.");
                return Err(Rejected::conflict("ALREADY_ENDED", message));
            }
        }
        self.count_end(loan, now)
    }

    /// Cancels a loan and frees its licence.
    ///
    /// # Errors
    /// Fails with 404 or 409 `CANCEL_WINDOW_CLOSED`.
    pub(super) fn cancel(&mut self, id: &str, now: Timestamp) -> Result<Loan, Rejected> {
        let mut loan = self.loan(id, now)?;
        let window = SignedDuration::from_millis(
            i64::try_from(self.bounds.cancel_window_ms).unwrap_or(i64::MAX),
        );
        let open = match loan.status {
            Status::Pending => true,
            Status::Accepted => loan.accepted.is_none_or(|at| now.duration_since(at) <= window),
            Status::Cancelled => return self.count_end(loan, now),
            Status::Refused | Status::Returned | Status::Expired => false,
        };
        if !open {
            let message = format!("The loan {id} can no longer be cancelled; return it.");
            return Err(Rejected::conflict("CANCEL_WINDOW_CLOSED", message));
        }
        self.pools.release(&loan, true);
        loan.status = Status::Cancelled;
        loan.ended = Some(now);
        self.count_end(loan, now)
    }

    /// Counts a received return or cancel, and stores the loan.
    fn count_end(&mut self, mut loan: Loan, now: Timestamp) -> Result<Loan, Rejected> {
        loan.ends += 1;
        loan.end_received.get_or_insert(now);
        self.books.store(loan.clone())?;
        Ok(loan)
    }

    /// Returns the subject of a loan, for faults.
    pub(super) fn subject(&self, id: &str) -> Subject {
        self.books.loan(id).map_or_else(Subject::default, about)
    }

    /// Returns the subject of all loans with a reference, for faults.
    pub(super) fn subject_of_reference(&self, reference: &str) -> Subject {
        let first = self.books.of_reference(reference).first();
        let loan = first.and_then(|place| self.books.at(*place));
        loan.map_or_else(Subject::default, about)
    }
}

fn about(loan: &Loan) -> Subject {
    Subject { library: Some(loan.library), isbns: vec![loan.isbn] }
}

fn loan_not_found(id: &str) -> Rejected {
    Rejected::not_found("LOAN_NOT_FOUND", format!("There is no loan {id}."))
}

pub(super) fn unknown_title(isbn: crate::loan::Isbn) -> Rejected {
    Rejected::not_found("TITLE_NOT_FOUND", format!("There is no title {isbn}."))
}

fn refuse(code: &str, message: Option<String>, retry_after: Option<u64>) -> Verdict {
    let usual = match code {
        "NO_FREE_LICENSE" => "All licences of this title are lent.",
        "BUDGET_EXCEEDED" => "The library's budget is used up.",
        "BORROWER_LIMIT" => "The borrower has as many loans as the library allows.",
        "TITLE_NOT_LENDABLE" => "The library does not lend this title.",
        "LIBRARY_NOT_ACTIVE" => "The library is not active.",
        "LICENSE_NOT_FOUND" => "The library has no such licence of this title.",
        _ => "The loan was refused.",
    };
    Verdict::Refuse {
        code: code.to_owned(),
        message: message.unwrap_or_else(|| usual.to_owned()),
        retry_after,
    }
}

/// Returns the time `millis` after `at`, or the maximum timestamp.
pub(super) fn later(at: Timestamp, millis: u64) -> Timestamp {
    crate::clock::after(at, Duration::from_millis(millis))
}
