//! The state machine: every transition and no other, invariants of each path, and simulated loans
//! with a minimal Bokbasen.

mod lives;

use proptest::prelude::*;

use super::*;
use crate::loan::{Borrower, Refusal, Terms};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn fresh() -> Loan {
    let key = LoanKey {
        library: "NO-0301000".parse().unwrap(),
        borrower: Borrower::from_bytes([7; 16]),
        isbn: "9780306406157".parse().unwrap(),
    };
    Loan::intend(key, at(0))
}

fn terms() -> Terms {
    Terms { due: at(1000), licence_id: None, licence_type: None }
}

fn refusal() -> Refusal {
    Refusal { code: "NO".into(), message: String::new(), retry_at: None }
}

fn lending_id() -> String {
    "L1".to_owned()
}

/// Returns every event, with each reason where it has one.
fn every_event() -> Vec<Event> {
    let mut events = vec![
        Event::Begun { lending_id: lending_id() },
        Event::NotSent,
        Event::Lost,
        Event::Declined,
        Event::Accepted { lending_id: lending_id(), terms: terms() },
        Event::Refused { lending_id: None, refusal: refusal() },
        Event::Refused { lending_id: Some(lending_id()), refusal: refusal() },
        Event::NotFound,
        Event::Missing,
        Event::EndAcknowledged,
    ];
    events.extend(EndReason::ALL.map(|reason| Event::Ending { reason }));
    events.extend(EndReason::ALL.map(|reason| Event::EndedThere { reason }));
    events
}

fn any_event() -> impl Strategy<Value = Event> {
    proptest::sample::select(every_event())
}

proptest! {
    #[test]
    fn every_path_keeps_the_invariants_of_a_loan(
        events in proptest::collection::vec(any_event(), 0..12),
    ) {
        let mut loan = fresh();
        for (second, event) in (1..).zip(&events) {
            let Ok(next) = loan.apply(event, at(second)) else { continue };
            prop_assert!(loan.state.is_live(), "a loan that is over never changes");
            prop_assert_eq!(&next.reference, &loan.reference);
            prop_assert_eq!(next.key, loan.key);
            prop_assert!(loan.accepted.is_none() || next.accepted == loan.accepted);
            prop_assert!(loan.ended.is_none() || next.ended == loan.ended, "an end does not move");
            if next.state == LoanState::Intended {
                let why = "only a declined licence leads back to the intent";
                prop_assert_eq!(event, &Event::Declined, "{}", why);
            }
            if next.state == LoanState::Accepted {
                prop_assert!(loan.ended.is_none(), "what has ended is never accepted again");
            }
            prop_assert_eq!(next.open_until().is_some(), next.state == LoanState::Accepted);
            prop_assert_eq!(Loan::restore(next.record().clone()), Ok(next.clone()));
            loan = next;
        }
    }
}

/// Returns a loan in this state, reached by the shortest path.
fn loan_in(state: LoanState) -> Loan {
    let accepted = || Event::Accepted { lending_id: lending_id(), terms: terms() };
    let ending = || Event::Ending { reason: EndReason::Returned };
    let path = match state {
        LoanState::Intended => vec![],
        LoanState::Pending => vec![Event::Begun { lending_id: lending_id() }],
        LoanState::Accepted => vec![accepted()],
        LoanState::Unknown => vec![Event::Lost],
        LoanState::Refused => vec![Event::Refused { lending_id: None, refusal: refusal() }],
        LoanState::Ending => vec![accepted(), ending()],
        LoanState::Ended => vec![accepted(), ending(), Event::EndAcknowledged],
    };
    let loan = path.iter().fold(fresh(), |loan, event| loan.apply(event, at(1)).unwrap());
    assert_eq!(loan.state, state);
    loan
}

/// All transitions, by the event's name. None leaves `refused` or `ended`.
const TRANSITIONS: [(LoanState, &str, LoanState); 20] = {
    use LoanState::{Accepted, Ended, Ending, Intended, Pending, Refused, Unknown};
    [
        (Intended, "begun", Pending),
        (Intended, "not-sent", Ended),
        (Intended, "lost", Unknown),
        (Intended, "declined", Intended),
        (Intended, "accepted", Accepted),
        (Intended, "refused", Refused),
        (Pending, "accepted", Accepted),
        (Pending, "refused", Refused),
        (Pending, "declined", Intended),
        (Pending, "missing", Unknown),
        (Pending, "ending", Ending),
        (Pending, "ended-there", Ended),
        (Unknown, "begun", Pending),
        (Unknown, "accepted", Accepted),
        (Unknown, "refused", Refused),
        (Unknown, "not-found", Ended),
        (Unknown, "ended-there", Ended),
        (Accepted, "ending", Ending),
        (Accepted, "ended-there", Ended),
        (Ending, "end-acknowledged", Ended),
    ]
};

