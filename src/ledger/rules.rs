//! The rules of the ledger, as pure functions of rows that a transaction has locked.
//!
//! The upper layer calls them, and the store to build the standing of a key. The limits on new
//! loans are in [`super::brake`], and the states of a loan in [`crate::loan`].

use jiff::Timestamp;

use super::store::StoredTallies;
use super::{Delivered, Intended};
use crate::loan::{EndReason, Event, Loan, LoanState};

/// The loans of one library, borrower and title, as far as a new loan depends on them.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyStanding {
    /// The live loan; there is at most one.
    pub(super) live: Option<Loan>,
    /// When the last accepted loan ended.
    pub(super) last_end: Option<Timestamp>,
}

impl KeyStanding {
    /// Applies a new or changed loan.
    pub(super) fn include(&mut self, loan: &Loan) {
        if loan.state.is_live() {
            self.live = Some(loan.clone());
        } else {
            self.live.take_if(|live| live.id == loan.id);
        }
        if loan.accepted.is_some() {
            self.last_end = self.last_end.max(loan.ended);
        }
    }

    /// Returns why no loan may be begun with a credential that was issued at this time, if one may
    /// not. The time of a credential without one counts as too early (invariant 7).
    pub(super) fn bar(&self, issued: Option<Timestamp>) -> Option<Intended> {
        if let Some(live) = &self.live {
            return Some(Intended::Live(live.clone()));
        }
        self.last_end
            .filter(|end| issued.is_none_or(|issued| issued <= *end))
            .map(Intended::EndedSince)
    }
}

/// Returns whether the effect of this event depends on the mark of opened loans.
pub(super) fn depends_on_opening(event: &Event) -> bool {
    matches!(event, Event::Ending { reason: EndReason::Cancelled })
}

/// Returns whether only the owner of a loan may apply this event while the loan is undecided. Any
/// process may end a loan.
pub(super) fn needs_ownership(event: &Event) -> bool {
    !matches!(event, Event::Ending { .. })
}

/// Replaces a cancel of an opened loan with a return. Returns every other event unchanged.
pub(super) fn event_of_opened(event: &Event) -> Event {
    if depends_on_opening(event) {
        return Event::Ending { reason: EndReason::Returned };
    }
    event.clone()
}

/// Returns the end of an intent that was written but whose begin was not sent. Returns none for a
/// loan that is no longer an intent.
pub(super) fn end_unsent(loan: &Loan, now: Timestamp) -> Option<Loan> {
    let is_intent = loan.state == LoanState::Intended;
    is_intent.then(|| loan.apply(&Event::NotSent, now).ok()).flatten()
}

/// Adds new counts to the stored tallies. Counts of files that have no stored tally are dropped.
pub(super) fn add_tallies(stored: &mut StoredTallies, new: &[Delivered]) {
    for delivered in new {
        if let Some(tally) = stored.get_mut(&(delivered.loan, delivered.file.clone())) {
            tally.add(&delivered.tally);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::loan_at;
    use super::*;
    use crate::loan::{LoanId, Tally, Terms};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Returns a loan that was accepted at second 2, and the events that end it.
    fn accepted() -> Loan {
        let terms = Terms { due: at(100), licence_id: None, licence_type: None };
        loan_at(1, at(1)).apply(&Event::Accepted { lending_id: "L".into(), terms }, at(2)).unwrap()
    }

    fn ended(loan: &Loan, second: i64) -> Loan {
        let ending = Event::Ending { reason: EndReason::Returned };
        let ending = loan.apply(&ending, at(second)).unwrap();
        ending.apply(&Event::EndAcknowledged, at(second + 1)).unwrap()
    }

    #[test]
    fn live_loan_bars_every_credential() {
        let (mut standing, loan) = (KeyStanding::default(), accepted());
        assert!(standing.bar(None).is_none());
        standing.include(&loan);
        let bar = standing.bar(Some(Timestamp::MAX));
        assert!(matches!(bar, Some(Intended::Live(live)) if live.id == loan.id));
    }

    #[test]
    fn end_bars_credentials_that_are_not_newer() {
        let mut standing = KeyStanding::default();
        standing.include(&accepted());
        let loan = accepted();
        standing.include(&loan);
        standing.include(&ended(&loan, 5));
        // An earlier end does not replace a later one.
        standing.include(&ended(&accepted(), 4));
        for (issued, bars) in [(None, true), (Some(5), true), (Some(6), false)] {
            let bar = standing.bar(issued.map(at));
            assert_eq!(
                matches!(bar, Some(Intended::EndedSince(end)) if end == at(5)),
                bars,
                "{issued:?}: {bar:?}"
            );
        }
    }

    #[test]
    fn end_of_a_loan_that_was_never_accepted_bars_nothing() {
        let (mut standing, loan) = (KeyStanding::default(), loan_at(1, at(1)));
        standing.include(&loan);
        standing.include(&end_unsent(&loan, at(2)).unwrap());
        assert!(standing.bar(None).is_none());
    }

    #[test]
    fn only_an_intent_is_ended_as_not_sent() {
        let ended = end_unsent(&loan_at(1, at(1)), at(2)).unwrap();
        assert_eq!(ended.end_reason, Some(EndReason::Rejected));
        assert!(end_unsent(&accepted(), at(3)).is_none());
    }

    #[test]
    fn cancel_of_an_opened_loan_becomes_a_return() {
        let end = |reason| Event::Ending { reason };
        assert_eq!(event_of_opened(&end(EndReason::Cancelled)), end(EndReason::Returned));
        for event in [end(EndReason::Expired), Event::Lost, Event::EndAcknowledged] {
            assert!(!depends_on_opening(&event));
            assert_eq!(event_of_opened(&event), event);
        }
    }

    #[test]
    fn counts_of_unknown_loans_are_dropped() {
        let file = |id: LoanId, bytes| Delivered {
            loan: id,
            file: "/a".into(),
            tally: Tally { bytes, ..Tally::default() },
        };
        let (known, unknown) = (LoanId::random(), LoanId::random());
        let mut stored = StoredTallies::from([((known, "/a".into()), Tally::default())]);
        add_tallies(&mut stored, &[file(known, 3), file(unknown, 5), file(known, 4)]);
        let bytes: Vec<u64> = stored.values().map(|tally| tally.bytes).collect();
        assert_eq!(bytes, [7]);
    }
}
