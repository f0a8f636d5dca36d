//! The values of the metrics at one moment, for the parts that watch the gate.
//!
//! They are read from the text of Prometheus, off the hot path: counting costs no more for it.

use std::collections::BTreeMap;

use super::Metrics;
use super::family::{DURATION_BUCKETS, Family, Labels};
use super::text::{Sample, samples};
use super::{balance, connections, ledger, lending, loans, origins, requests, tasks};

/// Counts since the start, and current values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Readings {
    /// Answered requests, by the `via` of the decision.
    pub answered: BTreeMap<String, u64>,
    /// Refused requests, by the slug of the problem.
    pub refused: BTreeMap<String, u64>,
    /// Times to the response head.
    pub head: Durations,
    /// Body bytes sent to readers.
    pub bytes: u64,
    /// Response bodies in progress.
    pub streams: u64,
    /// Open connections of readers.
    pub connections: u64,
    /// Loans that Bokbasen accepted.
    pub loans: u64,
    /// Ends that Bokbasen has not acknowledged, and those of them that have waited for a day.
    pub ends_waiting: u64,
    /// See `ends_waiting`.
    pub ends_overdue: u64,
    /// Loans that a process without a lease began.
    pub late_begins: u64,
    /// Calls to Bokbasen.
    pub lending: Calls,
    /// Durations of these calls.
    pub lending_seconds: Durations,
    /// Loans in Bokbasen's responses that violate its API.
    pub lending_breaches: u64,
    /// The kinds of calls to Bokbasen that are suspended.
    pub breakers_open: Vec<String>,
    /// 1 if Bokbasen's clock differs by a minute, 2 if by 15 minutes.
    pub clock_alarm: u64,
    /// Whether the last balance left a difference for an operator, or failed.
    pub is_unbalanced: bool,
    /// Requests to each origin.
    pub origins: BTreeMap<String, Calls>,
    /// Whether the ledger can be written.
    pub is_ledger_writable: bool,
    /// Whether this process holds its lease; none if the ledger has no leases.
    pub is_lease_held: Option<bool>,
    /// Live processes on the ledger; none if it does not count them.
    pub members: Option<u64>,
    /// Other processes that this one declared dead.
    pub fenced_others: u64,
    /// How far the clock of the database is ahead, in seconds.
    pub ledger_clock_ahead: f64,
    /// Restarts of background tasks.
    pub task_restarts: u64,
}

/// Calls of another system.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Calls {
    /// Calls that were answered, also with a refusal.
    pub answered: u64,
    /// Calls without a usable answer.
    pub failed: u64,
}

/// A distribution of durations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Durations {
    /// The upper bound of each bucket in seconds, and the number of durations in it.
    pub buckets: Vec<(f64, u64)>,
}

impl Metrics {
    /// Reads the current values.
    pub fn readings(&self) -> Readings {
        Readings::of(&Series::parse(&self.render()))
    }
}

impl Readings {
    fn of(series: &Series) -> Readings {
        let refused = |outcome: &str| outcome != "ok" && outcome != "preflight";
        let (mut answered, mut refusals) = (BTreeMap::new(), BTreeMap::new());
        for (labels, value) in series.all(&requests::REQUESTS) {
            let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
            let outcome = label("outcome");
            match outcome.as_str() {
                "ok" => *answered.entry(label("via")).or_default() += whole(*value),
                other if refused(other) => *refusals.entry(outcome).or_default() += whole(*value),
                _ => {}
            }
        }
        let writable = series.one(&ledger::WRITABLE);
        Readings {
            answered,
            refused: refusals,
            head: series.durations(&requests::HEAD),
            bytes: series.sum(&requests::DELIVERED),
            streams: series.sum(&requests::STREAMS),
            connections: series.sum(&connections::CONNECTIONS),
            loans: series.with_label(&loans::LOAN_EVENTS, "event", &["accepted"]),
            ends_waiting: series.sum(&loans::ENDS_WAITING),
            ends_overdue: series.sum(&loans::ENDS_OVERDUE),
            late_begins: series.sum(&loans::LATE_BEGINS),
            lending: Calls {
                answered: series.with_label(&lending::CALLS, "outcome", &["ok", "rejected"]),
                failed: series.with_label(&lending::CALLS, "outcome", &["not_sent", "unknown"]),
            },
            lending_seconds: series.durations(&lending::CALL_SECONDS),
            lending_breaches: series.sum(&lending::BREACHES),
            breakers_open: series.labels_above_zero(&lending::BREAKER_OPEN, "kind"),
            clock_alarm: series.sum(&lending::CLOCK_ALARM),
            is_unbalanced: series.sum(&balance::UNBALANCED) > 0,
            origins: series.origins(),
            is_ledger_writable: writable.is_none_or(|writable| writable > 0.0),
            is_lease_held: series.one(&ledger::LEASE).map(|held| held > 0.0),
            members: series.one(&ledger::MEMBERS).map(whole),
            fenced_others: series.with_label(&ledger::FENCED, "member", &["other"]),
            ledger_clock_ahead: series.one(&ledger::CLOCK).unwrap_or_default(),
            task_restarts: series.sum(&tasks::RESTARTS),
        }
    }
}

