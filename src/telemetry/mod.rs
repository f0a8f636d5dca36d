//! What an operator sees: logs, metrics, the line per request.
//!
//! Everyone but the vocabulary may call it; it calls nothing of ours but the vocabulary. It
//! promises that no dependency logs below info, whatever is asked for: at trace, HTTP libraries
//! print header fields.

mod log;
mod log_limit;
mod metrics;
mod request_line;

pub use log::{LogError, init};
pub use log_limit::LogLimit;
pub use metrics::{Metrics, OriginMetrics};
pub use request_line::RequestLine;

/// The keys of `[log]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The level of our own targets; dependencies stay at info or above.
    pub level: tracing::Level,
    /// One JSON object a line instead of text.
    pub json: bool,
}

/// Where a request's permission came from: the `via` of metrics and of the request line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Via {
    /// An open route: no loan is needed.
    Open,
    /// A decision in the cache.
    Cache,
    /// A loan in the ledger.
    Ledger,
    /// A loan that was registered for this request, or that it waited for.
    Registered,
    /// No decision was reached.
    None,
}

impl Via {
    /// Every one of them.
    pub const ALL: [Via; 5] = [Via::Open, Via::Cache, Via::Ledger, Via::Registered, Via::None];

    /// The name in metrics and logs.
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
