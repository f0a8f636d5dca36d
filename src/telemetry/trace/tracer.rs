//! Decides which traces are sampled, and passes their spans on.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::Instant;

use http::HeaderMap;
use ipnet::IpNet;
use tokio::sync::mpsc;

use super::{FinishedSpan, SpanKind, Trace, TraceParent, random_id};
use crate::client_networks;
use crate::clock::Clock;
use crate::telemetry::{Metrics, RequestId, Signal, SignalOutcome};

/// The bits of a trace id that decide whether it is sampled: the 56 that W3C Trace Context calls
/// random.
const RANDOM_BITS: u64 = (1 << 56) - 1;

/// Begins the traces of one gate. Cheap to clone; by default it is off and begins none.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Shared>>);

/// What the traces of one gate share.
pub(super) struct Shared {
    /// Traces whose random bits are at least this are sampled.
    threshold: u64,
    trusted: Vec<IpNet>,
    spans: mpsc::Sender<FinishedSpan>,
    clock: Clock,
    metrics: Metrics,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("threshold", &self.threshold).finish_non_exhaustive()
    }
}

impl Shared {
    /// Returns the time in nanoseconds since the epoch.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.clock.now().as_nanosecond()).unwrap_or(0)
    }

    /// Queues a span for the exporter, or counts it as dropped.
    pub(super) fn send(&self, span: FinishedSpan) {
        if self.spans.try_send(span).is_err() {
            self.metrics.otlp(Signal::Traces, SignalOutcome::Dropped, 1);
        }
    }
}

impl Tracer {
    /// Creates a tracer that samples this share of the traces, from 0 to 1. Clients of the trusted
    /// networks decide for their own.
    pub(crate) fn new(
        sample: f64,
        trusted: Vec<IpNet>,
        spans: mpsc::Sender<FinishedSpan>,
        clock: Clock,
        metrics: Metrics,
    ) -> Tracer {
        let threshold = threshold(sample);
        Tracer(Some(Arc::new(Shared { threshold, trusted, spans, clock, metrics })))
    }

    /// Returns whether there are traces.
    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Returns whether a client at this address decides which of its requests are sampled.
    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        let trusted = self.0.as_ref().map_or(&[][..], |shared| &shared.trusted);
        client_networks::contains(trusted, address)
    }

    /// Begins the trace of a request. Returns none if it is not sampled and names no parent.
    pub(crate) fn request(
        &self,
        id: RequestId,
        headers: &HeaderMap,
        is_trusted: bool,
    ) -> Option<Arc<Trace>> {
        let shared = self.0.as_ref()?;
        if is_trusted && let Some(parent) = TraceParent::of(headers) {
            return Some(trace(shared, parent, "request", SpanKind::Server));
        }
        is_sampled(shared, id).then(|| trace(shared, of_request(id, true), "request", SERVER))
    }

    /// Begins the trace of work in the background; it ends when the last part of it is dropped.
    /// Returns none if there are no traces.
    pub(crate) fn background(&self, name: &'static str) -> Option<Arc<Trace>> {
        let (shared, id) = (self.0.as_ref()?, RequestId::generate());
        let parent = of_request(id, is_sampled(shared, id));
        Some(trace(shared, parent, name, SpanKind::Internal))
    }

    /// Returns the current trace. If the current request has none, because it is not sampled,
    /// returns one that records nothing, by which calls to Bokbasen name it.
    pub(crate) fn current(&self) -> Option<Arc<Trace>> {
        let shared = self.0.as_ref()?;
        Trace::current().or_else(|| {
            let parent = of_request(RequestId::current()?, false);
            Some(trace(shared, parent, "request", SpanKind::Server))
        })
    }
}

const SERVER: SpanKind = SpanKind::Server;

fn is_sampled(shared: &Shared, id: RequestId) -> bool {
    id.low_bits() & RANDOM_BITS >= shared.threshold
}

/// Returns the trace of a request without a parent.
fn of_request(id: RequestId, is_sampled: bool) -> TraceParent {
    TraceParent { trace: id.uuid().as_u128(), span: 0, is_sampled }
}

/// Allocates a trace.
#[cold]
fn trace(
    shared: &Arc<Shared>,
    parent: TraceParent,
    name: &'static str,
    kind: SpanKind,
) -> Arc<Trace> {
    let span = random_id();
    Arc::new(Trace {
        shared: shared.clone(),
        id: parent.trace,
        span,
        parent: parent.span,
        is_sampled: parent.is_sampled,
        name,
        kind,
        began: Instant::now(),
        innermost: AtomicU64::new(span),
        spans: AtomicU32::new(0),
        is_finished: AtomicBool::new(false),
        step: Default::default(),
    })
}

/// Returns the least random bits of a sampled trace.
fn threshold(sample: f64) -> u64 {
    let all = RANDOM_BITS + 1;
    // Both are exact: a power of two, and a share of it that is rounded.
    let sampled = (sample.clamp(0.0, 1.0) * all as f64).round() as u64;
    all - sampled.min(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threshold_is_the_share_that_is_not_sampled() {
        assert_eq!(threshold(1.0), 0);
        assert_eq!(threshold(0.0), RANDOM_BITS + 1, "no random bits reach it");
        assert_eq!(threshold(0.5), 1 << 55);
        assert_eq!(threshold(f64::NAN), RANDOM_BITS + 1);
    }
}
