//! The limits of one borrower: `delivery.streams_per_borrower` and `delivery.rate_per_borrower`.
//!
//! Both apply per process, to all titles and connections of a borrower. `deliver` takes a
//! [`StreamAllowance`] for each stream. If neither limit is set, there is no lookup.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Sleep;

use super::Settings;
use crate::loan::{Borrower, LibraryId, LoanKey};
use crate::lock::lock;
use crate::problem::Problem;

type Bucket =
    RateLimiter<NotKeyed, InMemoryState, MonotonicClock, NoOpMiddleware<std::time::Instant>>;

type BorrowerKey = (LibraryId, Borrower);

/// The wait is short, since a stream may end at any moment.
const TOO_MANY_STREAMS: Problem =
    Problem::TooManyRequests { reason: "streams", retry_after: Duration::from_secs(2) };

/// Every borrower with a counted stream, and no other.
type Borrowers = Arc<Mutex<HashMap<BorrowerKey, RunningStreams>>>;

/// The limits of all borrowers with a running stream.
#[derive(Clone, Debug)]
pub(super) struct BorrowerLimits {
    streams: usize,
    rate: Option<NonZeroU32>,
    borrowers: Borrowers,
}

/// The running streams of a borrower.
#[derive(Debug)]
struct RunningStreams {
    count: usize,
    /// The rate, and the rate limiter that the streams share; `None` if no rate is configured.
    bucket: Option<(NonZeroU32, Arc<Bucket>)>,
}

/// Counts a stream of a borrower until it is dropped.
#[derive(Debug)]
struct CountedStream {
    borrowers: Borrowers,
    borrower: BorrowerKey,
}

/// One stream of a borrower, with its share of the rate limit.
#[derive(Debug)]
pub(super) struct StreamAllowance {
    _counted: CountedStream,
    bucket: Option<Arc<Bucket>>,
    /// Capacity of the bucket in bytes.
    burst: u64,
    /// Bytes that were sent but not yet taken from the bucket.
    debt: u64,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl BorrowerLimits {
    pub(super) fn new(settings: &Settings) -> BorrowerLimits {
        let rate = NonZeroU32::new(u32::try_from(settings.rate_per_borrower).unwrap_or(u32::MAX));
        BorrowerLimits { streams: settings.streams_per_borrower, rate, borrowers: Arc::default() }
    }

    /// Returns the limits with other settings. Streams that run count, and keep their rate.
    pub(super) fn with_settings(&self, settings: &Settings) -> BorrowerLimits {
        BorrowerLimits { borrowers: self.borrowers.clone(), ..BorrowerLimits::new(settings) }
    }

    /// Counts one more stream. Returns `None` if no limits are configured.
    ///
    /// # Errors
    /// Returns `too-many-requests` if the borrower is at its stream limit.
    pub(super) fn take(&self, key: &LoanKey) -> Result<Option<StreamAllowance>, Problem> {
        if self.streams == 0 && self.rate.is_none() {
            return Ok(None);
        }
        let borrower = (key.library, key.borrower);
        let mut borrowers = lock(&self.borrowers);
        let running =
            borrowers.entry(borrower).or_insert_with(|| RunningStreams { count: 0, bucket: None });
        if self.streams > 0 && running.count >= self.streams {
            return Err(TOO_MANY_STREAMS);
        }
        running.count += 1;
        // Streams from before a reload of the rate keep their limiter.
        if running.bucket.as_ref().map(|(rate, _)| *rate) != self.rate {
            running.bucket = self.rate.map(|rate| (rate, bucket(rate)));
        }
        let bucket = running.bucket.as_ref().map(|(_, bucket)| bucket.clone());
        drop(borrowers);
        let counted = CountedStream { borrowers: self.borrowers.clone(), borrower };
        let burst = self.rate.map_or(0, |rate| u64::from(rate.get()));
        Ok(Some(StreamAllowance { _counted: counted, bucket, burst, debt: 0, waiting: None }))
    }

    /// Returns whether [`BorrowerLimits::take`] would refuse one more stream, and counts none.
    pub(super) fn would_refuse(&self, key: &LoanKey) -> Option<Problem> {
        let borrowers = lock(&self.borrowers);
        let running = borrowers.get(&(key.library, key.borrower)).map_or(0, |some| some.count);
        (self.streams > 0 && running >= self.streams).then_some(TOO_MANY_STREAMS)
    }
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        if let Entry::Occupied(mut running) = lock(&self.borrowers).entry(self.borrower) {
            running.get_mut().count -= 1;
            if running.get().count == 0 {
                running.remove();
            }
        }
    }
}

fn bucket(rate: NonZeroU32) -> Arc<Bucket> {
    Arc::new(RateLimiter::direct_with_clock(quota(rate), MonotonicClock))
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
