//! The states of a loan and all transitions, as one pure function.
//!
//! ```text
//!             ┌── NotSent ───────────────────────────────► ended (rejected)
//!             │                                              ▲
//!  intended ──┼── Begun ───────► pending                     │
//!             │                   ▲ │ │ │                    │
//!             ├── Refused ─► refused◄─┘ │ └─ Ending ──┐      │
//!             │                ▲  │     │             ▼      │
//!             └── Lost ─► unknown ┘     │          ending    │
//!                          │ │ │        ▼             │      │
//!                          │ │ └────► accepted ─Ending┘      │
//!                          │ │            ▲  (Ended)         │
//!                          │ └─ Accepted ─┘    │             │
//!                          └──── NotFound ─────┼─────────────┘
//!                                              ▼
//!                                     ended (returned, expired, cancelled)
//! ```
//!
//! `Declined` leads from `pending`, or from an intent whose begin was refused at once, back to
//! `intended`. Bokbasen declined the requested licence, and the next permitted one is tried.
//! `Missing` leads from `pending` to `unknown`: a read by id does not return a loan that Bokbasen
//! has named, and reads may lag.
//!
//! Only `accepted` opens a file. `intended`, `unknown`, `pending`, `accepted` and `ending` are
//! *live*: while a loan is live, no other may be begun for the same library, borrower and title.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;

use super::{IdentifierError, LoanId, LoanKey, Progress, Reference};
use crate::clock;

/// Time after which an unacknowledged end raises an alarm.
pub const OVERDUE_AFTER: Duration = Duration::from_secs(86_400);

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
    fn follows_acceptance(self) -> bool {
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
    /// Bokbasen's code, verbatim, even if unknown here.
    pub code: String,
    /// Bokbasen's message, verbatim, for support.
    pub message: String,
    /// The time before which Bokbasen expects no new request.
    pub retry_at: Option<Timestamp>,
}

/// An event in the life of a loan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// Bokbasen created the loan and assigned its id.
    Begun {
        /// Bokbasen's id of the loan.
        lending_id: String,
    },
    /// The begin was certainly never sent.
    NotSent,
    /// Bokbasen declined the licence, and another is tried.
    Declined,
    /// The begin may have been sent and got no response, or the process that sent it died.
    Lost,
    /// Bokbasen accepted the loan.
    Accepted {
        /// Bokbasen's id of the loan.
        lending_id: String,
        /// The terms of the loan.
        terms: Terms,
    },
    /// Bokbasen refused the loan.
    Refused {
        /// Bokbasen's id of the loan, if the refusal has one.
        lending_id: Option<String>,
        /// Bokbasen's code and message.
        refusal: Refusal,
    },
    /// Bokbasen was queried after an unknown outcome and has no loan of this reference.
    NotFound,
    /// A read by id lacks a loan that Bokbasen has named. Reads may lag, so this proves nothing.
    Missing,
    /// The loan ends here. From now on it opens nothing, and the end must be sent to Bokbasen.
    Ending {
        /// The reason for the end.
        reason: EndReason,
    },
    /// Bokbasen acknowledged the end.
    EndAcknowledged,
    /// Bokbasen reports that the loan has already ended there.
    EndedThere {
        /// The reason that Bokbasen reports.
        reason: EndReason,
    },
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

/// A loan. It reads like its [`LoanRecord`], and only [`Loan::apply`] changes it.
///
/// ```
/// use std::time::Duration;
///
/// use jiff::Timestamp;
/// use loangate::clock;
/// use loangate::loan::{Borrower, EndReason, Event, Loan, LoanKey, LoanState, Terms};
///
/// let now: Timestamp = "2026-01-15T12:00:00Z".parse()?;
/// let key = LoanKey {
///     library: "NO-0301000".parse()?,
///     borrower: Borrower::from_bytes([7; 16]),
///     isbn: "9788299999014".parse()?,
/// };
///
/// // An intent opens nothing, and blocks a second begin.
/// let intent = Loan::intend(key, now);
/// assert_eq!(intent.open_until(), None);
/// assert!(intent.state.is_live());
///
/// // Bokbasen accepts: the files are open until the due time.
/// let due = clock::after(now, Duration::from_secs(21 * 86_400));
/// let terms = Terms { due, licence_id: None, licence_type: None };
/// let accepted = intent.apply(&Event::Accepted { lending_id: "L1".into(), terms }, now)?;
/// assert_eq!(accepted.open_until(), Some(due));
///
/// // A return closes the files at once, and stays live until Bokbasen acknowledges it.
/// let ending = accepted.apply(&Event::Ending { reason: EndReason::Returned }, now)?;
/// assert_eq!(ending.open_until(), None);
/// assert!(ending.state.is_live());
/// let ended = ending.apply(&Event::EndAcknowledged, now)?;
/// assert_eq!(ended.state, LoanState::Ended);
///
/// // An end is final. The error names what was tried.
/// let error = ended.apply(&Event::Begun { lending_id: "L2".into() }, now).unwrap_err();
/// assert_eq!(error.to_string(), "a loan that is ended cannot take the event begun");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Loan(LoanRecord);

impl Deref for Loan {
    type Target = LoanRecord;

    fn deref(&self) -> &LoanRecord {
        &self.0
    }
}

/// A transition that the state machine does not have.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a loan that is {from} cannot take the event {event}")]
pub struct IllegalTransition {
    /// The state of the loan.
    pub from: LoanState,
    /// Name of the event.
    pub event: &'static str,
}

