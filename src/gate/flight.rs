//! Flights: concurrent requests of one reader for one title share one ledger query and one begin.
//!
//! A flight is a [`SharedTask`] on the slow runtime. It completes its ledger reads and its begin
//! even if every caller disconnects. While it only waits for Bokbasen's decision, it ends with its
//! last caller: the loan continues in circulation, and the next caller finds it there.
//!
//! A flight caches its decision before its key is free. Flights that look up a loan are separate
//! from flights that begin one, because not every caller may begin.

use std::fmt;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::cache::{Decision, Decisions};
use super::shared_task::{SharedTask, SharedTaskError, SharedTasks};
use crate::circulation::{Circulation, LoanOutcome, LoanRequest};
use crate::loan::LoanKey;
use crate::problem::Problem;
use crate::telemetry::{Metrics, RequestId, Tracer};

/// Too many flights are running to start another one.
pub(super) struct Overloaded;

impl From<Overloaded> for Problem {
    fn from(_: Overloaded) -> Problem {
        Problem::Overloaded
    }
}

/// Kind of flight.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Stage {
    /// Queries the ledger, and waits for an undecided loan.
    LookUp,
    /// Begins a loan.
    Begin,
}

type Flight = SharedTask<(LoanKey, Stage), LoanOutcome>;

/// The flights of this process.
#[derive(Clone)]
pub(super) struct Flights {
    pub(super) circulation: Circulation,
    decisions: Arc<Decisions>,
    slow: Handle,
    running: SharedTasks<(LoanKey, Stage), LoanOutcome>,
    metrics: Metrics,
    tracer: Tracer,
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

impl Flights {
    /// `limit` is `lending.flights`.
    pub(super) fn new(
        circulation: Circulation,
        decisions: Arc<Decisions>,
        slow: Handle,
        limit: usize,
        (metrics, tracer): (Metrics, Tracer),
    ) -> Flights {
        metrics.flights_limit(limit);
        let gauge = metrics.clone();
        let running = SharedTasks::new(slow.clone(), limit, move |count| gauge.flights(count));
        Flights { circulation, decisions, slow, running, metrics, tracer }
    }

    /// Waits for the flight of this reader and title, and starts it if there is none.
    ///
    /// # Errors
    /// [`Overloaded`] if too many flights are running.
    pub(super) async fn join(
        &self,
        loan_request: LoanRequest,
        stage: Stage,
    ) -> Result<LoanOutcome, Overloaded> {
        let work = |flight: Arc<Flight>| {
            let flights = self.clone();
            RequestId::inherit_with(self.tracer.current(), async move {
                flights.run_flight(&flight, &loan_request, stage).await
            })
        };
        match self.running.join((loan_request.key, stage), work).await {
            Ok(outcome) => Ok(outcome),
            Err(SharedTaskError::Died) => Ok(LoanOutcome::Undetermined),
            Err(SharedTaskError::LimitReached) => {
                self.metrics.flight_refused();
                Err(Overloaded)
            }
        }
    }

    /// Returns whether a flight may still write an intent for this reader and title, which it does
    /// even if its callers have left.
    pub(super) fn may_begin(&self, key: &LoanKey) -> bool {
        self.running.is_running(&(*key, Stage::Begin))
    }

    /// Runs a flight and caches its decision. Returns none if every caller left while it only
    /// waited for an outcome.
    async fn run_flight(
        &self,
        flight: &Flight,
        loan_request: &LoanRequest,
        stage: Stage,
    ) -> Option<LoanOutcome> {
        // Before any read of the ledger: what it returns may be that old.
        let read = self.decisions.read_time();
        let outcome = match stage {
            Stage::LookUp => self.look_up(flight, loan_request).await,
            Stage::Begin => self.begin(flight, loan_request).await,
        }?;
        if let Some(decision) = self.decision_of(&outcome) {
            self.decisions.store(loan_request.key, decision, read);
        }
        Some(outcome)
    }

    async fn look_up(&self, flight: &Flight, loan_request: &LoanRequest) -> Option<LoanOutcome> {
        let wait = self.circulation.look_up(&loan_request.key).await;
        flight.while_joined(wait.outcome()).await
    }

    /// Begins a loan. If no loan was created, for example because of an old intent that was never
    /// sent, it tries once more: then Bokbasen certainly has none.
    async fn begin(&self, flight: &Flight, loan_request: &LoanRequest) -> Option<LoanOutcome> {
        match self.begin_once(flight, loan_request).await? {
            LoanOutcome::NoLoan => self.begin_once(flight, loan_request).await,
            outcome => Some(outcome),
        }
    }

    async fn begin_once(&self, flight: &Flight, loan_request: &LoanRequest) -> Option<LoanOutcome> {
        let wait = self.circulation.begin(loan_request, "reader").await;
        // The callers may leave before the loan is accepted, which nobody caches then.
        self.decisions.remove_end(&loan_request.key);
        flight.while_joined(wait.outcome()).await
    }

    /// Returns the decision to cache; none for outcomes that may change at any moment.
    fn decision_of(&self, outcome: &LoanOutcome) -> Option<Decision> {
        match outcome {
            LoanOutcome::Open { loan, until } => {
                let access = self.decisions.accesses.get_or_create(*loan);
                Some(Decision::Accepted { loan: *loan, until: *until, access })
            }
            LoanOutcome::Refused { reason, until } => {
                Some(Decision::Refused { reason: reason.clone(), until: *until })
            }
            LoanOutcome::Ended { at, .. } => Some(Decision::Ended { at: *at }),
            LoanOutcome::NoLoan
            | LoanOutcome::Withdrawn
            | LoanOutcome::Unavailable { .. }
            | LoanOutcome::Paused
            | LoanOutcome::Braked { .. }
            | LoanOutcome::Undetermined => None,
        }
    }

    /// Runs work on the slow runtime that completes even if its caller disconnects. Returns none if
    /// it panicked.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        self.slow.spawn(RequestId::inherit_with(self.tracer.current(), work)).await.ok()
    }
}
