//! The limits of one borrower: `delivery.streams_per_borrower` and `delivery.rate_per_borrower`.
//!
//! Both apply per process, to all titles and connections of a borrower. If neither is set, there is
//! no lookup.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Sleep;

use super::Settings;
use crate::loan::{Borrower, LibraryId, LoanKey};
use crate::problem::Problem;

type Bucket =
    RateLimiter<NotKeyed, InMemoryState, MonotonicClock, NoOpMiddleware<std::time::Instant>>;

/// Rate limiters by borrower. Each lives until the borrower's last stream ends; the strong count is
/// the number of streams.
type BucketMap = HashMap<(LibraryId, Borrower), Weak<Option<Bucket>>>;

/// The wait is short, since a stream may end at any moment.
const TOO_MANY_STREAMS: Problem =
    Problem::TooManyRequests { reason: "streams", retry_after: Duration::from_secs(2) };

/// Number of entries after which expired entries are removed.
const PRUNE_INTERVAL: usize = 1024;

/// The limits of all borrowers with a running stream.
#[derive(Clone, Debug)]
pub(super) struct BorrowerLimits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    streams: usize,
    rate: Option<NonZeroU32>,
    borrowers: Mutex<BucketMap>,
}

/// One stream of a borrower, counted until it is dropped.
#[derive(Debug)]
pub(super) struct StreamAllowance {
    bucket: Arc<Option<Bucket>>,
    /// Capacity of the bucket in bytes.
    burst: u64,
    /// Bytes that were sent but not yet taken from the bucket.
    debt: u64,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl BorrowerLimits {
    pub(super) fn new(settings: &Settings) -> BorrowerLimits {
        let rate = NonZeroU32::new(u32::try_from(settings.rate_per_borrower).unwrap_or(u32::MAX));
        BorrowerLimits(Arc::new(Inner {
            streams: settings.streams_per_borrower,
            rate,
            borrowers: Mutex::default(),
        }))
    }

    /// Counts one more stream. Returns `None` if no limits are configured.
    ///
    /// # Errors
    /// Returns `too-many-requests` if the borrower is at its stream limit.
    pub(super) fn take(&self, key: &LoanKey) -> Result<Option<StreamAllowance>, Problem> {
        if self.0.streams == 0 && self.0.rate.is_none() {
            return Ok(None);
        }
        let mut borrowers = self.0.borrowers.lock().unwrap_or_else(PoisonError::into_inner);
        if borrowers.len() % PRUNE_INTERVAL == PRUNE_INTERVAL - 1 {
            borrowers.retain(|_, bucket| bucket.strong_count() > 0);
        }
        let entry = borrowers.entry((key.library, key.borrower)).or_default();
        let streams = entry.strong_count();
        if self.0.streams > 0 && streams >= self.0.streams {
            return Err(TOO_MANY_STREAMS);
        }
        let bucket = entry.upgrade().unwrap_or_else(|| {
            let bucket =
                self.0.rate.map(|rate| RateLimiter::direct_with_clock(quota(rate), MonotonicClock));
            let bucket = Arc::new(bucket);
            *entry = Arc::downgrade(&bucket);
            bucket
        });
        let burst = self.0.rate.map_or(0, |rate| u64::from(rate.get()));
        Ok(Some(StreamAllowance { bucket, burst, debt: 0, waiting: None }))
    }
}

/// Returns a quota of `rate` bytes a second with a burst of one second.
fn quota(rate: NonZeroU32) -> Quota {
    Quota::per_second(rate).allow_burst(rate)
}

impl StreamAllowance {
    /// Charges bytes to the borrower's rate limit.
    pub(super) fn charge(&mut self, bytes: u64) {
        if self.bucket.is_some() {
            self.debt += bytes;
        }
    }

    /// Waits until the rate limit allows more bytes.
    pub(super) fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(bucket) = self.bucket.as_ref() else { return Poll::Ready(()) };
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(context));
                self.waiting = None;
            }
            let amount = u32::try_from(self.debt.min(self.burst)).unwrap_or(u32::MAX);
            let Some(amount) = NonZeroU32::new(amount) else { return Poll::Ready(()) };
            match bucket.check_n(amount) {
                Ok(Ok(())) => self.debt -= u64::from(amount.get()),
                Ok(Err(too_early)) => {
                    let wait = too_early.wait_time_from(MonotonicClock.now());
                    self.waiting = Some(Box::pin(tokio::time::sleep(wait)));
                }
                Err(_) => return Poll::Ready(()),
            }
        }
    }
}
