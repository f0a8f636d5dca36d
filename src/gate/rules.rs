//! The rules for beginning a loan, as pure functions (invariant 7).
//!
//! An end is final. A credential issued no later than the end of an accepted loan cannot begin
//! another. A request that continues a download never begins a loan: apps renew credentials
//! automatically, and a background download must never spend a licence.

use jiff::Timestamp;

use super::Request;
use crate::circulation::LoanOutcome;
use crate::problem::Problem;

/// Refusal reason on a route where only an explicit request begins loans.
const EXPLICIT: &str = "explicit-begin-required";
/// Refusal reason for a request that continues a download.
const CONTINUES: &str = "continues-download";

/// Returns whether a credential is too old to borrow again after this end. Without an issue time it
/// counts as old.
pub(super) fn is_old(issued: Option<Timestamp>, ended: Timestamp) -> bool {
    issued.is_none_or(|issued| issued <= ended)
}

/// What follows from the newest loan of a request's reader and title.
pub(super) enum Judged {
    /// There is no loan, and this request may begin one.
    MayBegin,
    /// There is no loan, and this request may not begin one.
    MayNot(Problem),
    /// The loan decides.
    Decided(LoanOutcome),
}

/// Judges a request by the newest loan of its reader and title.
pub(super) fn judge(request: &Request<'_>, newest: LoanOutcome) -> Judged {
    let last_end = match newest {
        LoanOutcome::NoLoan => None,
        LoanOutcome::Ended { at, settled: true } => Some(at),
        decided => return Judged::Decided(decided),
    };
    may_begin(request, last_end).map_or_else(Judged::MayNot, |()| Judged::MayBegin)
}

/// Checks whether this request may begin a loan. `last_end` is the last end of a loan of this
/// reader and title.
///
/// # Errors
/// `loan-ended` for a credential that is too old, `loan-refused` with the rule that forbids a
/// begin.
pub(super) fn may_begin(request: &Request<'_>, last_end: Option<Timestamp>) -> Result<(), Problem> {
    let forbidden =
        |reason: &str| Problem::LoanRefused { reason: reason.to_owned(), retry_after: None };
    match last_end {
        Some(at) if is_old(request.issued, at) => Err(Problem::LoanEnded),
        _ if request.explicit => Err(forbidden(EXPLICIT)),
        _ if request.continues => Err(forbidden(CONTINUES)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loan::{Borrower, LoanKey};

    fn request(issued: Option<i64>) -> Request<'static> {
        let key = LoanKey {
            library: "NO-0301000".parse().unwrap(),
            borrower: Borrower::from_bytes([1; 16]),
            isbn: "9780306406157".parse().unwrap(),
        };
        let issued = issued.map(|second| Timestamp::from_second(second).unwrap());
        Request {
            key,
            alternative_titles: &[],
            issued,
            issued_ahead: false,
            continues: false,
            explicit: false,
        }
    }

    #[test]
    fn only_a_strictly_later_credential_borrows_again() {
        let end = Some(Timestamp::from_second(100).unwrap());
        for (issued, may) in
            [(None, false), (Some(99), false), (Some(100), false), (Some(101), true)]
        {
            assert_eq!(may_begin(&request(issued), end).is_ok(), may, "{issued:?}");
        }
        assert!(may_begin(&request(None), None).is_ok(), "a first loan needs no issue time");
    }

    #[test]
    fn continued_download_and_explicit_route_begin_nothing() {
        let forbidden =
            |rule: &str| Problem::LoanRefused { reason: rule.to_owned(), retry_after: None };
        let continued = Request { continues: true, ..request(Some(101)) };
        assert_eq!(may_begin(&continued, None), Err(forbidden(CONTINUES)));
        let explicit = Request { explicit: true, ..request(Some(101)) };
        assert_eq!(may_begin(&explicit, None), Err(forbidden(EXPLICIT)));
    }
}
