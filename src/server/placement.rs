//! Which worker a new connection goes to: the least busy one.
//!
//! Asked by the accept loop of each worker. The kernel spreads connections over the workers'
//! listeners by a hash of their addresses, which knows nothing of what they do: two long downloads
//! would share one core as often as not. A connection stays where it was placed, since its sockets
//! and its connections to the origins belong to that core.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::open_connections::Entry;

/// How often to look how busy the workers were. A window much shorter sees single requests, a
/// longer one lags behind.
const LOOK: Duration = Duration::from_millis(100);
/// How much of its time a worker is expected to be busy with a new connection, in percent. A burst
/// spreads by it, since what it costs is not yet seen. It is more than what one look makes of a
/// worker whose last connection has just gone.
const NEW: u32 = 60;
/// Workers that are as busy as each other but for so much, in percent, are told apart by their
/// connections.
const ALIKE: u32 = 10;

/// A connection on its way to the worker that serves it.
pub(super) struct Arrival {
    pub(super) socket: std::net::TcpStream,
    /// Its place among the connections of that worker.
    pub(super) seat: Seat,
    /// Its place among all open connections.
    pub(super) entry: Entry,
    /// Counts it as open before it has a task, so that a drain does not end without it.
    pub(super) counted: TaskTrackerToken,
}

/// All workers of the server. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Workers(Arc<[State]>);

#[derive(Debug)]
struct State {
    runtime: Handle,
    inbox: mpsc::UnboundedSender<Arrival>,
    /// How much of its time it is expected to be busy, in percent. Each look brings it half the way
    /// to what was seen: one alone is full of chance.
    busy: AtomicU32,
    open: AtomicUsize,
}

/// What a worker has to do.
#[derive(Clone, Copy, Debug)]
struct Load {
    busy: u32,
    open: usize,
}

/// A connection's place at a worker, given up when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    workers: Workers,
    number: usize,
}

impl Workers {
    /// As many workers as there are runtimes, and where each takes what is handed to it.
    pub(super) fn new(runtimes: Vec<Handle>) -> (Workers, Vec<mpsc::UnboundedReceiver<Arrival>>) {
        let mut inboxes = Vec::with_capacity(runtimes.len());
        let state = runtimes.into_iter().map(|runtime| {
            let (inbox, taken) = mpsc::unbounded_channel();
            inboxes.push(taken);
            State { runtime, inbox, busy: AtomicU32::new(0), open: AtomicUsize::new(0) }
        });
        (Workers(state.collect()), inboxes)
    }

    /// A seat at the least busy worker; the one that asks keeps the connection where no other is
    /// less busy.
    pub(super) fn seat(&self, asking: usize) -> Seat {
        let number = least_busy(self.0.iter().map(State::load), asking);
        if let Some(state) = self.0.get(number) {
            state.came();
        }
        Seat { workers: self.clone(), number }
    }

    /// Hands a connection to the worker at which it has its seat.
    ///
    /// # Errors
    /// Gives it back where that worker takes none any more, since the gate drains.
    pub(super) fn hand_over(&self, arrival: Arrival) -> Result<(), Arrival> {
        match self.0.get(arrival.seat.number) {
            Some(state) => state.inbox.send(arrival).map_err(|unsent| unsent.0),
            None => Err(arrival),
        }
    }

    /// Measures at intervals how busy the workers are, and never returns. With one worker there is
    /// nothing to measure.
    pub(super) async fn watch(self) {
        if self.0.len() < 2 {
            return std::future::pending().await;
        }
        let mut before: Vec<Duration> = self.0.iter().map(State::busy_in_all).collect();
        let mut looked = Instant::now();
        loop {
            tokio::time::sleep(LOOK).await;
            let elapsed = std::mem::replace(&mut looked, Instant::now()).elapsed();
            for (state, before) in self.0.iter().zip(&mut before) {
                let busy = state.busy_in_all();
                state.saw(percent(busy.saturating_sub(*before), elapsed));
                *before = busy;
            }
        }
    }
}

impl State {
    fn load(&self) -> Load {
        Load { busy: self.busy.load(Ordering::Relaxed), open: self.open.load(Ordering::Relaxed) }
    }

