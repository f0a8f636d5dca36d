//! Rates: the differences between the counts of the last minute.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::status::{Calls, Counts, Status};

/// The time that rates a minute cover.
const LENGTH: Duration = Duration::from_secs(60);
/// The kinds of decisions under a loan: of the cache, and others.
const HITS: [&str; 1] = ["cache"];
const MISSES: [&str; 2] = ["ledger", "registered"];

/// The counts of the last minute.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// The process that has counted them, and its start.
    process: Option<(u32, Timestamp)>,
    /// The oldest first. With the shortest interval, there are 600.
    samples: VecDeque<(Instant, Counts)>,
}

/// What a gate does.
#[derive(Debug, Serialize)]
pub(super) struct Rates {
    /// Since the last look.
    pub(super) requests_per_second: f64,
    pub(super) bytes_per_second: f64,
    /// In the last minute, like all that follow.
    pub(super) loans_per_minute: f64,
    /// By the type of the problem.
    pub(super) refusals_per_minute: BTreeMap<String, f64>,
    /// The share of requests under a loan whose decision was cached; none without such requests.
    pub(super) hit_rate: Option<f64>,
    pub(super) lending: CallRates,
    pub(super) origins: BTreeMap<String, CallRates>,
}

/// Calls of another system, for each minute.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct CallRates {
    pub(super) answered_per_minute: f64,
    pub(super) failed_per_minute: f64,
}

impl Window {
    /// Adds the counts of a look. Returns none for the first one of a process.
    pub(super) fn add(&mut self, now: Instant, status: &Status) -> Option<Rates> {
        let process = Some((status.process, status.started));
        if self.process != process {
            self.samples.clear();
            self.process = process;
        }
        // The first sample is the last one that is not within the length, if there is one.
        while self.samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= LENGTH) {
            self.samples.pop_front();
        }
        let rates = self
            .samples
            .front()
            .zip(self.samples.back())
            .map(|(oldest, last)| Rates::between(oldest, last, (now, &status.counts)));
        self.samples.push_back((now, status.counts.clone()));
        rates
    }
}

impl Rates {
    /// Returns the rate of refusals of any type.
    pub(super) fn all_refusals_per_minute(&self) -> f64 {
        // `sum` of none is -0.
        self.refusals_per_minute.values().fold(0.0, |sum, rate| sum + rate)
    }

    fn between(
        oldest: &(Instant, Counts),
        last: &(Instant, Counts),
        (now, counts): (Instant, &Counts),
    ) -> Rates {
        let seconds = |from: Instant| now.duration_since(from).as_secs_f64().max(0.001);
        let (minute, second) = (seconds(oldest.0) / 60.0, seconds(last.0));
        let (oldest, last) = (&oldest.1, &last.1);
        let calls = |before: Calls, after: Calls| CallRates {
            answered_per_minute: rate(before.answered, after.answered, minute),
            failed_per_minute: rate(before.failed, after.failed, minute),
        };
        let refused = risen(&oldest.refused, &counts.refused).into_iter();
        let origins = counts.origins.iter().map(|(name, after)| {
            let before = oldest.origins.get(name).copied().unwrap_or_default();
            (name.clone(), calls(before, *after))
        });
        let all = |counts: &Counts| -> u64 { counts.answered.values().sum() };
        Rates {
            requests_per_second: rate(all(last), all(counts), second),
            bytes_per_second: rate(last.bytes, counts.bytes, second),
            loans_per_minute: rate(oldest.loans, counts.loans, minute),
            refusals_per_minute: refused.map(|(kind, n)| (kind, rate(0, n, minute))).collect(),
            hit_rate: hit_rate(&risen(&oldest.answered, &counts.answered)),
            lending: calls(oldest.lending, counts.lending),
            origins: origins.collect(),
        }
    }
}

/// Returns the rate of a counter, with three decimals.
fn rate(before: u64, after: u64, time: f64) -> f64 {
    rounded(after.saturating_sub(before) as f64 / time)
}

fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// Returns the counts that have risen, and by how much.
fn risen(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let rise = |(name, count): (&String, &u64)| {
        let rise = count.saturating_sub(before.get(name).copied().unwrap_or_default());
        (rise > 0).then(|| (name.clone(), rise))
    };
    after.iter().filter_map(rise).collect()
}

fn hit_rate(answered: &BTreeMap<String, u64>) -> Option<f64> {
    let sum = |kinds: &[&str]| -> u64 { kinds.iter().filter_map(|kind| answered.get(*kind)).sum() };
    let (hits, misses) = (sum(&HITS), sum(&MISSES));
    (hits + misses > 0).then(|| rounded(hits as f64 / (hits + misses) as f64))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::look::tests::status;
    use super::*;

    fn counted(process: u32, requests: u64) -> Status {
        let mut status = status();
        status.process = process;
        let counts = json!({
            "loans": requests / 10, "bytes": 1000 * requests,
            "answered": { "cache": requests, "ledger": requests / 4, "open": 1 },
            "refused": { "loan-refused": requests / 5, "overloaded": 3 },
            "lending": { "answered": requests / 10, "failed": 0 },
            "origins": { "files": { "answered": requests, "failed": requests / 100 } },
        });
        status.counts = serde_json::from_value(counts).unwrap();
        status
    }

    #[test]
    fn rates_are_those_of_the_last_second_and_minute() {
        let (mut window, start) = (Window::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(window.add(at(0), &counted(1, 100)).is_none());
        let rates = window.add(at(2), &counted(1, 140)).unwrap();
        assert_eq!((rates.requests_per_second, rates.bytes_per_second), (25.0, 20_000.0));
        assert_eq!(rates.loans_per_minute, 120.0);
        assert_eq!(rates.refusals_per_minute, [("loan-refused".to_owned(), 240.0)].into());
        assert_eq!(rates.hit_rate, Some(0.8));
        let origin = CallRates { answered_per_minute: 1200.0, failed_per_minute: 0.0 };
        assert_eq!(rates.origins, [("files".to_owned(), origin)].into());
        for second in 3..200 {
            window.add(at(second), &counted(1, 140));
        }
        assert!(window.samples.len() <= 62, "{}", window.samples.len());
        let rates = window.add(at(200), &counted(1, 260)).unwrap();
        assert_eq!((rates.requests_per_second, rates.loans_per_minute), (150.0, 12.0));
    }

    #[test]
    fn another_process_begins_again() {
        let (mut window, now) = (Window::default(), Instant::now());
        window.add(now, &counted(1, 100));
        assert!(window.add(now + LENGTH, &counted(2, 5)).is_none());
        let rates = window.add(now + 2 * LENGTH, &counted(2, 5)).unwrap();
        assert_eq!((rates.loans_per_minute, rates.hit_rate), (0.0, None));
    }
}
