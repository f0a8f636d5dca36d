//! The loan's states and every way between them, as one pure function.
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
//! `intended`: Bokbasen refused the licence that was asked for, and the next that the policy allows
//! is tried. `Missing` leads from `pending` to `unknown`: a read by id does not show a loan that
//! Bokbasen has named, and reads may lag.
//!
//! Only `accepted` opens a file. `intended`, `unknown`, `pending`, `accepted` and `ending` are
//! *live*: while one of them stands, nothing may be begun for the same library, borrower and title.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;

use super::{LoanId, LoanKey, NameError, Progress, Reference};
use crate::clock;

/// After how long an end that Bokbasen has not acknowledged is an alarm.
pub const OVERDUE_AFTER: Duration = Duration::from_secs(86_400);

/// Where a loan is in its life.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum LoanState {
    /// Written down here; the begin may or may not have left.
    Intended,
    /// Bokbasen has it and has not decided.
    Pending,
    /// Bokbasen has accepted it: the one state in which a file may be delivered.
    Accepted,
    /// A begin left, and its answer was lost or the loan that it named does not show. Bokbasen has
    /// to be queried for the reference.
    Unknown,
    /// Bokbasen said no.
    Refused,
    /// It has ended here; Bokbasen has not yet acknowledged the end.
    Ending,
    /// It is over here and there.
    Ended,
}

impl LoanState {
    /// Every state, in the order of a life.
    pub const ALL: [LoanState; 7] = [
        LoanState::Intended,
        LoanState::Pending,
        LoanState::Accepted,
        LoanState::Unknown,
        LoanState::Refused,
        LoanState::Ending,
        LoanState::Ended,
    ];

    /// The state's name, as the ledger and the APIs write it.
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

    /// Whether a loan in this state may still exist at Bokbasen, so that no other may be begun
    /// beside it.
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

/// The text names no state, or no reason.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("it is none of the names that are known here")]
pub struct UnknownName;

/// Why a loan ended.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum EndReason {
    /// The reader, or somebody for the reader, gave it back.
    Returned,
    /// Its due time passed.
    Expired,
    /// It was cancelled before any byte could have left, and the licence was given back.
    Cancelled,
    /// It never came to be at Bokbasen: nothing was sent, or nothing was found under its reference.
    Rejected,
}

impl EndReason {
    /// Every reason.
    pub const ALL: [EndReason; 4] =
        [EndReason::Returned, EndReason::Expired, EndReason::Cancelled, EndReason::Rejected];

    /// The reason's name, as the ledger and the APIs write it.
    pub fn name(self) -> &'static str {
        match self {
            EndReason::Returned => "returned",
            EndReason::Expired => "expired",
            EndReason::Cancelled => "cancelled",
            EndReason::Rejected => "rejected",
        }
    }

    /// Whether only a loan that had been accepted can end for it.
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

/// What Bokbasen grants with an accepted loan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Terms {
    /// When the loan ends by itself.
    pub due: Timestamp,
    /// The licence that was used, where Bokbasen names it.
    pub licence_id: Option<String>,
    /// The kind of that licence, where Bokbasen names it.
    pub licence_type: Option<String>,
}

/// Bokbasen's no.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// Bokbasen's code, word for word, also one that we do not know.
    pub code: String,
    /// Bokbasen's message, word for word, for support.
    pub message: String,
    /// Before when Bokbasen asks not to be asked again.
    pub retry_at: Option<Timestamp>,
}

