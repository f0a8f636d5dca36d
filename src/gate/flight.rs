//! Flights: for one reader and title, the ledger is asked once and a loan begun once, however many wait.
//!
//! A flight is a task of its own on the slow runtime. It goes on when everyone who waited has hung up, and
//! its word is in the cache of decisions before it is off the list. A flight that looks and one that begins
//! are apart, since not everyone who may look may begin.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::access::Access;
use super::cache::{Decision, Decisions};
use crate::circulation::{Asker, Circulation, Outcome, Standing};
use crate::loan::{LoanId, LoanKey};

/// How a flight ended.
#[derive(Clone, Debug)]
pub(super) enum Landing {
    /// A loan opens the title until then.
    Open { loan: LoanId, until: Timestamp, access: Arc<Access> },
    /// Bokbasen refused, until then.
    Refused { reason: Arc<str>, until: Timestamp },
    /// A rule of ours forbids beginning.
    Forbidden(&'static str),
    /// The last loan has ended; `settled` says whether Bokbasen knows.
    Ended { at: Timestamp, settled: bool },
    /// There is no loan.
    Nothing,
    /// The loan that was waited for was ended before it was accepted: it is begun again only for a later request.
    TakenBack,
    /// Bokbasen cannot be asked.
    Unavailable { retry_after: Duration },
    /// The spending brake holds until then.
    Braked { until: Timestamp },
    /// The ledger failed, or the gate is stopping.
    Unsure,
}

/// What a flight does.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Stage {
    /// Asks the ledger, and waits for a loan that is on its way.
    Look,
    /// Begins a loan.
    Begin,
}

type InTheAir = Mutex<HashMap<(LoanKey, Stage), watch::Receiver<Option<Landing>>>>;

/// The flights of this process.
#[derive(Clone)]
pub(super) struct Flights {
    pub(super) circulation: Circulation,
    decisions: Arc<Decisions>,
    slow: Handle,
    in_the_air: Arc<InTheAir>,
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

impl Flights {
    pub(super) fn new(circulation: Circulation, decisions: Arc<Decisions>, slow: Handle) -> Flights {
        Flights { circulation, decisions, slow, in_the_air: Arc::default() }
    }

    /// Waits for the flight of this reader and title, and starts it where there is none.
    pub(super) async fn join(&self, asker: Asker, stage: Stage) -> Landing {
        let mut landing = self.find_or_start(asker, stage);
        match landing.wait_for(Option::is_some).await {
            Ok(landed) => landed.clone().unwrap_or(Landing::Unsure),
            Err(_) => Landing::Unsure, // its task died: say nothing rather than something
        }
    }

    fn find_or_start(&self, asker: Asker, stage: Stage) -> watch::Receiver<Option<Landing>> {
        let name = (asker.key, stage);
        let mut in_the_air = self.in_the_air.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(landing) = in_the_air.get(&name) {
            return landing.clone();
        }
        let (land, landing) = watch::channel(None);
        in_the_air.insert(name, landing.clone());
        drop(in_the_air);
        let flying = Flying { flights: self.clone(), name };
        self.slow.spawn(async move {
            let landed = flying.flights.fly(asker, stage).await;
            land.send_replace(Some(landed));
            drop(flying);
        });
        landing
    }

    async fn fly(&self, asker: Asker, stage: Stage) -> Landing {
        let landed = match stage {
            Stage::Look => self.look(&asker).await,
            Stage::Begin => self.begin(&asker).await,
        };
        if let Some(decision) = decision_of(&landed) {
            self.decisions.keep(asker.key, decision);
        }
        landed
    }

    async fn look(&self, asker: &Asker) -> Landing {
        match self.circulation.standing(&asker.key).await {
            Ok(Standing::Open { loan, until }) => self.open(loan, until, false),
            Ok(Standing::Undecided(loan)) => self.landing_of(self.circulation.join(*loan).await, false),
            Ok(Standing::Refused(outcome)) => self.landing_of(outcome, false),
            Ok(Standing::Ended { at, settled }) => Landing::Ended { at, settled },
            Ok(Standing::Nothing) => Landing::Nothing,
            Err(error) => {
                tracing::error!(%error, "the ledger could not be asked for a loan");
                Landing::Unsure
            }
        }
    }

    /// Begins. Where the begin turns out to have come to nothing (an old intent that was never carried out),
    /// it is tried once more, since by then it is certain that nothing of it is left at Bokbasen.
    async fn begin(&self, asker: &Asker) -> Landing {
        match self.begin_once(asker).await {
            Landing::Nothing => self.begin_once(asker).await,
            landed => landed,
        }
    }

    async fn begin_once(&self, asker: &Asker) -> Landing {
        let (outcome, is_new) = self.circulation.begin(asker, "reader").await;
        self.landing_of(outcome, is_new)
    }

    fn landing_of(&self, outcome: Outcome, is_new: bool) -> Landing {
        match outcome {
            Outcome::Accepted { loan, until } => self.open(loan, until, is_new),
            Outcome::Refused { refusal, until } => Landing::Refused { reason: refusal.code.into(), until },
            Outcome::NothingMade => Landing::Nothing,
            Outcome::TakenBack => Landing::TakenBack,
            Outcome::Unavailable { retry_after } => Landing::Unavailable { retry_after },
            Outcome::Braked { until } => Landing::Braked { until },
            Outcome::Ended { at } => Landing::Ended { at, settled: true },
            Outcome::Unsure => Landing::Unsure,
        }
    }

    fn open(&self, loan: LoanId, until: Timestamp, is_new: bool) -> Landing {
        Landing::Open { loan, until, access: self.decisions.accesses.of(loan, is_new) }
    }

    /// Runs work on the slow runtime that whoever waits for it cannot undo by hanging up; none where it died.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        self.slow.spawn(work).await.ok()
    }
}

/// Takes a flight off the list, also when its task dies.
struct Flying {
    flights: Flights,
    name: (LoanKey, Stage),
}

impl Drop for Flying {
    fn drop(&mut self) {
        let mut in_the_air = self.flights.in_the_air.lock().unwrap_or_else(PoisonError::into_inner);
        in_the_air.remove(&self.name);
    }
}

/// What of a landing is worth keeping: not what may be otherwise in a moment.
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
        | Landing::Unsure => None,
    }
}
