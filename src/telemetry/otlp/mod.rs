//! The export of traces, metrics and log lines to an OpenTelemetry collector, by OTLP over HTTP.
//!
//! Everything that waits for the collector is bounded: the queues, the batches, the time of an
//! export and the size of a response. What does not fit is counted and dropped. So a collector that
//! hangs, fails or lies costs telemetry, and nothing else. An export is not repeated.
//!
//! The messages are the types of `opentelemetry-proto`. The SDK of OpenTelemetry is not used: its
//! exporter reads a response of any size, and its metrics cannot report those of another registry.

mod batches;
mod collector;
mod logs;
mod metrics;
mod spans;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyKind;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::trace::FinishedSpan;
use super::{Metrics, OtlpSettings, Signal, Tracer};
use crate::clock::Clock;
use batches::Batches;
use collector::Collector;
pub(super) use logs::LogExport;
use logs::{Exporting, LogLine, LogQueue};
use metrics::Snapshot;

/// The most spans, and the most log lines, that wait for the exporter.
const QUEUE: usize = 2048;

/// The collector cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the collector in [otlp] cannot be used: {0}")]
pub(crate) struct OtlpError(String);

/// What waits to be exported, until the name of this gate is known.
#[derive(Debug)]
pub(crate) struct Otlp {
    settings: OtlpSettings,
    metrics: Metrics,
    clock: Clock,
    /// When counting began, in nanoseconds since the epoch.
    start: u64,
    spans: Receiver<FinishedSpan>,
}

/// The export of one gate. Clones share its queues.
#[derive(Clone)]
pub(crate) struct Export(Arc<Inner>);

struct Inner {
    collector: Collector,
    resource: Resource,
    metrics: Metrics,
    clock: Clock,
    start: u64,
    /// The time between two exports of metrics; none if they are off.
    interval: Option<Duration>,
    spans: Mutex<Receiver<FinishedSpan>>,
    lines: Mutex<Receiver<LogLine>>,
    /// None if log lines are off.
    _exporting: Option<Exporting>,
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").finish_non_exhaustive()
    }
}

impl Otlp {
    /// Creates the tracer, and the queue of its spans.
    pub(crate) fn new(settings: &OtlpSettings, clock: Clock, metrics: &Metrics) -> (Otlp, Tracer) {
        let (sender, spans) = mpsc::channel(QUEUE);
        let tracer = match settings.traces {
            true => {
                let trusted = settings.trust_parent.clone();
                Tracer::new(settings.sample, trusted, sender, clock.clone(), metrics.clone())
            }
            false => Tracer::default(),
        };
        let (start, metrics) = (nanos(&clock), metrics.clone());
        (Otlp { settings: settings.clone(), metrics, clock, start, spans }, tracer)
    }

    /// Creates the client of the collector. `instance` is the name of this gate.
    ///
    /// # Errors
    /// [`OtlpError`] if the client cannot be created.
    pub(crate) fn connect(self, instance: &str) -> Result<Export, OtlpError> {
        let Otlp { settings, metrics, clock, start, spans } = self;
        let (sender, lines) = mpsc::channel(QUEUE);
        let queue = LogQueue { lines: sender, clock: clock.clone(), metrics: metrics.clone() };
        Ok(Export(Arc::new(Inner {
            collector: Collector::new(&settings, metrics.clone()).map_err(OtlpError)?,
            resource: resource(&settings, instance),
            metrics,
            clock,
            start,
            interval: settings.metrics.then_some(settings.interval),
            spans: Mutex::new(spans),
            lines: Mutex::new(lines),
            _exporting: settings.logs.then(|| Exporting::to(queue)),
        })))
    }
}

impl Export {
    /// Exports until the process stops, and then what still waits.
    pub(crate) async fn run(self, stopping: CancellationToken) {
        // Each on its own: one signal does not wait for the export of another.
        tokio::join!(
            self.export_batches(Signal::Traces, &self.0.spans, spans::request, &stopping),
            self.export_batches(Signal::Logs, &self.0.lines, logs::request, &stopping),
            self.export_metrics(&stopping),
        );
    }

    /// Exports what is in a queue, in batches. `request` makes the message of one.
    async fn export_batches<T, M: Message>(
        &self,
        signal: Signal,
        queue: &Mutex<Receiver<T>>,
        request: impl Fn(&Resource, Vec<T>) -> M,
        stopping: &CancellationToken,
    ) {
        let mut queue = queue.lock().await;
        let mut batches = Batches::new(&mut queue, stopping);
        while let Some(batch) = batches.next().await {
            let count = batch.len() as u64;
            let message = request(&self.0.resource, batch);
            self.0.collector.export(signal, count, &message).await;
        }
    }

    /// Exports all metrics at each interval, and once more when the process stops.
    async fn export_metrics(&self, stopping: &CancellationToken) {
        let Inner { collector, resource, metrics, clock, start, interval, .. } = &*self.0;
        let Some(interval) = interval else { return stopping.cancelled().await };
        while !stopping.is_cancelled() {
            let _ = timeout(*interval, stopping.cancelled()).await;
            let text = metrics.render();
            let exemplars = metrics.take_exemplars();
            let (start, time, exemplars) = (*start, nanos(clock), exemplars.as_slice());
            let snapshot = Snapshot { text: &text, start, time, exemplars };
            let message = metrics::request(resource, &snapshot);
            collector.export(Signal::Metrics, 1, &message).await;
        }
    }
}

/// Returns the time in nanoseconds since the epoch.
fn nanos(clock: &Clock) -> u64 {
    u64::try_from(clock.now().as_nanosecond()).unwrap_or(0)
}

/// Returns the attributes of this gate.
fn resource(settings: &OtlpSettings, instance: &str) -> Resource {
    let own = [
        ("service.name", "loangate"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", instance),
    ];
    let set = |name: &str| settings.resource.iter().any(|(other, _)| other == name);
    let own = own.into_iter().filter(|(name, _)| !set(name));
    let configured = settings.resource.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    let attributes = own.chain(configured).map(|(name, text)| text_attribute(name, text));
    Resource { attributes: attributes.collect(), ..Resource::default() }
}

/// Returns the library that the telemetry is from: the gate itself.
fn scope() -> Option<InstrumentationScope> {
    Some(InstrumentationScope {
        name: "loangate".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    })
}

fn text_attribute(name: &str, text: impl Into<String>) -> KeyValue {
    attribute(name, AnyKind::StringValue(text.into()))
}

fn attribute(name: &str, value: AnyKind) -> KeyValue {
    let value = Some(AnyValue { value: Some(value) });
    KeyValue { key: name.to_owned(), value, ..KeyValue::default() }
}
