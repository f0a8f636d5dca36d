//! Time series of the last hour and the last day, in memory of a fixed size.
//!
//! A point is the difference of two readings of the metrics, so nothing is counted twice, and
//! counting costs a request nothing more.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::figures::Figures;
use crate::telemetry::{Calls, Durations, Readings};

/// The time between two points, and the number of points.
const HOUR: (Duration, usize) = (Duration::from_secs(10), 360);
const DAY: (Duration, usize) = (Duration::from_secs(300), 288);
/// The length of a series.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Window {
    /// The last hour, a point each ten seconds.
    Hour,
    /// The last day, a point each five minutes.
    Day,
}

/// Calls of another system in an interval.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[schema(as = NowCalls)]
pub(crate) struct CallCounts {
    /// Calls that were answered, also with a refusal.
    answered: u64,
    /// Calls without a usable answer.
    failed: u64,
}

/// Quantiles of durations, in seconds. They are estimates: interpolated in buckets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct Quantiles {
    p50: f64,
    p90: f64,
    p99: f64,
}

/// What happened in an interval, and the state at its end.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = NowPoint)]
pub(crate) struct Point {
    /// The end of the interval.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// The length of the interval. It is longer after a pause of the process.
    seconds: f64,
    /// Loans that Bokbasen accepted, for each minute.
    loans_per_minute: f64,
    /// Answered requests, for each second.
    requests_per_second: f64,
    /// Refused requests, by the type of the problem.
    refusals: BTreeMap<String, u64>,
    /// The share of requests under a loan whose decision was cached; none without requests.
    #[schema(required)]
    hit_rate: Option<f64>,
    /// Body bytes sent to readers, for each second.
    bytes_per_second: f64,
    /// Times to the response head; none without requests.
    #[schema(required)]
    latency: Option<Quantiles>,
    /// Calls to Bokbasen.
    lending: CallCounts,
    /// Durations of calls to Bokbasen; none without calls.
    #[schema(required)]
    lending_latency: Option<Quantiles>,
    /// Requests to each storage.
    origins: BTreeMap<String, CallCounts>,
    /// Ends that this gate sends and Bokbasen has not acknowledged.
    ends_waiting: u64,
    /// The age of the oldest unacknowledged end of all gates, in seconds; 0 without one.
    oldest_end: u64,
    /// Response bodies in progress.
    streams: u64,
    /// The gates of the cluster.
    nodes: u64,
}

/// The series of one gate.
#[derive(Debug)]
pub(super) struct Series {
    hour: Track,
    day: Track,
}

#[derive(Debug)]
struct Track {
    resolution: Duration,
    capacity: usize,
    last: Option<(Instant, Readings)>,
    points: VecDeque<Figures>,
}

impl Default for Series {
    fn default() -> Series {
        let track = |(resolution, capacity)| Track {
            resolution,
            capacity,
            last: None,
            points: VecDeque::with_capacity(capacity),
        };
        Series { hour: track(HOUR), day: track(DAY) }
    }
}

impl Series {
    /// Adds a reading. `oldest_end` is the age of the oldest unacknowledged end. Returns the new
    /// figures of the last hour, if the reading has ended an interval.
    pub(super) fn add(
        &mut self,
        now: (Instant, Timestamp),
        readings: &Readings,
        oldest_end: Duration,
    ) -> Option<&Figures> {
        self.day.add(now, readings, oldest_end);
        let has_new = self.hour.add(now, readings, oldest_end);
        self.hour.points.back().filter(|_| has_new)
    }

    /// Returns the newest figures of the last hour, the oldest first.
    pub(super) fn newest(&self, count: usize) -> impl Iterator<Item = &Figures> {
        let points = &self.hour.points;
        points.iter().skip(points.len().saturating_sub(count))
    }

    /// Returns the resolution of a window and its points, the oldest first.
    pub(super) fn points(&self, window: Window) -> (Duration, Vec<Point>) {
        let track = match window {
            Window::Hour => &self.hour,
            Window::Day => &self.day,
        };
        (track.resolution, track.points.iter().map(Point::of).collect())
    }
}

impl Track {
    /// Returns whether the reading has ended an interval.
    fn add(
        &mut self,
        now: (Instant, Timestamp),
        readings: &Readings,
        oldest_end: Duration,
    ) -> bool {
        let Some((at, before)) = &self.last else {
            self.last = Some((now.0, readings.clone()));
            return false;
        };
        let elapsed = now.0.duration_since(*at);
        // Readings are not exactly on time.
        if elapsed < self.resolution.mul_f64(0.8) {
            return false;
        }
        let figures = Figures::between(before, readings, elapsed, now.1, oldest_end);
        self.last = Some((now.0, readings.clone()));
        if self.points.len() >= self.capacity {
            self.points.pop_front();
        }
        self.points.push_back(figures);
        true
    }
}

