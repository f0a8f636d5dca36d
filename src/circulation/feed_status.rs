//! How fresh the gate's knowledge of ends by other processes is.
//!
//! The task that follows the change feed records its reads. The gate's caches and the running
//! bodies compare them with the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock;

/// How long after the time for the task's check a body stops itself: the task may be in a read and
/// a check, and wait between them. Shorter than the margin of other processes for this one.
pub(super) const STREAM_GRACE: Duration = Duration::from_secs(6);
/// Value while no feed is followed: cached data never becomes stale, and no stream unconfirmed.
const NOT_FOLLOWED: i64 = i64::MAX;

/// When the change feed was last read to its end.
#[derive(Clone, Debug)]
pub struct FeedStatus(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// By [`Clock::age_millis`](crate::clock::Clock::age_millis).
    last_read: AtomicI64,
    /// How long data may be used after its own read while the feed fails, in milliseconds. The
    /// maximum is `gate.freshness`.
    validity: AtomicU64,
    /// Until when bodies may send, by [`clock::millis_since_boot`].
    streams_until: AtomicI64,
    /// How long a body may send after the ledger confirmed its loan, in milliseconds.
    stream_validity: AtomicI64,
}

impl Default for FeedStatus {
    /// No feed is followed.
    fn default() -> FeedStatus {
        let validity = AtomicU64::new(u64::MAX);
        FeedStatus(Arc::new(Inner {
            last_read: AtomicI64::new(NOT_FOLLOWED),
            validity,
            streams_until: AtomicI64::new(NOT_FOLLOWED),
            stream_validity: AtomicI64::new(0),
        }))
    }
}

impl FeedStatus {
    /// Returns whether data read from the ledger at `at` may be older than `freshness` allows: the
    /// feed was not read since, either. Both times are by
    /// [`Clock::age_millis`](crate::clock::Clock::age_millis).
    pub fn is_stale(&self, at: i64, now: i64, freshness: Duration) -> bool {
        let last_read = self.0.last_read.load(Ordering::Acquire);
        let freshness = u64::try_from(freshness.as_millis()).unwrap_or(u64::MAX);
        last_read != NOT_FOLLOWED
            && now.abs_diff(last_read) > freshness
            && now.abs_diff(at) > freshness.min(self.0.validity.load(Ordering::Relaxed))
    }

    /// Returns whether a body must not send: neither the feed nor the ledger has confirmed its loan
    /// in time. `confirmed` is when the loan was last read from the ledger, by
    /// [`clock::millis_since_boot`].
    pub fn must_stop_stream(&self, confirmed: i64) -> bool {
        let until = self.0.streams_until.load(Ordering::Relaxed);
        if until == NOT_FOLLOWED {
            return false;
        }
        let own = confirmed.saturating_add(self.0.stream_validity.load(Ordering::Relaxed));
        clock::millis_since_boot() > until.max(own)
    }

    pub(super) fn record(&self, at: i64) {
        self.0.last_read.store(at, Ordering::Release);
    }

    /// Records the start of the feed, unless one was followed before. Returns whether it was not.
    pub(super) fn record_first(&self, at: i64) -> bool {
        let (success, failure) = (Ordering::Release, Ordering::Relaxed);
        self.0.last_read.compare_exchange(NOT_FOLLOWED, at, success, failure).is_ok()
    }

