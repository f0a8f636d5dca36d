//! Simulated loans of one reader and title, with a minimal Bokbasen.
//!
//! The rules around the state machine are modelled here in a few lines: who may begin, when the
//! reference is queried, and that an end is sent until it is acknowledged. The test checks that
//! invariants 2, 3 and 7 then follow from the state machine.

use proptest::prelude::*;

use super::super::*;
use super::{at, fresh, refusal};
use crate::loan::Terms;

/// Duration of a loan, in seconds.
const LASTS: i64 = 100;

/// A step of the simulation.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A reader requests a loan with a token of this age in seconds; `fate` applies to a begin.
    Begin { age: i64, fate: Fate },
    /// Delayed begins arrive at Bokbasen.
    DeliverBegins,
    /// Another process adopts the loan of a dead one.
    Adopt,
    /// Bokbasen decides pending loans.
    Decide { accept: bool },
    /// Bokbasen is queried about an undecided loan; its response may be processed late.
    Query,
    /// Bokbasen is queried about a pending loan by id, and the read lags.
    LaggingRead,
    /// The response is processed.
    ProcessResponse,
    /// The loan ends here.
    End { reason: EndReason },
    /// Due loans are ended.
    Expire,
    /// The end is sent; its acknowledgement is received or lost.
    SendEnd { acknowledged: bool },
    /// Bokbasen ends a loan on its own.
    EndThere,
    /// The clock advances or is set back.
    Clock { seconds: i64 },
}

