//! What one borrower may take at once: `delivery.streams_per_borrower` and
//! `delivery.rate_per_borrower`.
//!
//! Both hold in this process, over all of a borrower's titles and connections. Where neither is
//! set, nothing is looked up.

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

/// By whom they are held: gone with the last stream.
type BucketMap = HashMap<(LibraryId, Borrower), Weak<Option<Bucket>>>;

/// A stream may end at any moment.
const TOO_MANY_STREAMS: Problem =
    Problem::TooManyRequests { reason: "streams", retry_after: Duration::from_secs(2) };

/// How many entries may be added before those are looked for that nobody holds any more.
const PRUNE_INTERVAL: usize = 1024;

/// The shares of all borrowers who take something now.
#[derive(Clone, Debug)]
pub(super) struct BorrowerLimits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    streams: usize,
    rate: Option<NonZeroU32>,
    borrowers: Mutex<BucketMap>,
}

/// One stream of a borrower's: held for as long as it runs.
#[derive(Debug)]
pub(super) struct StreamAllowance {
    bucket: Arc<Option<Bucket>>,
    /// What the bucket holds at once.
    burst: u64,
    /// Bytes that were taken and not paid for.
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

    /// A share for one stream more; none where there are no limits, and so nothing to share.
    ///
    /// # Errors
    /// `too-many-requests`, where the borrower has all that it may have.
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

/// So many bytes a second, and as many at once.
fn quota(rate: NonZeroU32) -> Quota {
    Quota::per_second(rate).allow_burst(rate)
}

impl StreamAllowance {
    /// So many bytes were taken.
    pub(super) fn charge(&mut self, bytes: u64) {
        if self.bucket.is_some() {
            self.debt += bytes;
        }
    }

    /// Ready when what was taken is paid for, so that more may be.
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