    /// It was busy for so much of its time since the last look, in percent.
    fn saw(&self, busy: u32) {
        self.expect(|expected| match expected.checked_sub(busy) {
            Some(less) => expected - less / 2,
            None => expected + (busy - expected).div_ceil(2),
        });
    }

    /// A connection has come.
    fn came(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.expect(|expected| expected.saturating_add(NEW));
    }

    /// A connection has gone, and its part of what is expected with it.
    fn went(&self) {
        let open = u32::try_from(self.open.fetch_sub(1, Ordering::Relaxed)).unwrap_or(u32::MAX);
        self.expect(|expected| expected - expected / open.max(1));
    }

    fn expect(&self, change: impl Fn(u32) -> u32) {
        // It never fails, since there is always something to change it to.
        let _ =
            self.busy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |busy| Some(change(busy)));
    }

    fn busy_in_all(&self) -> Duration {
        self.runtime.metrics().worker_total_busy_duration(0) // its only thread
    }
}

impl Seat {
    /// Whether it is at this worker.
    pub(super) fn is_at(&self, number: usize) -> bool {
        self.number == number
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(state) = self.workers.0.get(self.number) {
            state.went();
        }
    }
}

/// Which worker has the least to do: who was less busy, then who has fewer connections, then the
/// one that asks.
fn least_busy(loads: impl Iterator<Item = Load>, asking: usize) -> usize {
    let weighed = loads
        .enumerate()
        .map(|(number, load)| (load.busy / ALIKE, load.open, number != asking, number));
    weighed.min().map_or(asking, |(.., number)| number)
}

/// How much of the time that went by was busy, in percent.
fn percent(busy: Duration, elapsed: Duration) -> u32 {
    let percent = (busy.as_micros() * 100).checked_div(elapsed.as_micros());
    percent.and_then(|percent| u32::try_from(percent).ok()).unwrap_or(0).min(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(loads: &[(u32, usize)], asking: usize) -> usize {
        least_busy(loads.iter().map(|&(busy, open)| Load { busy, open }), asking)
    }

    #[test]
    fn a_connection_goes_where_there_is_least_to_do() {
        assert_eq!(
            chosen(&[(90, 1), (0, 500)], 0),
            1,
            "who idles, however many are connected there"
        );
        assert_eq!(chosen(&[(0, 1), (0, 0)], 0), 1, "who has fewer");
        assert_eq!(
            chosen(&[(3, 0), (9, 3)], 1),
            0,
            "who has fewer, where they are as busy as each other"
        );
        assert_eq!(chosen(&[(0, 3), (0, 3), (0, 3)], 1), 1, "the one that asks");
        assert_eq!(chosen(&[], 7), 7);
    }

    #[tokio::test]
    async fn what_is_expected_follows_what_is_seen() {
        let millis = Duration::from_millis;
        let seen = [(0, 100), (5, 100), (300, 100), (3, 0)];
        assert_eq!(seen.map(|(busy, of)| percent(millis(busy), millis(of))), [0, 5, 100, 0]);
        let (workers, _inboxes) = pair();
        let state = &workers.0[0];
        let _seats = [(); 2].map(|()| workers.seat(0));
        assert_eq!(state.load().busy, NEW, "each got one");
        state.saw(100);
        assert_eq!(state.load().busy, 80);
        for _ in 0..10 {
            state.saw(0);
        }
        assert!(state.load().busy < ALIKE, "and nothing is left of it after a second");
        for _ in 0..10 {
            state.saw(100);
        }
        assert_eq!(state.load().busy, 100);
    }

    fn pair() -> (Workers, Vec<mpsc::UnboundedReceiver<Arrival>>) {
        Workers::new(vec![Handle::current(); 2])
    }

    #[tokio::test]
    async fn seats_are_taken_in_turn_and_given_up_again() {
        let (workers, _inboxes) = pair();
        let first = workers.seat(0);
        let second = workers.seat(0);
        assert!(first.is_at(0) && second.is_at(1));
        drop(first);
        workers.0[0].saw(100); // what it did before is seen after
        let third = workers.seat(1);
        assert!(third.is_at(0), "the seat that was given up is free");
        assert!(workers.seat(0).is_at(1), "and two that come together part");
    }
}
