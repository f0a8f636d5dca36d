//! The life of a loan: begin, decision, end. No other module writes loan states.
//!
//! The gate calls [`Circulation::look_up`] and [`Circulation::begin`], whose one result is a
//! [`LoanOutcome`], and every end of a loan is requested here. This module calls the ledger and the
//! lending client. It notifies one listener of each end before Bokbasen is notified, and never
//! calls the layers above.
//!
//! Each undecided loan has one entry in the schedule of the process that owns it, and a task only
//! while a step runs. Both outlive the caller. A task that panics is restarted, and its loan is
//! scheduled again. [`Circulation::stop`] waits for the tasks.
//!
//! Guarantees (invariants of the loan):
//! - An intent is durable before its begin is sent.
//! - After an unknown outcome, Bokbasen is queried for the reference before another begin is sent.
//! - A usage report is sent at most once. If it may have arrived, a person decides.
//! - An end is durable, and the listener is notified, before the end is sent. It is sent until
//!   Bokbasen acknowledges it.

mod availability;
mod balance;
mod begin;
mod clock_watch;
mod drive;
mod end;
mod feed;
mod feed_status;
mod late_begin;
mod licences;
mod limit_shares;
mod outbox;
mod outcome;
mod reconcile;
mod record;
mod reports;
mod retention;
mod schedule;
mod settle;
mod wait;

use std::fmt;
use std::sync::atomic::AtomicBool;
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
use crate::loan::{LoanId, LoanKey};
use crate::process_handles::ProcessHandles;
use crate::reload::Current;
use crate::supervise::supervise;
use crate::telemetry::{LogLimit, Metrics, RequestId, Task, Trace, Tracer};

pub use crate::lending::{Availability, FreeLicence};
pub use availability::AvailabilityError;
pub use balance::{BalanceError, Compared, Done, Finding, Kind, Report, RunningBalance};
pub use begin::LoanRequest;
pub use end::EndError;
pub use feed::RunningStreams;
pub use feed_status::FeedStatus;
pub use licences::Licences;
pub use outcome::LoanOutcome;
pub use reports::{
    EvidenceRule, ListMistake, Lists, ReportSettings, StoredFile, date_in_oslo, start_of_day,
};
pub use wait::OutcomeWait;

/// Times and limits of the life of a loan.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `lending.settle`: how long after the last moment at which a begin can have been sent
    /// Bokbasen's listing is trusted.
    pub settle: Duration,
    /// `gate.refusal_ttl`: how long a refusal holds if Bokbasen sends no time.
    pub refusal_ttl: Duration,
    /// `lending.availability_ttl`: how long Bokbasen's availability of a title is cached.
    pub availability_ttl: Duration,
    /// `privacy.retention`: how long after its end the borrower of a loan stays known.
    pub retention: Duration,
    /// `[licences]`: which licence a loan is begun under.
    pub licences: Licences,
    /// Maximum number of routine polls in flight, a share of `lending.concurrency`. As many early
    /// polls, which complete a begin, may be in flight as well.
    pub polls: usize,
}

/// Retry-After for readers if no other time is known.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);
/// How often tasks that wait for a time check the clock, which may have been set.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Maximum number of remembered ends that are in the future.
const FUTURE_ENDS: u64 = 10_000;

/// Notification that a loan opens no files any more.
#[derive(Clone, Copy, Debug)]
pub struct Closed {
    /// Id of the loan in the ledger.
    pub loan: LoanId,
    /// Its library, borrower and title.
    pub key: LoanKey,
    /// When the loan ended, by the project's clock.
    pub at: Timestamp,
}

type Listener = Box<dyn Fn(Closed) + Send + Sync>;

/// The life of loans, on the slow runtime. Clones share all state.
#[derive(Clone)]
pub struct Circulation {
    inner: Arc<Inner>,
}