/// What happens to a begin.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered,
    NotSent,
    Refused,
    /// There was no response. Bokbasen created the loan, does so later, or never does. The process
    /// that sent the begin may die.
    Lost {
        executed: Executed,
        dies: bool,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Executed {
    Now,
    Later,
    Never,
}

fn fate() -> impl Strategy<Value = Fate> {
    let executed = proptest::sample::select(vec![Executed::Now, Executed::Later, Executed::Never]);
    prop_oneof![
        3 => Just(Fate::Answered),
        1 => Just(Fate::NotSent),
        1 => Just(Fate::Refused),
        3 => (executed, any::<bool>()).prop_map(|(executed, dies)| Fate::Lost { executed, dies }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let reason = proptest::sample::select(vec![EndReason::Returned, EndReason::Cancelled]);
    prop_oneof![
        4 => (0..30_i64, fate()).prop_map(|(age, fate)| Step::Begin { age, fate }),
        1 => Just(Step::DeliverBegins),
        2 => Just(Step::Adopt),
        2 => prop_oneof![3 => Just(true), 1 => Just(false)]
            .prop_map(|accept| Step::Decide { accept }),
        3 => Just(Step::Query),
        1 => Just(Step::LaggingRead),
        3 => Just(Step::ProcessResponse),
        2 => reason.prop_map(|reason| Step::End { reason }),
        1 => Just(Step::Expire),
        2 => any::<bool>().prop_map(|acknowledged| Step::SendEnd { acknowledged }),
        1 => Just(Step::EndThere),
        2 => prop_oneof![0..40_i64, -40..40_i64, Just(LASTS)]
            .prop_map(|seconds| Step::Clock { seconds }),
    ]
}

/// A loan at Bokbasen; its index is its id.
#[derive(Clone, Debug)]
struct RemoteLoan {
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

impl RemoteLoan {
    fn is_live(&self) -> bool {
        matches!(self.status, Status::Pending | Status::Accepted)
    }
}

/// A loan here, with the issue time of the token of its begin.
#[derive(Clone, Debug)]
struct LocalLoan {
    loan: Loan,
    issued: Timestamp,
}

#[derive(Debug)]
struct World {
    second: i64,
    ledger: Vec<LocalLoan>,
    remote: Vec<RemoteLoan>,
    /// Begins that were sent and are executed later.
    in_flight: Vec<RemoteLoan>,
    /// An unprocessed response: the index of its loan, and the event.
    response: Option<(usize, Event)>,
}

impl World {
    fn new() -> World {
        World { second: 10_000, ledger: vec![], remote: vec![], in_flight: vec![], response: None }
    }

    fn now(&self) -> Timestamp {
        at(self.second)
    }

    /// Returns the index of the newest loan in one of these states.
    fn newest(&self, states: &[LoanState]) -> Option<usize> {
        self.ledger.iter().rposition(|local| states.contains(&local.loan.state))
    }

    /// Returns the index at Bokbasen of the loan with this reference.
    fn remote_index(&self, loan: &Loan) -> Option<usize> {
        self.remote.iter().position(|remote| remote.reference == loan.reference)
    }

    /// Writes an event; one that is too late is dropped and leaves the loan unchanged.
    fn write(&mut self, index: usize, event: &Event) {
        if let Ok(next) = self.ledger[index].loan.apply(event, self.now()) {
            self.ledger[index].loan = next;
        }
    }

    /// Writes an event that must be legal.
    fn must(&mut self, index: usize, event: &Event) {
        self.ledger[index].loan = self.ledger[index].loan.apply(event, self.now()).unwrap();
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Begin { age, fate } => self.begin(at(self.second - age), fate),
            Step::DeliverBegins => self.remote.append(&mut self.in_flight),
            Step::Adopt => {
                if let Some(index) = self.newest(&[LoanState::Intended]) {
                    self.must(index, &Event::Lost);
                }
            }
            Step::Decide { accept } => {
                let status = if accept { Status::Accepted } else { Status::Refused };
                for remote in
                    self.remote.iter_mut().filter(|remote| remote.status == Status::Pending)
                {
                    remote.status = status;
                }
            }
            Step::Query => self.query(),
            Step::LaggingRead => {
                let pending = self.newest(&[LoanState::Pending]);
                self.response =
                    pending.map(|index| (index, Event::Missing)).or(self.response.take());
            }
            Step::ProcessResponse => {
                if let Some((index, event)) = self.response.take() {
                    self.write(index, &event);
                }
            }
            Step::End { reason } => {
                if let Some(index) = self.newest(&[LoanState::Pending, LoanState::Accepted]) {
                    self.must(index, &Event::Ending { reason });
                }
            }
            Step::Expire => {
                let due = |local: &LocalLoan| {
                    local.loan.open_until().is_some_and(|until| until <= self.now())
                };
                if let Some(index) = self.ledger.iter().position(due) {
                    self.must(index, &Event::Ending { reason: EndReason::Expired });
                }
            }
            Step::SendEnd { acknowledged } => self.send_end(acknowledged),
            Step::EndThere => {
                for remote in self.remote.iter_mut().filter(|remote| remote.is_live()) {
                    remote.status = Status::Ended(EndReason::Cancelled);
                }
            }
            Step::Clock { seconds } => self.second += seconds,
        }
    }

    /// Begins a loan under the ledger's rules: no loan is live, and the token is newer than the end
    /// of every accepted loan.
    fn begin(&mut self, issued: Timestamp, fate: Fate) {
        let ends = self.ledger.iter().filter(|local| local.loan.accepted.is_some());
        let last_end = ends.filter_map(|local| local.loan.ended).max();
        let lives = self.ledger.iter().any(|local| local.loan.state.is_live());
        if lives || last_end.is_some_and(|end| issued <= end) {
            return;
        }
        let loan = Loan::intend(fresh().key, self.now());
        let due = at(self.second + LASTS);
        let made = RemoteLoan { reference: loan.reference.clone(), status: Status::Pending, due };
        let index = self.ledger.len();
        self.ledger.push(LocalLoan { loan, issued });
        match fate {
            Fate::Answered => {
                let lending_id = self.remote.len().to_string();
                self.remote.push(made);
                self.must(index, &Event::Begun { lending_id });
            }
            Fate::NotSent => self.must(index, &Event::NotSent),
            Fate::Refused => {
                self.must(index, &Event::Refused { lending_id: None, refusal: refusal() })
            }
            Fate::Lost { executed: when, dies } => {
                match when {
                    Executed::Now => self.remote.push(made),
                    Executed::Later => self.in_flight.push(made),
                    Executed::Never => {}
                }
                if !dies {
                    self.must(index, &Event::Lost);
                }
            }
        }
    }

    /// Queries the undecided loan; by reference only when no begin can still be in flight.
    fn query(&mut self) {
        let Some(index) = self.newest(&[LoanState::Pending, LoanState::Unknown]) else { return };
        let loan = self.ledger[index].loan.clone();
        if loan.state == LoanState::Unknown {
            self.remote.append(&mut self.in_flight);
        }
        let Some(number) = self.remote_index(&loan) else {
            self.response = Some((index, Event::NotFound));
            return;
        };
        let lending_id = number.to_string();
        let remote = &self.remote[number];
        let event = match remote.status {
            Status::Pending => Event::Begun { lending_id },
            Status::Accepted => {
                let terms = Terms { due: remote.due, licence_id: None, licence_type: None };
                Event::Accepted { lending_id, terms }
            }
            Status::Refused => Event::Refused { lending_id: Some(lending_id), refusal: refusal() },
            Status::Ended(reason) => Event::EndedThere { reason },
        };
        self.response = Some((index, event));
    }

    fn send_end(&mut self, acknowledged: bool) {
        let Some(index) = self.newest(&[LoanState::Ending]) else { return };
        let loan = &self.ledger[index].loan;
        let number: usize = loan.lending_id.as_deref().unwrap().parse().unwrap();
        let reason = loan.end_reason.unwrap();
        let remote = &mut self.remote[number];
        if remote.is_live() {
            remote.status = Status::Ended(reason);
        }
        if acknowledged {
            self.must(index, &Event::EndAcknowledged);
        }
    }

    /// Runs all pending work to its end, without further losses.
    fn run_to_end(&mut self) {
        for _ in 0..4 {
            for step in [
                Step::ProcessResponse,
                Step::Adopt,
                Step::DeliverBegins,
                Step::Query,
                Step::ProcessResponse,
                Step::Decide { accept: true },
                Step::Query,
                Step::ProcessResponse,
                Step::SendEnd { acknowledged: true },
            ] {
                self.run(step);
            }
        }
    }

    /// Asserts the invariants that hold at any time.
    fn check(&self, before: &[LocalLoan]) {
        let live = self.remote.iter().filter(|remote| remote.is_live()).count();
        assert!(live <= 1, "two live loans at Bokbasen (invariant 2): {self:#?}");
        for (local, earlier) in self.ledger.iter().zip(before) {
            if earlier.loan.ended.is_some() {
                let end = |loan: &Loan| (loan.ended, loan.end_reason, loan.open_until());
                assert_eq!(
                    end(&local.loan),
                    end(&earlier.loan),
                    "an end is final (invariant 7): {self:#?}"
                );
            }
        }
        for (number, local) in self.ledger.iter().enumerate() {
            let accepted =
                self.ledger[..number].iter().filter(|earlier| earlier.loan.accepted.is_some());
            let ended =
                |earlier: &LocalLoan| earlier.loan.ended.is_some_and(|end| local.issued > end);
            assert!(accepted.clone().all(ended), "begun by an old token (invariant 7): {self:#?}");
            if local.loan.open_until().is_some() {
                let remote = self.remote_index(&local.loan).map(|index| self.remote[index].status);
                let ended_there = remote == Some(Status::Ended(EndReason::Cancelled));
                assert!(
                    remote == Some(Status::Accepted) || ended_there,
                    "opens without a loan: {self:#?}"
                );
            }
        }
    }

    /// Asserts what holds after all pending work is done (invariant 3).
    fn check_final(&self) {
        for local in &self.ledger {
            let state = local.loan.state;
            assert!(
                matches!(state, LoanState::Accepted | LoanState::Refused | LoanState::Ended),
                "stuck in {state}: {self:#?}"
            );
        }
        for remote in self.remote.iter().filter(|remote| remote.is_live()) {
            let local = self.ledger.iter().find(|local| local.loan.reference == remote.reference);
            let state = local.map(|local| local.loan.state);
            assert_eq!(state, Some(LoanState::Accepted), "live only at Bokbasen: {self:#?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn any_order_keeps_one_live_loan_and_final_ends(
        steps in proptest::collection::vec(step(), 0..60),
    ) {
        let mut world = World::new();
        for step in steps {
            let before = world.ledger.clone();
            world.run(step);
            world.check(&before);
        }
        let before = world.ledger.clone();
        world.run_to_end();
        world.check(&before);
        world.check_final();
    }
}
