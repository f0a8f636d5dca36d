//! Which worker a new connection goes to: the least busy one.
//!
//! Asked by the accept loop of each worker. The kernel spreads connections over the workers' listeners by a hash of their
//! addresses, which knows nothing of what they do: two long downloads would share one core as often as not. A
//! connection stays where it was placed, since its sockets and its connections to the origins belong to that core.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// How often to look how busy the workers were. A window much shorter sees single requests, a longer one lags behind.
const LOOK: Duration = Duration::from_millis(100);
/// How busy a worker is taken to be with a connection that came after the last look, in tenths of its time. A burst
/// spreads by it, since what it costs is not yet seen.
const NEW: u32 = 4;

/// A connection on its way to the worker that serves it.
pub(super) struct Arrival {
    pub(super) socket: std::net::TcpStream,
    /// Its place among the connections of that worker.
    pub(super) seat: Seat,
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
    /// Tenths of its time in which it was busy, at the last look.
    busy: AtomicU32,
    /// Connections that were placed here since.
    new: AtomicU32,
    open: AtomicUsize,
}

/// What a worker has to do.
#[derive(Clone, Copy, Debug)]
struct Load {
    busy: u32,
    new: u32,
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
            State {
                runtime,
                inbox,
                busy: AtomicU32::new(0),
                new: AtomicU32::new(0),
                open: AtomicUsize::new(0),
            }
        });
        (Workers(state.collect()), inboxes)
    }

    /// A seat at the least busy worker; the one that asks keeps the connection where no other is less busy.
    pub(super) fn seat(&self, asking: usize) -> Seat {
        let number = least_busy(self.0.iter().map(State::load), asking);
        if let Some(state) = self.0.get(number) {
            state.new.fetch_add(1, Ordering::Relaxed);
            state.open.fetch_add(1, Ordering::Relaxed);
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

    /// Looks again and again how busy the workers are. With one there is nothing to choose.
    pub(super) async fn watch(self) {
        if self.0.len() < 2 {
            return;
        }
        let mut before: Vec<Duration> = self.0.iter().map(State::busy_in_all).collect();
        let mut looked = Instant::now();
        loop {
            tokio::time::sleep(LOOK).await;
            let elapsed = std::mem::replace(&mut looked, Instant::now()).elapsed();
            for (state, before) in self.0.iter().zip(&mut before) {
                let busy = state.busy_in_all();
                state.busy.store(tenths(busy.saturating_sub(*before), elapsed), Ordering::Relaxed);
                state.new.store(0, Ordering::Relaxed);
                *before = busy;
            }
        }
    }
}

impl State {
    fn load(&self) -> Load {
        Load {
            busy: self.busy.load(Ordering::Relaxed),
            new: self.new.load(Ordering::Relaxed),
            open: self.open.load(Ordering::Relaxed),
        }
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
            state.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Which worker has the least to do: who was less busy, then who has fewer connections, then the one that asks.
fn least_busy(loads: impl Iterator<Item = Load>, asking: usize) -> usize {
    let weighed = loads.enumerate().map(|(number, load)| {
        let weight = load.busy.saturating_add(load.new.saturating_mul(NEW));
        (weight, load.open, number != asking, number)
    });
    weighed.min().map_or(asking, |(.., number)| number)
}

/// How many tenths of the time that went by were busy, rounded.
fn tenths(busy: Duration, elapsed: Duration) -> u32 {
    let tenths = busy.as_micros() * 10 + elapsed.as_micros() / 2;
    tenths.checked_div(elapsed.as_micros()).and_then(|tenths| u32::try_from(tenths).ok()).unwrap_or(0).min(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(loads: &[(u32, u32, usize)], asking: usize) -> usize {
        let loads = loads.iter().map(|&(busy, new, open)| Load { busy, new, open });
        least_busy(loads, asking)
    }

    #[test]
    fn a_connection_goes_where_there_is_least_to_do() {
        assert_eq!(chosen(&[(9, 0, 1), (0, 0, 500)], 0), 1, "who idles, however many are connected there");
        assert_eq!(chosen(&[(0, 0, 1), (0, 0, 0)], 0), 1, "who has fewer");
        assert_eq!(chosen(&[(0, 0, 3), (0, 0, 3), (0, 0, 3)], 1), 1, "the one that asks");
        assert_eq!(chosen(&[(0, 1, 1), (0, 0, 1)], 0), 1, "who got none since the last look");
        assert_eq!(chosen(&[(2, 0, 0), (0, 3, 0)], 1), 0, "a burst spreads, also to one that does something");
        assert_eq!(chosen(&[], 7), 7);
    }

    #[test]
    fn what_a_worker_did_is_told_in_tenths_of_the_time() {
        let millis = Duration::from_millis;
        assert_eq!(tenths(millis(0), millis(100)), 0);
        assert_eq!(tenths(millis(4), millis(100)), 0, "next to nothing is nothing");
        assert_eq!(tenths(millis(5), millis(100)), 1);
        assert_eq!(tenths(millis(300), millis(100)), 10);
        assert_eq!(tenths(millis(3), millis(0)), 0);
    }

    #[tokio::test]
    async fn seats_are_taken_in_turn_and_given_up_again() {
        let (workers, _inboxes) = Workers::new(vec![Handle::current(); 2]);
        let first = workers.seat(0);
        let second = workers.seat(0);
        assert!(first.is_at(0) && second.is_at(1));
        drop(first);
        for state in workers.0.iter() {
            state.new.store(0, Ordering::Relaxed); // as a look does
        }
        assert!(workers.seat(1).is_at(0), "the seat that was given up is free");
    }
}
