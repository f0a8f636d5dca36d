//! Failed ends, each with its own backoff.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::send::SendResult;
use crate::loan::LoanId;

/// Backoff of a failed end: the first wait, and the limit up to which it doubles.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(500);
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Retry state of a failed end.
#[derive(Clone, Copy, Debug)]
struct Failed {
    next: Instant,
    wait: Duration,
    how: SendResult,
    /// Whether it has been retried at once after an outage.
    was_expedited: bool,
}

/// The failed ends.
#[derive(Debug, Default)]
pub(super) struct Retries {
    /// By the time of their next retry.
    waiting: BTreeSet<(Instant, LoanId)>,
    /// Remembered until the end is acknowledged, also while it is sent.
    failed: HashMap<LoanId, Failed>,
}

impl Retries {
    /// Schedules the retry of a failed end by its own backoff.
    pub(super) fn schedule(&mut self, id: LoanId, how: SendResult) {
        let before = self.failed.get(&id);
        let wait = before.map_or(FIRST_WAIT, |failed| (failed.wait * 2).min(LONGEST_WAIT));
        let was_expedited = before.is_some_and(|failed| failed.was_expedited);
        let named = if let SendResult::NotAccepted(named) = how {
            named.unwrap_or_default()
        } else {
            Duration::ZERO
        };
        // Jitter, so that ends that failed together are not retried together.
        let jittered = wait.mul_f64(0.75 + 0.25 * fastrand::f64());
        let next = Instant::now() + jittered.max(named).min(LONGEST_WAIT);
        self.failed.insert(id, Failed { next, wait, how, was_expedited });
        self.waiting.insert((next, id));
    }

    /// Schedules an end that the breaker held back. It has not failed again.
    pub(super) fn hold_back(&mut self, id: LoanId, until: Instant) {
        if let Some(failed) = self.failed.get_mut(&id) {
            failed.next = until;
        }
        self.waiting.insert((until, id));
    }

    /// Removes and returns an end that is due at `now`.
    pub(super) fn take(&mut self, now: Instant) -> Option<LoanId> {
        self.waiting.first().filter(|(at, _)| *at <= now)?;
        self.waiting.pop_first().map(|(_, id)| id)
    }

    /// Forgets the failures of an end that Bokbasen has acknowledged.
    pub(super) fn forget(&mut self, id: LoanId) {
        self.failed.remove(&id);
    }

    /// Keeps only the waiting ends of which `keep` is true.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(LoanId) -> bool) {
        let failed = &mut self.failed;
        self.waiting.retain(|(_, id)| {
            let is_kept = keep(*id);
            if !is_kept {
                failed.remove(id);
            }
            is_kept
        });
    }

    /// Returns when the next retry is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.first().map(|(at, _)| *at)
    }

    /// Removes and returns the ends to retry at once, now that Bokbasen responds: those that could
    /// not be sent. After an outage also unanswered ends, each only once, since the end itself may
    /// be at fault.
    pub(super) fn expedite(&mut self, outage_is_over: bool) -> Vec<LoanId> {
        let now = Instant::now();
        let mut expedited = Vec::new();
        for (id, failed) in &mut self.failed {
            let is_expedited = match failed.how {
                SendResult::NotSent => true,
                SendResult::NoResponse => outage_is_over && !failed.was_expedited,
                SendResult::Acknowledged | SendResult::NotAccepted(_) | SendResult::HeldBack => {
                    false
                }
            };
            if is_expedited && self.waiting.remove(&(failed.next, *id)) {
                failed.was_expedited |= failed.how == SendResult::NoResponse;
                failed.next = now;
                expedited.push(*id);
            }
        }
        expedited
    }
}

#[cfg(test)]
impl Retries {
    /// Returns the ends that are due now.
    pub(super) fn due(&self) -> impl Iterator<Item = LoanId> {
        let now = Instant::now();
        self.waiting.iter().filter(move |(at, _)| *at <= now).map(|(_, id)| *id)
    }

    /// Returns how long a failed end waits from now.
    pub(super) fn wait_of(&self, id: LoanId) -> Duration {
        self.failed[&id].next - Instant::now()
    }
}