/// A count, or a value that is never negative.
fn whole(value: f64) -> u64 {
    // A cast saturates, and turns what is no number into 0.
    value as u64
}

type LabelSet = BTreeMap<String, String>;

/// All time series with their values, by the names of the metrics.
struct Series(BTreeMap<String, Vec<(LabelSet, f64)>>);

impl Series {
    fn parse(text: &str) -> Series {
        let mut all: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for Sample { name, labels, value } in samples(text) {
            let Ok(value) = value.parse::<f64>() else { continue };
            let labels = labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            all.entry(name.to_owned()).or_default().push((labels, value));
        }
        Series(all)
    }

    fn all<L: Labels>(&self, family: &Family<L>) -> &[(LabelSet, f64)] {
        self.named(family.definition.name)
    }

    fn named(&self, name: &str) -> &[(LabelSet, f64)] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    fn one(&self, family: &Family<()>) -> Option<f64> {
        self.all(family).first().map(|(_, value)| *value)
    }

    fn sum<L: Labels>(&self, family: &Family<L>) -> u64 {
        self.all(family).iter().map(|(_, value)| whole(*value)).sum()
    }

    fn with_label<L: Labels>(&self, family: &Family<L>, key: &str, values: &[&str]) -> u64 {
        let is_one = |labels: &LabelSet| {
            labels.get(key).is_some_and(|value| values.contains(&value.as_str()))
        };
        let series = self.all(family).iter().filter(|(labels, _)| is_one(labels));
        series.map(|(_, value)| whole(*value)).sum()
    }

    fn labels_above_zero<L: Labels>(&self, family: &Family<L>, key: &str) -> Vec<String> {
        let series = self.all(family).iter().filter(|(_, value)| *value > 0.0);
        series.filter_map(|(labels, _)| labels.get(key).cloned()).collect()
    }

    fn origins(&self) -> BTreeMap<String, Calls> {
        let mut origins: BTreeMap<String, Calls> = BTreeMap::new();
        for (labels, value) in self.all(&origins::REQUESTS) {
            let (Some(origin), Some(outcome)) = (labels.get("origin"), labels.get("outcome"))
            else {
                continue;
            };
            let calls = origins.entry(origin.clone()).or_default();
            match outcome.as_str() {
                "2xx" | "3xx" | "4xx" => calls.answered += whole(*value),
                _ => calls.failed += whole(*value),
            }
        }
        origins
    }

    /// Returns the durations of all labels together.
    fn durations<L: Labels>(&self, family: &Family<L>) -> Durations {
        let name = format!("{}_bucket", family.definition.name);
        // Cumulative, as in Prometheus: the count of each bound includes those of the lower ones.
        let mut counts: Vec<(f64, u64)> = Vec::new();
        for (labels, value) in self.named(&name) {
            let bound = labels.get("le").and_then(|bound| bound.parse::<f64>().ok());
            let (Some(bound), count) = (bound, whole(*value)) else { continue };
            match counts.iter_mut().find(|(other, _)| other.total_cmp(&bound).is_eq()) {
                Some((_, sum)) => *sum = sum.saturating_add(count),
                None => counts.push((bound, count)),
            }
        }
        let before = std::iter::once(0).chain(counts.iter().map(|(_, count)| *count));
        let buckets = counts.iter().zip(before);
        let own =
            |((bound, count), before): (&(f64, u64), u64)| (*bound, count.saturating_sub(before));
        Durations { buckets: buckets.map(own).collect() }
    }
}

impl Durations {
    /// Returns durations by their counts in each bucket of the metrics; none if there are not as
    /// many.
    pub fn of_counts(counts: &[u64]) -> Option<Durations> {
        let bounds = DURATION_BUCKETS.into_iter().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(counts.iter().copied()).collect();
        let is_complete = counts.len() == DURATION_BUCKETS.len() + 1;
        (is_complete || counts.is_empty()).then_some(Durations { buckets })
    }

    /// Returns the counts of the buckets.
    pub fn counts(&self) -> Vec<u64> {
        self.buckets.iter().map(|(_, count)| *count).collect()
    }

