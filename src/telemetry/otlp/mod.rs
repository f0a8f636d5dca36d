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
mod spans;

use std::fmt;
use std::sync::Arc;

use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyKind;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{self, Receiver};
use tokio_util::sync::CancellationToken;

use super::trace::FinishedSpan;
use super::{Metrics, OtlpSettings, Signal, Tracer};
use crate::clock::Clock;
use batches::Batches;
use collector::Collector;

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
    spans: Receiver<FinishedSpan>,
}

/// The export of one gate. Clones share its queues.
#[derive(Clone)]
pub(crate) struct Export(Arc<Inner>);

struct Inner {
    collector: Collector,
    resource: Resource,
    spans: Mutex<Receiver<FinishedSpan>>,
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
                Tracer::new(settings.sample, trusted, sender, clock, metrics.clone())
            }
            false => Tracer::default(),
        };
        (Otlp { settings: settings.clone(), metrics: metrics.clone(), spans }, tracer)
    }

    /// Creates the client of the collector. `instance` is the name of this gate.
    ///
    /// # Errors
    /// [`OtlpError`] if the client cannot be created.
    pub(crate) fn connect(self, instance: &str) -> Result<Export, OtlpError> {
        let Otlp { settings, metrics, spans } = self;
        let collector = Collector::new(&settings, metrics).map_err(OtlpError)?;
        let (resource, spans) = (resource(&settings, instance), Mutex::new(spans));
        Ok(Export(Arc::new(Inner { collector, resource, spans })))
    }
}

impl Export {
    /// Exports until the process stops, and then what still waits.
    pub(crate) async fn run(self, stopping: CancellationToken) {
        self.export_spans(&stopping).await;
    }

    async fn export_spans(&self, stopping: &CancellationToken) {
        let Inner { collector, resource, spans, .. } = &*self.0;
        let mut spans = spans.lock().await;
        let mut batches = Batches::new(&mut spans, stopping);
        while let Some(batch) = batches.next().await {
            let count = batch.len() as u64;
            let message = spans::request(resource, batch);
            collector.export(Signal::Traces, count, &message).await;
        }
    }
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
