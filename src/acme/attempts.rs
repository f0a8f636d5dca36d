//! How often orders are begun. Certificate authorities refuse an account that orders too often.
//!
//! The record is in the data directory, and is written before an order begins. So a gate that
//! crashes during each order, or is restarted after each failure, orders no more often.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::data_directory::{DataDirectory, DataError};
use crate::clock;

const FILE: &str = "attempts.json";
/// The waits after the first failure, the second, and so on, in minutes.
const WAITS: [u64; 7] = [2, 10, 20, 40, 80, 160, 360];
/// The most orders within [`PERIOD`], whatever becomes of them.
const MAX_ORDERS: usize = 5;
const PERIOD: Duration = Duration::from_secs(3600);
/// The longest wait, also if the authority or a wrong clock would have it longer.
const MAX_WAIT: Duration = Duration::from_secs(86_400);
/// What a process that ended has recorded.
const ENDED: &str = "the gate ended during the order";

/// The last orders.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Attempts {
    /// When the last orders began, at most [`MAX_ORDERS`].
    begun: Vec<Timestamp>,
    /// What the last one ordered.
    ordered: String,
    /// The failures since the last certificate.
    failures: usize,
    /// Why the last one failed.
    why: Option<String>,
    /// Until when the authority wants no further order.
    not_before: Option<Timestamp>,
}

impl Attempts {
    /// Reads the record. One that is damaged counts as none: it is written atomically.
    pub(super) fn read(data: &DataDirectory) -> Result<Attempts, DataError> {
        let bytes = data.read(&data.file(FILE))?.unwrap_or_default();
        Ok(serde_json::from_slice(&bytes).unwrap_or_default())
    }

    pub(super) fn write(&self, data: &DataDirectory) -> Result<(), DataError> {
        data.write(&data.file(FILE), &serde_json::to_vec(self).unwrap_or_default())
    }

    /// Returns why the last order of the same certificate has failed.
    pub(super) fn failure(&self, ordered: &str) -> Option<&str> {
        self.why.as_deref().filter(|_| self.ordered == ordered)
    }

    /// Returns from when on this certificate may be ordered.
    pub(super) fn next(&self, ordered: &str, now: Timestamp) -> Timestamp {
        let is_same = self.ordered == ordered;
        let failures = if is_same { self.failures } else { 0 };
        let wait = failures.checked_sub(1).and_then(|number| WAITS.get(number).or(WAITS.last()));
        let backoff = wait.zip(self.begun.last());
        let backoff =
            backoff.map(|(wait, begun)| clock::after(*begun, Duration::from_secs(wait * 60)));
        let is_full = self.begun.len() >= MAX_ORDERS;
        let oldest = self.begun.first().filter(|_| is_full).map(|at| clock::after(*at, PERIOD));
        let asked = self.not_before.filter(|_| is_same);
        let next = [backoff, oldest, asked].into_iter().flatten().max();
        next.unwrap_or(now).min(clock::after(now, MAX_WAIT))
    }

    /// Records that an order begins. Until its end it counts as failed.
    pub(super) fn begin(&mut self, ordered: String, now: Timestamp) {
        if self.ordered != ordered {
            *self = Attempts { begun: std::mem::take(&mut self.begun), ..Attempts::default() };
            self.ordered = ordered;
        }
        self.begun.push(now);
        let excess = self.begun.len().saturating_sub(MAX_ORDERS);
        self.begun.drain(..excess);
        self.failures = self.failures.saturating_add(1);
        self.why = Some(ENDED.to_owned());
        self.not_before = None;
    }

    /// Records why the order has failed, and how long the authority wants no further one.
    pub(super) fn failed(&mut self, why: String, wait: Option<Duration>, now: Timestamp) {
        self.why = Some(why);
        self.not_before = wait.map(|wait| clock::after(now, wait.min(MAX_WAIT)));
    }

    /// Records that a certificate was issued.
    pub(super) fn succeeded(&mut self) {
        (self.failures, self.why, self.not_before) = (0, None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(minutes * 60).unwrap()
    }

    /// Orders whenever it is allowed for a day, and returns the minutes.
    fn minutes_of_orders(mut end: impl FnMut(&mut Attempts, Timestamp)) -> Vec<i64> {
        let (mut attempts, mut begun) = (Attempts::default(), Vec::new());
        for minute in 0..24 * 60 {
            let now = at(minute);
            if attempts.next("a", now) <= now {
                attempts.begin("a".to_owned(), now);
                end(&mut attempts, now);
                begun.push(minute);
            }
        }
        begun
    }

    #[test]
    fn failed_orders_are_rarer_and_rarer() {
        let expected = [0, 2, 12, 32, 72, 152, 312, 672, 1032, 1392];
        let failing = |attempts: &mut Attempts, now| attempts.failed("no".to_owned(), None, now);
        assert_eq!(minutes_of_orders(failing), expected);
        assert_eq!(minutes_of_orders(|_, _| {}), expected, "of a gate that crashes");
    }

    #[test]
    fn successful_orders_are_few_in_an_hour() {
        let begun = minutes_of_orders(|attempts, _| attempts.succeeded());
        assert_eq!(begun[..7], [0, 1, 2, 3, 4, 60, 61]);
    }

    #[test]
    fn authority_may_ask_for_a_longer_wait_but_not_for_ever() {
        let mut attempts = Attempts::default();
        attempts.begin("a".to_owned(), at(0));
        attempts.failed("no".to_owned(), Some(Duration::from_secs(3600)), at(0));
        assert_eq!(attempts.next("a", at(0)), at(60));
        attempts.failed("no".to_owned(), Some(Duration::MAX), at(0));
        assert_eq!(attempts.next("a", at(0)), at(24 * 60));
        assert_eq!(attempts.next("b", at(0)), at(0), "other names are another order");
        assert_eq!(attempts.failure("b"), None);
    }

    #[test]
    fn clock_that_was_ahead_delays_an_order_by_a_day_at_most() {
        let mut attempts = Attempts::default();
        attempts.begin("a".to_owned(), at(100_000));
        assert_eq!(attempts.next("a", at(0)), at(24 * 60));
    }
}
