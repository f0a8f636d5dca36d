//! Logs, metrics and request lines for operators.
//!
//! Every module except the vocabulary in [`crate::loan`] may call it. It depends only on the
//! vocabulary. Dependencies never log below info, at any configured level, because HTTP libraries
//! print header fields at trace.

mod log;
mod log_limit;
mod metrics;
mod request_id;
mod request_line;

pub use log::{LogError, init};
pub use log_limit::LogLimit;
pub use metrics::{Metrics, OriginMetrics};
pub use request_id::RequestId;
pub use request_line::RequestLine;

/// The keys of `[log]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The level of our own targets; dependencies stay at info or above.
    pub level: tracing::Level,
    /// Whether a log line is a JSON object instead of text.
    pub json: bool,
}

/// The source of a request's permission: the `via` of metrics and request lines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Via {
    /// An open route: no loan is needed.
    Open,
    /// An earlier decision, from the cache.
    Cache,
    /// An existing loan in the ledger.
    Ledger,
    /// A loan that was begun for this request, or that the request waited for.
    Registered,
    /// No decision was reached.
    None,
}

impl Via {
    /// Every variant, in the order of declaration.
    pub const ALL: [Via; 5] = [Via::Open, Via::Cache, Via::Ledger, Via::Registered, Via::None];

    /// Returns the name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Via::Open => "open",
            Via::Cache => "cache",
            Via::Ledger => "ledger",
            Via::Registered => "registered",
            Via::None => "none",
        }
    }
}