    /// Lets bodies send until this time since the machine started, or for `own` after their own
    /// confirmation.
    pub(super) fn confirm_streams(&self, until: Duration, own: Duration) {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX - 1);
        self.0.stream_validity.store(millis(own + STREAM_GRACE), Ordering::Relaxed);
        self.0.streams_until.store(millis(until + STREAM_GRACE), Ordering::Relaxed);
    }

    /// Makes all cached data stale and stops all bodies, for good: the caller records nothing more.
    pub(super) fn withdraw(&self) {
        self.0.validity.store(0, Ordering::Relaxed);
        self.0.last_read.store(i64::MIN, Ordering::Release);
        self.0.stream_validity.store(i64::MIN, Ordering::Relaxed);
        self.0.streams_until.store(i64::MIN, Ordering::Relaxed);
    }

    /// Limits how long data may be used after its own read while the feed fails.
    pub(super) fn limit_validity(&self, validity: Duration) {
        let millis = u64::try_from(validity.as_millis()).unwrap_or(u64::MAX);
        self.0.validity.store(millis, Ordering::Relaxed);
    }

    /// Records a read of the feed, for tests of modules that depend on its age.
    #[cfg(test)]
    pub(crate) fn record_read(&self, at: i64) {
        self.record(at);
    }

    /// Sets until when bodies may send, for tests of modules that stop them.
    #[cfg(test)]
    pub(crate) fn confirm_streams_until(&self, until: i64, own: i64) {
        self.0.streams_until.store(until, Ordering::Relaxed);
        self.0.stream_validity.store(own, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_without_a_recent_read_or_feed_is_stale() {
        const FRESHNESS: Duration = Duration::from_secs(30);
        let at = |seconds: i64| (1_000 + seconds) * 1_000;
        let feed_status = FeedStatus::default();
        assert!(!feed_status.is_stale(0, at(0), FRESHNESS), "no feed is followed");
        assert!(feed_status.record_first(at(0)));
        assert!(!feed_status.record_first(at(900)), "a second start reads nothing");
        for (read, now, stale) in [
            (-900, 0, false),
            (-900, 30, false),
            (-900, 31, true),
            (10, 31, false),
            (10, 40, false),
            (10, 41, true),
            (10, -100, true),
        ] {
            let result = feed_status.is_stale(at(read), at(now), FRESHNESS);
            assert_eq!(result, stale, "read at {read}, now {now}");
        }
        assert!(feed_status.is_stale(0, at(60), FRESHNESS));
    }

    #[test]
    fn stream_runs_while_the_feed_or_the_ledger_confirms_it() {
        const FRESHNESS: Duration = Duration::from_secs(30);
        let (now, grace) = (clock::since_boot(), STREAM_GRACE + Duration::from_secs(1));
        let ago = |age: Duration| now.checked_sub(age).expect("the machine runs long enough");
        let ancient = i64::MIN;
        let feed_status = FeedStatus::default();
        assert!(!feed_status.must_stop_stream(ancient), "no feed is followed");
        let confirm = |age, valid| {
            feed_status.confirm_streams(ago(age) + valid, Duration::from_secs(5));
        };
        confirm(FRESHNESS, FRESHNESS);
        assert!(!feed_status.must_stop_stream(ancient), "the task has time to check");
        confirm(FRESHNESS + grace, FRESHNESS);
        assert!(feed_status.must_stop_stream(ancient));
        let read = |age: Duration| i64::try_from(ago(age).as_millis()).unwrap();
        assert!(!feed_status.must_stop_stream(read(Duration::from_secs(5))), "its own read");
        assert!(feed_status.must_stop_stream(read(Duration::from_secs(5) + grace)));
        confirm(Duration::from_secs(5) + grace, Duration::from_secs(5));
        assert!(feed_status.must_stop_stream(ancient), "a read of the ledger is valid shorter");
    }

    #[test]
    fn nothing_is_fresh_after_a_withdrawal() {
        let feed_status = FeedStatus::default();
        feed_status.record(1_000);
        feed_status.confirm_streams(Duration::from_secs(1 << 40), Duration::from_secs(5));
        assert!(!feed_status.is_stale(999, 1_000, Duration::MAX));
        assert!(!feed_status.must_stop_stream(i64::MAX));
        feed_status.withdraw();
        assert!(feed_status.is_stale(999, 1_000, Duration::from_secs(30)));
        assert!(feed_status.must_stop_stream(clock::millis_since_boot()));
        assert!(!feed_status.record_first(1_000), "a restarted task makes nothing fresh");
    }

    #[test]
    fn data_is_stale_earlier_if_others_wait_for_acknowledgements() {
        const FRESHNESS: Duration = Duration::from_secs(30);
        let at = |seconds: i64| (1_000 + seconds) * 1_000;
        let feed_status = FeedStatus::default();
        feed_status.record(at(0));
        feed_status.limit_validity(Duration::from_secs(5));
        for (read, now, stale) in
            [(-900, 30, false), (20, 31, true), (26, 31, false), (40, 45, false), (40, 46, true)]
        {
            let result = feed_status.is_stale(at(read), at(now), FRESHNESS);
            assert_eq!(result, stale, "read at {read}, now {now}");
        }
    }
}
