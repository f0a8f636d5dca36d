//! Flights: concurrent requests of one reader for one title share one ledger query and one begin.
//!
//! A flight is a task on the slow runtime. It completes its ledger reads and its begin even if
//! every caller disconnects. While it only waits for Bokbasen's decision, it ends with its last
//! caller: the loan continues in circulation, and the next caller finds it there.
//!
//! A flight caches its decision before it is removed from the list. Flights that look up a loan are
//! separate from flights that begin one, because not every caller may begin.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::access::Access;
use super::cache::{Decision, Decisions};
use crate::circulation::{BeginResult, Circulation, LedgerStatus, LoanRequest, Outcome};
use crate::loan::{LoanId, LoanKey};
use crate::telemetry::{LogLimit, Metrics, RequestId};

/// Result of a flight.
#[derive(Clone, Debug)]
pub(super) enum FlightResult {
    /// A loan opens the title until then.
    Open { loan: LoanId, until: Timestamp, access: Arc<Access> },
    /// Bokbasen refused; the refusal holds until then.
    Refused { reason: Arc<str>, until: Timestamp },
    /// One of our rules forbids a begin.
    Forbidden(&'static str),
    /// The last loan has ended; `settled` says whether Bokbasen acknowledged that.
    Ended { at: Timestamp, settled: bool },
    /// There is no loan.
    Nothing,
    /// The loan was ended before it was accepted. Only a later request begins another.
    Withdrawn,
    /// Bokbasen is unavailable.
    Unavailable { retry_after: Duration },
    /// The spending brake is on until then.
    Braked { until: Timestamp },
    /// The ledger failed, or the gate is stopping.
    Undetermined,
    /// Too many flights are running.
    Overloaded,
}

/// Kind of flight.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Stage {
    /// Queries the ledger, and waits for an undecided loan.
    LookUp,
    /// Begins a loan.
    Begin,
}

type FlightKey = (LoanKey, Stage);
type ResultSender = Arc<watch::Sender<Option<FlightResult>>>;

/// The flights of this process.
#[derive(Clone)]
pub(super) struct Flights {
    pub(super) circulation: Circulation,
    decisions: Arc<Decisions>,
    slow: Handle,
    running: Arc<Mutex<HashMap<FlightKey, ResultSender>>>,
    /// `lending.flights`.
    limit: usize,
    metrics: Metrics,
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

impl Flights {
    pub(super) fn new(
        circulation: Circulation,
        decisions: Arc<Decisions>,
        slow: Handle,
        limit: usize,
        metrics: Metrics,
    ) -> Flights {
        Flights { circulation, decisions, slow, running: Arc::default(), limit, metrics }
    }

    /// Waits for the flight of this reader and title, and starts it if there is none.
    pub(super) async fn join(&self, loan_request: LoanRequest, stage: Stage) -> FlightResult {
        let Some(mut receiver) = self.find_or_start(loan_request, stage) else {
            return FlightResult::Overloaded;
        };
        match receiver.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(FlightResult::Undetermined),
            Err(_) => FlightResult::Undetermined, // its task died, so the outcome is unknown
        }
    }

    fn find_or_start(
        &self,
        loan_request: LoanRequest,
        stage: Stage,
    ) -> Option<watch::Receiver<Option<FlightResult>>> {
        let key = (loan_request.key, stage);
        let mut running = self.lock();
        if let Some(sender) = running.get(&key) {
            return Some(sender.subscribe());
        }
        if running.len() >= self.limit {
            drop(running);
            self.metrics.flight_refused();
            return None;
        }
        let (sender, receiver) = watch::channel(None);
        let sender = Arc::new(sender);
        running.insert(key, sender.clone());
        self.metrics.flights(running.len());
        drop(running);
        let flight = RunningFlight { flights: self.clone(), key, sender };
        self.slow.spawn(RequestId::inherit(async move {
            if let Some(result) = flight.run(loan_request).await {
                // Removed from the list first: a caller that now begins must not hit the limit
                // because of this flight.
                flight.remove_from(&mut flight.flights.lock());
                flight.sender.send_replace(Some(result));
            }
        }));
        Some(receiver)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FlightKey, ResultSender>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn result_of(&self, outcome: Outcome) -> FlightResult {
        match outcome {
            Outcome::Accepted { loan, until } => self.open(loan, until),
            Outcome::Refused { refusal, until } => {
                FlightResult::Refused { reason: refusal.code.into(), until }
            }
            Outcome::NotCreated => FlightResult::Nothing,
            Outcome::Withdrawn => FlightResult::Withdrawn,
            Outcome::Unavailable { retry_after } => FlightResult::Unavailable { retry_after },
            Outcome::Braked { until } => FlightResult::Braked { until },
            Outcome::Ended { at } => FlightResult::Ended { at, settled: true },
            Outcome::Undetermined => FlightResult::Undetermined,
        }
    }

    fn open(&self, loan: LoanId, until: Timestamp) -> FlightResult {
        FlightResult::Open { loan, until, access: self.decisions.accesses.get_or_create(loan) }
    }

    /// Runs work on the slow runtime that completes even if its caller disconnects. Returns none if
    /// it panicked.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        self.slow.spawn(RequestId::inherit(work)).await.ok()
    }
}

