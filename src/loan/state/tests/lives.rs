//! Lives of loans of one reader and title, beside a Bokbasen that is as small as can be.
//!
//! What stands around the machine (who may begin, when the reference is asked for, that an end is
//! sent until it is heard) is told here in a few lines of its own; whether invariants 2, 3 and 7
//! follow from that is the machine's doing.

use proptest::prelude::*;

use super::super::*;
use super::{at, fresh, refusal};

/// How long a loan lasts, in seconds.
const LASTS: i64 = 100;

/// Something that happens.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A reader asks, with a token so many seconds old; and what comes of the begin, where there is
    /// one.
    Begin { age: i64, fate: Fate },
    /// Whatever is on its way arrives.
    Arrive,
    /// Another process takes over what a dead one left.
    TakeOver,
    /// Bokbasen decides.
    Decide { accept: bool },
    /// Bokbasen is asked about an undecided loan, and gives an answer that may be heard late.
    Ask,
    /// Bokbasen is queried about a pending loan by id, and the read lags.
    Miss,
    /// The answer is heard.
    Hear,
    /// The loan ends here.
    End { reason: EndReason },
    /// The clock is looked at for what is due.
    Expire,
    /// The end is told, and its acknowledgement heard or lost.
    Tell { heard: bool },
    /// Bokbasen ends a loan by itself.
    EndThere,
    /// The clock goes on, or is set back.
    Clock { seconds: i64 },
}

