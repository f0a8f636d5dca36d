//! Assigns each new connection to the least busy worker.
//!
//! The accept loop of each worker calls it. The kernel distributes connections over the listeners
//! by a hash of their addresses, without regard to load: two long downloads would often share one
//! core. A connection stays with its worker, because its socket and its origin connections belong
//! to that worker's runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::open_connections::Entry;

/// How often the load of the workers is sampled. A much shorter interval measures single requests;
/// a longer one reacts too late.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// The load that a new connection is assumed to cause, in percent of a worker's time. It
/// distributes a burst whose load has not been measured yet. It exceeds what one sample can add to
/// a worker whose last connection has just closed.
const NEW_CONNECTION_LOAD: u32 = 60;
/// Within this margin, in percent, the worker with fewer connections is chosen.
const TIE_MARGIN: u32 = 10;

/// A connection that one worker accepted and another serves.
pub(super) struct HandedOver {
    pub(super) socket: std::net::TcpStream,
    /// Its slot at the worker that serves it.
    pub(super) slot: WorkerSlot,
    /// Its entry in the open connections of the server.
    pub(super) entry: Entry,
    /// Counts the connection as open before it has a task, so that a drain waits for it.
    pub(super) counted: TaskTrackerToken,
}

/// The workers of the server and their load. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Workers(Arc<[State]>);

#[derive(Debug)]
struct State {
    runtime: Handle,
    inbox: mpsc::UnboundedSender<HandedOver>,
    /// The estimated load, in percent of the worker's time. Each sample moves it half the way to
    /// the measured load, because single samples vary widely.
    busy: AtomicU32,
    open: AtomicUsize,
}

/// The load of a worker.
#[derive(Clone, Copy, Debug)]
struct Load {
    busy: u32,
    open: usize,
}

/// A connection's slot at a worker, released when it is dropped.
#[derive(Debug)]
pub(super) struct WorkerSlot {
    workers: Workers,
    number: usize,
}

impl Workers {
    /// Creates one worker for each runtime, with the receiver of its handed-over connections.
    pub(super) fn new(
        runtimes: Vec<Handle>,
    ) -> (Workers, Vec<mpsc::UnboundedReceiver<HandedOver>>) {
        let mut inboxes = Vec::with_capacity(runtimes.len());
        let state = runtimes.into_iter().map(|runtime| {
            let (inbox, receiver) = mpsc::unbounded_channel();
            inboxes.push(receiver);
            State { runtime, inbox, busy: AtomicU32::new(0), open: AtomicUsize::new(0) }
        });
        (Workers(state.collect()), inboxes)
    }

    /// Reserves a slot at the least busy worker. The accepting worker keeps the connection if no
    /// other is less busy.
    pub(super) fn reserve_slot(&self, accepting: usize) -> WorkerSlot {
        let number = least_busy(self.0.iter().map(State::load), accepting);
        if let Some(state) = self.0.get(number) {
            state.connection_opened();
        }
        WorkerSlot { workers: self.clone(), number }
    }

    /// Hands a connection to the worker that its slot belongs to.
    ///
    /// # Errors
    /// Returns the connection if that worker accepts no more, because the gate drains.
    pub(super) fn hand_over(&self, handed_over: HandedOver) -> Result<(), HandedOver> {
        match self.0.get(handed_over.slot.number) {
            Some(state) => state.inbox.send(handed_over).map_err(|unsent| unsent.0),
            None => Err(handed_over),
        }
    }

    /// Waits until every worker has run a task. Returns false if the thread of one has ended.
    pub(super) async fn respond(&self) -> bool {
        let tasks: Vec<_> = self.0.iter().map(|state| state.runtime.spawn(async {})).collect();
        let mut respond = true;
        for task in tasks {
            respond &= task.await.is_ok();
        }
        respond
    }

    /// Samples the load of the workers at intervals, and never returns. A single worker is not
    /// sampled.
    pub(super) async fn sample_load(self) {
        if self.0.len() < 2 {
            return std::future::pending().await;
        }
        let mut before: Vec<Duration> = self.0.iter().map(State::total_busy).collect();
        let mut last_sample = Instant::now();
        loop {
            tokio::time::sleep(SAMPLE_INTERVAL).await;
            let elapsed = std::mem::replace(&mut last_sample, Instant::now()).elapsed();
            for (state, before) in self.0.iter().zip(&mut before) {
                let busy = state.total_busy();
                state.record_sample(percent(busy.saturating_sub(*before), elapsed));
                *before = busy;
            }
        }
    }
}

impl State {
    fn load(&self) -> Load {
        Load { busy: self.busy.load(Ordering::Relaxed), open: self.open.load(Ordering::Relaxed) }
    }

    /// Records the measured load since the last sample, in percent of the worker's time.
    fn record_sample(&self, busy: u32) {
        self.update_busy(|estimate| match estimate.checked_sub(busy) {
            Some(less) => estimate - less / 2,
            None => estimate + (busy - estimate).div_ceil(2),
        });
    }

