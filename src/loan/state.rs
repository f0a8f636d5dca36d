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

use std::ops::Deref;
use std::time::Duration;

use jiff::Timestamp;

use super::{EndReason, Event, IdentifierError, LoanId, LoanKey, LoanRecord, LoanState, Reference};
use crate::clock;

/// Time after which an unacknowledged end raises an alarm.
pub const OVERDUE_AFTER: Duration = Duration::from_secs(86_400);

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
            id: LoanId::generate(key.library),
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

    /// Returns the intent with its first step later than this end of an earlier loan. If that end
    /// is in the future, by a clock that was wrong, the end of this loan is then the later one.
    pub fn after_end(mut self, end: Timestamp) -> Loan {
        self.0.changed = self.0.changed.max(clock::after(end, Duration::from_millis(1)));
        self
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

#[cfg(test)]
mod tests;
