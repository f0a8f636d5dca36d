//! A loan as the ledger stores it: its state, its end, its terms and its refusal.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use super::{LoanId, LoanKey, Progress, Reference};

/// State of a loan.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum LoanState {
    /// The intent is written; the begin may or may not have been sent.
    Intended,
    /// Bokbasen has the loan and has not decided.
    Pending,
    /// Bokbasen has accepted the loan: the only state in which a file may be delivered.
    Accepted,
    /// A begin was sent, and its response was lost or a read does not return the named loan.
    /// Bokbasen must be queried for the reference.
    Unknown,
    /// Bokbasen refused the loan.
    Refused,
    /// The loan has ended here; Bokbasen has not acknowledged the end.
    Ending,
    /// The loan is over here and at Bokbasen.
    Ended,
}

impl LoanState {
    /// All states, in the order of a loan's life.
    pub const ALL: [LoanState; 7] = [
        LoanState::Intended,
        LoanState::Pending,
        LoanState::Accepted,
        LoanState::Unknown,
        LoanState::Refused,
        LoanState::Ending,
        LoanState::Ended,
    ];

    /// Returns the state's name, as used in the ledger and the APIs.
    pub fn name(self) -> &'static str {
        match self {
            LoanState::Intended => "intended",
            LoanState::Pending => "pending",
            LoanState::Accepted => "accepted",
            LoanState::Unknown => "unknown",
            LoanState::Refused => "refused",
            LoanState::Ending => "ending",
            LoanState::Ended => "ended",
        }
    }

    /// Returns whether a loan in this state may still exist at Bokbasen, so that no other may be
    /// begun for its key.
    pub fn is_live(self) -> bool {
        !matches!(self, LoanState::Refused | LoanState::Ended)
    }

    /// Returns whether Bokbasen's decision on the loan is not known yet.
    pub fn is_undecided(self) -> bool {
        matches!(self, LoanState::Intended | LoanState::Pending | LoanState::Unknown)
    }

    /// Returns whether the loan has ended here, acknowledged by Bokbasen or not.
    pub fn has_ended(self) -> bool {
        matches!(self, LoanState::Ending | LoanState::Ended)
    }
}

impl fmt::Display for LoanState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LoanState {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<LoanState, UnknownName> {
        LoanState::ALL.into_iter().find(|state| state.name() == text).ok_or(UnknownName)
    }
}

/// Error for a text that names no state or reason.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("it is none of the names that are known here")]
pub struct UnknownName;

/// Why a loan ended.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum EndReason {
    /// The reader, or support for the reader, returned it.
    Returned,
    /// Its due time passed.
    Expired,
    /// It was cancelled before any byte can have been sent, so its licence is free again.
    Cancelled,
    /// It never existed at Bokbasen: nothing was sent, or nothing was found under its reference.
    Rejected,
}

impl EndReason {
    /// All reasons for an end.
    pub const ALL: [EndReason; 4] =
        [EndReason::Returned, EndReason::Expired, EndReason::Cancelled, EndReason::Rejected];

    /// Returns the reason's name, as used in the ledger and the APIs.
    pub fn name(self) -> &'static str {
        match self {
            EndReason::Returned => "returned",
            EndReason::Expired => "expired",
            EndReason::Cancelled => "cancelled",
            EndReason::Rejected => "rejected",
        }
    }

    /// Returns whether only an accepted loan can end for this reason.
    pub(super) fn follows_acceptance(self) -> bool {
        matches!(self, EndReason::Returned | EndReason::Expired)
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EndReason {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<EndReason, UnknownName> {
        EndReason::ALL.into_iter().find(|reason| reason.name() == text).ok_or(UnknownName)
    }
}

/// Terms of an accepted loan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Terms {
    /// When the loan expires, by Bokbasen's clock.
    pub due: Timestamp,
    /// Id of the licence that was used, if Bokbasen names it.
    pub licence_id: Option<String>,
    /// Type of that licence, if Bokbasen names it.
    pub licence_type: Option<String>,
}

/// Bokbasen's reason for refusing a loan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// Bokbasen's code, even if unknown here.
    pub code: String,
    /// Bokbasen's message, for support.
    pub message: String,
    /// The time before which Bokbasen expects no new request.
    pub retry_at: Option<Timestamp>,
}

/// A loan as the ledger stores it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LoanRecord {
    /// Its id in the ledger.
    pub id: LoanId,
    /// Its library, borrower and title.
    pub key: LoanKey,
    /// The reference of its begin.
    pub reference: Reference,
    /// Bokbasen's id of the loan, once known.
    pub lending_id: Option<String>,
    /// Its state after the last event.
    pub state: LoanState,
    /// When the intent was written.
    pub begun: Timestamp,
    /// When the acceptance was written. If Bokbasen showed the loan only when it had ended, this is
    /// the end. None if it was never accepted.
    pub accepted: Option<Timestamp>,
    /// The terms, once it is accepted.
    pub terms: Option<Terms>,
    /// When it ended here.
    pub ended: Option<Timestamp>,
    /// Why it ended, once it has.
    pub end_reason: Option<EndReason>,
    /// Why it was refused.
    pub refusal: Option<Refusal>,
    /// How far the borrower has read, as the app last reported.
    pub progress: Option<Progress>,
    /// When its borrower was forgotten: since then the pseudonym in its key is random.
    pub forgotten: Option<Timestamp>,
    /// When the record last changed.
    pub changed: Timestamp,
}
