//! The rules of beginning, as pure functions (invariant 7).
//!
//! An end is final: a credential that was issued no later than the end of an accepted loan cannot
//! begin it again, and a request that goes on with a download never begins a loan, since apps renew
//! credentials by themselves and a background download must never spend a licence.

use jiff::Timestamp;

use super::Request;
use super::flight::Landing;

/// The reason of a refusal on a route whose loans only an explicit request begins.
const EXPLICIT: &str = "explicit-begin-required";
/// The reason of a refusal of a request that goes on with a download.
const CONTINUES: &str = "continues-download";

/// Whether a credential is too old to borrow again what ended then. None was issued counts as old.
pub(super) fn is_old(issued: Option<Timestamp>, ended: Timestamp) -> bool {
    issued.is_none_or(|issued| issued <= ended)
}

/// Whether this request may begin a loan, where the last one of this reader and title ended at
/// `last_end`.
pub(super) fn may_begin(request: &Request<'_>, last_end: Option<Timestamp>) -> Result<(), Landing> {
    match last_end {
        Some(at) if is_old(request.issued, at) => Err(Landing::Ended { at, settled: true }),
        _ if request.explicit => Err(Landing::Forbidden(EXPLICIT)),
        _ if request.continues => Err(Landing::Forbidden(CONTINUES)),
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
        Request { key, further: &[], issued, continues: false, explicit: false }
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
    fn a_download_that_goes_on_and_an_explicit_route_begin_nothing() {
        let going_on = Request { continues: true, ..request(Some(101)) };
        assert!(matches!(may_begin(&going_on, None), Err(Landing::Forbidden(CONTINUES))));
        let explicit = Request { explicit: true, ..request(Some(101)) };
        assert!(matches!(may_begin(&explicit, None), Err(Landing::Forbidden(EXPLICIT))));
    }
}
