//! A loan in the sandbox, and the decision of pending loans.
//!
//! The store keeps it, the state changes it, and the journal writes it. The verdict is fixed when
//! the loan is created, and shown once the loan's polls and times allow it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Pseudonym;
use super::serde_text;
use crate::loan::{Isbn, LibraryId};

/// The status of a loan, as Bokbasen spells it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Status {
    Pending,
    Accepted,
    Refused,
    Returned,
    Expired,
    Cancelled,
}

/// The decision that was made when the loan was created.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Accept { licence_id: String, licence_type: String, due: Timestamp },
    Refuse { code: String, message: String, retry_after: Option<u64> },
}

/// A loan, as it is stored and journalled.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Loan {
    pub(super) id: String,
    pub(super) reference: String,
    #[serde(with = "serde_text")]
    pub(super) library: LibraryId,
    #[serde(with = "serde_text")]
    pub(super) isbn: Isbn,
    pub(super) borrower: Pseudonym,
    pub(super) begin: Timestamp,
    pub(super) made: Timestamp,
    /// The loan is not decided before this time, nor while polls are left.
    pub(super) decide_from: Timestamp,
    /// The loan is decided at this time in any case.
    pub(super) decide_by: Timestamp,
    pub(super) polls_left: u32,
    pub(super) verdict: Verdict,
    pub(super) status: Status,
    pub(super) accepted: Option<Timestamp>,
    pub(super) ended: Option<Timestamp>,
    /// When the first return or cancel was accepted. `ended` is the time that a return states.
    #[serde(default)]
    pub(super) end_received: Option<Timestamp>,
    /// The number of returns and cancels that were accepted.
    pub(super) ends: u32,
}

impl Loan {
    /// Returns the loan with its verdict shown, if it is time; otherwise none.
    pub(super) fn decided(&self, now: Timestamp) -> Option<Loan> {
        let due = (self.polls_left == 0 && now >= self.decide_from) || now >= self.decide_by;
        if self.status != Status::Pending || !due {
            return None;
        }
        let mut next = self.clone();
        match self.verdict {
            Verdict::Accept { .. } => {
                next.status = Status::Accepted;
                next.accepted = Some(now);
            }
            Verdict::Refuse { .. } => next.status = Status::Refused,
        }
        Some(next)
    }

    /// Returns the licence that the loan occupies, and until when.
    pub(super) fn holds(&self) -> Option<(&str, Timestamp)> {
        match (&self.verdict, self.status) {
            (Verdict::Accept { licence_id, due, .. }, Status::Pending | Status::Accepted) => {
                Some((licence_id, *due))
            }
            _ => None,
        }
    }

    /// Returns the licence that the loan counts against; none if it was refused or cancelled.
    pub(super) fn uses(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::Accept { licence_id, .. } if self.status != Status::Cancelled => {
                Some(licence_id)
            }
            _ => None,
        }
    }
}
