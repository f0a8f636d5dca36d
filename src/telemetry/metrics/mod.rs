//! All metrics, with their names, units and descriptions. No other module names a metric.
//!
//! The handles of the hot path are created at the start, so counting is one atomic addition. Each
//! gate has a separate registry, so two gates in one process do not mix their counts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit,
};
use metrics_exporter_prometheus::{
    BuildError, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use super::Via;

const DURATION_BUCKETS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0];
const METADATA: Metadata<'static> = Metadata::new("loangate", Level::INFO, None);

/// Name, unit and description of every counter.
const COUNTERS: &[(&str, Unit, &str)] = &[
    (
        "loangate_requests_total",
        Unit::Count,
        "Requests, by outcome (ok or the slug of the problem) and via",
    ),
    ("loangate_delivered_bytes_total", Unit::Bytes, "Body bytes sent to readers"),
    (
        "loangate_streams_closed_total",
        Unit::Count,
        "Response bodies that ended, by the way they ended",
    ),
    ("loangate_handshakes_total", Unit::Count, "TLS handshakes, by outcome"),
    ("loangate_connections_total", Unit::Count, "Connections with a successful handshake"),
    (
        "loangate_limit_reached_total",
        Unit::Count,
        "Connections that reached a limit in [limits], by limit",
    ),
    ("loangate_loan_events_total", Unit::Count, "Loan events written to the ledger, by event"),
    (
        "loangate_task_restarts_total",
        Unit::Count,
        "Restarts of background tasks that ended early, by task",
    ),
    (
        "loangate_flights_refused_total",
        Unit::Count,
        "Requests refused as overloaded because lending.flights decisions were in flight",
    ),
    (
        "loangate_brake_total",
        Unit::Count,
        "Loan requests that reached a brake limit, by limit and mode",
    ),
    (
        "loangate_balance_findings_total",
        Unit::Count,
        "Differences between the ledger and Bokbasen, by kind and action",
    ),
    ("loangate_lending_calls_total", Unit::Count, "Calls to Bokbasen, by call and outcome"),
    (
        "loangate_lending_breaches_total",
        Unit::Count,
        "Loans in Bokbasen's responses that violate its API, by breach: an alarm",
    ),
    ("loangate_origin_requests_total", Unit::Count, "Requests to origins, by origin and outcome"),
    (
        "loangate_origin_resumes_total",
        Unit::Count,
        "Requests to an origin for the rest of a broken body, by outcome",
    ),
    (
        "loangate_metering_flushes_total",
        Unit::Count,
        "Writes of delivery counts to the ledger, by outcome",
    ),
    ("loangate_ledger_commands_total", Unit::Count, "Commands committed by the ledger"),
    ("loangate_ledger_failures_total", Unit::Count, "Failed transactions of the ledger"),
];
/// Name, unit and description of every gauge.
const GAUGES: &[(&str, Unit, &str)] = &[
    ("loangate_streams", Unit::Count, "Response bodies in progress"),
    ("loangate_connections", Unit::Count, "Open connections, by worker thread"),
    (
        "loangate_buffers_held_bytes",
        Unit::Bytes,
        "Buffer memory that streams hold beyond their minimum",
    ),
    (
        "loangate_buffers_bytes",
        Unit::Bytes,
        "Buffer memory that all streams may hold (server.buffers)",
    ),
    (
        "loangate_flights",
        Unit::Count,
        "Decisions in flight that a caller waits for (limit: lending.flights)",
    ),
    (
        "loangate_lending_breaker_open",
        Unit::Count,
        "1 while calls of this kind to Bokbasen are suspended",
    ),
    (
        "loangate_lending_clock_offset_seconds",
        Unit::Seconds,
        "How far Bokbasen's clock is ahead of this machine's; negative if it is behind",
    ),
    (
        "loangate_lending_clock_alarm",
        Unit::Count,
        "1 if the clocks differ by a minute; 2 if by 15 minutes, when no loan is begun",
    ),
    ("loangate_balance_last_seconds", Unit::Seconds, "Time of the last balance, since the epoch"),
    (
        "loangate_balance_unbalanced",
        Unit::Count,
        "1 if the last balance failed or left a difference for an operator",
    ),
    ("loangate_ends_waiting", Unit::Count, "Ended loans whose end Bokbasen has not acknowledged"),
    ("loangate_ends_overdue", Unit::Count, "Ended loans whose end has waited for a day: an alarm"),
    (
        "loangate_ledger_writable",
        Unit::Count,
        "0 while the ledger cannot be written, by the last write or /readyz: an alarm",
    ),
    ("loangate_ledger_damaged_rows", Unit::Count, "Damaged rows of the ledger, which are skipped"),
];
/// Name, unit and description of every histogram.
const HISTOGRAMS: &[(&str, Unit, &str)] = &[
    ("loangate_head_seconds", Unit::Seconds, "Time from a request to its response head"),
    ("loangate_lending_call_seconds", Unit::Seconds, "Duration of a call to Bokbasen"),
    (
        "loangate_origin_first_byte_seconds",
        Unit::Seconds,
        "Time from a request to an origin to its response head",
    ),
    ("loangate_ledger_commit_seconds", Unit::Seconds, "Duration of a commit of the ledger"),
];

