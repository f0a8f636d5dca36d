//! A span: one step of a trace, with its times and attributes.
//!
//! No attribute names a borrower, a title, a path, a query or a token. Each name is a constant here
//! or in the code that sets it, and each value is a constant, a number, or from the configuration.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use super::Trace;

/// The role of a span, as OpenTelemetry names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum SpanKind {
    /// It is a step within the gate.
    Internal,
    /// It is a request of a reader.
    Server,
    /// It is a request to another system.
    Client,
}

/// The value of an attribute.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Value {
    Text(Cow<'static, str>),
    Number(i64),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Value {
        Value::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(Cow::Owned(text))
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Value {
        Value::Number(i64::from(number))
    }
}

/// The attributes of a span.
pub(crate) type Attributes = Vec<(&'static str, Value)>;

/// A span that is over.
#[derive(Clone, Debug)]
pub(crate) struct FinishedSpan {
    pub(crate) trace: u128,
    pub(crate) span: u64,
    /// Zero for the first span of a trace.
    pub(crate) parent: u64,
    pub(crate) name: Cow<'static, str>,
    pub(crate) kind: SpanKind,
    /// Nanoseconds since the epoch.
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) attributes: Attributes,
    /// Whether the gate or another system failed, rather than the reader.
    pub(crate) is_failed: bool,
}

/// A call to another system within the current trace. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Span {
    trace: Arc<Trace>,
    id: u64,
    /// The span that was open before, and is again afterwards.
    parent: u64,
    name: &'static str,
    began: Instant,
    attributes: Attributes,
    is_failed: bool,
}

impl Span {
    /// Begins a span of the current trace. Returns none without a trace that is sampled.
    pub(crate) fn begin(name: &'static str) -> Option<Box<Span>> {
        let trace = Trace::current().filter(|trace| trace.is_sampled() && trace.has_room())?;
        let (id, began) = (super::random_id(), Instant::now());
        let parent = trace.open(id);
        let (attributes, is_failed) = (Attributes::new(), false);
        Some(Box::new(Span { trace, id, parent, name, began, attributes, is_failed }))
    }

    /// Sets an attribute.
    pub(crate) fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.attributes.push((name, value.into()));
    }

    /// Records that the other system failed, and how.
    pub(crate) fn fail(&mut self, how: &'static str) {
        self.is_failed = true;
        self.set("error.type", how);
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.trace.open(self.parent);
        let attributes = std::mem::take(&mut self.attributes);
        self.trace.record(Recorded {
            span: self.id,
            parent: self.parent,
            name: self.name.into(),
            kind: SpanKind::Client,
            began: self.began,
            attributes,
            is_failed: self.is_failed,
        });
    }
}

/// A span that ends now.
pub(super) struct Recorded {
    pub(super) span: u64,
    pub(super) parent: u64,
    pub(super) name: Cow<'static, str>,
    pub(super) kind: SpanKind,
    pub(super) began: Instant,
    pub(super) attributes: Attributes,
    pub(super) is_failed: bool,
}
