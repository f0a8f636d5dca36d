//! The retry budget of one origin, shared by all workers: retries are at most 20 % of the requests
//! plus 10 a second.
//!
//! It prevents a retry storm on a failing origin, for any number of readers. A request costs one
//! atomic addition.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A retry costs this many units, and a request earns this many: 20 %.
const RETRY: u64 = 10;
const REQUEST: u64 = 2;
/// Most saved units: 100 retries.
const MAX_SAVED: u64 = 100 * RETRY;
/// Besides the saved units, one retry per interval is free.
const FREE_INTERVAL: Duration = Duration::from_millis(100);
/// Burst of free retries: as many as accrue in this time.
const FREE_BURST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct RetryBudget {
    epoch: Instant,
    saved: AtomicU64,
    /// Theoretical arrival time of the generic cell rate algorithm (GCRA), in milliseconds since
    /// `epoch`.
    paid_until: AtomicU64,
}

impl RetryBudget {
    pub(super) fn new() -> RetryBudget {
        RetryBudget {
            epoch: Instant::now(),
            saved: AtomicU64::new(0),
            paid_until: AtomicU64::new(0),
        }
    }

    /// Records a request, which earns a part of a retry.
    pub(super) fn earn(&self) {
        // The sum may exceed `MAX_SAVED`; `withdraw_saved` caps it.
        self.saved.fetch_add(REQUEST, Ordering::Relaxed);
    }

    /// Takes one retry out of the budget. Returns false if the budget is used up.
    pub(super) fn withdraw(&self, now: Instant) -> bool {
        self.withdraw_free(now) || self.withdraw_saved()
    }

    /// Refunds a retry that was useful.
    pub(super) fn refund(&self) {
        self.saved.fetch_add(RETRY, Ordering::Relaxed);
    }

    fn withdraw_free(&self, now: Instant) -> bool {
        let now = u64::try_from(now.saturating_duration_since(self.epoch).as_millis())
            .unwrap_or(u64::MAX);
        let (interval, burst) = (FREE_INTERVAL.as_millis() as u64, FREE_BURST.as_millis() as u64);
        let pay = |paid_until: u64| {
            let next = paid_until.max(now) + interval;
            (next <= now + burst).then_some(next)
        };
        self.paid_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay).is_ok()
    }

    fn withdraw_saved(&self) -> bool {
        let take = |saved: u64| saved.min(MAX_SAVED).checked_sub(RETRY);
        self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_fifth_of_requests_and_ten_a_second() {
        let (budget, start) = (RetryBudget::new(), Instant::now());
        let mut retries = 0;
        // 1000 requests a second for ten seconds, and a retry of each.
        for number in 0..10_000 {
            budget.earn();
            retries += u64::from(budget.withdraw(start + Duration::from_millis(number)));
        }
        assert!((2000..=2110).contains(&retries), "{retries}");
    }

    #[test]
    fn savings_are_bounded() {
        let (budget, now) = (RetryBudget::new(), Instant::now());
        (0..1_000_000).for_each(|_| budget.earn());
        let retries = (0..1000).filter(|_| budget.withdraw(now)).count();
        assert_eq!(retries, 110);
    }

    #[test]
    fn refunded_retry_can_be_used_again() {
        let (budget, now) = (RetryBudget::new(), Instant::now());
        while budget.withdraw(now) {}
        budget.refund();
        assert!(budget.withdraw(now));
        assert!(!budget.withdraw(now));
    }
}