/// The counters of one metric, by the value of their label. They are few, so a linear search
/// suffices.
type LabelledCounters = Vec<(&'static str, Counter)>;

const STREAM_ENDS: [&str; 5] = ["complete", "origin_failed", "hung_up", "cut", "too_slow"];
const ORIGIN_OUTCOMES: [&str; 8] =
    ["2xx", "3xx", "4xx", "5xx", "failed", "timed_out", "busy", "suspended"];

/// The metrics of one origin.
#[derive(Clone)]
pub struct OriginMetrics(Arc<(LabelledCounters, Histogram)>);

/// The metrics of one gate, for all modules. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// Successful requests, by via.
    ok: [Counter; Via::ALL.len()],
    head: Histogram,
    /// Ended bodies, by the way they ended.
    closed: LabelledCounters,
    handshakes: LabelledCounters,
    delivered: Counter,
    streams: Gauge,
    connections_total: Counter,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Creates a registry with all metrics.
    ///
    /// # Errors
    /// Returns an error if the exporter rejects the buckets of the histograms.
    pub fn new() -> Result<Metrics, BuildError> {
        let recorder = PrometheusBuilder::new().set_buckets(&DURATION_BUCKETS)?.build_recorder();
        for &(name, unit, help) in COUNTERS {
            recorder.describe_counter(
                KeyName::from(name),
                Some(unit),
                SharedString::const_str(help),
            );
        }
        for &(name, unit, help) in GAUGES {
            recorder.describe_gauge(KeyName::from(name), Some(unit), SharedString::const_str(help));
        }
        for &(name, unit, help) in HISTOGRAMS {
            recorder.describe_histogram(
                KeyName::from(name),
                Some(unit),
                SharedString::const_str(help),
            );
        }
        let counter =
            |name: &'static str| recorder.register_counter(&Key::from_static_name(name), &METADATA);
        let gauge =
            |name: &'static str| recorder.register_gauge(&Key::from_static_name(name), &METADATA);
        let labelled = |name: &'static str, labels: &[(&'static str, &'static str)]| {
            let labels: Vec<Label> =
                labels.iter().map(|(key, value)| Label::new(*key, *value)).collect();
            recorder.register_counter(&Key::from_parts(name, labels), &METADATA)
        };
        let ok = Via::ALL.map(|via| {
            labelled("loangate_requests_total", &[("outcome", "ok"), ("via", via.name())])
        });
        let inner = Inner {
            handle: recorder.handle(),
            ok,
            closed: STREAM_ENDS
                .map(|end| (end, labelled("loangate_streams_closed_total", &[("end", end)])))
                .into(),
            handshakes: ["ok", "failed"]
                .map(|outcome| {
                    (outcome, labelled("loangate_handshakes_total", &[("outcome", outcome)]))
                })
                .into(),
            head: recorder
                .register_histogram(&Key::from_static_name("loangate_head_seconds"), &METADATA),
            delivered: counter("loangate_delivered_bytes_total"),
            streams: gauge("loangate_streams"),
            connections_total: counter("loangate_connections_total"),
            recorder,
        };
        Ok(Metrics { inner: Arc::new(inner) })
    }

    /// Returns all metrics in the text format of Prometheus.
    pub fn render(&self) -> String {
        self.fold();
        self.inner.handle.render()
    }

    /// Aggregates the recorded values of the histograms. Without regular calls, they store every
    /// value until the next [`Metrics::render`].
    pub fn fold(&self) {
        self.inner.handle.run_upkeep();
    }

    fn count(&self, name: &'static str, labels: &[(&'static str, &str)]) {
        let labels: Vec<Label> =
            labels.iter().map(|(key, value)| Label::new(*key, (*value).to_owned())).collect();
        self.inner
            .recorder
            .register_counter(&Key::from_parts(name, labels), &METADATA)
            .increment(1);
    }

    fn record_duration(&self, name: &'static str, duration: Duration) {
        self.inner
            .recorder
            .register_histogram(&Key::from_static_name(name), &METADATA)
            .record(duration.as_secs_f64());
    }

    /// Records a request whose response head is ready. `head` is the time until then.
    pub fn request(&self, outcome: &'static str, via: Via, head: Duration) {
        self.inner.head.record(head.as_secs_f64());
        match self.inner.ok.get(via as usize) {
            Some(counter) if outcome == "ok" => counter.increment(1),
            _ => {
                self.count("loangate_requests_total", &[("outcome", outcome), ("via", via.name())])
            }
        }
    }

    /// Counts body bytes sent to a reader.
    pub fn delivered(&self, bytes: u64) {
        self.inner.delivered.increment(bytes);
    }

    /// Records the start of a response body.
    pub fn stream_opened(&self) {
        self.inner.streams.increment(1.0);
    }

    /// Records the end of a response body, and how it ended.
    pub fn stream_closed(&self, end: &'static str) {
        self.inner.streams.decrement(1.0);
        count_by(&self.inner.closed, end);
    }

    /// Counts a TLS handshake.
    pub fn handshake(&self, succeeded: bool) {
        count_by(&self.inner.handshakes, if succeeded { "ok" } else { "failed" });
    }

    /// Records an opened connection of this worker.
    pub fn connection_opened(&self, worker: usize) {
        self.inner.connections_total.increment(1);
        self.connections(worker).increment(1.0);
    }

    /// Records a closed connection of this worker.
    pub fn connection_closed(&self, worker: usize) {
        self.connections(worker).decrement(1.0);
    }

    /// Counts a connection that reached this limit of `[limits]`.
    pub fn limit_reached(&self, limit: &'static str) {
        self.count("loangate_limit_reached_total", &[("limit", limit)]);
    }

    fn connections(&self, worker: usize) -> Gauge {
        let key =
            Key::from_parts("loangate_connections", vec![Label::new("worker", worker.to_string())]);
        self.inner.recorder.register_gauge(&key, &METADATA)
    }

    /// Records the buffer bytes that streams hold, and the bytes that they may hold together.
    pub fn buffers(&self, held: usize, total: usize) {
        for (name, bytes) in
            [("loangate_buffers_held_bytes", held), ("loangate_buffers_bytes", total)]
        {
            let gauge = self.inner.recorder.register_gauge(&Key::from_static_name(name), &METADATA);
            gauge.set(bytes as f64);
        }
    }

    /// Counts a loan event written to the ledger.
    pub fn loan(&self, event: &'static str) {
        self.count("loangate_loan_events_total", &[("event", event)]);
    }

    /// Counts a restart of a background task, or of the driver of a loan, that ended early.
    pub fn task_restarted(&self, task: &'static str) {
        self.count("loangate_task_restarts_total", &[("task", task)]);
    }

    /// Records the number of flights that a caller waits for.
    pub fn flights(&self, count: usize) {
        let key = Key::from_static_name("loangate_flights");
        let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        self.inner.recorder.register_gauge(&key, &METADATA).set(count);
    }

    /// Counts a request that was refused at the limit of flights.
    pub fn flight_refused(&self) {
        self.count("loangate_flights_refused_total", &[]);
    }

    /// Counts a loan request that reached a brake limit.
    pub fn brake(&self, limit: &'static str, mode: &'static str) {
        self.count("loangate_brake_total", &[("limit", limit), ("mode", mode)]);
    }

    /// Records a finished call to Bokbasen, with its outcome and duration.
    pub fn lending_call(&self, call: &'static str, outcome: &'static str, duration: Duration) {
        self.count("loangate_lending_calls_total", &[("call", call), ("outcome", outcome)]);
        self.record_duration("loangate_lending_call_seconds", duration);
    }

    /// Counts a loan in a response of Bokbasen that violates its API.
    pub fn lending_breach(&self, breach: &'static str) {
        self.count("loangate_lending_breaches_total", &[("breach", breach)]);
    }

    /// Records whether calls of this kind to Bokbasen are suspended.
    pub fn lending_breaker(&self, kind: &'static str, open: bool) {
        let key = Key::from_parts("loangate_lending_breaker_open", vec![Label::new("kind", kind)]);
        self.inner.recorder.register_gauge(&key, &METADATA).set(if open { 1.0 } else { 0.0 });
    }

    /// Records how many seconds Bokbasen's clock is ahead, and the level of the alarm.
    pub fn lending_clock(&self, ahead: f64, alarm: u8) {
        for (name, value) in [
            ("loangate_lending_clock_offset_seconds", ahead),
            ("loangate_lending_clock_alarm", f64::from(alarm)),
        ] {
            self.inner.recorder.register_gauge(&Key::from_static_name(name), &METADATA).set(value);
        }
    }

    /// Records the number of unacknowledged ends, and of those that have waited for a day.
    pub fn ends_waiting(&self, waiting: u64, overdue: u64) {
        for (name, count) in
            [("loangate_ends_waiting", waiting), ("loangate_ends_overdue", overdue)]
        {
            let gauge = self.inner.recorder.register_gauge(&Key::from_static_name(name), &METADATA);
            gauge.set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
        }
    }

    /// Counts a difference that a balance found, and its action.
    pub fn balance(&self, kind: &'static str, done: &'static str) {
        self.count("loangate_balance_findings_total", &[("kind", kind), ("done", done)]);
    }

    /// Records a finished balance, and whether it left no difference for an operator.
    pub fn balanced(&self, at: Timestamp, balanced: bool) {
        let last = at.duration_since(Timestamp::UNIX_EPOCH).as_secs_f64();
        let left = if balanced { 0.0 } else { 1.0 };
        for (name, value) in
            [("loangate_balance_last_seconds", last), ("loangate_balance_unbalanced", left)]
        {
            self.inner.recorder.register_gauge(&Key::from_static_name(name), &METADATA).set(value);
        }
    }

    /// Records a failed balance.
    pub fn balance_failed(&self) {
        let key = Key::from_static_name("loangate_balance_unbalanced");
        self.inner.recorder.register_gauge(&key, &METADATA).set(1.0);
    }

    /// Returns the metrics of the origin with this name.
    pub fn origin(&self, name: &str) -> OriginMetrics {
        let recorder = &self.inner.recorder;
        let outcomes = ORIGIN_OUTCOMES.map(|outcome| {
            let labels =
                vec![Label::new("origin", name.to_owned()), Label::new("outcome", outcome)];
            let key = Key::from_parts("loangate_origin_requests_total", labels);
            (outcome, recorder.register_counter(&key, &METADATA))
        });
        let first_byte = Key::from_static_name("loangate_origin_first_byte_seconds");
        OriginMetrics(Arc::new((
            outcomes.into(),
            recorder.register_histogram(&first_byte, &METADATA),
        )))
    }

    /// Counts a request to an origin for the rest of a broken body.
    pub fn origin_resume(&self, origin: &str, outcome: &'static str) {
        self.count("loangate_origin_resumes_total", &[("origin", origin), ("outcome", outcome)]);
    }

    /// Counts a write of delivery counts to the ledger.
    pub fn metering_flush(&self, written: bool) {
        let outcome = if written { "written" } else { "failed" };
        self.count("loangate_metering_flushes_total", &[("outcome", outcome)]);
    }

    /// Records a commit of the ledger: the number of commands and the duration.
    pub fn ledger_batch(&self, commands: usize, duration: Duration) {
        let key = Key::from_static_name("loangate_ledger_commands_total");
        let commands = u64::try_from(commands).unwrap_or(u64::MAX);
        self.inner.recorder.register_counter(&key, &METADATA).increment(commands);
        self.record_duration("loangate_ledger_commit_seconds", duration);
    }

    /// Records a failed transaction of the ledger.
    pub fn ledger_failed(&self) {
        self.count("loangate_ledger_failures_total", &[]);
    }

    /// Records how many rows of the ledger cannot be read.
    pub fn ledger_damaged_rows(&self, rows: usize) {
        let key = Key::from_static_name("loangate_ledger_damaged_rows");
        let rows = f64::from(u32::try_from(rows).unwrap_or(u32::MAX));
        self.inner.recorder.register_gauge(&key, &METADATA).set(rows);
    }

    /// Records whether the ledger can be written.
    pub fn ledger_writable(&self, writable: bool) {
        let key = Key::from_static_name("loangate_ledger_writable");
        self.inner.recorder.register_gauge(&key, &METADATA).set(if writable { 1.0 } else { 0.0 });
    }
}

