//! How often orders are begun. Certificate authorities refuse an account that orders too often.
//!
//! The record is in the data directory, and is written before an order begins. So a gate that
//! crashes during each order, or is restarted after each failure, orders no more often.

use std::collections::BTreeMap;
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
/// The longest wait, also if the authority would have it longer. It is that after a certificate
/// was issued but not stored, too: authorities issue only a few with the same names in a week.
const MAX_WAIT: Duration = Duration::from_secs(86_400);
/// The most certificates whose last order is remembered.
const MAX_CERTIFICATES: usize = 16;
/// What a process that ended has recorded.
const ENDED: &str = "the gate ended during the order";

/// The last orders. What belongs to one certificate is kept apart from that of others, since gates
/// with other settings may share the directory.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Attempts {
    /// When the last orders began, at most [`MAX_ORDERS`].
    begun: Vec<Timestamp>,
    /// By [`Settings::ordered`](super::Settings::ordered), at most [`MAX_CERTIFICATES`].
    certificates: BTreeMap<String, Attempt>,
}

/// The last order of one certificate.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Attempt {
    /// When it began.
    begun: Timestamp,
    /// The failures since the last certificate that was stored.
    failures: usize,
    /// Why it failed.
    why: Option<String>,
    /// Until when the authority wants no further order.
    not_before: Option<Timestamp>,
    /// When a certificate was issued that could not be stored.
    issued: Option<Timestamp>,
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
        self.certificates.get(ordered)?.why.as_deref()
    }

    /// Returns from when on this certificate may be ordered. Times that only a clock that was ahead
    /// can have recorded do not count.
    pub(super) fn next(&self, ordered: &str, now: Timestamp) -> Timestamp {
        let past: Vec<Timestamp> = self.begun.iter().copied().filter(|at| *at <= now).collect();
        let oldest = past.first().filter(|_| past.len() >= MAX_ORDERS);
        let oldest = oldest.map(|at| clock::after(*at, PERIOD));
        let own = self.certificates.get(ordered).map(|attempt| attempt.next(now));
        [own, oldest].into_iter().flatten().max().unwrap_or(now)
    }

    /// Records that an order begins. Until its end it counts as failed.
    pub(super) fn begin(&mut self, ordered: &str, now: Timestamp) {
        self.begun.retain(|at| *at <= now);
        self.begun.push(now);
        let excess = self.begun.len().saturating_sub(MAX_ORDERS);
        self.begun.drain(..excess);
        let attempt = self.certificates.entry(ordered.to_owned()).or_default();
        attempt.begun = now;
        attempt.failures = attempt.failures.saturating_add(1);
        (attempt.why, attempt.not_before) = (Some(ENDED.to_owned()), None);
        attempt.issued = None;
        while self.certificates.len() > MAX_CERTIFICATES {
            let others = self.certificates.iter().filter(|(name, _)| *name != ordered);
            let oldest = others.min_by_key(|(_, attempt)| attempt.begun);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { return };
            self.certificates.remove(&oldest);
        }
    }

    /// Records that a certificate was issued, which is not stored yet.
    pub(super) fn issued(&mut self, ordered: &str, now: Timestamp) {
        self.certificates.entry(ordered.to_owned()).or_default().issued = Some(now);
    }

    /// Records why the order has failed, and how long the authority wants no further one.
    pub(super) fn failed(
        &mut self,
        ordered: &str,
        why: String,
        wait: Option<Duration>,
        now: Timestamp,
    ) {
        let attempt = self.certificates.entry(ordered.to_owned()).or_default();
        attempt.why = Some(why);
        attempt.not_before = wait.map(|wait| clock::after(now, wait.min(MAX_WAIT)));
    }

    /// Records that a certificate was stored.
    pub(super) fn succeeded(&mut self, ordered: &str) {
        self.certificates.remove(ordered);
    }
}

