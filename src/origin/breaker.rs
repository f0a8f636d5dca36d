//! The circuit breaker of one address of an origin, shared by all workers.
//!
//! It opens when most recent requests failed, and one or two files are not the cause. While it is
//! open, it admits only one trial request after each cooldown. `Origin` queries it before each
//! request and records each outcome. A success costs one atomic update.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Length of a counting window.
const WINDOW: Duration = Duration::from_secs(10);
/// The least number of failures in a window that opens the breaker.
const MIN_FAILURES: u64 = 10;
/// The least number of different files among them, unless the address could not be reached at all.
const MIN_FILES: u32 = 3;
/// After this many failures in a row, a repetition is not worth sending.
const FAILURES_IN_A_ROW: u32 = 5;
/// The first cooldown, and the longest that it doubles up to.
const COOLDOWN: Duration = Duration::from_secs(1);
const MAX_COOLDOWN: Duration = Duration::from_secs(10);
/// How long an address that failed is used after the origin's other addresses only.
const AVOIDANCE: Duration = Duration::from_secs(10);

/// Bits of each counter in a packed window, and its largest value.
const BITS: u32 = 20;
const MAX_COUNT: u64 = (1 << BITS) - 1;

/// What a failure indicates about the address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Evidence {
    /// The address cannot be reached, whatever the file.
    Address,
    /// One file failed; the value is a hash of its path.
    File(u64),
}

#[derive(Debug)]
pub(super) struct Breaker {
    epoch: Instant,
    /// Window number, requests and failures, packed.
    window: AtomicU64,
    /// One bit per hash of a file that failed in this window.
    failed_files: AtomicU64,
    failures_in_a_row: AtomicU32,
    /// Milliseconds since the epoch of the next trial; 0 while closed.
    open_until: AtomicU64,
    /// Trials since it opened.
    trials: AtomicU32,
    /// Milliseconds since the epoch until which other addresses are preferred; 0 while none is.
    avoid_until: AtomicU64,
}

/// Counts of one window.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Counts {
    window: u64,
    requests: u64,
    failures: u64,
}

impl Counts {
    fn unpack(packed: u64) -> Counts {
        Counts {
            window: packed >> (2 * BITS),
            requests: (packed >> BITS) & MAX_COUNT,
            failures: packed & MAX_COUNT,
        }
    }

    fn pack(self) -> u64 {
        self.window << (2 * BITS)
            | self.requests.min(MAX_COUNT) << BITS
            | self.failures.min(MAX_COUNT)
    }

    fn add(self, window: u64, failures: u64) -> Counts {
        let counts =
            if self.window == window { self } else { Counts { window, ..Counts::default() } };
        Counts { requests: counts.requests + 1, failures: counts.failures + failures, ..counts }
    }
}

impl Breaker {
    pub(super) fn new() -> Breaker {
        Breaker {
            epoch: Instant::now(),
            window: AtomicU64::new(0),
            failed_files: AtomicU64::new(0),
            failures_in_a_row: AtomicU32::new(0),
            open_until: AtomicU64::new(0),
            trials: AtomicU32::new(0),
            avoid_until: AtomicU64::new(0),
        }
    }

    /// Returns whether every request may be sent.
    pub(super) fn is_closed(&self) -> bool {
        self.open_until.load(Ordering::Relaxed) == 0
    }

    /// Admits a request. While the breaker is open, it admits one caller per cooldown.
    ///
    /// # Errors
    /// Returns the time until the next trial.
    pub(super) fn admit(&self, now: Instant) -> Result<(), Duration> {
        let until = self.open_until.load(Ordering::Relaxed);
        if until == 0 {
            return Ok(());
        }
        let now = self.millis(now);
        if now < until {
            return Err(Duration::from_millis(until - now));
        }
        // The trial may never end: the next one is due after another cooldown, which is longer.
        let cooldown = self.cooldown(1);
        let next = now + millis(cooldown);
        match self.open_until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => {
                self.trials.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(_) => Err(cooldown),
        }
    }

    /// Returns whether to try this address before those that failed recently. When an avoidance
    /// ends, only one caller tries the address first.
    pub(super) fn is_preferred(&self, now: Instant) -> bool {
        let until = self.avoid_until.load(Ordering::Relaxed);
        let now = self.millis(now);
        let extend = || {
            let next = now + millis(AVOIDANCE);
            self.avoid_until
                .compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        };
        until == 0 || (until <= now && extend())
    }

    /// Uses the other addresses first for a while.
    pub(super) fn avoid(&self, now: Instant) {
        self.avoid_until.store(self.millis(now) + millis(AVOIDANCE), Ordering::Relaxed);
    }

    /// Returns whether the last requests all failed, so that a repetition would likely fail too.
    pub(super) fn is_failing(&self) -> bool {
        self.failures_in_a_row.load(Ordering::Relaxed) >= FAILURES_IN_A_ROW
    }

