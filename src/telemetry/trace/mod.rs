//! Traces: the spans of one request, or of one step of a loan in the background.
//!
//! The gate draws no random number for a trace. The id of a request is its trace id, and its low
//! bits decide whether the trace is sampled. Only a sampled trace, or one of a trusted parent, has
//! a [`Trace`] in memory. It is the current one of the thread while its request is polled, so that
//! the ledger, the client of Bokbasen and the origins add their spans without a parameter.
//!
//! Spans that are over go into the bounded queue of the exporter. If it is full, they are counted
//! and dropped.

mod parent;
mod span;
mod tracer;

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(crate) use parent::{TRACEPARENT, TraceParent};
use span::Recorded;
#[cfg(feature = "otlp")]
pub(crate) use span::Value;
pub(crate) use span::{Attributes, FinishedSpan, Span, SpanKind};
use tracer::Shared;
pub use tracer::Tracer;

use super::RequestId;
use super::metrics::Exemplar;
use crate::lock::lock;

/// The most spans of one trace: a download may resume a thousand times.
const MAX_SPANS: u32 = 128;
/// The attribute with the reason of a failure.
const ERROR_TYPE: &str = "error.type";

thread_local! {
    static CURRENT: RefCell<Option<Arc<Trace>>> = const { RefCell::new(None) };
}

/// The id of a trace, which is that of its request unless a trusted parent has begun it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TraceId(pub(super) u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A trace in progress, and its first span.
#[derive(Debug)]
pub(crate) struct Trace {
    shared: Arc<Shared>,
    id: u128,
    /// The id of the first span.
    span: u64,
    /// The span of a trusted client; zero if there is none.
    parent: u64,
    is_sampled: bool,
    name: &'static str,
    kind: SpanKind,
    began: Instant,
    /// The innermost span that is open. Requests to other systems name it as their parent.
    innermost: AtomicU64,
    spans: AtomicU32,
    is_finished: AtomicBool,
    step: Mutex<Option<Step>>,
}

/// A step of a request that is in progress. Steps follow one another.
#[derive(Debug)]
struct Step {
    span: u64,
    name: &'static str,
    began: Instant,
    attributes: Attributes,
}

/// How the first span of a trace ends.
#[derive(Debug, Default)]
pub(crate) struct TraceEnd {
    /// The name of the span; none for the one that it has.
    pub(crate) name: Option<String>,
    pub(crate) attributes: Attributes,
    /// The slug of the problem, or how the body ended early.
    pub(crate) error: Option<&'static str>,
    /// Whether the gate or another system failed, rather than the reader.
    pub(crate) is_failed: bool,
}

impl Trace {
    /// Returns the id of the trace if it is sampled.
    pub(crate) fn sampled_id(&self) -> Option<TraceId> {
        self.is_sampled.then_some(TraceId(self.id))
    }

    /// Returns the trace as an exemplar of the time until now; none if it is not sampled.
    pub(super) fn exemplar(&self, took: Duration) -> Option<Exemplar> {
        self.is_sampled.then(|| Exemplar {
            seconds: took.as_secs_f64(),
            time: self.shared.now(),
            trace: self.id,
            span: self.span,
        })
    }

    /// Returns the trace that the current task works for.
    pub(crate) fn current() -> Option<Arc<Trace>> {
        CURRENT.try_with(|current| current.try_borrow().ok()?.clone()).ok().flatten()
    }

    /// Runs a function as work for this trace.
    pub(crate) fn within<T>(self: &Arc<Trace>, work: impl FnOnce() -> T) -> T {
        let _outer = Outer(replace_current(Some(self.clone())));
        work()
    }

    /// Runs a future as work for a trace, if there is one.
    pub(crate) async fn run<F: Future>(trace: Option<Arc<Trace>>, work: F) -> F::Output {
        let mut work = pin!(work);
        poll_fn(move |task| match &trace {
            Some(trace) => trace.within(|| work.as_mut().poll(task)),
            None => work.as_mut().poll(task),
        })
        .await
    }

    /// Returns what a request to another system names as its parent, in the current trace or else
    /// for the current request.
    pub(crate) fn outgoing() -> Option<TraceParent> {
        match Trace::current() {
            Some(trace) => Some(trace.parent_of_call()),
            None => RequestId::current().map(|request| TraceParent {
                trace: request.uuid().as_u128(),
                span: random_id(),
                is_sampled: false,
            }),
        }
    }

