//! Loans as Bokbasen's API has them: a begin, a loan and its status, and the answer to an end.

use std::time::Duration;

use jiff::Timestamp;

use crate::loan::{Borrower, EndReason, Isbn, LibraryId, Reference, Refusal, Terms};

/// A request to begin a loan.
#[derive(Clone, Debug)]
pub struct Begin {
    /// The library that owns the licence.
    pub library: LibraryId,
    /// The title to lend.
    pub isbn: Isbn,
    /// The pseudonymous borrower.
    pub borrower: Borrower,
    /// The licence to use; none leaves the choice to Bokbasen.
    pub licence_id: Option<String>,
    /// Our unique reference, by which [`find`](super::Bokbasen::find) finds the loan.
    pub reference: Reference,
    /// The time at which the loan begins.
    pub begin: Timestamp,
}

/// A loan as Bokbasen reports it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RemoteLoan {
    /// Bokbasen's id of the loan.
    pub lending_id: String,
    /// The reference of the begin request.
    pub reference: Option<Reference>,
    /// The library that owns the licence.
    pub library: Option<LibraryId>,
    /// The title that is lent.
    pub isbn: Option<Isbn>,
    /// The time at which the loan began.
    pub begin: Option<Timestamp>,
    /// The status of the loan.
    pub standing: Standing,
}

/// The status of a loan at Bokbasen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Standing {
    /// Bokbasen has not decided yet.
    Pending {
        /// The time to wait before the next poll.
        retry_after: Option<Duration>,
    },
    /// Bokbasen accepted the loan. Only this status opens a file.
    Accepted(Terms),
    /// Bokbasen refused the loan.
    Refused(Refusal),
    /// The loan is over.
    Ended(EndReason),
    /// An unknown status; it counts as not accepted.
    Unrecognised(String),
}

/// Bokbasen's response to a return or cancel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EndAck {
    /// The loan is over at Bokbasen.
    Done,
    /// Bokbasen has not decided the loan yet; it can only be cancelled.
    StillPending,
    /// The loan can no longer be cancelled, only returned.
    CancelWindowClosed,
    /// 404 `LOAN_NOT_FOUND`. The loan is over at Bokbasen, unless it is so recent that Bokbasen may
    /// not show it yet.
    NoSuchLoan,
}
