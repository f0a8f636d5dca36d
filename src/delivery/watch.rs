//! Readers who take too little: `delivery.idle` and `delivery.min_rate`.
//!
//! A body that nobody takes from is asked by nobody, and cannot notice; so one task looks at all of them from beside, and
//! cuts the connection of one whose reader takes nothing, or less than is asked of it. A body tells of itself by two numbers,
//! without a clock or a lock. Time that is not the reader's (the origin's, or that of a limit of our own) is not held
//! against it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::Settings;
use crate::connection::Connection;

/// How often to look, at least and at most.
const SELDOMEST: Duration = Duration::from_secs(1);
const OFTENEST: Duration = Duration::from_millis(20);

/// What a body tells of itself.
#[derive(Debug)]
pub(super) struct Pace {
    taken: AtomicU64,
    /// Whether what is to come is not there yet, so that the reader cannot take it.
    waits: AtomicBool,
    cut: AtomicBool,
    connection: Connection,
}

impl Pace {
    /// So many bytes have been taken in all.
    pub(super) fn took(&self, taken: u64) {
        self.taken.store(taken, Ordering::Relaxed);
    }

    /// Whether the reader is kept waiting now.
    pub(super) fn waits(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }

    /// Whether it was cut for want of a reader.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
        self.connection.cut();
    }
}

/// A body, and what was seen of it.
#[derive(Debug)]
struct Watched {
    pace: Weak<Pace>,
    /// How much had been taken at the last look, and since when that was all.
    taken: u64,
    since: Instant,
    /// Where the stretch began that is measured for its rate.
    from: (Instant, u64),
}

/// All bodies whose readers have more to take, over all workers.
#[derive(Clone, Debug)]
pub(super) struct Watch(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    bodies: Mutex<Vec<Watched>>,
}

impl Watch {
    pub(super) fn new(settings: Settings) -> Watch {
        Watch(Arc::new(Inner { settings, bodies: Mutex::default() }))
    }

    /// Watches a body on this connection for as long as somebody holds its pace.
    pub(super) fn enter(&self, connection: Connection) -> Arc<Pace> {
        let (taken, waits, cut) = (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
        let pace = Arc::new(Pace { taken, waits, cut, connection });
        let now = Instant::now();
        let watched = Watched { pace: Arc::downgrade(&pace), taken: 0, since: now, from: (now, 0) };
        self.0.bodies.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
        pace
    }

    /// Looks at all bodies again and again, until nobody can enter one any more.
    pub(super) async fn look(self) {
        let Settings { idle, min_rate, min_rate_grace, .. } = self.0.settings;
        let watch = Arc::downgrade(&self.0);
        drop(self);
        let shortest = if min_rate > 0 { idle.min(min_rate_grace) } else { idle };
        let often = (shortest / 4).clamp(OFTENEST, SELDOMEST);
        loop {
            tokio::time::sleep(often).await;
            let Some(watch) = watch.upgrade() else { return };
            watch.look_once(Instant::now());
        }
    }
}

impl Inner {
    fn look_once(&self, now: Instant) {
        // The list is taken out, so that a body that begins meanwhile does not wait.
        let mut bodies = std::mem::take(&mut *self.bodies.lock().unwrap_or_else(PoisonError::into_inner));
        bodies.retain_mut(|watched| {
            let Some(pace) = watched.pace.upgrade() else { return false };
            let is_slow = watched.is_slow(&pace, &self.settings, now);
            if is_slow {
                pace.cut();
            }
            !is_slow
        });
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner).append(&mut bodies);
    }
}

impl Watched {
    fn is_slow(&mut self, pace: &Pace, settings: &Settings, now: Instant) -> bool {
        let taken = pace.taken.load(Ordering::Relaxed);
        let waits = pace.waits.load(Ordering::Relaxed);
        if waits || taken != self.taken {
            (self.taken, self.since) = (taken, now);
        }
        if waits {
            self.from = (now, taken);
            return false;
        }
        self.is_idle(settings, now) || self.is_below_rate(settings, now)
    }

    fn is_idle(&self, settings: &Settings, now: Instant) -> bool {
        now.duration_since(self.since) >= settings.idle
    }

    fn is_below_rate(&mut self, settings: &Settings, now: Instant) -> bool {
        let (began, before) = self.from;
        let lasted = now.duration_since(began);
        if settings.min_rate == 0 || lasted < settings.min_rate_grace {
            return false;
        }
        self.from = (now, self.taken);
        ((self.taken - before) as f64) < settings.min_rate as f64 * lasted.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let (idle, min_rate_grace) = (Duration::from_secs(10), Duration::from_secs(4));
        Settings { idle, min_rate: 1000, min_rate_grace, ..Settings::default() }
    }

    /// What becomes of a body that has taken so much, and waits or not, at each second.
    fn cut_at(settings: Settings, seconds: &[(u64, bool)]) -> Option<usize> {
        let watch = Watch::new(settings);
        let connection = Connection::new();
        let pace = watch.enter(connection.clone());
        let began = Instant::now();
        seconds.iter().enumerate().find_map(|(second, (taken, waits))| {
            pace.took(*taken);
            pace.waits(*waits);
            watch.0.look_once(began + Duration::from_secs(second as u64));
            assert_eq!(pace.is_cut(), connection.is_cut());
            pace.is_cut().then_some(second)
        })
    }

    #[test]
    fn who_takes_nothing_or_too_little_is_cut_and_nobody_for_what_is_not_theirs() {
        let idle = Settings { min_rate: 0, ..settings() };
        assert_eq!(cut_at(idle, &[(5, false); 20]), Some(10));
        assert_eq!(cut_at(idle, &[(5, true); 20]), None, "the origin lets the reader wait");
        let mut late = [(5, true); 20];
        late[8..].fill((5, false));
        assert_eq!(cut_at(idle, &late), Some(17), "from when it could take");
        let taking: Vec<_> = (0..40).map(|second| (second, false)).collect();
        assert_eq!(cut_at(idle, &taking), None, "however little");

        assert_eq!(cut_at(settings(), &taking), Some(4), "after the grace");
        let well: Vec<_> = (0..40).map(|second| (second * 1100, false)).collect();
        assert_eq!(cut_at(settings(), &well), None);
        let slower: Vec<_> = (0..40).map(|second| (9900.min(second * 1100), false)).collect();
        assert_eq!(cut_at(settings(), &slower), Some(12), "a good beginning is no credit");
    }

    #[test]
    fn a_body_that_is_over_is_forgotten() {
        let watch = Watch::new(settings());
        drop(watch.enter(Connection::new()));
        let _lives = watch.enter(Connection::new());
        watch.0.look_once(Instant::now());
        assert_eq!(watch.0.bodies.lock().unwrap().len(), 1);
    }
}
