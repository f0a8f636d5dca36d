//! The monitor of all running bodies. It enforces `delivery.idle`, `delivery.min_rate` and the due
//! times of loans.
//!
//! A body with a stalled reader is not polled, so it cannot enforce its own timeout. One task
//! therefore checks all bodies several times a second. It aborts a body whose reader is idle or too
//! slow, or whose loan is due. If an aborted body does not end soon, the monitor closes its
//! connection. Time spent waiting for the origin, or for a rate limit of the gate, does not count.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

use super::Settings;
use super::outgoing::{BodyHandle, Outgoing, Progress, Suspension};
use crate::connection_handle::{Abort, OutgoingBody};
use crate::lock::lock;

/// The longest and the shortest time between two checks.
const LONGEST_INTERVAL: Duration = Duration::from_millis(250);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(20);
/// How long an aborted body may take to end before its connection is closed.
const ABORT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a body may stall before it releases its origin connection, if requests wait for one.
const EARLY_SUSPEND_AFTER: Duration = Duration::from_secs(2);

/// The registry of one worker's bodies, with access to those of all workers.
#[derive(Clone, Debug)]
pub(super) struct StallMonitor {
    settings: Settings,
    shards: Arc<Mutex<Vec<Arc<Shard>>>>,
    shard: Arc<Shard>,
}

#[derive(Debug, Default)]
struct Shard(Mutex<Slab<Entry>>);

/// A body, and its state at the last check.
#[derive(Debug)]
struct Entry {
    body: BodyHandle,
    observation: Option<Observation>,
    aborted: Option<Instant>,
}

#[derive(Debug)]
struct Observation {
    progress: Progress,
    /// Time of the last progress.
    since: Instant,
    /// Start of the current rate measurement: time and bytes written.
    from: (Instant, u64),
    suspended: Option<Suspension>,
}

/// The action that a check decides on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    Continue,
    Suspend(Suspension),
    Abort(Abort),
    CloseConnection,
}

impl StallMonitor {
    pub(super) fn new(settings: Settings) -> StallMonitor {
        let shard = Arc::new(Shard::default());
        StallMonitor { settings, shards: Arc::new(Mutex::new(vec![shard.clone()])), shard }
    }

    /// Returns a monitor with its own list, so that workers do not contend for one lock.
    pub(super) fn for_worker(&self) -> StallMonitor {
        let shard = Arc::new(Shard::default());
        lock(&self.shards).push(shard.clone());
        StallMonitor { shard, ..self.clone() }
    }

    /// Returns the monitor for bodies with other settings. Those that run keep theirs.
    pub(super) fn with_settings(&self, settings: Settings) -> StallMonitor {
        StallMonitor { settings, ..self.clone() }
    }

    /// Returns the settings of the bodies that it registers.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Registers a body. Returns the key for [`StallMonitor::remove`].
    pub(super) fn add(&self, body: BodyHandle) -> usize {
        self.shard.lock().insert(Entry { body, observation: None, aborted: None })
    }

    pub(super) fn remove(&self, number: usize) {
        // The binding keeps the entry alive until the lock is released.
        let _watched = self.shard.lock().try_remove(number);
    }

    /// Checks all bodies until the last worker ends. `interval` returns the time to the next check,
    /// and `is_congested` whether requests wait for connections to an origin.
    pub(super) async fn run(
        self,
        interval: impl Fn() -> Duration,
        is_congested: impl Fn() -> bool,
    ) {
        let shards = Arc::downgrade(&self.shards);
        drop(self);
        loop {
            tokio::time::sleep(interval()).await;
            let Some(shards) = shards.upgrade() else { return };
            let shards = lock(&shards).clone();
            let is_congested = is_congested();
            shards.iter().for_each(|shard| shard.check(is_congested, Instant::now()));
        }
    }
}

/// Returns the time between two checks with these settings.
pub(super) fn interval(settings: &Settings) -> Duration {
    let Settings { idle, min_rate, min_rate_grace, .. } = *settings;
    let shortest = if min_rate > 0 { idle.min(min_rate_grace) } else { idle };
    (shortest / 4).clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL)
}

