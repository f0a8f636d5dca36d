//! Every metric, with its name, unit and meaning: the one place where they are named.
//!
//! Handles of the hot path are made at the start, so that counting is one atomic addition. Each
//! gate has a registry of its own, so that two in one process do not count into each other.

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

const SECONDS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0];
const METADATA: Metadata<'static> = Metadata::new("loangate", Level::INFO, None);

/// Name, unit and meaning of every counter.
const COUNTERS: &[(&str, Unit, &str)] = &[
    (
        "loangate_requests_total",
        Unit::Count,
        "Requests, by outcome (ok or the problem's slug) and via",
    ),
    ("loangate_delivered_bytes_total", Unit::Bytes, "Body bytes that left towards readers"),
    ("loangate_streams_closed_total", Unit::Count, "Bodies that are over, by how they ended"),
    ("loangate_handshakes_total", Unit::Count, "TLS handshakes, by outcome"),
    ("loangate_connections_total", Unit::Count, "Connections whose handshake succeeded"),
    (
        "loangate_limit_reached_total",
        Unit::Count,
        "Connections that reached a limit of [limits], by limit",
    ),
    ("loangate_loan_events_total", Unit::Count, "Events of loans that were written to the ledger"),
    (
        "loangate_task_restarts_total",
        Unit::Count,
        "Background tasks started again after a panic, by task",
    ),
    (
        "loangate_flights_refused_total",
        Unit::Count,
        "Requests refused as overloaded because lending.flights decisions were under way",
    ),
    ("loangate_brake_total", Unit::Count, "Loans that the spending brake met, by limit and mode"),
    (
        "loangate_balance_findings_total",
        Unit::Count,
        "Differences from Bokbasen's books, by kind and what was done",
    ),
    ("loangate_lending_calls_total", Unit::Count, "Calls to Bokbasen, by call and outcome"),
    (
        "loangate_lending_breaches_total",
        Unit::Count,
        "Loans in answers of Bokbasen that break its API, by breach: an alarm",
    ),
    ("loangate_origin_requests_total", Unit::Count, "Requests to origins, by origin and outcome"),
    (
        "loangate_origin_resumes_total",
        Unit::Count,
        "Broken bodies that an origin was asked to go on with, by outcome",
    ),
    (
        "loangate_metering_flushes_total",
        Unit::Count,
        "How often what was delivered under loans was written to the ledger, by outcome",
    ),
    ("loangate_ledger_commands_total", Unit::Count, "Commands that the ledger committed"),
    ("loangate_ledger_failures_total", Unit::Count, "Transactions of the ledger that failed"),
];
/// Name, unit and meaning of every gauge.
const GAUGES: &[(&str, Unit, &str)] = &[
    ("loangate_streams", Unit::Count, "Bodies on their way to readers"),
    ("loangate_connections", Unit::Count, "Open connections, by worker thread"),
    ("loangate_buffers_held_bytes", Unit::Bytes, "What streams hold beyond the least for each"),
    ("loangate_buffers_bytes", Unit::Bytes, "What they may hold together (server.buffers)"),
    (
        "loangate_flights",
        Unit::Count,
        "Decisions under way that a caller waits for (limit: lending.flights)",
    ),
    (
        "loangate_lending_breaker_open",
        Unit::Count,
        "1 while calls to Bokbasen of this kind are held back",
    ),
    (
        "loangate_lending_clock_offset_seconds",
        Unit::Seconds,
        "How far Bokbasen's clock is ahead of this machine's; negative where it is behind",
    ),
    (
        "loangate_lending_clock_alarm",
        Unit::Count,
        "1 where the clocks differ by a minute, 2 where they differ by 15 minutes and no loan is begun",
    ),
    (
        "loangate_balance_last_seconds",
        Unit::Seconds,
        "When the books were last balanced, since the epoch",
    ),
    (
        "loangate_balance_unbalanced",
        Unit::Count,
        "1 where the last balance left something for a person to look at, or failed",
    ),
    (
        "loangate_ends_waiting",
        Unit::Count,
        "Loans that have ended, whose end Bokbasen has not acknowledged",
    ),
    (
        "loangate_ends_overdue",
        Unit::Count,
        "Of those, the ones that have waited for a day: an alarm",
    ),
    (
        "loangate_ledger_writable",
        Unit::Count,
        "0 while the ledger cannot be written, as the last write or /readyz found: an alarm",
    ),
    (
        "loangate_ledger_damaged_rows",
        Unit::Count,
        "Rows of the ledger that cannot be read and are skipped",
    ),
];
/// Name, unit and meaning of every histogram.
const HISTOGRAMS: &[(&str, Unit, &str)] = &[
    ("loangate_head_seconds", Unit::Seconds, "From a request to the head of its answer"),
    ("loangate_lending_call_seconds", Unit::Seconds, "How long a call to Bokbasen took"),
    (
        "loangate_origin_first_byte_seconds",
        Unit::Seconds,
        "From a request to an origin to the head of its answer",
    ),
    ("loangate_ledger_commit_seconds", Unit::Seconds, "How long a commit of the ledger took"),
];