impl Loan {
    /// Creates an intent: a loan that Bokbasen does not know yet.
    pub fn intend(key: LoanKey, at: Timestamp) -> Loan {
        Loan(LoanRecord {
            id: LoanId::generate(),
            key,
            reference: Reference::generate(),
            lending_id: None,
            state: LoanState::Intended,
            begun: at,
            accepted: None,
            terms: None,
            ended: None,
            end_reason: None,
            refusal: None,
            progress: None,
            forgotten: None,
            changed: at,
        })
    }

    /// Restores a loan from its record.
    ///
    /// # Errors
    /// Says what is missing if the record contradicts its own state: an accepted loan without
    /// terms, an ended one without its end, a pending one without Bokbasen's id.
    pub fn restore(record: LoanRecord) -> Result<Loan, IdentifierError> {
        let missing = match record.state {
            LoanState::Intended | LoanState::Unknown => None,
            LoanState::Pending => {
                record.lending_id.is_none().then_some("a pending loan has no lending id")
            }
            LoanState::Accepted => (record.lending_id.is_none()
                || record.terms.is_none()
                || record.accepted.is_none())
            .then_some("an accepted loan has no lending id, no terms or no time of acceptance"),
            LoanState::Refused => {
                record.refusal.is_none().then_some("a refused loan has no refusal")
            }
            LoanState::Ending => (record.lending_id.is_none()
                || record.end_reason.is_none()
                || record.ended.is_none())
            .then_some("an ending loan has no lending id, no end or no reason"),
            LoanState::Ended => (record.end_reason.is_none() || record.ended.is_none())
                .then_some("an ended loan has no end or no reason"),
        };
        match missing {
            Some(sentence) => Err(IdentifierError::because(sentence)),
            None => Ok(Loan(record)),
        }
    }

    /// Returns the record to store.
    pub fn record(&self) -> &LoanRecord {
        &self.0
    }

    /// Returns until when this loan opens its files: the due time if it is accepted, else none.
    pub fn open_until(&self) -> Option<Timestamp> {
        match self.state {
            LoanState::Accepted => self.terms.as_ref().map(|terms| terms.due),
            LoanState::Intended
            | LoanState::Pending
            | LoanState::Unknown
            | LoanState::Refused
            | LoanState::Ending
            | LoanState::Ended => None,
        }
    }

    /// Returns whether the end has waited for its acknowledgement longer than [`OVERDUE_AFTER`].
    pub fn end_is_overdue(&self, now: Timestamp) -> bool {
        let overdue = |ended: Timestamp| ended < clock::before(now, OVERDUE_AFTER);
        self.state == LoanState::Ending && self.ended.is_some_and(overdue)
    }

    /// Returns the loan after `event`, which happened at `at`.
    ///
    /// # Errors
    /// Returns [`IllegalTransition`] if the state has no such transition; the loan is unchanged.
    pub fn apply(&self, event: &Event, at: Timestamp) -> Result<Loan, IllegalTransition> {
        use LoanState::{Accepted, Ending, Intended, Pending, Unknown};
        let mut next = self.0.clone();
        next.changed = at;
        match (self.state, event) {
            (Intended | Unknown, Event::Begun { lending_id }) => {
                next.state = Pending;
                next.lending_id = Some(lending_id.clone());
            }
            (Intended, Event::Lost) | (Pending, Event::Missing) => next.state = Unknown,
            (Intended | Pending, Event::Declined) => {
                next.state = Intended;
                next.lending_id = None;
            }
            (Intended | Unknown | Pending, Event::Accepted { lending_id, terms }) => {
                next.state = Accepted;
                next.lending_id = Some(lending_id.clone());
                next.terms = Some(terms.clone());
                next.accepted = Some(at);
            }
            (Intended | Unknown | Pending, Event::Refused { lending_id, refusal }) => {
                next.state = LoanState::Refused;
                next.lending_id = lending_id.clone().or(next.lending_id);
                next.refusal = Some(refusal.clone());
            }
            (Intended, Event::NotSent) | (Unknown, Event::NotFound) => {
                end(&mut next, EndReason::Rejected, at);
            }
            (Pending | Accepted, Event::Ending { reason }) => {
                next.state = Ending;
                next.end_reason = Some(*reason);
                next.ended = Some(at);
            }
            (Ending, Event::EndAcknowledged) => next.state = LoanState::Ended,
            (Unknown | Pending, Event::EndedThere { reason }) => {
                // Only an accepted loan is returned or expires; its end blocks older tokens
                // (invariant 7).
                next.accepted = next.accepted.or(reason.follows_acceptance().then_some(at));
                end(&mut next, *reason, at);
            }
            (Accepted, Event::EndedThere { reason }) => end(&mut next, *reason, at),
            (from, event) => {
                return Err(IllegalTransition { from, event: event.name() });
            }
        }
        Ok(Loan(next))
    }
}

fn end(record: &mut LoanRecord, reason: EndReason, at: Timestamp) {
    record.state = LoanState::Ended;
    record.end_reason = Some(reason);
    record.ended = Some(at);
}

impl Event {
    /// Returns the event's name, as used in the history.
    pub fn name(&self) -> &'static str {
        match self {
            Event::Begun { .. } => "begun",
            Event::NotSent => "not-sent",
            Event::Lost => "lost",
            Event::Declined => "declined",
            Event::Accepted { .. } => "accepted",
            Event::Refused { .. } => "refused",
            Event::NotFound => "not-found",
            Event::Missing => "missing",
            Event::Ending { .. } => "ending",
            Event::EndAcknowledged => "end-acknowledged",
            Event::EndedThere { .. } => "ended-there",
        }
    }
}

#[cfg(test)]
mod tests;
