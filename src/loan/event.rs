//! Events in the life of a loan, which [`Loan::apply`](super::Loan::apply) turns into its states.

use super::{EndReason, Refusal, Terms};

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

/// An [`Event`] without its details: its name in logs and metrics.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EventKind {
    /// [`Event::Begun`].
    Begun,
    /// [`Event::NotSent`].
    NotSent,
    /// [`Event::Declined`].
    Declined,
    /// [`Event::Lost`].
    Lost,
    /// [`Event::Accepted`].
    Accepted,
    /// [`Event::Refused`].
    Refused,
    /// [`Event::NotFound`].
    NotFound,
    /// [`Event::Missing`].
    Missing,
    /// [`Event::Ending`].
    Ending,
    /// [`Event::EndAcknowledged`].
    EndAcknowledged,
    /// [`Event::EndedThere`].
    EndedThere,
}

impl EventKind {
    /// All kinds, in the order of declaration.
    pub const ALL: [EventKind; 11] = [
        EventKind::Begun,
        EventKind::NotSent,
        EventKind::Declined,
        EventKind::Lost,
        EventKind::Accepted,
        EventKind::Refused,
        EventKind::NotFound,
        EventKind::Missing,
        EventKind::Ending,
        EventKind::EndAcknowledged,
        EventKind::EndedThere,
    ];

    /// Returns the event's name, as used in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Begun => "begun",
            EventKind::NotSent => "not-sent",
            EventKind::Declined => "declined",
            EventKind::Lost => "lost",
            EventKind::Accepted => "accepted",
            EventKind::Refused => "refused",
            EventKind::NotFound => "not-found",
            EventKind::Missing => "missing",
            EventKind::Ending => "ending",
            EventKind::EndAcknowledged => "end-acknowledged",
            EventKind::EndedThere => "ended-there",
        }
    }
}

impl Event {
    /// Returns the kind of the event.
    pub fn kind(&self) -> EventKind {
        match self {
            Event::Begun { .. } => EventKind::Begun,
            Event::NotSent => EventKind::NotSent,
            Event::Declined => EventKind::Declined,
            Event::Lost => EventKind::Lost,
            Event::Accepted { .. } => EventKind::Accepted,
            Event::Refused { .. } => EventKind::Refused,
            Event::NotFound => EventKind::NotFound,
            Event::Missing => EventKind::Missing,
            Event::Ending { .. } => EventKind::Ending,
            Event::EndAcknowledged => EventKind::EndAcknowledged,
            Event::EndedThere { .. } => EventKind::EndedThere,
        }
    }

    /// Returns the event's name, as used in logs and metrics.
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }
}
