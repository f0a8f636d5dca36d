//! Follows the ledger's change feed, so that a loan that another process ends opens nothing here.
//!
//! A background task reads the feed several times a second and announces each end to the gate.
//! [`FeedStatus`] holds the time of the last successful read. While the feed cannot be read, the
//! gate trusts no acceptance that was read longer than `gate.freshness` ago. A running stream then
//! continues only if the ledger confirms its loan within that time. If the store lets processes
//! acknowledge their reads, an unacknowledged read counts as failed. Both times are then shorter
//! than `gate.freshness`, since other processes may have sent ends to Bokbasen.
//!
//! The task aborts streams that nothing confirms. A process that was suspended can send before this
//! task runs again, so each body compares the time itself, a few seconds later than the task.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::{Circulation, Closed};
use crate::clock;
use crate::ledger::{Feed, LedgerError};
use crate::loan::{LoanId, LoanState};

/// Timeout of one read. A query that hangs fails before, so that the feed notices.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
const _: () = assert!(Feed::QUERY_DEADLINE.as_millis() < READ_TIMEOUT.as_millis());
/// While the feed fails: interval of log lines, and of checks of running streams.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
const STREAM_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long after the time for the task's check a body stops itself: the task may be in a read and
/// a check, and wait between them. Shorter than the margin of other processes for this one.
const STREAM_GRACE: Duration = Duration::from_secs(6);
const _: () = assert!(
    2 * READ_TIMEOUT.as_millis() + STREAM_CHECK_INTERVAL.as_millis() < STREAM_GRACE.as_millis()
);
/// `gate.freshness` if no gate has registered its streams.
const DEFAULT_FRESHNESS: Duration = Duration::from_secs(60);
/// Maximum number of loans in one query.
const BATCH: usize = 500;
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

    fn record(&self, at: i64) {
        self.0.last_read.store(at, Ordering::Release);
    }

    /// Records the start of the feed, unless one was followed before. Returns whether it was not.
    fn record_first(&self, at: i64) -> bool {
        let (success, failure) = (Ordering::Release, Ordering::Relaxed);
        self.0.last_read.compare_exchange(NOT_FOLLOWED, at, success, failure).is_ok()
    }

    /// Lets bodies send as long as this is valid, or for `own` after their own confirmation.
    fn confirm_streams(&self, valid: Validity, own: Duration, freshness: Duration) {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX - 1);
        let until = valid.since + valid.length(freshness) + STREAM_GRACE;
        self.0.stream_validity.store(millis(own + STREAM_GRACE), Ordering::Relaxed);
        self.0.streams_until.store(millis(until), Ordering::Relaxed);
    }

    /// Limits how long data may be used after its own read while the feed fails.
    fn limit_validity(&self, validity: Duration) {
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

/// The gate's running streams, for the task that follows the feed.
pub trait RunningStreams: Send + Sync {
    /// Returns the loans of running bodies.
    fn running(&self) -> Vec<LoanId>;
    /// Aborts the streams of loans that were not confirmed in time.
    fn abort(&self, loans: &[LoanId]);
}

/// The streams that the gate registered, and how long they may run unconfirmed.
pub(super) struct MonitoredStreams {
    streams: Box<dyn RunningStreams>,
    freshness: Duration,
}

impl fmt::Debug for MonitoredStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MonitoredStreams")
            .field("freshness", &self.freshness)
            .finish_non_exhaustive()
    }
}

impl Circulation {
    /// Returns the shared time of the last read of the change feed.
    pub fn feed_status(&self) -> FeedStatus {
        self.inner.feed_status.clone()
    }

    /// Registers the streams that must not run longer than `freshness` while neither the feed nor
    /// the ledger confirms their loans. Only the first call has an effect.
    pub fn watch_streams(&self, freshness: Duration, streams: impl RunningStreams + 'static) {
        let _ = self
            .inner
            .monitored_streams
            .set(MonitoredStreams { streams: Box::new(streams), freshness });
    }

    /// Returns whether readers of loans that are cached are served: the change feed was read
    /// within `gate.freshness`.
    pub fn serves_cached_loans(&self) -> bool {
        let now = self.inner.clock.age_millis();
        !self.inner.feed_status.is_stale(i64::MIN, now, self.freshness())
    }

    /// Returns how long a process may deliver after its last read of the feed.
    pub(super) fn freshness(&self) -> Duration {
        let monitored = self.inner.monitored_streams.get();
        monitored.map_or(DEFAULT_FRESHNESS, |monitored| monitored.freshness)
    }

    /// Marks a loan as opened, durably, before its first byte is sent: from then on it is never
    /// cancelled. Returns false if it has ended.
    ///
    /// # Errors
    /// Returns the error of the ledger; the loan must then not be opened.
    pub async fn mark_opened(&self, loan: LoanId) -> Result<bool, LedgerError> {
        self.inner.ledger.mark_opened(loan).await
    }
}

/// Follows the feed until the process stops. The feed has no ends from before the ledger was
/// opened.
pub(super) async fn follow(circulation: Circulation) {
    let mut feed = circulation.inner.ledger.feed();
    let feed_status = &circulation.inner.feed_status;
    // A feed that fails from the start must not count as not followed. A task that starts again
    // after a panic has read nothing.
    let is_first = feed_status.record_first(circulation.inner.clock.age_millis());
    let validity = feed.validity_without_feed();
    if let Some(validity) = validity {
        feed_status.limit_validity(validity);
    }
    let mut state = FollowState {
        failing_since: None,
        logged: None,
        validity,
        valid: Validity { since: clock::since_boot(), limit: None },
        checked: None,
    };
    if is_first {
        state.confirmed(&circulation, state.valid);
    }
    let mut poll = tokio::time::interval(feed.interval());
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = poll.tick() => {}
            () = circulation.inner.stopping.cancelled() => return,
        }
        match tokio::time::timeout(READ_TIMEOUT, read(&circulation, &mut feed)).await {
            Ok(Ok(began)) => state.succeeded(&circulation, began),
            Ok(Err(error)) => state.failed(&circulation, &error.to_string()).await,
            Err(_) => state.failed(&circulation, "the ledger does not respond").await,
        }
    }
}

