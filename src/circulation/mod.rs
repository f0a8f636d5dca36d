//! The loan's life: begun, carried to a decision, ended. The only writer of loan states.
//!
//! The gate asks it for a loan ([`Circulation::standing`], [`Circulation::begin`]), and everybody
//! who wants a loan ended comes here. It calls the ledger and the lending client, tells its one
//! listener of every end before Bokbasen hears of it, and never calls upward. Every undecided loan
//! has one entry in the schedule of the process that owns it, and a task only while work on it is
//! under way; both outlive whoever asked. [`Circulation::stop`] waits for the tasks. A task that
//! panics is started again, and its loan taken up again.
//!
//! What it promises (the invariants of the loan): an intent is durable before its begin leaves;
//! after an outcome that is not known, Bokbasen is asked for the reference before anything is begun
//! again; an end is durable here, and the listener told, before it is sent, and it is sent until it
//! is acknowledged.

mod availability;
mod balance;
mod begin;
mod clock_watch;
mod drive;
mod end;
mod feed;
mod licences;
mod outbox;
mod reconcile;
mod retention;
mod schedule;
mod settle;
mod wait;

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::ledger::{Ledger, LedgerError};
use crate::lending::Bokbasen;
use crate::loan::{LoanId, LoanKey, Refusal};
use crate::supervise::supervise;
use crate::telemetry::{LogLimit, Metrics};

pub use crate::lending::{Availability, FreeLicence};
pub use availability::Unsaid;
pub use balance::{BalanceError, Compared, Done, Finding, Kind, Report};
pub use begin::{Asker, Begun, Standing};
pub use end::EndError;
pub use feed::{Fed, Streams};
pub use licences::Licences;
pub use wait::Waiting;

/// How the loan's life is timed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `lending.settle`: how long after a begin could last have left us Bokbasen's listing can be
    /// believed.
    pub settle: Duration,
    /// `gate.refusal_ttl`: how long a refusal holds for which Bokbasen names no time.
    pub refusal_ttl: Duration,
    /// `lending.availability_ttl`: how long Bokbasen's word on what is free is kept for apps.
    pub availability_ttl: Duration,
    /// `privacy.retention`: how long after its end a loan's borrower is known.
    pub retention: Duration,
    /// `[licences]`: which licence a loan is begun under.
    pub licences: Licences,
    /// How many polls of undecided loans may be under way at once, a share of
    /// `lending.concurrency`. As many again may be early polls, which complete a begin.
    pub polls: usize,
}

/// When a reader should come back whom nobody gave a time.
const SOON: Duration = Duration::from_secs(5);
/// How often whoever waits for a moment looks at the clock, which may have been set.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(5);

/// How many ends that lie ahead are remembered.
const FUTURE_ENDS: u64 = 10_000;

/// What became of a loan that somebody waited for.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is accepted, and the ledger has it.
    Accepted {
        /// The loan.
        loan: LoanId,
        /// When it is due.
        until: Timestamp,
    },
    /// Bokbasen refused it.
    Refused {
        /// In these words.
        refusal: Refusal,
        /// Until when that holds.
        until: Timestamp,
    },
    /// Nothing came of it, and nothing of it is left at Bokbasen: it may be begun anew.
    NothingMade,
    /// It was ended before Bokbasen had accepted it, by the reader or there: nobody who waited for
    /// it wants it any more.
    TakenBack,
    /// Bokbasen cannot be asked now; nothing was begun.
    Unavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// The spending brake holds; nothing was begun.
    Braked {
        /// Until then.
        until: Timestamp,
    },
    /// A loan of this reader and title has ended.
    Ended {
        /// When.
        at: Timestamp,
    },
    /// The ledger failed, or the gate is stopping: nothing can be said.
    Unsure,
}

/// A loan's files stopped being open: what the listener is told.
#[derive(Clone, Copy, Debug)]
pub struct Closed {
    /// The loan.
    pub loan: LoanId,
    /// Whose and of what.
    pub key: LoanKey,
    /// When it ended.
    pub at: Timestamp,
}

type Listener = Box<dyn Fn(Closed) + Send + Sync>;

/// The loan's life, on the slow runtime. Clones share everything.
#[derive(Clone)]
pub struct Circulation {
    inner: Arc<Inner>,
}

