//! Logs, metrics, traces and request lines for operators.
//!
//! Every module except the vocabulary in [`crate::loan`] may call it. It depends only on the
//! vocabulary. Dependencies never log below info, at any configured level, because HTTP libraries
//! print header fields at trace.

pub(crate) mod access_log;
mod log;
mod log_limit;
mod metrics;
#[cfg(feature = "otlp")]
mod otlp;
mod otlp_settings;
mod request_id;
mod request_line;
#[cfg_attr(not(feature = "otlp"), allow(dead_code))]
mod trace;

pub(crate) use log::apply;
pub use log::{LogError, init};
pub use log_limit::LogLimit;
pub use metrics::{
    BrakeAction, BrakeLimit, Breach, CallKind, CallOutcome, Calls, Definition, Durations,
    FencedMember, FindingAction, FindingKind, FlushOutcome, Handshake, KeyFetch, LabelValues,
    LateBeginFinder, LendingCall, Limit, LoanEvent, MetricKind, Metrics, OrderOutcome,
    OriginMetrics, OriginOutcome, ProblemSeverity, Readings, ReloadOutcome, RequestOutcome,
    RequestStorage, ResumeOutcome, Service, ServiceStatus, Signal, SignalOutcome, StreamEnd, Task,
    Via, definitions,
};
#[cfg(feature = "otlp")]
pub(crate) use otlp::Otlp;
pub use otlp_settings::OtlpSettings;
pub use request_id::RequestId;
pub use request_line::{RequestLine, logged_method};
pub(crate) use trace::{Span, TRACEPARENT, Trace, TraceParent};
pub use trace::{TraceId, Tracer};

/// The keys of `[log]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The level of our own targets; dependencies stay at info or above.
    pub level: tracing::Level,
    /// Whether a log line is a JSON object instead of text.
    pub json: bool,
}