/// Counters of one name, by the value of their one label that tells them apart: few, and found
/// without a hash.
type Labelled = Vec<(&'static str, Counter)>;

const ENDS: [&str; 5] = ["complete", "origin_failed", "hung_up", "cut", "too_slow"];
const ANSWERS: [&str; 8] = ["2xx", "3xx", "4xx", "5xx", "failed", "timed_out", "busy", "suspended"];

/// What is counted of one origin.
#[derive(Clone)]
pub struct OriginMetrics(Arc<(Labelled, Histogram)>);

/// The handles that the other modules count with. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// By via.
    ok: [Counter; Via::ALL.len()],
    head: Histogram,
    /// By how they ended.
    closed: Labelled,
    handshakes: Labelled,
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
    /// A registry of its own.
    ///
    /// # Errors
    /// Where the histogram's buckets are not accepted.
    pub fn new() -> Result<Metrics, BuildError> {
        let recorder = PrometheusBuilder::new().set_buckets(&SECONDS)?.build_recorder();
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
            closed: ENDS
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

    /// The text that Prometheus reads.
    pub fn render(&self) -> String {
        self.fold();
        self.inner.handle.render()
    }

    /// Folds what the histograms have noted. Without it they keep every value until somebody reads
    /// them.
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

    fn took(&self, name: &'static str, took: Duration) {
        self.inner
            .recorder
            .register_histogram(&Key::from_static_name(name), &METADATA)
            .record(took.as_secs_f64());
    }

    /// A request was decided, and its head is ready.
    pub fn request(&self, outcome: &'static str, via: Via, head: Duration) {
        self.inner.head.record(head.as_secs_f64());
        match self.inner.ok.get(via as usize) {
            Some(counter) if outcome == "ok" => counter.increment(1),
            _ => {
                self.count("loangate_requests_total", &[("outcome", outcome), ("via", via.name())])
            }
        }
    }

    /// Body bytes left towards a reader.
    pub fn delivered(&self, bytes: u64) {
        self.inner.delivered.increment(bytes);
    }

    /// A body began.
    pub fn stream_opened(&self) {
        self.inner.streams.increment(1.0);
    }

    /// A body is over.
    pub fn stream_closed(&self, end: &'static str) {
        self.inner.streams.decrement(1.0);
        count_by(&self.inner.closed, end);
    }

    /// A handshake succeeded or failed.
    pub fn handshake(&self, succeeded: bool) {
        count_by(&self.inner.handshakes, if succeeded { "ok" } else { "failed" });
    }

    /// A connection is open at this worker.
    pub fn connection_opened(&self, worker: usize) {
        self.inner.connections_total.increment(1);
        self.connections(worker).increment(1.0);
    }

    /// A connection is closed.
    pub fn connection_closed(&self, worker: usize) {
        self.connections(worker).decrement(1.0);
    }

    /// A connection reached this limit of `[limits]`.
    pub fn limit_reached(&self, limit: &'static str) {
        self.count("loangate_limit_reached_total", &[("limit", limit)]);
    }

    fn connections(&self, worker: usize) -> Gauge {
        let key =
            Key::from_parts("loangate_connections", vec![Label::new("worker", worker.to_string())]);
        self.inner.recorder.register_gauge(&key, &METADATA)
    }

    /// Streams hold so many bytes of what they may hold together.
    pub fn buffers(&self, held: usize, total: usize) {
        for (name, bytes) in
            [("loangate_buffers_held_bytes", held), ("loangate_buffers_bytes", total)]
        {
            let gauge = self.inner.recorder.register_gauge(&Key::from_static_name(name), &METADATA);
            gauge.set(bytes as f64);
        }
    }

    /// An event of a loan was written.
    pub fn loan(&self, event: &'static str) {
        self.count("loangate_loan_events_total", &[("event", event)]);
    }

    /// A background task, or the driver of a loan, is started again after it ended by itself.
    pub fn task_restarted(&self, task: &'static str) {
        self.count("loangate_task_restarts_total", &[("task", task)]);
    }

    /// So many flights are under way.
    pub fn flights(&self, count: usize) {
        let key = Key::from_static_name("loangate_flights");
        let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        self.inner.recorder.register_gauge(&key, &METADATA).set(count);
    }

    /// A flight was refused at the limit.
    pub fn flight_refused(&self) {
        self.count("loangate_flights_refused_total", &[]);
    }

    /// A loan met the spending brake.
    pub fn brake(&self, limit: &'static str, mode: &'static str) {
        self.count("loangate_brake_total", &[("limit", limit), ("mode", mode)]);
    }

    /// A call to Bokbasen came back, or did not.
    pub fn lending_call(&self, call: &'static str, outcome: &'static str, took: Duration) {
        self.count("loangate_lending_calls_total", &[("call", call), ("outcome", outcome)]);
        self.took("loangate_lending_call_seconds", took);
    }

    /// An answer of Bokbasen breaks its API in this way.
    pub fn lending_breach(&self, breach: &'static str) {
        self.count("loangate_lending_breaches_total", &[("breach", breach)]);
    }

    /// Calls to Bokbasen of this kind are held back, or sent again.
    pub fn lending_breaker(&self, kind: &'static str, open: bool) {
        let key = Key::from_parts("loangate_lending_breaker_open", vec![Label::new("kind", kind)]);
        self.inner.recorder.register_gauge(&key, &METADATA).set(if open { 1.0 } else { 0.0 });
    }

    /// Bokbasen's clock is so many seconds ahead, which is an alarm of this level.
    pub fn lending_clock(&self, ahead: f64, alarm: u8) {
        for (name, value) in [
            ("loangate_lending_clock_offset_seconds", ahead),
            ("loangate_lending_clock_alarm", f64::from(alarm)),
        ] {
            self.inner.recorder.register_gauge(&Key::from_static_name(name), &METADATA).set(value);
        }
    }

    /// So many ends wait to be acknowledged, and so many of them for a day.
    pub fn ends_waiting(&self, waiting: u64, overdue: u64) {
        for (name, count) in
            [("loangate_ends_waiting", waiting), ("loangate_ends_overdue", overdue)]
        {
            let gauge = self.inner.recorder.register_gauge(&Key::from_static_name(name), &METADATA);
            gauge.set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
        }
    }

    /// A balance met a difference, and did this about it.
    pub fn balance(&self, kind: &'static str, done: &'static str) {
        self.count("loangate_balance_findings_total", &[("kind", kind), ("done", done)]);
    }

    /// The books were balanced, and nothing or something is left.
    pub fn balanced(&self, at: Timestamp, balanced: bool) {
        let last = at.duration_since(Timestamp::UNIX_EPOCH).as_secs_f64();
        let left = if balanced { 0.0 } else { 1.0 };
        for (name, value) in
            [("loangate_balance_last_seconds", last), ("loangate_balance_unbalanced", left)]
        {
            self.inner.recorder.register_gauge(&Key::from_static_name(name), &METADATA).set(value);
        }
    }

    /// The books could not be balanced at all.
    pub fn balance_failed(&self) {
        let key = Key::from_static_name("loangate_balance_unbalanced");
        self.inner.recorder.register_gauge(&key, &METADATA).set(1.0);
    }

    /// What counts the requests to the origin of this name.
    pub fn origin(&self, name: &str) -> OriginMetrics {
        let recorder = &self.inner.recorder;
        let answers = ANSWERS.map(|outcome| {
            let labels =
                vec![Label::new("origin", name.to_owned()), Label::new("outcome", outcome)];
            let key = Key::from_parts("loangate_origin_requests_total", labels);
            (outcome, recorder.register_counter(&key, &METADATA))
        });
        let first_byte = Key::from_static_name("loangate_origin_first_byte_seconds");
        OriginMetrics(Arc::new((
            answers.into(),
            recorder.register_histogram(&first_byte, &METADATA),
        )))
    }

    /// An origin was asked to go on with a body that broke.
    pub fn origin_resume(&self, origin: &str, outcome: &'static str) {
        self.count("loangate_origin_resumes_total", &[("origin", origin), ("outcome", outcome)]);
    }

    /// What was delivered under loans was written to the ledger, or could not be.
    pub fn metering_flush(&self, written: bool) {
        let outcome = if written { "written" } else { "failed" };
        self.count("loangate_metering_flushes_total", &[("outcome", outcome)]);
    }

    /// The ledger committed so many commands together.
    pub fn ledger_batch(&self, commands: usize, took: Duration) {
        let key = Key::from_static_name("loangate_ledger_commands_total");
        let commands = u64::try_from(commands).unwrap_or(u64::MAX);
        self.inner.recorder.register_counter(&key, &METADATA).increment(commands);
        self.took("loangate_ledger_commit_seconds", took);
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
    /// A request was not sent: all connections are `busy`, or the address is `suspended`.
    pub fn not_sent(&self, outcome: &'static str) {
        count_by(&self.0.0, outcome);
    }

    /// It answered, or did not.
    pub fn request(&self, outcome: &'static str, first_byte: Duration) {
        let (answers, first_bytes) = &*self.0;
        count_by(answers, outcome);
        first_bytes.record(first_byte.as_secs_f64());
    }
}

impl fmt::Debug for OriginMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OriginMetrics")
    }
}

fn count_by(counters: &Labelled, label: &str) {
    if let Some((_, counter)) = counters.iter().find(|(name, _)| *name == label) {
        counter.increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_can_be_read() {
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
