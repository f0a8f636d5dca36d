//! The clock: the system's, or one that a test can set.
//!
//! Code that compares times (a due time, the expiry of a token, a retry) reads a [`Clock`] and
//! never the system clock, so that tests need not wait. Bokbasen sets due times by its own clock,
//! so [`Clock`] also stores the offset between the two clocks. It depends on no other module.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Reads the time in UTC. Cheap to clone; clones of a movable clock move together, and all clones
/// share one offset to Bokbasen's clock.
///
/// ```
/// use std::time::Duration;
///
/// use jiff::{SignedDuration, Timestamp};
/// use loangate::clock::{self, Clock};
///
/// let start: Timestamp = "2026-01-15T12:00:00Z".parse()?;
/// let clock = Clock::movable(start);
/// let due = clock::after(clock.now(), Duration::from_secs(60));
///
/// // Due times are compared with Bokbasen's clock, which is 40 seconds ahead here.
/// clock.set_lending_offset(SignedDuration::from_secs(40));
/// assert_eq!(clock::until(clock.lending_now(), due), Duration::from_secs(20));
///
/// clock.advance(Duration::from_secs(20));
/// assert_eq!(clock::until(clock.lending_now(), due), Duration::ZERO);
/// assert_eq!(clock::until(clock.now(), due), Duration::from_secs(40));
/// # Ok::<(), jiff::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// The time of a movable clock, in milliseconds since the epoch.
    movable: Option<Arc<AtomicI64>>,
    /// Milliseconds by which Bokbasen's clock is ahead of ours; negative if it is behind.
    lending_offset: Arc<AtomicI64>,
}

impl Clock {
    /// Creates a clock that reads the system time.
    pub fn system() -> Clock {
        Clock::default()
    }

    /// Creates a clock that shows `start`, in milliseconds, until a test moves it.
    pub fn movable(start: Timestamp) -> Clock {
        Clock {
            movable: Some(Arc::new(AtomicI64::new(start.as_millisecond()))),
            ..Clock::default()
        }
    }

    /// Returns this clock with an offset of its own, for calls to another host of Bokbasen.
    pub fn with_own_offset(&self) -> Clock {
        Clock { lending_offset: Arc::default(), ..self.clone() }
    }

    /// Returns the current time by our own clock.
    #[allow(clippy::disallowed_methods)] // the one place that reads the system's clock
    pub fn now(&self) -> Timestamp {
        match &self.movable {
            Some(millis) => Timestamp::from_millisecond(millis.load(Ordering::SeqCst))
                .unwrap_or(Timestamp::UNIX_EPOCH),
            None => Timestamp::now(),
        }
    }

    /// Returns milliseconds that only differences of are meaningful, for the age of data: the time
    /// since this machine started, which nobody can set, or that of a movable clock.
    pub fn age_millis(&self) -> i64 {
        match &self.movable {
            Some(millis) => millis.load(Ordering::SeqCst),
            None => millis_since_boot(),
        }
    }

    /// Returns the time of this machine's clock, also from a movable clock. Only a comparison with
    /// the clock of another machine needs it.
    #[allow(clippy::disallowed_methods)] // as above
    pub fn machine_now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// Returns the current time by Bokbasen's clock, for comparison with due times. It costs one
    /// atomic load more than [`Clock::now`].
    pub fn lending_now(&self) -> Timestamp {
        self.now().checked_add(self.lending_offset()).unwrap_or_else(|_| self.now())
    }

    /// Returns [`Clock::lending_now`] in whole milliseconds since the epoch, at a fraction of its
    /// cost: a body compares it with its due time for each chunk.
    pub fn lending_millis(&self) -> i64 {
        let now = match &self.movable {
            Some(millis) => millis.load(Ordering::SeqCst),
            None => millis_of(rustix::time::ClockId::Realtime),
        };
        now.saturating_add(self.lending_offset.load(Ordering::Relaxed))
    }

    /// Returns how far Bokbasen's clock is ahead of ours, as last measured, or zero before the
    /// first measurement.
    pub fn lending_offset(&self) -> SignedDuration {
        SignedDuration::from_millis(self.lending_offset.load(Ordering::Relaxed))
    }

    /// Sets how far Bokbasen's clock is ahead of ours. The client of Bokbasen calls this, and
    /// bounds the value first.
    pub fn set_lending_offset(&self, ahead: SignedDuration) {
        let millis = i64::try_from(ahead.as_millis()).unwrap_or(0);
        self.lending_offset.store(millis, Ordering::Relaxed);
    }

    /// Moves a movable clock forward. Has no effect on the system clock.
    pub fn advance(&self, by: Duration) {
        if let Some(millis) = &self.movable {
            let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
            millis.fetch_add(by, Ordering::SeqCst);
        }
    }

    /// Sets a movable clock, possibly backwards. Has no effect on the system clock.
    pub fn set(&self, to: Timestamp) {
        if let Some(millis) = &self.movable {
            millis.store(to.as_millisecond(), Ordering::SeqCst);
        }
    }
}

/// Returns the time since this machine started (`CLOCK_BOOTTIME`). Nobody can set that clock, and
/// it also runs while the machine is suspended, so it tells whether a lease is still valid.
pub fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(time).unwrap_or_default()
}

/// Returns [`since_boot`] in milliseconds.
pub fn millis_since_boot() -> i64 {
    millis_of(rustix::time::ClockId::Boottime)
}

fn millis_of(clock: rustix::time::ClockId) -> i64 {
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec.saturating_mul(1_000).saturating_add(time.tv_nsec / 1_000_000)
}

/// Returns `at + by`, or [`Timestamp::MAX`] on overflow.
pub fn after(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// Returns `at - by`, or [`Timestamp::MIN`] on overflow.
pub fn before(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_sub(by).unwrap_or(Timestamp::MIN)
}

/// Returns the time from `now` until `at`, or zero if `at` has passed.
pub fn until(now: Timestamp, at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_of_a_movable_clock_move_together() {
        let clock = Clock::movable(Timestamp::UNIX_EPOCH);
        let other = clock.clone();
        clock.advance(Duration::from_secs(90));
        assert_eq!(other.now().as_second(), 90);
        other.set(Timestamp::UNIX_EPOCH);
        assert_eq!(clock.now(), Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn clones_share_the_offset_to_bokbasens_clock() {
        let clock = Clock::movable(Timestamp::UNIX_EPOCH);
        let other = clock.clone();
        assert_eq!(clock.lending_now(), clock.now());
        other.set_lending_offset(SignedDuration::from_secs(90));
        assert_eq!(clock.lending_now().as_second(), 90);
        other.set_lending_offset(SignedDuration::from_millis(-1500));
        assert_eq!(clock.lending_now().as_millisecond(), -1500);
        assert_eq!(clock.lending_millis(), -1500);
        assert_eq!(clock.now(), Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn milliseconds_are_those_of_the_time() {
        let clock = Clock::system();
        clock.set_lending_offset(SignedDuration::from_secs(90));
        let before = clock.lending_now().as_millisecond();
        let millis = clock.lending_millis();
        assert!((before..=clock.lending_now().as_millisecond()).contains(&millis));
    }

    #[test]
    fn duration_until_a_past_time_is_zero() {
        let now = Timestamp::from_second(100).unwrap();
        let past = Timestamp::from_second(40).unwrap();
        assert_eq!(until(now, past), Duration::ZERO);
        assert_eq!(until(past, now), Duration::from_secs(60));
        assert_eq!(after(past, Duration::from_secs(60)), now);
    }
}