impl Point {
    fn of(figures: &Figures) -> Point {
        let per_second = |count: u64| count as f64 / figures.seconds;
        let (hits, misses) = (figures.hits, figures.misses);
        let origins = figures.origins.iter();
        Point {
            at: figures.at,
            seconds: figures.seconds,
            loans_per_minute: 60.0 * per_second(figures.loans),
            requests_per_second: per_second(figures.requests),
            refusals: figures.refusals.clone(),
            hit_rate: (hits + misses > 0).then(|| hits as f64 / (hits + misses) as f64),
            bytes_per_second: per_second(figures.bytes),
            latency: Quantiles::of(&figures.head),
            lending: CallCounts::of(figures.lending),
            lending_latency: Quantiles::of(&figures.lending_seconds),
            origins: origins.map(|(name, calls)| (name.clone(), CallCounts::of(*calls))).collect(),
            ends_waiting: figures.ends_waiting,
            oldest_end: figures.oldest_end,
            streams: figures.streams,
            nodes: figures.nodes,
        }
    }
}

impl CallCounts {
    fn of(calls: Calls) -> CallCounts {
        CallCounts { answered: calls.answered, failed: calls.failed }
    }
}

impl Quantiles {
    fn of(durations: &Durations) -> Option<Quantiles> {
        let quantile = |quantile| durations.quantile(quantile);
        Some(Quantiles { p50: quantile(0.5)?, p90: quantile(0.9)?, p99: quantile(0.99)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_secs(5);

    /// Returns a reading after this many steps, in each of which three loans were accepted.
    fn reading(steps: u64) -> Readings {
        let counts = |entries: &[(&str, u64)]| {
            entries.iter().map(|(name, count)| ((*name).to_owned(), count * steps)).collect()
        };
        Readings {
            answered: counts(&[("cache", 9), ("ledger", 1), ("open", 5)]),
            refused: counts(&[("loan-refused", 2), ("overloaded", 0)]),
            bytes: 500 * steps,
            loans: 3 * steps,
            head: Durations { buckets: vec![(0.1, 10 * steps), (f64::INFINITY, 0)] },
            origins: [("files".to_owned(), Calls { answered: 4 * steps, failed: steps })].into(),
            ends_waiting: steps,
            ..Readings::default()
        }
    }

    #[test]
    fn points_are_the_differences_of_readings() {
        let (mut series, start) = (Series::default(), Instant::now());
        for step in 0..5 {
            let now = (start + STEP * u32::try_from(step).unwrap(), Timestamp::UNIX_EPOCH);
            series.add(now, &reading(step), Duration::from_secs(77));
        }
        let (resolution, points) = series.points(Window::Hour);
        assert_eq!((resolution, points.len()), (Duration::from_secs(10), 2));
        let point = &points[1];
        assert_eq!((point.seconds, point.loans_per_minute), (10.0, 36.0));
        assert_eq!((point.hit_rate, point.requests_per_second), (Some(0.9), 3.0));
        assert_eq!(point.refusals, [("loan-refused".to_owned(), 4)].into());
        assert_eq!((point.bytes_per_second, point.ends_waiting, point.oldest_end), (100.0, 4, 77));
        assert_eq!(point.origins["files"], CallCounts { answered: 8, failed: 2 });
        assert!((point.latency.unwrap().p50 - 0.05).abs() < 0.001);
        assert_eq!((point.lending_latency, point.nodes), (None, 1));
        assert!(series.points(Window::Day).1.is_empty());
    }

    #[test]
    fn series_have_a_fixed_length() {
        let (mut series, start) = (Series::default(), Instant::now());
        for step in 0..100_000_u32 {
            let now = (start + STEP * step, Timestamp::from_second(step.into()).unwrap());
            series.add(now, &reading(step.into()), Duration::ZERO);
        }
        for (window, count) in [(Window::Hour, 360), (Window::Day, 288)] {
            let points = series.points(window).1;
            assert_eq!(points.len(), count);
            assert!(points.is_sorted_by_key(|point| point.at));
            assert!((points[0].loans_per_minute - 36.0).abs() < 0.001);
        }
    }
}