/// What becomes of a begin.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered,
    NotSent,
    Refused,
    /// No answer came: it was carried out, or will be, or never is; and the process may die of it.
    Lost {
        made: Made,
        dies: bool,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Made {
    Now,
    Later,
    Never,
}

fn fate() -> impl Strategy<Value = Fate> {
    let made = proptest::sample::select(vec![Made::Now, Made::Later, Made::Never]);
    prop_oneof![
        3 => Just(Fate::Answered),
        1 => Just(Fate::NotSent),
        1 => Just(Fate::Refused),
        3 => (made, any::<bool>()).prop_map(|(made, dies)| Fate::Lost { made, dies }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let reason = proptest::sample::select(vec![EndReason::Returned, EndReason::Cancelled]);
    prop_oneof![
        4 => (0..30_i64, fate()).prop_map(|(age, fate)| Step::Begin { age, fate }),
        1 => Just(Step::Arrive),
        2 => Just(Step::TakeOver),
        2 => prop_oneof![3 => Just(true), 1 => Just(false)].prop_map(|accept| Step::Decide { accept }),
        3 => Just(Step::Ask),
        1 => Just(Step::Miss),
        3 => Just(Step::Hear),
        2 => reason.prop_map(|reason| Step::End { reason }),
        1 => Just(Step::Expire),
        2 => any::<bool>().prop_map(|heard| Step::Tell { heard }),
        1 => Just(Step::EndThere),
        2 => prop_oneof![0..40_i64, -40..40_i64, Just(LASTS)].prop_map(|seconds| Step::Clock { seconds }),
    ]
}

/// A loan at Bokbasen, where its place is its id.
#[derive(Clone, Debug)]
struct There {
    reference: Reference,
    status: Status,
    due: Timestamp,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Status {
    Pending,
    Accepted,
    Refused,
    Ended(EndReason),
}

impl There {
    fn is_live(&self) -> bool {
        matches!(self.status, Status::Pending | Status::Accepted)
    }
}

/// A loan here, and when the token was issued that it was begun with.
#[derive(Clone, Debug)]
struct Kept {
    loan: Loan,
    issued: Timestamp,
}

#[derive(Debug)]
struct World {
    second: i64,
    ledger: Vec<Kept>,
    there: Vec<There>,
    /// Begins that have left and are carried out later.
    on_the_way: Vec<There>,
    /// An answer of Bokbasen's that nobody has heard yet: about which loan, and what it means.
    answer: Option<(usize, Event)>,
}

impl World {
    fn new() -> World {
        World { second: 10_000, ledger: vec![], there: vec![], on_the_way: vec![], answer: None }
    }

    fn now(&self) -> Timestamp {
        at(self.second)
    }

    /// The place of the newest loan in one of these states.
    fn newest(&self, states: &[LoanState]) -> Option<usize> {
        self.ledger.iter().rposition(|kept| states.contains(&kept.loan.state))
    }

    /// The place at Bokbasen of the loan of this reference.
    fn place(&self, loan: &Loan) -> Option<usize> {
        self.there.iter().position(|there| there.reference == loan.reference)
    }

    /// Writes what happened; an event that comes too late is let go, and leaves the loan alone.
    fn write(&mut self, place: usize, event: &Event) {
        if let Ok(next) = self.ledger[place].loan.apply(event, self.now()) {
            self.ledger[place].loan = next;
        }
    }

    /// Writes what must be possible.
    fn must(&mut self, place: usize, event: &Event) {
        self.ledger[place].loan = self.ledger[place].loan.apply(event, self.now()).unwrap();
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Begin { age, fate } => self.begin(at(self.second - age), fate),
            Step::Arrive => self.there.append(&mut self.on_the_way),
            Step::TakeOver => {
                if let Some(place) = self.newest(&[LoanState::Intended]) {
                    self.must(place, &Event::Lost);
                }
            }
            Step::Decide { accept } => {
                let status = if accept { Status::Accepted } else { Status::Refused };
                for there in self.there.iter_mut().filter(|there| there.status == Status::Pending) {
                    there.status = status;
                }
            }
            Step::Ask => self.ask(),
            Step::Miss => {
                let pending = self.newest(&[LoanState::Pending]);
                self.answer = pending.map(|place| (place, Event::Missing)).or(self.answer.take());
            }
            Step::Hear => {
                if let Some((place, event)) = self.answer.take() {
                    self.write(place, &event);
                }
            }
            Step::End { reason } => {
                if let Some(place) = self.newest(&[LoanState::Pending, LoanState::Accepted]) {
                    self.must(place, &Event::Ending { reason });
                }
            }
            Step::Expire => {
                let due =
                    |kept: &Kept| kept.loan.open_until().is_some_and(|until| until <= self.now());
                if let Some(place) = self.ledger.iter().position(due) {
                    self.must(place, &Event::Ending { reason: EndReason::Expired });
                }
            }
            Step::Tell { heard } => self.tell(heard),
            Step::EndThere => {
                for there in self.there.iter_mut().filter(|there| there.is_live()) {
                    there.status = Status::Ended(EndReason::Cancelled);
                }
            }
            Step::Clock { seconds } => self.second += seconds,
        }
    }

    /// As the ledger lets a begin through: nothing lives, and the token is later than the end of
    /// all that was accepted.
    fn begin(&mut self, issued: Timestamp, fate: Fate) {
        let ends = self.ledger.iter().filter(|kept| kept.loan.accepted.is_some());
        let last_end = ends.filter_map(|kept| kept.loan.ended).max();
        let lives = self.ledger.iter().any(|kept| kept.loan.state.is_live());
        if lives || last_end.is_some_and(|end| issued <= end) {
            return;
        }
        let loan = Loan::intend(fresh().key, self.now());
        let due = at(self.second + LASTS);
        let made = There { reference: loan.reference.clone(), status: Status::Pending, due };
        let place = self.ledger.len();
        self.ledger.push(Kept { loan, issued });
        match fate {
            Fate::Answered => {
                let lending_id = self.there.len().to_string();
                self.there.push(made);
                self.must(place, &Event::Begun { lending_id });
            }
            Fate::NotSent => self.must(place, &Event::NotSent),
            Fate::Refused => {
                self.must(place, &Event::Refused { lending_id: None, refusal: refusal() })
            }
            Fate::Lost { made: when, dies } => {
                match when {
                    Made::Now => self.there.push(made),
                    Made::Later => self.on_the_way.push(made),
                    Made::Never => {}
                }
                if !dies {
                    self.must(place, &Event::Lost);
                }
            }
        }
    }

    /// Asks about the undecided loan; for a reference only when nothing can be on its way any more.
    fn ask(&mut self) {
        let Some(place) = self.newest(&[LoanState::Pending, LoanState::Unknown]) else { return };
        let loan = self.ledger[place].loan.clone();
        if loan.state == LoanState::Unknown {
            self.there.append(&mut self.on_the_way);
        }
        let Some(number) = self.place(&loan) else {
            self.answer = Some((place, Event::NotFound));
            return;
        };
        let lending_id = number.to_string();
        let there = &self.there[number];
        let event = match there.status {
            Status::Pending => Event::Begun { lending_id },
            Status::Accepted => {
                let terms = Terms { due: there.due, licence_id: None, licence_type: None };
                Event::Accepted { lending_id, terms }
            }
            Status::Refused => Event::Refused { lending_id: Some(lending_id), refusal: refusal() },
            Status::Ended(reason) => Event::EndedThere { reason },
        };
        self.answer = Some((place, event));
    }

    fn tell(&mut self, heard: bool) {
        let Some(place) = self.newest(&[LoanState::Ending]) else { return };
        let loan = &self.ledger[place].loan;
        let number: usize = loan.lending_id.as_deref().unwrap().parse().unwrap();
        let reason = loan.end_reason.unwrap();
        let there = &mut self.there[number];
        if there.is_live() {
            there.status = Status::Ended(reason);
        }
        if heard {
            self.must(place, &Event::EndAcknowledged);
        }
    }

    /// Nothing more is lost: everything that is under way comes to its end.
    fn come_to_rest(&mut self) {
        for _ in 0..4 {
            for step in [
                Step::Hear,
                Step::TakeOver,
                Step::Arrive,
                Step::Ask,
                Step::Hear,
                Step::Decide { accept: true },
                Step::Ask,
                Step::Hear,
                Step::Tell { heard: true },
            ] {
                self.take(step);
            }
        }
    }

    /// What holds at any moment.
    fn check(&self, before: &[Kept]) {
        let live = self.there.iter().filter(|there| there.is_live()).count();
        assert!(live <= 1, "two at Bokbasen at once (invariant 2): {self:#?}");
        for (kept, earlier) in self.ledger.iter().zip(before) {
            if earlier.loan.ended.is_some() {
                let end = |loan: &Loan| (loan.ended, loan.end_reason, loan.open_until());
                assert_eq!(
                    end(&kept.loan),
                    end(&earlier.loan),
                    "an end is final (invariant 7): {self:#?}"
                );
            }
        }
        for (number, kept) in self.ledger.iter().enumerate() {
            let accepted =
                self.ledger[..number].iter().filter(|earlier| earlier.loan.accepted.is_some());
            let ended = |earlier: &Kept| earlier.loan.ended.is_some_and(|end| kept.issued > end);
            assert!(accepted.clone().all(ended), "begun by an old token (invariant 7): {self:#?}");
            if kept.loan.open_until().is_some() {
                let there = self.place(&kept.loan).map(|place| self.there[place].status);
                let ended_there = there == Some(Status::Ended(EndReason::Cancelled));
                assert!(
                    there == Some(Status::Accepted) || ended_there,
                    "opens without a loan: {self:#?}"
                );
            }
        }
    }

    /// What holds when everything has come to rest (invariant 3).
    fn check_rest(&self) {
        for kept in &self.ledger {
            let state = kept.loan.state;
            assert!(
                matches!(state, LoanState::Accepted | LoanState::Refused | LoanState::Ended),
                "{state} never ends: {self:#?}"
            );
        }
        for there in self.there.iter().filter(|there| there.is_live()) {
            let kept = self.ledger.iter().find(|kept| kept.loan.reference == there.reference);
            let state = kept.map(|kept| kept.loan.state);
            assert_eq!(state, Some(LoanState::Accepted), "lives at Bokbasen alone: {self:#?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn in_whatever_order_one_loan_lives_every_end_arrives_and_stays(
        steps in proptest::collection::vec(step(), 0..60),
    ) {
        let mut world = World::new();
        for step in steps {
            let before = world.ledger.clone();
            world.take(step);
            world.check(&before);
        }
        let before = world.ledger.clone();
        world.come_to_rest();
        world.check(&before);
        world.check_rest();
    }
}
