//! Figures: what one gate has done in an interval, as counts that can be added. And activity: the
//! rates of an interval, which can be added over gates.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::telemetry::{Calls, Durations, Readings};

/// The kinds of decisions that the cache had, and that it did not have.
const HITS: [&str; 1] = ["cache"];
const MISSES: [&str; 2] = ["ledger", "registered"];

/// The counts of an interval of one gate, and the state at its end.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    /// The end of the interval.
    pub(super) at: Timestamp,
    /// Its length.
    pub(super) seconds: f64,
    pub(super) loans: u64,
    pub(super) requests: u64,
    /// Requests under a loan whose decision was cached, and those whose was not.
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) refusals: BTreeMap<String, u64>,
    pub(super) bytes: u64,
    pub(super) head: Durations,
    pub(super) lending: Calls,
    pub(super) lending_seconds: Durations,
    pub(super) origins: BTreeMap<String, Calls>,
    /// Ends that this gate sends and Bokbasen has not acknowledged.
    pub(super) ends_waiting: u64,
    /// The age of the oldest unacknowledged end of all gates, in seconds.
    pub(super) oldest_end: u64,
    pub(super) streams: u64,
    /// The gates of the cluster.
    pub(super) nodes: u64,
}

impl Figures {
    /// Returns the figures between two readings.
    pub(super) fn between(
        before: &Readings,
        after: &Readings,
        elapsed: Duration,
        at: Timestamp,
        oldest_end: Duration,
    ) -> Figures {
        let answered = risen(&before.answered, &after.answered);
        let sum =
            |kinds: &[&str]| -> u64 { kinds.iter().filter_map(|kind| answered.get(*kind)).sum() };
        let origins = after.origins.iter().map(|(name, calls)| {
            let before = before.origins.get(name).copied().unwrap_or_default();
            (name.clone(), calls_between(before, *calls))
        });
        Figures {
            at,
            seconds: elapsed.as_secs_f64().max(0.001),
            loans: after.loans.saturating_sub(before.loans),
            requests: answered.values().sum(),
            hits: sum(&HITS),
            misses: sum(&MISSES),
            refusals: risen(&before.refused, &after.refused),
            bytes: after.bytes.saturating_sub(before.bytes),
            head: after.head.since(&before.head),
            lending: calls_between(before.lending, after.lending),
            lending_seconds: after.lending_seconds.since(&before.lending_seconds),
            origins: origins.collect(),
            ends_waiting: after.ends_waiting,
            oldest_end: oldest_end.as_secs(),
            streams: after.streams,
            nodes: after.members.unwrap_or(1),
        }
    }

    /// Adds a later interval of the same gate.
    pub(super) fn add(&mut self, later: &Figures) {
        self.at = later.at;
        self.seconds += later.seconds;
        self.loans = self.loans.saturating_add(later.loans);
        self.requests = self.requests.saturating_add(later.requests);
        self.hits = self.hits.saturating_add(later.hits);
        self.misses = self.misses.saturating_add(later.misses);
        self.bytes = self.bytes.saturating_add(later.bytes);
        for (kind, count) in &later.refusals {
            let sum = self.refusals.entry(kind.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
        for (name, calls) in &later.origins {
            add_calls(self.origins.entry(name.clone()).or_default(), *calls);
        }
        self.head.add(&later.head);
        add_calls(&mut self.lending, later.lending);
        self.lending_seconds.add(&later.lending_seconds);
        // The states are those at the end. A high one in between must not vanish.
        self.ends_waiting = self.ends_waiting.max(later.ends_waiting);
        self.oldest_end = self.oldest_end.max(later.oldest_end);
        (self.streams, self.nodes) = (later.streams, later.nodes);
    }
}

/// Returns the counts that have risen, and by how much.
fn risen(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let rise = |(name, count): (&String, &u64)| {
        let rise = count.saturating_sub(before.get(name).copied().unwrap_or_default());
        (rise > 0).then(|| (name.clone(), rise))
    };
    after.iter().filter_map(rise).collect()
}

fn calls_between(before: Calls, after: Calls) -> Calls {
    Calls {
        answered: after.answered.saturating_sub(before.answered),
        failed: after.failed.saturating_sub(before.failed),
    }
}

fn add_calls(sum: &mut Calls, calls: Calls) {
    sum.answered = sum.answered.saturating_add(calls.answered);
    sum.failed = sum.failed.saturating_add(calls.failed);
}

/// Calls of another system, for each minute.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct CallRates {
    /// Calls that were answered, also with a refusal.
    pub(crate) answered: f64,
    /// Calls without a usable answer.
    pub(crate) failed: f64,
}

/// The rates of an interval, of one gate or of several, and the state at its end.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Activity {
    /// Loans that Bokbasen accepted, for each minute.
    pub(crate) loans: f64,
    /// Answered requests, for each minute.
    pub(crate) requests: f64,
    /// Refused requests for each minute, by the type of the problem.
    pub(crate) refusals: BTreeMap<String, f64>,
    /// Body bytes sent to readers, for each second.
    pub(crate) bytes: f64,
    /// Times to the response head.
    pub(crate) head: Durations,
    /// Calls to Bokbasen.
    pub(crate) lending: CallRates,
    /// Durations of calls to Bokbasen.
    pub(crate) lending_seconds: Durations,
    /// Requests to each storage.
    pub(crate) origins: BTreeMap<String, CallRates>,
    /// Ends that Bokbasen has not acknowledged.
    pub(crate) ends_waiting: u64,
    /// The age of the oldest one, in seconds.
    pub(crate) oldest_end: u64,
    /// Response bodies in progress.
    pub(crate) streams: u64,
    /// The gates of the cluster.
    pub(crate) nodes: u64,
    /// Requests under a loan whose decision was cached, and those whose was not.
    pub(crate) hits: u64,
    /// See `hits`.
    pub(crate) misses: u64,
}

