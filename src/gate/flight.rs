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
use crate::circulation::{Asker, Begun, Circulation, Outcome, Standing};
use crate::loan::{LoanId, LoanKey};
use crate::telemetry::{LogLimit, Metrics};

/// Result of a flight.
#[derive(Clone, Debug)]
pub(super) enum Landing {
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
    TakenBack,
    /// Bokbasen is unavailable.
    Unavailable { retry_after: Duration },
    /// The spending brake is on until then.
    Braked { until: Timestamp },
    /// The ledger failed, or the gate is stopping.
    Unsure,
    /// Too many flights are running.
    Overloaded,
}

/// Kind of flight.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Stage {
    /// Queries the ledger, and waits for an undecided loan.
    Look,
    /// Begins a loan.
    Begin,
}

type Name = (LoanKey, Stage);
type Land = Arc<watch::Sender<Option<Landing>>>;

/// The flights of this process.
#[derive(Clone)]
pub(super) struct Flights {
    pub(super) circulation: Circulation,
    decisions: Arc<Decisions>,
    slow: Handle,
    under_way: Arc<Mutex<HashMap<Name, Land>>>,
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
        Flights { circulation, decisions, slow, under_way: Arc::default(), limit, metrics }
    }

    /// Waits for the flight of this reader and title, and starts it if there is none.
    pub(super) async fn join(&self, asker: Asker, stage: Stage) -> Landing {
        let Some(mut landing) = self.find_or_start(asker, stage) else {
            return Landing::Overloaded;
        };
        match landing.wait_for(Option::is_some).await {
            Ok(landed) => landed.clone().unwrap_or(Landing::Unsure),
            Err(_) => Landing::Unsure, // its task died, so the outcome is unknown
        }
    }

    fn find_or_start(
        &self,
        asker: Asker,
        stage: Stage,
    ) -> Option<watch::Receiver<Option<Landing>>> {
        let name = (asker.key, stage);
        let mut under_way = self.lock();
        if let Some(land) = under_way.get(&name) {
            return Some(land.subscribe());
        }
        if under_way.len() >= self.limit {
            drop(under_way);
            self.metrics.flight_refused();
            return None;
        }
        let (land, landing) = watch::channel(None);
        let land = Arc::new(land);
        under_way.insert(name, land.clone());
        self.metrics.flights(under_way.len());
        drop(under_way);
        let flying = Flying { flights: self.clone(), name, land };
        self.slow.spawn(async move {
            if let Some(landed) = flying.fly(asker).await {
                // Removed from the list first: a caller that now begins must not hit the limit
                // because of this flight.
                flying.leave(&mut flying.flights.lock());
                flying.land.send_replace(Some(landed));
            }
        });
        Some(landing)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Land>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn landing_of(&self, outcome: Outcome) -> Landing {
        match outcome {
            Outcome::Accepted { loan, until } => self.open(loan, until),
            Outcome::Refused { refusal, until } => {
                Landing::Refused { reason: refusal.code.into(), until }
            }
            Outcome::NothingMade => Landing::Nothing,
            Outcome::TakenBack => Landing::TakenBack,
            Outcome::Unavailable { retry_after } => Landing::Unavailable { retry_after },
            Outcome::Braked { until } => Landing::Braked { until },
            Outcome::Ended { at } => Landing::Ended { at, settled: true },
            Outcome::Unsure => Landing::Unsure,
        }
    }

    fn open(&self, loan: LoanId, until: Timestamp) -> Landing {
        Landing::Open { loan, until, access: self.decisions.accesses.of(loan) }
    }

    /// Runs work on the slow runtime that completes even if its caller disconnects. Returns none if
    /// it panicked.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        self.slow.spawn(work).await.ok()
    }
}

/// A running flight. Dropping it removes it from the list, also if its task died.
struct Flying {
    flights: Flights,
    name: Name,
    land: Land,
}

