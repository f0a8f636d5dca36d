//! Stores answered requests in the ledger, so that support finds one that another gate answered.
//!
//! A task on the slow runtime copies what is new from the memory of recent requests; a request
//! itself does nothing for it. Of too many requests, those that were refused come first, and the
//! others are left out and counted. The task also removes requests whose time is over, whichever
//! gate stored them, and also where nothing is stored any more.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Services;
use super::explain::AnsweredRequest;
use super::recent_requests::{Position, Unread};
use crate::clock::{self, Clock};
use crate::ledger::{LedgerError, StoredRequest};
use crate::supervise::supervise;
use crate::telemetry::{LogLimit, RequestStorage, Task};

/// The time between two writes, and between two removals: of a gate that stores requests, and of
/// another one.
const INTERVAL: Duration = Duration::from_secs(1);
const REMOVAL_INTERVAL: Duration = Duration::from_secs(60);
const IDLE_INTERVAL: Duration = Duration::from_secs(3600);
/// The number of copies under one lock, which a request may wait for.
const COPIES: usize = 32;
/// The most copies of all rings in an interval: a busy gate must not keep the task from writing.
const MAX_READS: usize = 20;
/// The most requests that wait, that are written in an interval, and in one transaction.
const MAX_WAITING: usize = 4000;
const MAX_WRITTEN: usize = 2000;
const BATCH: usize = 250;
/// The number of requests that one transaction removes.
const REMOVED: u32 = 500;

static FAILURES: LogLimit = LogLimit::per_minute();

/// The handle of the task that stores requests.
#[derive(Debug)]
pub(crate) struct RequestRecorder {
    task: JoinHandle<()>,
    stop: DropGuard,
}

/// The requests that wait to be stored.
#[derive(Default)]
struct Waiting {
    position: Position,
    refused: VecDeque<StoredRequest>,
    sent: VecDeque<StoredRequest>,
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
        let recorder = Recorder { services, clock, lifetime, waiting: Arc::default() };
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
        let interval = if is_on { INTERVAL } else { IDLE_INTERVAL };
        let mut remove_at = Instant::now();
        loop {
            if Instant::now() >= remove_at {
                remove_at = Instant::now() + REMOVAL_INTERVAL;
                log_failure(self.remove(&stop).await);
            }
            let stopped = timeout(interval, stop.cancelled()).await.is_ok();
            if is_on {
                self.collect(&mut waiting);
                log_failure(self.write(&mut waiting).await);
            }
            if stopped {
                return;
            }
        }
    }

    /// Copies what is new, and drops the oldest if too many wait.
    fn collect(&self, waiting: &mut Waiting) {
        let (mut dropped, metrics) = (0, &self.services.metrics);
        let until = clock::after(self.clock.now(), self.lifetime);
        for _ in 0..MAX_READS {
            let Unread { requests, missed } =
                self.services.recent.read(&mut waiting.position, COPIES);
            dropped += missed;
            if requests.is_empty() {
                break;
            }
            for request in requests.into_iter().map(AnsweredRequest::from) {
                dropped += u64::from(waiting.add(&request, until));
            }
        }
        metrics.requests_stored(RequestStorage::Dropped, dropped);
    }

    /// Writes what waits, in transactions of a limited size. What is not written waits on.
    async fn write(&self, waiting: &mut Waiting) -> Result<(), LedgerError> {
        let mut written = 0;
        while written < MAX_WRITTEN {
            let batch = waiting.batch();
            if batch.is_empty() {
                break;
            }
            let stored = self.services.ledger.record_requests(batch.clone()).await;
            let count = batch.len() as u64;
            match stored {
                Ok(()) => {
                    self.services.metrics.requests_stored(RequestStorage::Stored, count);
                }
                // It would fail each time.
                Err(error @ LedgerError::Unwritable(_)) => {
                    waiting.remove(batch.len());
                    self.services.metrics.requests_stored(RequestStorage::Dropped, count);
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
            waiting.remove(batch.len());
            written += batch.len();
        }
        Ok(())
    }

    async fn remove(&self, stop: &CancellationToken) -> Result<(), LedgerError> {
        while !stop.is_cancelled() {
            let removed = self.services.ledger.remove_requests(self.clock.now(), REMOVED).await?;
            if removed < u64::from(REMOVED) {
                break;
            }
        }
        Ok(())
    }
}

fn log_failure(done: Result<(), LedgerError>) {
    if let Err(error) = done
        && let Some(left_out) = FAILURES.permit("requests")
    {
        tracing::warn!(%error, left_out, "requests for support could not be stored or removed");
    }
}

impl Waiting {
    /// Adds a request. Returns whether one is dropped for it: the oldest one that was not refused,
    /// if there is one.
    fn add(&mut self, request: &AnsweredRequest, until: Timestamp) -> bool {
        let stored = request.to_stored(until);
        match request.is_refused() {
            true => self.refused.push_back(stored),
            false => self.sent.push_back(stored),
        }
        let is_full = self.refused.len() + self.sent.len() > MAX_WAITING;
        is_full && self.sent.pop_front().or_else(|| self.refused.pop_front()).is_some()
    }

    /// Returns the next requests to store, those that were refused first.
    fn batch(&self) -> Arc<[StoredRequest]> {
        self.refused.iter().chain(&self.sent).take(BATCH).cloned().collect()
    }

    /// Removes the first requests, in the order of [`Waiting::batch`].
    fn remove(&mut self, count: usize) {
        let refused = count.min(self.refused.len());
        self.refused.drain(..refused);
        self.sent.drain(..(count - refused).min(self.sent.len()));
    }
}