impl Activity {
    /// Returns the rates of one gate.
    pub(super) fn of(figures: &Figures) -> Activity {
        let per_second = |count: u64| count as f64 / figures.seconds.max(0.001);
        let per_minute = |count: u64| 60.0 * per_second(count);
        let rates = |calls: Calls| CallRates {
            answered: per_minute(calls.answered),
            failed: per_minute(calls.failed),
        };
        let refusals = figures.refusals.iter();
        let origins = figures.origins.iter();
        Activity {
            loans: per_minute(figures.loans),
            requests: per_minute(figures.requests),
            refusals: refusals.map(|(kind, count)| (kind.clone(), per_minute(*count))).collect(),
            bytes: per_second(figures.bytes),
            head: figures.head.clone(),
            lending: rates(figures.lending),
            lending_seconds: figures.lending_seconds.clone(),
            origins: origins.map(|(name, calls)| (name.clone(), rates(*calls))).collect(),
            ends_waiting: figures.ends_waiting,
            oldest_end: figures.oldest_end,
            streams: figures.streams,
            nodes: figures.nodes,
            hits: figures.hits,
            misses: figures.misses,
        }
    }

    /// Adds the same interval of another gate.
    pub(super) fn add(&mut self, other: &Activity) {
        self.loans += other.loans;
        self.requests += other.requests;
        self.bytes += other.bytes;
        for (kind, rate) in &other.refusals {
            *self.refusals.entry(kind.clone()).or_default() += rate;
        }
        for (name, rates) in &other.origins {
            self.origins.entry(name.clone()).or_default().add(*rates);
        }
        self.head.add(&other.head);
        self.lending.add(other.lending);
        self.lending_seconds.add(&other.lending_seconds);
        self.ends_waiting = self.ends_waiting.saturating_add(other.ends_waiting);
        // Each gate reports the oldest end of all.
        self.oldest_end = self.oldest_end.max(other.oldest_end);
        self.streams = self.streams.saturating_add(other.streams);
        self.nodes = self.nodes.max(other.nodes);
        self.hits = self.hits.saturating_add(other.hits);
        self.misses = self.misses.saturating_add(other.misses);
    }

    /// Returns the share of requests under a loan whose decision was cached; none without requests.
    pub(crate) fn hit_rate(&self) -> Option<f64> {
        let all = self.hits.saturating_add(self.misses);
        (all > 0).then(|| self.hits as f64 / all as f64)
    }

    /// Returns all refusals, for each minute.
    pub(crate) fn refused(&self) -> f64 {
        // A sum of nothing would be negative zero.
        self.refusals.values().fold(0.0, |sum, rate| sum + rate)
    }
}

impl CallRates {
    fn add(&mut self, other: CallRates) {
        self.answered += other.answered;
        self.failed += other.failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(seconds: f64, loans: u64) -> Figures {
        Figures {
            seconds,
            loans,
            hits: 9 * loans,
            misses: loans,
            refusals: [("loan-refused".to_owned(), loans)].into(),
            head: Durations { buckets: vec![(0.1, loans), (f64::INFINITY, 0)] },
            origins: [("files".to_owned(), Calls { answered: loans, failed: 1 })].into(),
            oldest_end: loans,
            ..Figures::default()
        }
    }

    #[test]
    fn intervals_of_a_gate_are_added_and_gates_are_added_as_rates() {
        let mut minute = figures(10.0, 1);
        minute.add(&figures(20.0, 2));
        assert_eq!((minute.seconds, minute.loans), (30.0, 3));
        let mut all = Activity::of(&minute);
        assert_eq!((all.loans, all.hit_rate()), (6.0, Some(0.9)));
        // The other gate was observed for another time: rates are added, and not counts.
        all.add(&Activity::of(&figures(60.0, 4)));
        assert_eq!((all.loans, all.refused(), all.oldest_end), (10.0, 10.0, 4));
        assert_eq!(all.head.buckets, [(0.1, 7), (f64::INFINITY, 0)]);
        assert_eq!(all.origins["files"], CallRates { answered: 10.0, failed: 5.0 });
        assert_eq!(Activity::default().hit_rate(), None);
    }

    #[test]
    fn extreme_counts_do_not_overflow() {
        let most = Figures {
            seconds: f64::MIN_POSITIVE,
            loans: u64::MAX,
            hits: u64::MAX,
            misses: u64::MAX,
            streams: u64::MAX,
            ends_waiting: u64::MAX,
            head: Durations { buckets: vec![(0.1, u64::MAX)] },
            ..figures(1.0, u64::MAX / 9)
        };
        let mut sum = most.clone();
        sum.add(&most);
        let mut all = Activity::of(&sum);
        all.add(&Activity::of(&most));
        assert!(all.loans.is_finite() && all.hit_rate().is_some());
        assert!(all.head.quantile(0.5).is_some());
    }
}