struct Inner {
    ledger: Ledger,
    lending: Bokbasen,
    clock: Clock,
    settings: Settings,
    metrics: Metrics,
    slow: Handle,
    listener: OnceLock<Listener>,
    watched: OnceLock<feed::Watched>,
    fed: Fed,
    availabilities: availability::Kept,
    /// Ends that lie ahead, written by a clock that was fast: when each was first seen.
    future_ends: moka::sync::Cache<(LoanKey, Timestamp), Timestamp>,
    schedule: schedule::Schedule,
    ends_waiting: Notify,
    balancing: tokio::sync::Mutex<()>,
    last_balance: Mutex<Option<Arc<Report>>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl fmt::Debug for Circulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Circulation")
            .field("settings", &self.inner.settings)
            .finish_non_exhaustive()
    }
}

impl Circulation {
    /// The loan's life over this ledger and this client; its tasks run on `slow`. Nothing runs yet.
    pub fn new(
        settings: Settings,
        ledger: Ledger,
        lending: Bokbasen,
        clock: Clock,
        metrics: Metrics,
        slow: Handle,
    ) -> Circulation {
        let inner = Inner {
            availabilities: availability::Kept::new(settings.availability_ttl),
            future_ends: moka::sync::Cache::new(FUTURE_ENDS),
            ledger,
            lending,
            clock,
            settings,
            metrics,
            slow,
            listener: OnceLock::new(),
            watched: OnceLock::new(),
            fed: Fed::default(),
            schedule: schedule::Schedule::default(),
            ends_waiting: Notify::new(),
            balancing: tokio::sync::Mutex::default(),
            last_balance: Mutex::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        };
        Circulation { inner: Arc::new(inner) }
    }

    /// Names the one who is told of every end before Bokbasen is; the first call counts.
    pub fn on_closed(&self, listener: impl Fn(Closed) + Send + Sync + 'static) {
        let _ = self.inner.listener.set(Box::new(listener));
    }

    /// Starts the background tasks: following the change feed, driving
    /// undecided loans, settling what another process left,
    /// expiring, sending ends, balancing, forgetting. Each is started again where it panics.
    pub fn start(&self) {
        self.supervised("follow-feed", feed::follow);
        self.supervised("drive-loans", schedule::run);
        self.supervised("adopt-orphans", reconcile::adopt_orphans);
        self.supervised("expire", end::expire_when_due);
        self.supervised("send-ends", outbox::send_ends);
        self.supervised("balance", balance::each_night);
        self.supervised("forget", retention::forget_in_time);
        self.supervised("compare-clocks", clock_watch::compare_clocks);
    }

    fn supervised<F, T>(&self, name: &'static str, task: F)
    where
        F: Fn(Circulation) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let circulation = self.clone();
        let (metrics, stopping) = (self.inner.metrics.clone(), self.inner.stopping.clone());
        self.spawn(supervise(name, metrics, stopping, move || task(circulation.clone())));
    }

    /// Stops the tasks and waits for them, `patience` long at most. What they leave undone stands
    /// in the ledger, and is taken up at the next start.
    pub async fn stop(&self, patience: Duration) {
        self.inner.stopping.cancel();
        self.inner.tasks.close();
        if tokio::time::timeout(patience, self.inner.tasks.wait()).await.is_err() {
            let left = self.inner.tasks.len();
            tracing::warn!(left, "stopped with loans half-way; they are settled at the next start");
        }
        self.inner.lending.close().await;
    }

    fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.inner.tasks.spawn_on(task, &self.inner.slow)
    }

    fn announce(&self, closed: Closed) {
        if let Some(listener) = self.inner.listener.get() {
            listener(closed);
        }
    }

    /// Waits, unless the process is stopping: then false, at once.
    async fn pause(&self, wait: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(wait) => true,
            () = self.inner.stopping.cancelled() => false,
        }
    }
}

/// A ledger's failure, logged where it is met; to whoever waits it is [`Outcome::Unsure`].
fn log_ledger_failure(doing: &'static str, error: &LedgerError) {
    static LIMIT: LogLimit = LogLimit::per_minute();
    if let Some(suppressed) = LIMIT.permit(doing) {
        tracing::error!(%error, doing, suppressed, "the ledger failed");
    }
}