/// Reads the feed to its end, announces its ends of loans, and acknowledges the read. Returns when
/// the read began, in time since this machine started.
async fn read(circulation: &Circulation, feed: &mut Feed) -> Result<Duration, LedgerError> {
    loop {
        let read = feed.next().await?;
        for closed in read.loans {
            circulation.announce(Closed { loan: closed.loan, key: closed.key, at: closed.at });
        }
        if let Some(began) = read.completed {
            feed.acknowledge().await?;
            let age = clock::since_boot().saturating_sub(began);
            let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
            let now = circulation.inner.clock.age_millis();
            circulation.inner.feed_status.record(now.saturating_sub(age));
            return Ok(began);
        }
    }
}

/// State of the task that follows the feed.
struct FollowState {
    failing_since: Option<Instant>,
    logged: Option<Instant>,
    /// How long a confirmation by the ledger is valid; none if as long as one by the feed.
    validity: Option<Duration>,
    /// How long the loans of running streams are confirmed.
    valid: Validity,
    checked: Option<Instant>,
}

/// A time at which loans were confirmed, and how long that is valid.
#[derive(Clone, Copy, Debug)]
struct Validity {
    /// When the read that confirmed them began, in time since this machine started.
    since: Duration,
    /// None for `gate.freshness`.
    limit: Option<Duration>,
}

impl Validity {
    fn length(self, freshness: Duration) -> Duration {
        self.limit.map_or(freshness, |limit| limit.min(freshness))
    }

    fn is_over(self, freshness: Duration) -> bool {
        clock::since_boot().saturating_sub(self.since) >= self.length(freshness)
    }
}

impl FollowState {
    fn succeeded(&mut self, circulation: &Circulation, began: Duration) {
        self.confirmed(circulation, Validity { since: began, limit: None });
        if let Some(since) = self.failing_since.take() {
            tracing::info!(failed_for = ?since.elapsed(), "the ledger's change feed is read again");
            self.logged = None;
        }
    }

    fn confirmed(&mut self, circulation: &Circulation, valid: Validity) {
        self.valid = valid;
        let freshness = circulation.freshness();
        let own = Validity { limit: self.validity, ..valid }.length(freshness);
        circulation.inner.feed_status.confirm_streams(valid, own, freshness);
    }

    async fn failed(&mut self, circulation: &Circulation, why: &str) {
        self.failing_since.get_or_insert_with(Instant::now);
        if self.logged.is_none_or(|logged| logged.elapsed() > LOG_INTERVAL) {
            self.logged = Some(Instant::now());
            tracing::error!(
                why,
                "cannot read the ledger's change feed; ends by other processes are not seen"
            );
        }
        let Some(monitored) = circulation.inner.monitored_streams.get() else { return };
        if !self.valid.is_over(monitored.freshness)
            || self.checked.is_some_and(|checked| checked.elapsed() < STREAM_CHECK_INTERVAL)
        {
            return;
        }
        self.checked = Some(Instant::now());
        let running = monitored.streams.running();
        if running.is_empty() {
            return;
        }
        // Before the read: what it returns may be that old.
        let since = clock::since_boot();
        match tokio::time::timeout(READ_TIMEOUT, confirm(circulation, &running)).await {
            Ok(Ok(())) => self.confirmed(circulation, Validity { since, limit: self.validity }),
            Ok(Err(_)) | Err(_) => {
                tracing::error!(
                    loans = running.len(),
                    "streams are aborted: their loans could not be confirmed within gate.freshness"
                );
                monitored.streams.abort(&running);
            }
        }
    }
}

/// Reads the loans of running streams, and announces those that have ended.
async fn confirm(circulation: &Circulation, running: &[LoanId]) -> Result<(), LedgerError> {
    for batch in running.chunks(BATCH) {
        let mut missing: HashSet<LoanId> = batch.iter().copied().collect();
        for loan in circulation.inner.ledger.loans(batch).await? {
            missing.remove(&loan.id);
            if loan.state != LoanState::Accepted {
                circulation.announce(Closed { loan: loan.id, key: loan.key, at: loan.changed });
            }
        }
        if let Some(loan) = missing.into_iter().next() {
            return Err(LedgerError::NoSuchLoan(loan));
        }
    }
    Ok(())
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
        let confirm = |age, limit| {
            let valid = Validity { since: ago(age), limit };
            feed_status.confirm_streams(valid, Duration::from_secs(5), FRESHNESS);
        };
        confirm(FRESHNESS, None);
        assert!(!feed_status.must_stop_stream(ancient), "the task has time to check");
        confirm(FRESHNESS + grace, None);
        assert!(feed_status.must_stop_stream(ancient));
        let read = |age: Duration| i64::try_from(ago(age).as_millis()).unwrap();
        assert!(!feed_status.must_stop_stream(read(Duration::from_secs(5))), "its own read");
        assert!(feed_status.must_stop_stream(read(Duration::from_secs(5) + grace)));
        confirm(Duration::from_secs(5) + grace, Some(Duration::from_secs(5)));
        assert!(feed_status.must_stop_stream(ancient), "a read of the ledger is valid shorter");
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