#[test]
fn transitions_are_exactly_those_listed() {
    let mut taken = Vec::new();
    let all = LoanState::ALL
        .into_iter()
        .flat_map(|state| every_event().into_iter().map(move |event| (state, event)));
    for (state, event) in all {
        let loan = loan_in(state);
        let before = loan.clone();
        let transition =
            TRANSITIONS.iter().find(|(from, name, _)| (*from, *name) == (state, event.name()));
        match (transition, loan.apply(&event, at(9))) {
            (Some(transition), Ok(next)) => {
                assert_eq!((next.state, next.changed), (transition.2, at(9)), "{transition:?}");
                assert_only_expected_changes(&before, &event, &next);
                taken.push(*transition);
            }
            (None, Err(refused)) => {
                assert_eq!(refused, IllegalTransition { from: state, event: event.name() });
            }
            (transition, result) => panic!("{state}, {event:?}: {transition:?} and {result:?}"),
        }
        assert_eq!(loan, before, "`apply` never changes its receiver");
    }
    assert!(
        TRANSITIONS.iter().all(|transition| taken.contains(transition)),
        "a transition that no event makes"
    );
}

/// Asserts that the event changes what it must, and nothing else.
fn assert_only_expected_changes(before: &Loan, event: &Event, next: &Loan) {
    let mut wanted = before.record().clone();
    (wanted.state, wanted.changed) = (next.state, at(9));
    let mut ended = |reason| (wanted.ended, wanted.end_reason) = (Some(at(9)), Some(reason));
    match event {
        Event::NotSent | Event::NotFound => ended(EndReason::Rejected),
        Event::Ending { reason } => ended(*reason),
        Event::EndedThere { reason } => {
            ended(*reason);
            if matches!(reason, EndReason::Returned | EndReason::Expired) {
                wanted.accepted = wanted.accepted.or(Some(at(9)));
            }
        }
        Event::Begun { lending_id } => wanted.lending_id = Some(lending_id.clone()),
        Event::Accepted { lending_id, terms } => {
            (wanted.lending_id, wanted.terms) = (Some(lending_id.clone()), Some(terms.clone()));
            wanted.accepted = Some(at(9));
        }
        Event::Refused { lending_id, refusal } => {
            wanted.refusal = Some(refusal.clone());
            wanted.lending_id = lending_id.clone().or(wanted.lending_id);
        }
        Event::Declined => wanted.lending_id = None,
        Event::Lost | Event::Missing | Event::EndAcknowledged => {}
    }
    assert_eq!(next.record(), &wanted, "{event:?}");
}

#[test]
fn ordinary_loan_runs_from_begin_to_end() {
    let pending = fresh().apply(&Event::Begun { lending_id: lending_id() }, at(1)).unwrap();
    assert_eq!(pending.state, LoanState::Pending);
    let accepted = pending
        .apply(&Event::Accepted { lending_id: lending_id(), terms: terms() }, at(2))
        .unwrap();
    assert_eq!(accepted.open_until(), Some(at(1000)));
    let ending = accepted.apply(&Event::Ending { reason: EndReason::Returned }, at(3)).unwrap();
    assert_eq!((ending.open_until(), ending.state.is_live()), (None, true));
    let ended = ending.apply(&Event::EndAcknowledged, at(4)).unwrap();
    assert_eq!((ended.ended, ended.end_reason), (Some(at(3)), Some(EndReason::Returned)));
}

#[test]
fn lost_response_is_never_treated_as_not_sent() {
    let unknown = fresh().apply(&Event::Lost, at(1)).unwrap();
    assert!(unknown.state.is_live());
    let error = unknown.apply(&Event::NotSent, at(2)).unwrap_err();
    assert_eq!(error, IllegalTransition { from: LoanState::Unknown, event: "not-sent" });
}