/// A running flight. Dropping it removes it from the list, also if its task died.
struct RunningFlight {
    flights: Flights,
    key: FlightKey,
    sender: ResultSender,
}

impl RunningFlight {
    /// Runs the flight and returns its result. Returns none if every caller left while it only
    /// waited for a decision.
    async fn run(&self, loan_request: LoanRequest) -> Option<FlightResult> {
        let result = match self.key.1 {
            Stage::LookUp => self.look_up(&loan_request).await,
            Stage::Begin => self.begin(&loan_request).await,
        }?;
        if let Some(decision) = decision_of(&result) {
            self.flights.decisions.store(loan_request.key, decision);
        }
        Some(result)
    }

    async fn look_up(&self, loan_request: &LoanRequest) -> Option<FlightResult> {
        let (flights, circulation) = (&self.flights, &self.flights.circulation);
        Some(match circulation.ledger_status(&loan_request.key).await {
            Ok(LedgerStatus::Open { loan, until }) => flights.open(loan, until),
            Ok(LedgerStatus::Undecided(loan)) => {
                flights.result_of(self.while_joined(circulation.join(*loan)).await?)
            }
            Ok(LedgerStatus::Refused(outcome)) => flights.result_of(outcome),
            Ok(LedgerStatus::Ended { at, settled }) => FlightResult::Ended { at, settled },
            Ok(LedgerStatus::Nothing) => FlightResult::Nothing,
            Err(error) => {
                static LIMIT: LogLimit = LogLimit::per_minute();
                if let Some(suppressed) = LIMIT.permit("read") {
                    tracing::error!(%error, suppressed, "cannot read a loan from the ledger");
                }
                FlightResult::Undetermined
            }
        })
    }

    /// Begins a loan. If no loan was created, for example because of an old intent that was never
    /// sent, it tries once more: then Bokbasen certainly has none.
    async fn begin(&self, loan_request: &LoanRequest) -> Option<FlightResult> {
        match self.begin_once(loan_request).await? {
            FlightResult::Nothing => self.begin_once(loan_request).await,
            result => Some(result),
        }
    }

    async fn begin_once(&self, loan_request: &LoanRequest) -> Option<FlightResult> {
        let circulation = &self.flights.circulation;
        let begun = circulation.begin(loan_request, "reader").await;
        let outcome = match begun {
            BeginResult::Decided(outcome) => outcome,
            BeginResult::Sent(waiting) => self.while_joined(waiting.outcome()).await?,
            BeginResult::Live(loan) => self.while_joined(circulation.join(*loan)).await?,
        };
        Some(self.flights.result_of(outcome))
    }

    /// Returns the result of a wait. Returns none once the last caller has left; the flight is then
    /// removed from the list.
    async fn while_joined<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let mut wait = std::pin::pin!(wait);
        loop {
            tokio::select! {
                biased;
                waited = &mut wait => return Some(waited),
                () = self.sender.closed() => {
                    // Callers join under this lock, so a caller that has joined since is counted.
                    let mut running = self.flights.lock();
                    if self.sender.receiver_count() == 0 {
                        self.remove_from(&mut running);
                        return None;
                    }
                }
            }
        }
    }

    /// Removes this flight from the list, but no later flight of the same name.
    fn remove_from(&self, running: &mut HashMap<FlightKey, ResultSender>) {
        if running.get(&self.key).is_some_and(|sender| Arc::ptr_eq(sender, &self.sender)) {
            running.remove(&self.key);
            self.flights.metrics.flights(running.len());
        }
    }
}

impl Drop for RunningFlight {
    fn drop(&mut self) {
        self.remove_from(&mut self.flights.lock());
    }
}

/// Returns the decision to cache; none for results that may change at any moment.
fn decision_of(result: &FlightResult) -> Option<Decision> {
    match result {
        FlightResult::Open { loan, until, access } => {
            Some(Decision::Accepted { loan: *loan, until: *until, access: access.clone() })
        }
        FlightResult::Refused { reason, until } => {
            Some(Decision::Refused { reason: reason.clone(), until: *until })
        }
        FlightResult::Ended { at, .. } => Some(Decision::Ended { at: *at }),
        FlightResult::Forbidden(_)
        | FlightResult::Nothing
        | FlightResult::Withdrawn
        | FlightResult::Unavailable { .. }
        | FlightResult::Braked { .. }
        | FlightResult::Undetermined
        | FlightResult::Overloaded => None,
    }
}