impl Flying {
    /// Runs the flight and returns its result. Returns none if every caller left while it only
    /// waited for a decision.
    async fn fly(&self, asker: Asker) -> Option<Landing> {
        let landed = match self.name.1 {
            Stage::Look => self.look(&asker).await,
            Stage::Begin => self.begin(&asker).await,
        }?;
        if let Some(decision) = decision_of(&landed) {
            self.flights.decisions.keep(asker.key, decision);
        }
        Some(landed)
    }

    async fn look(&self, asker: &Asker) -> Option<Landing> {
        let (flights, circulation) = (&self.flights, &self.flights.circulation);
        Some(match circulation.standing(&asker.key).await {
            Ok(Standing::Open { loan, until }) => flights.open(loan, until),
            Ok(Standing::Undecided(loan)) => {
                flights.landing_of(self.unless_abandoned(circulation.join(*loan)).await?)
            }
            Ok(Standing::Refused(outcome)) => flights.landing_of(outcome),
            Ok(Standing::Ended { at, settled }) => Landing::Ended { at, settled },
            Ok(Standing::Nothing) => Landing::Nothing,
            Err(error) => {
                static LIMIT: LogLimit = LogLimit::per_minute();
                if let Some(suppressed) = LIMIT.permit("read") {
                    tracing::error!(%error, suppressed, "cannot read a loan from the ledger");
                }
                Landing::Unsure
            }
        })
    }

    /// Begins a loan. If no loan was created, for example because of an old intent that was never
    /// sent, it tries once more: then Bokbasen certainly has none.
    async fn begin(&self, asker: &Asker) -> Option<Landing> {
        match self.begin_once(asker).await? {
            Landing::Nothing => self.begin_once(asker).await,
            landed => Some(landed),
        }
    }

    async fn begin_once(&self, asker: &Asker) -> Option<Landing> {
        let circulation = &self.flights.circulation;
        let begun = circulation.begin(asker, "reader").await;
        let outcome = match begun {
            Begun::Decided(outcome) => outcome,
            Begun::Sent(waiting) => self.unless_abandoned(waiting.outcome()).await?,
            Begun::Live(loan) => self.unless_abandoned(circulation.join(*loan)).await?,
        };
        Some(self.flights.landing_of(outcome))
    }

    /// Returns the result of a wait. Returns none once the last caller has left; the flight is then
    /// removed from the list.
    async fn unless_abandoned<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let mut wait = std::pin::pin!(wait);
        loop {
            tokio::select! {
                biased;
                waited = &mut wait => return Some(waited),
                () = self.land.closed() => {
                    // Callers join under this lock, so a caller that has joined since is counted.
                    let mut under_way = self.flights.lock();
                    if self.land.receiver_count() == 0 {
                        self.leave(&mut under_way);
                        return None;
                    }
                }
            }
        }
    }

    /// Removes this flight from the list, but no later flight of the same name.
    fn leave(&self, under_way: &mut HashMap<Name, Land>) {
        if under_way.get(&self.name).is_some_and(|land| Arc::ptr_eq(land, &self.land)) {
            under_way.remove(&self.name);
            self.flights.metrics.flights(under_way.len());
        }
    }
}

impl Drop for Flying {
    fn drop(&mut self) {
        self.leave(&mut self.flights.lock());
    }
}

/// Returns the decision to cache; none for results that may change at any moment.
fn decision_of(landing: &Landing) -> Option<Decision> {
    match landing {
        Landing::Open { loan, until, access } => {
            Some(Decision::Accepted { loan: *loan, until: *until, access: access.clone() })
        }
        Landing::Refused { reason, until } => {
            Some(Decision::Refused { reason: reason.clone(), until: *until })
        }
        Landing::Ended { at, .. } => Some(Decision::Ended { at: *at }),
        Landing::Forbidden(_)
        | Landing::Nothing
        | Landing::TakenBack
        | Landing::Unavailable { .. }
        | Landing::Braked { .. }
        | Landing::Unsure
        | Landing::Overloaded => None,
    }
}
