//! Log lines as OTLP describes them, and the layer that takes them from the log.
//!
//! The layer has the filter of the text log, and the same fields. Request lines are left out, since
//! they name titles: traces and the log itself show requests.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyKind;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::super::request_line::TARGET as REQUEST_LINES;
use super::super::trace::{Trace, TraceParent};
use super::super::{Metrics, RequestId, Signal, SignalOutcome};
use super::{scope, text_attribute};
use crate::clock::Clock;

/// The most bytes of one message or field, and the most fields of a line.
const MAX_TEXT: usize = 4096;
const MAX_FIELDS: usize = 32;

/// The queue of the gate whose lines are exported. A process has one log, and one gate.
static QUEUE: ArcSwapOption<LogQueue> = ArcSwapOption::const_empty();

/// A line of the log.
#[derive(Debug)]
pub(super) struct LogLine {
    /// Nanoseconds since the epoch.
    time: u64,
    level: Level,
    target: &'static str,
    message: String,
    fields: Vec<(&'static str, String)>,
    request: Option<RequestId>,
    trace: Option<TraceParent>,
}

/// Where the lines wait.
pub(super) struct LogQueue {
    pub(super) lines: mpsc::Sender<LogLine>,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
}

/// Exports lines until it is dropped.
#[derive(Debug)]
pub(super) struct Exporting(());

impl Exporting {
    pub(super) fn to(queue: LogQueue) -> Exporting {
        QUEUE.store(Some(Arc::new(queue)));
        Exporting(())
    }
}

impl Drop for Exporting {
    fn drop(&mut self) {
        QUEUE.store(None);
    }
}

/// The layer of the log that exports its lines.
pub(in crate::telemetry) struct LogExport;

impl<S: Subscriber> Layer<S> for LogExport {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if metadata.target() == REQUEST_LINES {
            return;
        }
        let queue = QUEUE.load();
        let Some(queue) = &*queue else { return };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = LogLine {
            time: super::nanos(&queue.clock),
            level: *metadata.level(),
            target: metadata.target(),
            message: fields.message,
            fields: fields.others,
            request: RequestId::current(),
            trace: Trace::outgoing_of_current().filter(|parent| parent.is_sampled),
        };
        if queue.lines.try_send(line).is_err() {
            queue.metrics.otlp(Signal::Logs, SignalOutcome::Dropped, 1);
        }
    }
}

/// The message and the fields of an event, as text.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, text: &str) {
        self.add(field, format_args!("{text}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format_args!("{value:?}"));
    }
}

impl Fields {
    fn add(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let mut text = Bounded(String::new());
        // Fails once the text is as long as it may be.
        let _ = text.write_fmt(value);
        match field.name() {
            "message" => self.message = text.0,
            name if self.others.len() < MAX_FIELDS => self.others.push((name, text.0)),
            _ => {}
        }
    }
}

/// A text of at most [`MAX_TEXT`] bytes.
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let left = MAX_TEXT - self.0.len();
        let end = text.floor_char_boundary(left);
        self.0.push_str(text.get(..end).unwrap_or_default());
        if end < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

/// Returns the request that exports these lines.
pub(super) fn request(resource: &Resource, lines: Vec<LogLine>) -> ExportLogsServiceRequest {
    let log_records = lines.into_iter().map(record).collect();
    let scope_logs = vec![ScopeLogs { scope: scope(), log_records, ..ScopeLogs::default() }];
    let resource = Some(resource.clone());
    let of_gate = ResourceLogs { resource, scope_logs, ..ResourceLogs::default() };
    ExportLogsServiceRequest { resource_logs: vec![of_gate] }
}

fn record(line: LogLine) -> LogRecord {
    let severity = match line.level {
        Level::ERROR => SeverityNumber::Error,
        Level::WARN => SeverityNumber::Warn,
        Level::INFO => SeverityNumber::Info,
        Level::DEBUG => SeverityNumber::Debug,
        Level::TRACE => SeverityNumber::Trace,
    };
    let target = text_attribute("loangate.target", line.target);
    let request = line.request.map(|id| text_attribute("loangate.request", id.to_string()));
    let fields = line.fields.into_iter().map(|(name, text)| text_attribute(name, text));
    let (trace, span) = line.trace.map_or((None, None), |parent| {
        (Some(parent.trace.to_be_bytes().to_vec()), Some(parent.span.to_be_bytes().to_vec()))
    });
    LogRecord {
        time_unix_nano: line.time,
        observed_time_unix_nano: line.time,
        severity_number: severity.into(),
        severity_text: line.level.as_str().to_owned(),
        body: Some(AnyValue { value: Some(AnyKind::StringValue(line.message)) }),
        attributes: [target].into_iter().chain(request).chain(fields).collect(),
        flags: u32::from(line.trace.is_some()),
        trace_id: trace.unwrap_or_default(),
        span_id: span.unwrap_or_default(),
        ..LogRecord::default()
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn lines_are_exported_without_request_lines_and_within_bounds() {
        let (sender, mut lines) = mpsc::channel(2);
        let metrics = Metrics::new().unwrap();
        let queue = LogQueue { lines: sender, clock: Clock::system(), metrics: metrics.clone() };
        let subscriber = tracing_subscriber::registry().with(LogExport);
        let exporting = Exporting::to(queue);
        let id = RequestId::generate();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "loangate::request", isbn = "9788299999014", "request");
            id.within(|| tracing::warn!(attempt = 2, why = "å".repeat(5000), "an origin failed"));
            tracing::debug!("second");
            tracing::error!("third");
            drop(exporting);
            tracing::error!("after the end");
        });
        let dropped = "signal=\"logs\",outcome=\"dropped\"} 1";
        assert!(metrics.render().contains(dropped), "{}", metrics.render());
        let received: Vec<LogLine> = std::iter::from_fn(|| lines.try_recv().ok()).collect();
        let sent = request(&Resource::default(), received);
        let records = &sent.resource_logs[0].scope_logs[0].log_records;
        assert_eq!(records.len(), 2, "{records:?}");
        let text = format!("{:?}", records[0]);
        assert!(text.contains("an origin failed") && text.contains(&id.to_string()), "{text}");
        assert!(text.contains("\"attempt\"") && text.contains("\"2\""), "{text}");
        assert!(text.len() < 2 * MAX_TEXT, "{}", text.len());
        assert_eq!(records[0].severity_number, SeverityNumber::Warn as i32);
        assert!(!format!("{records:?}").contains("978"), "{records:?}");
    }
}