impl Attempt {
    fn next(&self, now: Timestamp) -> Timestamp {
        let wait =
            self.failures.checked_sub(1).and_then(|number| WAITS.get(number).or(WAITS.last()));
        let begun = Some(self.begun).filter(|at| *at <= now);
        let backoff = wait.zip(begun);
        let backoff =
            backoff.map(|(wait, begun)| clock::after(begun, Duration::from_secs(wait * 60)));
        let longest = clock::after(now, MAX_WAIT);
        let asked = self.not_before.filter(|until| *until <= longest);
        let issued = self.issued.filter(|at| *at <= now).map(|at| clock::after(at, MAX_WAIT));
        [backoff, asked, issued].into_iter().flatten().max().unwrap_or(now)
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
                attempts.begin("a", now);
                end(&mut attempts, now);
                begun.push(minute);
            }
        }
        begun
    }

    #[test]
    fn failed_orders_are_rarer_and_rarer() {
        let expected = [0, 2, 12, 32, 72, 152, 312, 672, 1032, 1392];
        let failing =
            |attempts: &mut Attempts, now| attempts.failed("a", "no".to_owned(), None, now);
        assert_eq!(minutes_of_orders(failing), expected);
        assert_eq!(minutes_of_orders(|_, _| {}), expected, "of a gate that crashes");
    }

    #[test]
    fn successful_orders_are_few_in_an_hour() {
        let begun = minutes_of_orders(|attempts, _| attempts.succeeded("a"));
        assert_eq!(begun[..7], [0, 1, 2, 3, 4, 60, 61]);
    }

    #[test]
    fn authority_may_ask_for_a_longer_wait_but_not_for_ever() {
        let mut attempts = Attempts::default();
        attempts.begin("a", at(0));
        attempts.failed("a", "no".to_owned(), Some(Duration::from_secs(3600)), at(0));
        assert_eq!(attempts.next("a", at(0)), at(60));
        attempts.failed("a", "no".to_owned(), Some(Duration::MAX), at(0));
        assert_eq!(attempts.next("a", at(0)), at(24 * 60));
        assert_eq!(attempts.next("b", at(0)), at(0), "other names are another order");
        assert_eq!(attempts.failure("b"), None);
    }

    #[test]
    fn clock_that_was_ahead_delays_no_order() {
        let mut attempts = Attempts::default();
        for _ in 0..MAX_ORDERS {
            attempts.begin("a", at(100_000));
        }
        attempts.failed("a", "no".to_owned(), Some(Duration::from_secs(3600)), at(100_000));
        attempts.issued("a", at(100_000));
        for now in [0, 1, 24 * 60, 90_000] {
            assert_eq!(attempts.next("a", at(now)), at(now));
        }
        attempts.begin("a", at(7));
        assert!(attempts.next("a", at(7)) > at(7), "it counts by the clock that is right");
    }

    #[test]
    fn certificate_that_was_issued_but_not_stored_is_ordered_a_day_later() {
        let mut attempts = Attempts::default();
        attempts.begin("a", at(0));
        attempts.issued("a", at(1));
        attempts.failed("a", "the disk is full".to_owned(), None, at(1));
        assert_eq!(attempts.next("a", at(2)), at(24 * 60 + 1));
        attempts.succeeded("a");
        assert_eq!(attempts.next("a", at(2)), at(2));
    }

    #[test]
    fn gates_with_other_settings_do_not_shorten_each_others_waits() {
        let mut attempts = Attempts::default();
        for certificate in ["a", "b", "a", "b"] {
            attempts.begin(certificate, at(0));
            attempts.failed(certificate, certificate.to_owned(), None, at(0));
        }
        assert_eq!(["a", "b"].map(|it| attempts.next(it, at(0))), [at(10), at(10)]);
        assert_eq!(attempts.failure("a"), Some("a"));
        for number in 0..100 {
            attempts.begin(&number.to_string(), at(number));
        }
        assert_eq!(attempts.certificates.len(), MAX_CERTIFICATES);
    }
}
