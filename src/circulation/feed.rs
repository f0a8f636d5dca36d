//! Follows the ledger's change feed, so that a loan that another process ends opens nothing here.
//!
//! A background task reads the feed several times a second and announces each end to the gate.
//! [`FeedStatus`] holds the time of the last successful read. While the feed cannot be read, the
//! gate trusts no acceptance that was read longer than `gate.freshness` ago. A running stream then
//! continues only if the ledger confirms its loan within that time. If the store lets processes
//! acknowledge their reads, an unacknowledged read counts as failed. Both times are then shorter
//! than `gate.freshness`, since other processes may have sent ends to Bokbasen.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
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
/// `gate.freshness` if no gate has registered its streams.
const DEFAULT_FRESHNESS: Duration = Duration::from_secs(60);
/// Maximum number of loans in one query.
const BATCH: usize = 500;
/// Value while no feed is followed: cached data never becomes stale.
const NOT_FOLLOWED: i64 = i64::MAX;

/// When the change feed was last read to its end.
#[derive(Clone, Debug)]
pub struct FeedStatus(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// In milliseconds of the project's clock.
    last_read: AtomicI64,
    /// How long data may be used after its own read while the feed fails, in milliseconds. The
    /// maximum is `gate.freshness`.
    validity: AtomicU64,
}

impl Default for FeedStatus {
    /// No feed is followed.
    fn default() -> FeedStatus {
        let validity = AtomicU64::new(u64::MAX);
        FeedStatus(Arc::new(Inner { last_read: AtomicI64::new(NOT_FOLLOWED), validity }))
    }
}

impl FeedStatus {
    /// Returns whether data read from the ledger at `at`, in milliseconds, may be older than
    /// `freshness` allows: the feed was not read since, either.
    pub fn is_stale(&self, at: i64, now: Timestamp, freshness: Duration) -> bool {
        let last_read = self.0.last_read.load(Ordering::Acquire);
        let (now, freshness) =
            (now.as_millisecond(), u64::try_from(freshness.as_millis()).unwrap_or(u64::MAX));
        // A clock that was set back does not tell the age of data, so the data counts as stale.
        last_read != NOT_FOLLOWED
            && now.abs_diff(last_read) > freshness
            && now.abs_diff(at) > freshness.min(self.0.validity.load(Ordering::Relaxed))
    }

    fn record(&self, at: Timestamp) {
        self.0.last_read.store(at.as_millisecond(), Ordering::Release);
    }

    /// Limits how long data may be used after its own read while the feed fails.
    fn limit_validity(&self, validity: Duration) {
        let millis = u64::try_from(validity.as_millis()).unwrap_or(u64::MAX);
        self.0.validity.store(millis, Ordering::Relaxed);
    }

    /// Records a read of the feed, for tests of modules that depend on its age.
    #[cfg(test)]
    pub(crate) fn record_read(&self, at: Timestamp) {
        self.record(at);
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
        let now = self.inner.clock.now();
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
    // A feed that fails from the start must not count as not followed.
    circulation.inner.feed_status.record(circulation.inner.clock.now());
    let validity = feed.validity_without_feed();
    if let Some(validity) = validity {
        circulation.inner.feed_status.limit_validity(validity);
    }
    let mut state = FollowState {
        failing_since: None,
        logged: None,
        validity,
        valid: Validity { since: clock::since_boot(), limit: None },
        checked: None,
    };
    let mut poll = tokio::time::interval(feed.interval());
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = poll.tick() => {}
            () = circulation.inner.stopping.cancelled() => return,
        }
        match tokio::time::timeout(READ_TIMEOUT, read(&circulation, &mut feed)).await {
            Ok(Ok(began)) => state.succeeded(began),
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
            circulation.inner.feed_status.record(clock::before(circulation.inner.clock.now(), age));
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
    fn is_over(self, freshness: Duration) -> bool {
        let limit = self.limit.map_or(freshness, |limit| limit.min(freshness));
        clock::since_boot().saturating_sub(self.since) >= limit
    }
}

impl FollowState {
    fn succeeded(&mut self, began: Duration) {
        self.valid = Validity { since: began, limit: None };
        if let Some(since) = self.failing_since.take() {
            tracing::info!(failed_for = ?since.elapsed(), "the ledger's change feed is read again");
            self.logged = None;
        }
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
            Ok(Ok(())) => self.valid = Validity { since, limit: self.validity },
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
        let at = |seconds: i64| Timestamp::from_second(1_000 + seconds).unwrap();
        let feed_status = FeedStatus::default();
        assert!(!feed_status.is_stale(0, at(0), FRESHNESS), "no feed is followed");
        feed_status.record(at(0));
        for (read, now, stale) in [
            (-900, 0, false),
            (-900, 30, false),
            (-900, 31, true),
            (10, 31, false),
            (10, 40, false),
            (10, 41, true),
            (10, -100, true),
        ] {
            let result = feed_status.is_stale(at(read).as_millisecond(), at(now), FRESHNESS);
            assert_eq!(result, stale, "read at {read}, now {now}");
        }
        assert!(feed_status.is_stale(0, clock::after(at(0), FRESHNESS * 2), FRESHNESS));
    }

    #[test]
    fn data_is_stale_earlier_if_others_wait_for_acknowledgements() {
        const FRESHNESS: Duration = Duration::from_secs(30);
        let at = |seconds: i64| Timestamp::from_second(1_000 + seconds).unwrap();
        let feed_status = FeedStatus::default();
        feed_status.record(at(0));
        feed_status.limit_validity(Duration::from_secs(5));
        for (read, now, stale) in
            [(-900, 30, false), (20, 31, true), (26, 31, false), (40, 45, false), (40, 46, true)]
        {
            let result = feed_status.is_stale(at(read).as_millisecond(), at(now), FRESHNESS);
            assert_eq!(result, stale, "read at {read}, now {now}");
        }
    }
}