    /// Returns the durations since an earlier reading.
    pub fn since(&self, earlier: &Durations) -> Durations {
        let before = earlier.buckets.iter().map(|(_, count)| *count);
        let before = before.chain(std::iter::repeat(0));
        let buckets = self.buckets.iter().zip(before);
        Durations {
            buckets: buckets
                .map(|((bound, count), before)| (*bound, count.saturating_sub(before)))
                .collect(),
        }
    }

    /// Adds other durations. Those with other buckets cannot be added, and are left out.
    pub fn add(&mut self, other: &Durations) {
        if self.buckets.is_empty() {
            self.buckets.clone_from(&other.buckets);
            return;
        }
        let bounds = |durations: &Durations| -> Vec<f64> {
            durations.buckets.iter().map(|(bound, _)| *bound).collect()
        };
        if bounds(self) == bounds(other) {
            for ((_, count), (_, more)) in self.buckets.iter_mut().zip(&other.buckets) {
                *count = count.saturating_add(*more);
            }
        }
    }

    /// Returns an estimate of a quantile, in seconds: it is interpolated in its bucket. Returns
    /// none if there are no durations.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let counts = self.buckets.iter().map(|(_, count)| *count);
        let total = counts.fold(0_u64, u64::saturating_add);
        let wanted = quantile * total as f64;
        let (mut seen, mut lower) = (0.0, 0.0);
        for (bound, count) in self.buckets.iter().filter(|_| total > 0) {
            let count = *count as f64;
            if count > 0.0 && seen + count >= wanted {
                let share = ((wanted - seen) / count).clamp(0.0, 1.0);
                return Some(if bound.is_finite() {
                    lower + (bound - lower) * share
                } else {
                    lower
                });
            }
            seen += count;
            lower = if bound.is_finite() { *bound } else { lower };
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{
        CallKind, CallOutcome, FencedMember, LendingCall, OriginOutcome, RequestOutcome, Via,
    };
    use super::*;
    use crate::loan::EventKind;
    use crate::problem::ProblemType;
    use crate::telemetry::LoanEvent;

    #[test]
    fn readings_have_what_was_counted() {
        let metrics = Metrics::new().unwrap();
        assert_eq!(metrics.readings(), Readings { is_ledger_writable: true, ..metrics.readings() });
        for _ in 0..3 {
            metrics.request(RequestOutcome::Ok, Via::Cache, Duration::from_millis(7));
        }
        let refused = RequestOutcome::Refused(ProblemType::ALL[0]);
        metrics.request(refused, Via::None, Duration::from_millis(700));
        metrics.delivered(12);
        metrics.loan(LoanEvent::Applied(EventKind::Accepted));
        metrics.ends_waiting(5, 2);
        let second = Duration::from_secs(1);
        metrics.lending_call(LendingCall::Begin, CallOutcome::Ok, second);
        metrics.lending_call(LendingCall::Begin, CallOutcome::Unknown, second);
        metrics.lending_breaker(CallKind::End, true);
        metrics.lending_breaker(CallKind::Poll, false);
        metrics.balance_failed();
        metrics.ledger_writable(false);
        metrics.members(3);
        metrics.member_fenced(FencedMember::Other);
        metrics.watch_lease(|| false);
        let origin = metrics.origin("a \"quoted\\ name");
        origin.request(OriginOutcome::ClientError, second);
        origin.not_sent(OriginOutcome::Suspended);
        let read = metrics.readings();
        assert_eq!(read.answered.get("cache"), Some(&3));
        assert_eq!(read.refused.get(ProblemType::ALL[0].slug()), Some(&1));
        assert_eq!((read.bytes, read.loans, read.ends_waiting, read.ends_overdue), (12, 1, 5, 2));
        assert_eq!(read.lending, Calls { answered: 1, failed: 1 });
        assert_eq!(read.breakers_open, ["end"]);
        assert!(read.is_unbalanced && !read.is_ledger_writable);
        assert_eq!(
            (read.members, read.fenced_others, read.is_lease_held),
            (Some(3), 1, Some(false))
        );
        let calls = Calls { answered: 1, failed: 1 };
        assert_eq!(read.origins.get("a \"quoted\\ name"), Some(&calls), "{:?}", read.origins);
        assert_eq!(Durations::of_counts(&read.head.counts()), Some(read.head.clone()));
        assert_eq!(Durations::of_counts(&[1]), None);
        let counted: u64 = read.head.buckets.iter().map(|(_, count)| count).sum();
        assert_eq!(counted, 4);
        let median = read.head.quantile(0.5).unwrap();
        assert!((0.005..=0.01).contains(&median), "{median}");
        assert!(read.head.quantile(1.0).unwrap() > 0.5);
        assert_eq!(read.head.since(&read.head).quantile(0.5), None);
    }
}
