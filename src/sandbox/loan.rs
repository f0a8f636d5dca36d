//! A loan as the sandbox keeps it, and how a pending one is decided.
//!
//! The books keep it, the state changes it, the journal writes it. It calls nothing of ours but the
//! domain's names. What was decided is fixed when the loan is made and shown when it is due to be
//! shown.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Pseudonym;
use super::serde_text;
use crate::loan::{Isbn, LibraryId};

/// Where a loan stands, in Bokbasen's words.
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

/// What was decided when the loan was made.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Accept { licence_id: String, licence_type: String, due: Timestamp },
    Refuse { code: String, message: String, retry_after: Option<u64> },
}

/// A loan, as it is kept and journalled.
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
    /// Not decided before this moment, and not while polls are left.
    pub(super) decide_from: Timestamp,
    /// Decided at this moment in any case.
    pub(super) decide_by: Timestamp,
    pub(super) polls_left: u32,
    pub(super) verdict: Verdict,
    pub(super) status: Status,
    pub(super) accepted: Option<Timestamp>,
    pub(super) ended: Option<Timestamp>,
    /// How often an end was received.
    pub(super) ends: u32,
}

impl Loan {
    /// The loan with its verdict shown, where it is time; none where it stays as it is.
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

    /// The licence that the loan takes up and until when, where it takes up any.
    pub(super) fn holds(&self) -> Option<(&str, Timestamp)> {
        match (&self.verdict, self.status) {
            (Verdict::Accept { licence_id, due, .. }, Status::Pending | Status::Accepted) => {
                Some((licence_id, *due))
            }
            _ => None,
        }
    }

    /// The licence that the loan has used up a part of: every one that was not refused or
    /// cancelled.
    pub(super) fn uses(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::Accept { licence_id, .. } if self.status != Status::Cancelled => {
                Some(licence_id)
            }
            _ => None,
        }
    }
}
