//! Stores answered requests in the ledger, so that support finds one that another gate answered.
//!
//! A task on the slow runtime copies what is new from the memory of recent requests; a request
//! itself does nothing for it. What it stores is bounded in rows a day, so that nobody fills the
//! disk with requests. Of too many, those of known readers that were refused come first. Requests
//! whose reader is not known, which anybody can make, have a small budget of their own. What is
//! left out is counted.
//!
//! The task also removes requests whose time is over, whichever gate stored them, and also where
//! nothing is stored any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Services;
use super::explain::AnsweredRequest;
use super::recent_requests::{Position, Unread};
use super::request_queue::{Limit, Queue};
use crate::clock::{self, Clock};
use crate::ledger::LedgerError;
use crate::supervise::supervise;
use crate::telemetry::{LogLimit, RequestStorage, Task};

/// The time between two writes, and between two removals: after one that removed as many as it may,
/// of a gate that stores requests, and of another one.
const INTERVAL: Duration = Duration::from_secs(1);
const NEXT_REMOVAL: Duration = Duration::from_secs(1);
const REMOVAL_INTERVAL: Duration = Duration::from_secs(60);
const IDLE_INTERVAL: Duration = Duration::from_secs(3600);
/// The time without a write after one that failed.
const FAILURE_PAUSE: Duration = Duration::from_secs(30);
/// The deadline of the writes at the end of the process.
const LAST_WRITE: Duration = Duration::from_secs(5);
/// The number of copies under one lock, which a request may wait for.
const COPIES: usize = 32;
/// The most copies of all rings in an interval: a busy gate must not keep the task from writing.
const MAX_READS: usize = 20;
/// The most rows of this gate that the ledger has at once, and the most that it stores at once
/// after a quiet time: of known readers, and of others.
const KNOWN: Limit = Limit { rows: 1_000_000, burst: 4000 };
const UNKNOWN: Limit = Limit { rows: 50_000, burst: 500 };
/// The number of requests in one transaction.
const BATCH: usize = 250;
/// The number of requests that one transaction removes.
const ROWS_PER_REMOVAL: u32 = 500;

static FAILURES: LogLimit = LogLimit::per_minute();

/// The handle of the task that stores requests.
#[derive(Debug)]
pub(crate) struct RequestRecorder {
    task: JoinHandle<()>,
    stop: DropGuard,
}

/// The requests that wait to be stored.
struct Waiting {
    position: Position,
    known: Queue,
    unknown: Queue,
}

#[derive(Clone)]
struct Recorder {
    services: Arc<Services>,
    clock: Clock,
    /// How long requests are stored; zero stores none.
    lifetime: Duration,
    /// Outside of the run, so that a panic in it loses no position.
    waiting: Arc<Mutex<Waiting>>,
}

impl RequestRecorder {
    /// Starts the task on the current runtime. It stores requests for `lifetime`; zero stores none.
    pub(crate) fn start(
        services: Arc<Services>,
        clock: Clock,
        lifetime: Duration,
    ) -> RequestRecorder {
        let stop = CancellationToken::new();
        let metrics = services.metrics.clone();
        let waiting = Waiting {
            position: Position::default(),
            known: Queue::new(KNOWN, lifetime),
            unknown: Queue::new(UNKNOWN, lifetime),
        };
        let waiting = Arc::new(Mutex::new(waiting));
        let recorder = Recorder { services, clock, lifetime, waiting };
        let stopping = stop.clone();
        let run = move || recorder.clone().run(stopping.clone());
        let task = tokio::spawn(supervise(Task::StoreRequests, metrics, stop.clone(), run));
        RequestRecorder { task, stop: stop.drop_guard() }
    }

    /// Stores the last requests. Call it after the last response and before closing the ledger.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        if self.task.await.is_err() {
            tracing::error!("the task that stores requests ended abnormally");
        }
    }
}

impl Recorder {
    async fn run(self, stop: CancellationToken) {
        let mut waiting = self.waiting.lock().await;
        let is_on = !self.lifetime.is_zero();
        let next_removal = if is_on { REMOVAL_INTERVAL } else { IDLE_INTERVAL };
        let (mut remove_at, mut write_at) = (Instant::now(), Instant::now());
        loop {
            if Instant::now() >= remove_at {
                let is_last = logged(self.remove().await).unwrap_or(true);
                remove_at = Instant::now() + if is_last { next_removal } else { NEXT_REMOVAL };
            }
            let until = if is_on { Instant::now() + INTERVAL } else { remove_at };
            let stopped = timeout_at(until, stop.cancelled()).await.is_ok();
            if is_on {
                self.collect(&mut waiting).await;
                if stopped {
                    // What the ledger does not take in time is lost.
                    if let Ok(written) = timeout(LAST_WRITE, self.write(&mut waiting)).await {
                        logged(written);
                    }
                } else if Instant::now() >= write_at
                    && logged(self.write(&mut waiting).await).is_none()
                {
                    write_at = Instant::now() + FAILURE_PAUSE;
                }
            }
            if stopped {
                let left = waiting.known.len() + waiting.unknown.len();
                self.services.metrics.requests_stored(RequestStorage::Dropped, left as u64);
                return;
            }
        }
    }

    /// Copies what is new, and drops the oldest if too many wait.
    async fn collect(&self, waiting: &mut Waiting) {
        let mut dropped = 0;
        for _ in 0..MAX_READS {
            let Unread { requests, missed } =
                self.services.recent.read(&mut waiting.position, COPIES);
            dropped += missed;
            if requests.is_empty() {
                break;
            }
            for request in requests {
                let queue = match request.asked {
                    Some(_) => &mut waiting.known,
                    None => &mut waiting.unknown,
                };
                dropped += u64::from(queue.add(request, Instant::now()));
            }
            // Flights run on this runtime, too.
            tokio::task::yield_now().await;
        }
        self.services.metrics.requests_stored(RequestStorage::Dropped, dropped);
    }

    /// Writes what waits and the budget permits. What is not written waits on.
    async fn write(&self, waiting: &mut Waiting) -> Result<(), LedgerError> {
        for queue in [&mut waiting.known, &mut waiting.unknown] {
            queue.budget.add(Instant::now());
            loop {
                let until = clock::after(self.clock.now(), self.lifetime);
                let batch: Vec<_> = queue
                    .next(BATCH.min(queue.budget.rows()))
                    .map(|request| AnsweredRequest::from(request.clone()).to_stored(until))
                    .collect();
                if batch.is_empty() {
                    break;
                }
                let stored = self.services.ledger.record_requests(&batch).await;
                // Also those that were not written: they might fail each time.
                queue.remove(batch.len());
                queue.budget.spend(batch.len());
                let result = match stored {
                    Ok(()) => RequestStorage::Stored,
                    Err(_) => RequestStorage::Dropped,
                };
                self.services.metrics.requests_stored(result, batch.len() as u64);
                stored?;
            }
        }
        Ok(())
    }

    /// Removes requests whose time is over. Returns whether there are no more.
    async fn remove(&self) -> Result<bool, LedgerError> {
        let removed = self.services.ledger.remove_requests(self.clock.now(), ROWS_PER_REMOVAL);
        Ok(removed.await? < u64::from(ROWS_PER_REMOVAL))
    }
}

/// Returns the value, or logs the failure.
fn logged<T>(done: Result<T, LedgerError>) -> Option<T> {
    let error = match done {
        Ok(value) => return Some(value),
        Err(error) => error,
    };
    if let Some(left_out) = FAILURES.permit("requests") {
        tracing::warn!(%error, left_out, "requests for support could not be stored or removed");
    }
    None
}