    /// Counts a new connection and adds its assumed load.
    fn connection_opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.update_busy(|estimate| estimate.saturating_add(NEW_CONNECTION_LOAD));
    }

    /// Counts a closed connection and removes its share of the estimated load.
    fn connection_closed(&self) {
        let open = u32::try_from(self.open.fetch_sub(1, Ordering::Relaxed)).unwrap_or(u32::MAX);
        self.update_busy(|estimate| estimate - estimate / open.max(1));
    }

    fn update_busy(&self, change: impl Fn(u32) -> u32) {
        // It cannot fail: the closure always returns a value.
        let _ =
            self.busy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |busy| Some(change(busy)));
    }

    fn total_busy(&self) -> Duration {
        self.runtime.metrics().worker_total_busy_duration(0) // its only thread
    }
}

impl WorkerSlot {
    /// Whether the slot belongs to this worker.
    pub(super) fn is_at(&self, number: usize) -> bool {
        self.number == number
    }
}

impl Drop for WorkerSlot {
    fn drop(&mut self) {
        if let Some(state) = self.workers.0.get(self.number) {
            state.connection_closed();
        }
    }
}

/// Returns the worker with the lowest load. Ties go to the one with fewer connections, then to the
/// accepting worker.
fn least_busy(loads: impl Iterator<Item = Load>, accepting: usize) -> usize {
    let ranked = loads
        .enumerate()
        .map(|(number, load)| (load.busy / TIE_MARGIN, load.open, number != accepting, number));
    ranked.min().map_or(accepting, |(.., number)| number)
}

/// Returns the busy time in percent of the elapsed time.
fn percent(busy: Duration, elapsed: Duration) -> u32 {
    let percent = (busy.as_micros() * 100).checked_div(elapsed.as_micros());
    percent.and_then(|percent| u32::try_from(percent).ok()).unwrap_or(0).min(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(loads: &[(u32, usize)], accepting: usize) -> usize {
        least_busy(loads.iter().map(|&(busy, open)| Load { busy, open }), accepting)
    }

    #[test]
    fn connection_goes_to_the_least_busy_worker() {
        assert_eq!(chosen(&[(90, 1), (0, 500)], 0), 1, "the idle worker, despite more connections");
        assert_eq!(chosen(&[(0, 1), (0, 0)], 0), 1, "fewer connections");
        assert_eq!(chosen(&[(3, 0), (9, 3)], 1), 0, "fewer connections, at equal load");
        assert_eq!(chosen(&[(0, 3), (0, 3), (0, 3)], 1), 1, "the accepting worker");
        assert_eq!(chosen(&[], 7), 7);
    }

    #[tokio::test]
    async fn load_estimate_follows_the_samples() {
        let millis = Duration::from_millis;
        let seen = [(0, 100), (5, 100), (300, 100), (3, 0)];
        assert_eq!(seen.map(|(busy, of)| percent(millis(busy), millis(of))), [0, 5, 100, 0]);
        let (workers, _inboxes) = pair();
        let state = &workers.0[0];
        let _slots = [(); 2].map(|()| workers.reserve_slot(0));
        assert_eq!(state.load().busy, NEW_CONNECTION_LOAD, "each worker has one connection");
        state.record_sample(100);
        assert_eq!(state.load().busy, 80);
        for _ in 0..10 {
            state.record_sample(0);
        }
        assert!(state.load().busy < TIE_MARGIN, "idle within a second");
        for _ in 0..10 {
            state.record_sample(100);
        }
        assert_eq!(state.load().busy, 100);
    }

    fn pair() -> (Workers, Vec<mpsc::UnboundedReceiver<HandedOver>>) {
        Workers::new(vec![Handle::current(); 2])
    }

    #[tokio::test(start_paused = true)]
    async fn worker_that_is_busy_or_gone_does_not_respond() {
        let (workers, _inboxes) = pair();
        assert!(workers.respond().await);
        let never_run = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (workers, _inboxes) = Workers::new(vec![Handle::current(), never_run.handle().clone()]);
        let respond = tokio::time::timeout(Duration::from_secs(60), workers.respond());
        assert!(respond.await.is_err());
        never_run.shutdown_background();
        assert!(!workers.respond().await);
    }

    #[tokio::test]
    async fn slots_are_reserved_in_turn_and_released() {
        let (workers, _inboxes) = pair();
        let first = workers.reserve_slot(0);
        let second = workers.reserve_slot(0);
        assert!(first.is_at(0) && second.is_at(1));
        drop(first);
        workers.0[0].record_sample(100); // the load of the closed connection, sampled later
        let third = workers.reserve_slot(1);
        assert!(third.is_at(0), "the released slot is free");
        assert!(
            workers.reserve_slot(0).is_at(1),
            "simultaneous connections go to different workers"
        );
    }
}