    /// Returns what a request to another system names as its parent in the current trace.
    pub(crate) fn outgoing_of_current() -> Option<TraceParent> {
        Trace::current().map(|trace| trace.parent_of_call())
    }

    fn parent_of_call(&self) -> TraceParent {
        let span = self.innermost.load(Ordering::Relaxed);
        TraceParent { trace: self.id, span, is_sampled: self.is_sampled }
    }

    fn is_sampled(&self) -> bool {
        self.is_sampled
    }

    /// Counts a span. Returns false if the trace has too many.
    fn has_room(&self) -> bool {
        self.spans.fetch_add(1, Ordering::Relaxed) < MAX_SPANS
    }

    /// Sets the innermost open span, and returns the one before.
    fn open(&self, span: u64) -> u64 {
        self.innermost.swap(span, Ordering::Relaxed)
    }

    /// Begins a step of the request, which ends the one before.
    pub(crate) fn enter(&self, name: &'static str) {
        if !self.is_sampled {
            return;
        }
        let (span, attributes) = (random_id(), Attributes::new());
        let step = Step { span, name, began: Instant::now(), attributes };
        let before = lock(&self.step).replace(step);
        self.open(span);
        self.record_step(before, None, false);
    }

    /// Sets an attribute of the step in progress.
    pub(crate) fn note(&self, name: &'static str, value: &'static str) {
        if let Some(step) = lock(&self.step).as_mut() {
            step.attributes.push((name, value.into()));
        }
    }

    /// Ends the step in progress and the first span. Only the first call has an effect.
    pub(crate) fn finish(&self, end: TraceEnd) {
        if !self.is_sampled || self.is_finished.swap(true, Ordering::Relaxed) {
            return;
        }
        let step = lock(&self.step).take();
        self.record_step(step, end.error, end.is_failed);
        let mut attributes = end.attributes;
        attributes.extend(end.error.map(|error| (ERROR_TYPE, error.into())));
        self.record(Recorded {
            span: self.span,
            parent: self.parent,
            name: end.name.map_or(Cow::Borrowed(self.name), Cow::Owned),
            kind: self.kind,
            began: self.began,
            attributes,
            is_failed: end.is_failed,
        });
    }

    fn record_step(&self, step: Option<Step>, error: Option<&'static str>, is_failed: bool) {
        let Some(Step { span, name, began, mut attributes }) = step else { return };
        attributes.extend(error.map(|error| (ERROR_TYPE, error.into())));
        self.record(Recorded {
            span,
            parent: self.span,
            name: name.into(),
            kind: SpanKind::Internal,
            began,
            attributes,
            is_failed,
        });
    }

    fn record(&self, recorded: Recorded) {
        let Recorded { span, parent, name, kind, began, attributes, is_failed } = recorded;
        let end = self.shared.now();
        let lasted = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.shared.send(FinishedSpan {
            trace: self.id,
            span,
            parent,
            name,
            kind,
            start: end.saturating_sub(lasted),
            end,
            attributes,
            is_failed,
        });
    }
}

/// A request that is dropped before its response, since its client is gone, has a span too. So has
/// work in the background, whose span ends here.
impl Drop for Trace {
    fn drop(&mut self) {
        let error = (self.kind == SpanKind::Server).then_some("cancelled");
        self.finish(TraceEnd { error, ..TraceEnd::default() });
    }
}

/// Restores the trace that was current before, also after a panic.
struct Outer(Option<Arc<Trace>>);

impl Drop for Outer {
    fn drop(&mut self) {
        // Outside of the borrow: the end of a trace may use the thread's value.
        drop(replace_current(self.0.take()));
    }
}

fn replace_current(trace: Option<Arc<Trace>>) -> Option<Arc<Trace>> {
    let replace = |current: &RefCell<Option<Arc<Trace>>>| match current.try_borrow_mut() {
        Ok(mut current) => std::mem::replace(&mut *current, trace),
        Err(_) => None,
    };
    CURRENT.try_with(replace).ok().flatten()
}

/// Returns a random id of a span, not zero.
fn random_id() -> u64 {
    fastrand::u64(1..)
}

#[cfg(test)]
mod tests;
