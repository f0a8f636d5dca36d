//! What an action reports on the page of its loan, for `actions` and the page.

use axum::response::{IntoResponse, Redirect, Response};

use super::text::Actions;
use crate::loan::Loan;

/// What an action reports on the page of its loan.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Done {
    Ended,
    Polled,
    PollElsewhere,
    Pending,
    ReasonMissing,
    NoLink,
    Marked,
}

impl Done {
    const ALL: [Done; 7] = [
        Done::Ended,
        Done::Polled,
        Done::PollElsewhere,
        Done::Pending,
        Done::ReasonMissing,
        Done::NoLink,
        Done::Marked,
    ];

    fn name(self) -> &'static str {
        match self {
            Done::Ended => "ended",
            Done::Polled => "polled",
            Done::PollElsewhere => "poll-elsewhere",
            Done::Pending => "pending",
            Done::ReasonMissing => "reason-missing",
            Done::NoLink => "no-link",
            Done::Marked => "marked",
        }
    }

    /// Returns the report with this name.
    pub(super) fn of(name: &str) -> Option<Done> {
        Done::ALL.into_iter().find(|done| done.name() == name)
    }

    /// Returns the kind of its notice.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Done::Ended | Done::Polled | Done::Marked => "good",
            Done::PollElsewhere | Done::Pending => "note",
            Done::ReasonMissing | Done::NoLink => "bad",
        }
    }

    /// Returns its text.
    pub(super) fn text(self, texts: &Actions) -> &'static str {
        match self {
            Done::Ended => texts.ended,
            Done::Polled => texts.polled,
            Done::PollElsewhere => texts.poll_elsewhere,
            Done::Pending => texts.pending,
            Done::ReasonMissing => texts.reason_missing,
            Done::NoLink => texts.no_link,
            Done::Marked => texts.marked,
        }
    }

    /// Returns to the page of the loan, which shows the report.
    pub(super) fn at(self, loan: &Loan) -> Response {
        Redirect::to(&format!("/loans/{}?done={}", loan.id, self.name())).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_found_by_their_names() {
        for done in Done::ALL {
            assert_eq!(Done::of(done.name()), Some(done));
        }
        assert_eq!(Done::of("<b>"), None);
    }
}