    /// Records a response that is no fault of the address. Returns whether this closed the breaker.
    pub(super) fn record_success(&self, now: Instant) -> bool {
        self.count(now, 0);
        for zeroed in [&self.failures_in_a_row, &self.trials] {
            // Mostly they are 0 already, and a store would take the cache line from the other
            // workers.
            if zeroed.load(Ordering::Relaxed) != 0 {
                zeroed.store(0, Ordering::Relaxed);
            }
        }
        if self.avoid_until.load(Ordering::Relaxed) != 0 {
            self.avoid_until.store(0, Ordering::Relaxed);
        }
        let was_open = self.open_until.load(Ordering::Relaxed) != 0
            && self.open_until.swap(0, Ordering::Relaxed) != 0;
        if was_open {
            self.window.store(0, Ordering::Relaxed);
            self.failed_files.store(0, Ordering::Relaxed);
        }
        was_open
    }

    /// Records a failed request, or a body that broke before it was of any use. Returns whether
    /// this opened the breaker.
    pub(super) fn record_failure(&self, now: Instant, evidence: Evidence) -> bool {
        self.failures_in_a_row.fetch_add(1, Ordering::Relaxed);
        let counts = self.count(now, 1);
        let file = match evidence {
            Evidence::Address => u64::MAX,
            Evidence::File(hash) => 1 << (hash % 64),
        };
        let files = match counts.failures {
            // The first failure of a window discards the files of earlier windows.
            1 => {
                self.failed_files.store(file, Ordering::Relaxed);
                file
            }
            _ => self.failed_files.fetch_or(file, Ordering::Relaxed) | file,
        };
        let is_open = self.open_until.load(Ordering::Relaxed) != 0;
        let is_bad = counts.failures >= MIN_FAILURES
            && counts.failures * 2 >= counts.requests
            && files.count_ones() >= MIN_FILES;
        // While it is open, requests that were sent before still fail.
        if is_open || !is_bad {
            return false;
        }
        self.open_until.store(self.millis(now) + millis(self.cooldown(0)), Ordering::Relaxed);
        true
    }

    /// Returns the cooldown after `more` further trials.
    fn cooldown(&self, more: u32) -> Duration {
        let trials = self.trials.load(Ordering::Relaxed).saturating_add(more);
        COOLDOWN.saturating_mul(1 << trials.min(10)).min(MAX_COOLDOWN)
    }

    fn count(&self, now: Instant, failures: u64) -> Counts {
        let window = self.millis(now) / millis(WINDOW) + 1;
        let mut packed = self.window.load(Ordering::Relaxed);
        loop {
            let counts = Counts::unpack(packed).add(window, failures);
            let swapped = self.window.compare_exchange_weak(
                packed,
                counts.pack(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match swapped {
                Ok(_) => return counts,
                Err(other) => packed = other,
            }
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.epoch))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(breaker: &Breaker, now: Instant, count: u64, files: u64) -> bool {
        (0..count).any(|number| breaker.record_failure(now, Evidence::File(number % files)))
    }

    #[test]
    fn breaker_opens_when_most_requests_fail() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        for _ in 0..9 {
            breaker.record_success(now);
        }
        assert!(fail(&breaker, now, 10, 5));
        let wait = breaker.admit(now).unwrap_err();
        assert!(wait <= COOLDOWN, "{wait:?}");
    }

    #[test]
    fn breaker_stays_closed_while_most_requests_succeed() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        for number in 0..1000 {
            breaker.record_success(now);
            breaker.record_success(now);
            assert!(!breaker.record_failure(now, Evidence::File(number)));
        }
        assert_eq!(breaker.admit(now), Ok(()));
    }

    #[test]
    fn one_bad_file_never_opens_the_breaker() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        assert!(!fail(&breaker, now, 1000, 1));
        assert_eq!(breaker.admit(now), Ok(()));
        assert!(breaker.is_failing(), "but its requests are not repeated");
    }

    #[test]
    fn unreachable_address_opens_the_breaker_for_one_file() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        assert!((0..10).any(|_| breaker.record_failure(now, Evidence::Address)));
        assert!(breaker.admit(now).is_err());
    }

    #[test]
    fn open_breaker_admits_one_trial_per_cooldown() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        assert!(fail(&breaker, now, 10, 5));
        let mut at = now;
        let mut trials = 0;
        // 100 callers every 100 ms for a minute, all failing.
        for _ in 0..600 {
            at += Duration::from_millis(100);
            for number in 0..100 {
                if breaker.admit(at).is_ok() {
                    trials += 1;
                    breaker.record_failure(at, Evidence::File(number));
                }
            }
        }
        assert!((6..=12).contains(&trials), "{trials} trials");
        at += MAX_COOLDOWN;
        assert_eq!(breaker.admit(at), Ok(()));
        assert!(breaker.record_success(at), "a trial that succeeds closes it");
        assert_eq!(breaker.admit(at), Ok(()));
        assert_eq!(breaker.admit(at), Ok(()));
    }

    #[test]
    fn late_failures_do_not_lengthen_the_cooldown() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        assert!(fail(&breaker, now, 10, 5));
        assert!(!fail(&breaker, now, 100, 5), "requests that were sent before it opened");
        assert!(breaker.admit(now).unwrap_err() <= COOLDOWN);
        assert_eq!(breaker.admit(now + COOLDOWN), Ok(()));
    }

    #[test]
    fn old_failures_do_not_count() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        assert!(!fail(&breaker, now, 9, 5));
        assert!(!fail(&breaker, now + WINDOW, 9, 5));
    }
}