/// Something that happened to a loan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// Bokbasen took the begin and gave the loan its id there.
    Begun {
        /// Bokbasen's id of the loan.
        lending_id: String,
    },
    /// It is certain that the begin never left.
    NotSent,
    /// Bokbasen refused it for want of the licence that it was begun under, and it is to be begun
    /// under another.
    Declined,
    /// The begin may have left and no answer came, or the process that sent it died.
    Lost,
    /// Bokbasen accepted the loan.
    Accepted {
        /// Bokbasen's id of the loan.
        lending_id: String,
        /// What was granted.
        terms: Terms,
    },
    /// Bokbasen refused it.
    Refused {
        /// Bokbasen's id of the loan, where the refusal came with one.
        lending_id: Option<String>,
        /// Its words.
        refusal: Refusal,
    },
    /// Asked after an unknown outcome, Bokbasen has no loan of this reference.
    NotFound,
    /// A read by id does not show a loan that Bokbasen had named. Reads may lag, so this proves
    /// nothing.
    Missing,
    /// The loan ends here; from now on it opens nothing, and Bokbasen is to be told.
    Ending {
        /// Why.
        reason: EndReason,
    },
    /// Bokbasen has acknowledged the end.
    EndAcknowledged,
    /// Bokbasen says that the loan had ended there already.
    EndedThere {
        /// Why, by Bokbasen's word.
        reason: EndReason,
    },
}

/// A loan as it is kept: what the ledger writes and reads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LoanRecord {
    /// Its name in the ledger.
    pub id: LoanId,
    /// For whom and what.
    pub key: LoanKey,
    /// The reference that its begin carries.
    pub reference: Reference,
    /// Bokbasen's id, once it has one.
    pub lending_id: Option<String>,
    /// Where it is in its life.
    pub state: LoanState,
    /// When the intent was written.
    pub begun: Timestamp,
    /// When the acceptance was written; where Bokbasen showed it together with the end, that end.
    /// None if it never was accepted.
    pub accepted: Option<Timestamp>,
    /// What was granted.
    pub terms: Option<Terms>,
    /// When it ended here.
    pub ended: Option<Timestamp>,
    /// Why it ended.
    pub end_reason: Option<EndReason>,
    /// Why it was refused.
    pub refusal: Option<Refusal>,
    /// How far the borrower has read, as the app last said.
    pub progress: Option<Progress>,
    /// When its borrower was forgotten: since then the pseudonym in its key is nobody's.
    pub forgotten: Option<Timestamp>,
    /// When it last changed.
    pub changed: Timestamp,
}

/// A loan. It can be read like its [`LoanRecord`], and changed only by [`Loan::apply`].
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
    /// The state that the loan was in.
    pub from: LoanState,
    /// The event's name.
    pub event: &'static str,
}

impl Loan {
    /// A loan that is meant to be begun, and of which Bokbasen has heard nothing.
    pub fn intend(key: LoanKey, at: Timestamp) -> Loan {
        Loan(LoanRecord {
            id: LoanId::fresh(),
            key,
            reference: Reference::fresh(),
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

    /// The loan that a record tells of.
    ///
    /// # Errors
    /// Says what is missing where the record does not bear out its own state: an accepted loan
    /// without terms, an ended one without its end, a pending one without Bokbasen's id.
    pub fn restore(record: LoanRecord) -> Result<Loan, NameError> {
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
            Some(sentence) => Err(NameError::because(sentence)),
            None => Ok(Loan(record)),
        }
    }

    /// The record, for whoever keeps it.
    pub fn record(&self) -> &LoanRecord {
        &self.0
    }

    /// Until when this loan opens its files: its due time while it is accepted, and otherwise
    /// never.
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

    /// Whether Bokbasen should have acknowledged the end long ago.
    pub fn end_is_overdue(&self, now: Timestamp) -> bool {
        let overdue = |ended: Timestamp| ended < clock::before(now, OVERDUE_AFTER);
        self.state == LoanState::Ending && self.ended.is_some_and(overdue)
    }

    /// The loan after `event`, which happened `at` this time.
    ///
    /// # Errors
    /// [`IllegalTransition`] where the machine has no such way; the loan stays as it was.
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
                // Only an accepted loan is returned or expires: its end bars older tokens
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
    /// The event's name, as the history writes it.
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
