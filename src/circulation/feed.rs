//! Follows the ledger's change feed, so that a loan that another process ends opens nothing here.
//!
//! A background task reads the feed several times a second and announces each end to the gate.
//! `feed_status` holds the time of the last successful read. While the feed cannot be read, the
//! gate trusts no acceptance that was read longer than `gate.freshness` ago. A running stream then
//! continues only if the ledger confirms its loan within that time. If the store lets processes
//! acknowledge their reads, an unacknowledged read counts as failed. Both times are then shorter
//! than `gate.freshness`, since other processes may have sent ends to Bokbasen.
//!
//! Once the ledger turns out to be moved, nothing that was read from it counts any more.
//!
//! The task aborts streams that nothing confirms. A process that was suspended can send before this
//! task runs again, so each body compares the time itself, a few seconds later than the task.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::feed_status::STREAM_GRACE;
use super::{Circulation, Closed, FeedStatus};
use crate::clock;
use crate::ledger::{Feed, LedgerError};
use crate::loan::{LoanId, LoanState};

/// Timeout of one read. A query that hangs fails before, so that the feed notices.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
const _: () = assert!(Feed::QUERY_DEADLINE.as_millis() < READ_TIMEOUT.as_millis());
/// While the feed fails: interval of log lines, and of checks of running streams.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
const STREAM_CHECK_INTERVAL: Duration = Duration::from_secs(1);
const _: () = assert!(
    2 * READ_TIMEOUT.as_millis() + STREAM_CHECK_INTERVAL.as_millis() < STREAM_GRACE.as_millis()
);
/// `gate.freshness` if no gate has registered its streams.
const DEFAULT_FRESHNESS: Duration = Duration::from_secs(60);
/// Maximum number of loans in one query.
const BATCH: usize = 500;

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

/// Follows the feed until the process stops or the ledger was moved.
pub(super) async fn follow(circulation: Circulation) {
    tokio::select! {
        biased;
        _ = circulation.inner.ledger.until_moved() => {}
        () = read_until_stop(&circulation) => return,
    }
    circulation.inner.feed_status.withdraw();
    loop {
        // Also those that have begun meanwhile.
        if let Some(MonitoredStreams { streams, .. }) = circulation.inner.monitored_streams.get() {
            streams.abort(&streams.running());
        }
        if !circulation.pause(STREAM_CHECK_INTERVAL).await {
            return;
        }
    }
}

/// Reads the feed until the process stops. The feed has no ends from before the ledger was opened.
async fn read_until_stop(circulation: &Circulation) {
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
        state.confirmed(circulation, state.valid);
    }
    let mut poll = tokio::time::interval(feed.interval());
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = poll.tick() => {}
            () = circulation.inner.stopping.cancelled() => return,
        }
        match tokio::time::timeout(READ_TIMEOUT, read(circulation, &mut feed)).await {
            Ok(Ok(began)) => state.succeeded(circulation, began),
            Ok(Err(error)) => state.failed(circulation, &error.to_string()).await,
            Err(_) => state.failed(circulation, "the ledger does not respond").await,
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
        let until = valid.since + valid.length(freshness);
        circulation.inner.feed_status.confirm_streams(until, own);
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