impl OriginMetrics {
    /// Counts a request that was not sent: all connections are `busy`, or the address is
    /// `suspended`.
    pub fn not_sent(&self, outcome: &'static str) {
        count_by(&self.0.0, outcome);
    }

    /// Records a request to the origin: its outcome, and the time to its response head.
    pub fn request(&self, outcome: &'static str, first_byte: Duration) {
        let (outcomes, first_bytes) = &*self.0;
        count_by(outcomes, outcome);
        first_bytes.record(first_byte.as_secs_f64());
    }
}

impl fmt::Debug for OriginMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OriginMetrics")
    }
}

fn count_by(counters: &LabelledCounters, label: &str) {
    if let Some((_, counter)) = counters.iter().find(|(name, _)| *name == label) {
        counter.increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rendered_text_has_counts_and_descriptions() {
        let metrics = Metrics::new().unwrap();
        metrics.request("ok", Via::Cache, Duration::from_millis(1));
        metrics.request("loan-refused", Via::Ledger, Duration::from_millis(1));
        metrics.delivered(1000);
        let text = metrics.render();
        assert!(text.contains(r#"loangate_requests_total{outcome="ok",via="cache"} 1"#), "{text}");
        assert!(text.contains(r#"outcome="loan-refused",via="ledger"} 1"#), "{text}");
        assert!(text.contains("loangate_delivered_bytes_total 1000"), "{text}");
        assert!(text.contains("# HELP loangate_delivered_bytes_total"), "{text}");
    }
}