struct Inner {
    ledger: Ledger,
    lending: Bokbasen,
    clock: Clock,
    settings: Settings,
    /// Which licences loans use; a reload replaces those of the settings.
    licences: Current<Licences>,
    metrics: Metrics,
    tracer: Tracer,
    slow: Handle,
    listener: OnceLock<Listener>,
    monitored_streams: OnceLock<feed::MonitoredStreams>,
    feed_status: FeedStatus,
    availabilities: availability::AvailabilityCache,
    /// Ends in the future, written by a fast clock, with the time when each was first seen.
    future_ends: moka::sync::Cache<(LoanKey, Timestamp), Timestamp>,
    schedule: schedule::Schedule,
    ends_waiting: Notify,
    balancing: tokio::sync::Mutex<()>,
    last_balance: Mutex<Option<Arc<Report>>>,
    running_balance: balance::Running,
    /// Whether borrowers were erased since `retention` has last looked.
    has_erased: AtomicBool,
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
    /// Creates the circulation over this ledger and lending client. Starts nothing.
    pub fn new(
        settings: Settings,
        ledger: Ledger,
        lending: Bokbasen,
        handles: ProcessHandles,
    ) -> Circulation {
        let ProcessHandles { clock, metrics, tracer, slow } = handles;
        let inner = Inner {
            availabilities: availability::AvailabilityCache::new(settings.availability_ttl),
            future_ends: moka::sync::Cache::new(FUTURE_ENDS),
            ledger,
            lending,
            clock,
            licences: Current::new(settings.licences.clone()),
            settings,
            metrics,
            tracer,
            slow,
            listener: OnceLock::new(),
            monitored_streams: OnceLock::new(),
            feed_status: FeedStatus::default(),
            schedule: schedule::Schedule::default(),
            ends_waiting: Notify::new(),
            balancing: tokio::sync::Mutex::default(),
            last_balance: Mutex::default(),
            running_balance: balance::Running::default(),
            has_erased: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        };
        Circulation { inner: Arc::new(inner) }
    }

    /// Returns how long after a loan's end its borrower is stored.
    pub fn retention(&self) -> Duration {
        self.inner.settings.retention
    }

    /// Sets which licences the loans use that are begun later.
    pub fn set_licences(&self, licences: Licences) {
        self.inner.licences.replace(licences);
    }

    /// Sets the listener that is notified of each end before Bokbasen is. Only the first call has
    /// an effect.
    pub fn on_closed(&self, listener: impl Fn(Closed) + Send + Sync + 'static) {
        let _ = self.inner.listener.set(Box::new(listener));
    }

    /// Starts the background tasks. Each is restarted if it panics.
    pub fn start(&self) {
        self.supervised(Task::FollowFeed, feed::follow);
        self.supervised(Task::DriveLoans, schedule::run);
        self.supervised(Task::AdoptOrphans, reconcile::adopt_orphans);
        self.supervised(Task::Expire, end::expire_when_due);
        self.supervised(Task::SendEnds, outbox::send_ends);
        self.supervised(Task::Balance, balance::run_nightly);
        self.supervised(Task::Forget, retention::forget_in_time);
        self.supervised(Task::CompareClocks, clock_watch::compare_clocks);
        self.supervised(Task::SearchLateBegins, late_begin::search_late_begins);
        self.supervised(Task::ShareLimits, limit_shares::share_limits);
    }

    /// Polls an undecided loan of this process now instead of when it is due. Returns false if
    /// another process drives it, or if it is decided. Begins nothing: it is the scheduled step.
    pub fn poll_now(&self, loan: LoanId) -> bool {
        let is_driven = self.inner.schedule.contains(loan);
        if is_driven {
            self.inner.schedule.make_due(loan);
        }
        is_driven
    }

    fn supervised<F, T>(&self, name: Task, task: F)
    where
        F: Fn(Circulation) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let circulation = self.clone();
        let (metrics, stopping) = (self.inner.metrics.clone(), self.inner.stopping.clone());
        self.spawn(supervise(name, metrics, stopping, move || task(circulation.clone())));
    }

    /// Stops the tasks and waits at most `patience` for them. Unfinished loans remain in the ledger
    /// and are settled at the next start.
    pub async fn stop(&self, patience: Duration) {
        self.inner.stopping.cancel();
        self.inner.tasks.close();
        if tokio::time::timeout(patience, self.inner.tasks.wait()).await.is_err() {
            let left = self.inner.tasks.len();
            tracing::warn!(
                left,
                "stopped with unfinished loans; they are settled at the next start"
            );
        }
        self.inner.lending.close().await;
    }

    fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.inner.tasks.spawn_on(RequestId::inherit(task), &self.inner.slow)
    }

    /// Runs work of a loan's life that no request waits for, in a trace of its own.
    async fn traced<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        Trace::run(self.inner.tracer.background(name), work).await
    }

    fn announce(&self, closed: Closed) {
        if let Some(listener) = self.inner.listener.get() {
            listener(closed);
        }
    }

    /// Waits and returns true; returns false at once when the process is stopping.
    async fn pause(&self, wait: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(wait) => true,
            () = self.inner.stopping.cancelled() => false,
        }
    }
}

/// Logs a failure of the ledger where it occurs. Waiters get [`LoanOutcome::Undetermined`].
fn log_ledger_failure(doing: &'static str, error: &LedgerError) {
    static LIMIT: LogLimit = LogLimit::per_minute();
    if let Some(suppressed) = LIMIT.permit(doing) {
        tracing::error!(%error, doing, suppressed, "the ledger failed");
    }
}