impl Shard {
    fn check(&self, is_congested: bool, now: Instant) {
        let mut verdicts = Vec::new();
        for (_, entry) in self.lock().iter_mut() {
            if let Some(body) = entry.body.upgrade() {
                verdicts.push((entry.judge(&body, is_congested, now), body));
            }
        }
        // Outside the lock: this may drop the last handle of a body, and a body that ends takes it.
        for (verdict, body) in verdicts {
            match verdict {
                Verdict::Continue => {}
                Verdict::Suspend(suspension) => body.suspend(suspension),
                Verdict::Abort(why) => body.abort(why),
                Verdict::CloseConnection => body.connection().abort(),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Entry>> {
        lock(&self.0)
    }
}

impl Entry {
    fn judge(&mut self, body: &Outgoing, is_congested: bool, now: Instant) -> Verdict {
        let settings = body.settings();
        if let Some(at) = self.aborted {
            return if now.duration_since(at) >= ABORT_TIMEOUT {
                Verdict::CloseConnection
            } else {
                Verdict::Continue
            };
        }
        let progress = body.progress();
        let observation = self.observation.get_or_insert_with(|| Observation::first(progress, now));
        let verdict = match body.abort_reason() {
            Some(why) => Verdict::Abort(why),
            None if body.is_loan_over() => Verdict::Abort(Abort::LoanEnded),
            // HTTP/1.1 does not poll a body while its buffer is full. So this body cannot release
            // the origin connection that other requests wait for.
            None if is_congested
                && observation.suspended == Some(Suspension::Last)
                && body.is_suspend_pending() =>
            {
                Verdict::Abort(Abort::TooSlow)
            }
            None => observation.judge(progress, settings, is_congested, now),
        };
        if matches!(verdict, Verdict::Abort(_)) {
            self.aborted = Some(now);
        }
        verdict
    }
}

impl Observation {
    fn first(progress: Progress, now: Instant) -> Observation {
        Observation { progress, since: now, from: (now, progress.written), suspended: None }
    }

    fn judge(
        &mut self,
        progress: Progress,
        settings: &Settings,
        is_congested: bool,
        now: Instant,
    ) -> Verdict {
        if progress.waits {
            *self = Observation::first(progress, now);
            return Verdict::Continue;
        }
        let before = std::mem::replace(&mut self.progress, progress);
        if (before.written, before.sent) != (progress.written, progress.sent) {
            (self.since, self.suspended) = (now, None);
        }
        let stalled = now.duration_since(self.since);
        if stalled >= settings.idle || self.is_below_rate(settings, now) {
            return Verdict::Abort(Abort::TooSlow);
        }
        // A body is suspended well before it is aborted, so that it uses few resources until then.
        let last = settings.suspend_after.min(settings.idle / 2);
        let suspension = match stalled {
            stalled if stalled >= last => Suspension::Last,
            stalled if is_congested && stalled >= EARLY_SUSPEND_AFTER.min(last) => {
                Suspension::Early
            }
            _ => return Verdict::Continue,
        };
        if self.suspended.replace(suspension) == Some(suspension) {
            return Verdict::Continue;
        }
        Verdict::Suspend(suspension)
    }

    fn is_below_rate(&mut self, settings: &Settings, now: Instant) -> bool {
        let (began, before) = self.from;
        let lasted = now.duration_since(began);
        if settings.min_rate == 0 || lasted < settings.min_rate_grace {
            return false;
        }
        self.from = (now, self.progress.written);
        ((self.progress.written - before) as f64) < settings.min_rate as f64 * lasted.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn settings() -> Settings {
        let (idle, min_rate_grace) = (10 * SECOND, 4 * SECOND);
        Settings { idle, min_rate: 1000, min_rate_grace, ..Settings::default() }
    }

    /// Returns the second at which a body with this progress (bytes written, waits) is aborted.
    fn aborted_at(settings: Settings, seconds: &[(u64, bool)]) -> Option<usize> {
        let began = Instant::now();
        let mut observation = None;
        seconds.iter().enumerate().find_map(|(second, (written, waits))| {
            let now = began + SECOND * second as u32;
            let progress = Progress { written: *written, sent: 0, waits: *waits };
            let observation = observation.get_or_insert_with(|| Observation::first(progress, now));
            let verdict = observation.judge(progress, &settings, false, now);
            (verdict == Verdict::Abort(Abort::TooSlow)).then_some(second)
        })
    }

    #[test]
    fn idle_and_slow_readers_are_aborted() {
        let idle = Settings { min_rate: 0, ..settings() };
        assert_eq!(aborted_at(idle, &[(5, false); 20]), Some(10));
        assert_eq!(aborted_at(idle, &[(5, true); 20]), None, "the origin keeps the reader waiting");
        let mut late = [(5, true); 20];
        late[8..].fill((5, false));
        assert_eq!(aborted_at(idle, &late), Some(17), "counted from when data was available");
        let taking: Vec<_> = (0..40).map(|second| (second, false)).collect();
        assert_eq!(aborted_at(idle, &taking), None, "any progress counts without a minimum rate");

        assert_eq!(aborted_at(settings(), &taking), Some(4), "after the grace");
        let well: Vec<_> = (0..40).map(|second| (second * 1100, false)).collect();
        assert_eq!(aborted_at(settings(), &well), None);
        let slower: Vec<_> = (0..40).map(|second| (9900.min(second * 1100), false)).collect();
        assert_eq!(aborted_at(settings(), &slower), Some(12), "early speed is no credit");
    }

    #[test]
    fn stalled_body_is_suspended_once() {
        let settings =
            Settings { idle: 30 * SECOND, min_rate: 0, suspend_after: 3 * SECOND, ..settings() };
        let began = Instant::now();
        let progress = Progress { written: 5, sent: 0, waits: false };
        let mut observation = Observation::first(progress, began);
        let at = |observation: &mut Observation, written, second| {
            observation.judge(
                Progress { written, ..progress },
                &settings,
                false,
                began + SECOND * second,
            )
        };
        assert_eq!(at(&mut observation, 5, 2), Verdict::Continue);
        assert_eq!(at(&mut observation, 5, 3), Verdict::Suspend(Suspension::Last));
        assert_eq!(at(&mut observation, 5, 9), Verdict::Continue);
        assert_eq!(at(&mut observation, 6, 10), Verdict::Continue);
        assert_eq!(
            at(&mut observation, 6, 13),
            Verdict::Suspend(Suspension::Last),
            "again after progress"
        );
    }

    #[test]
    fn stalled_body_is_suspended_early_where_requests_wait() {
        let settings =
            Settings { idle: 600 * SECOND, min_rate: 0, suspend_after: 60 * SECOND, ..settings() };
        let began = Instant::now();
        let progress = Progress { written: 5, sent: 0, waits: false };
        let mut observation = Observation::first(progress, began);
        let mut at = |is_congested, second| {
            observation.judge(progress, &settings, is_congested, began + SECOND * second)
        };
        assert_eq!(at(true, 1), Verdict::Continue);
        assert_eq!(at(false, 3), Verdict::Continue);
        assert_eq!(at(true, 4), Verdict::Suspend(Suspension::Early));
        assert_eq!(at(true, 5), Verdict::Continue, "once");
        assert_eq!(at(true, 60), Verdict::Suspend(Suspension::Last));
    }

    #[test]
    fn bytes_that_wait_in_the_connection_progress_with_it() {
        let settings = Settings { min_rate: 0, ..settings() };
        let slow = Verdict::Abort(Abort::TooSlow);
        let began = Instant::now();
        let at = |sent| Progress { written: 5, sent, waits: false };
        let mut observation = Observation::first(at(100), began);
        assert_ne!(observation.judge(at(101), &settings, false, began + 9 * SECOND), slow);
        assert_ne!(observation.judge(at(101), &settings, false, began + 18 * SECOND), slow);
        assert_eq!(observation.judge(at(101), &settings, false, began + 19 * SECOND), slow);
    }
}
