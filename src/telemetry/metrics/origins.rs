//! Metrics of requests to origins.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Gauge, Histogram, SharedString, Unit};

use super::Metrics;
use super::family::{CounterPer, Definition, Family};
use super::label::{Label, LabelValues, label_enum};

pub(super) const REQUESTS: Family<(OriginName, OriginOutcome)> = Family::counter(
    "loangate_origin_requests_total",
    Unit::Count,
    "Requests to origins, by origin and outcome",
);
const FIRST_BYTE: Family<OriginName> = Family::histogram(
    "loangate_origin_first_byte_seconds",
    "Time from a request to an origin to its response head, by origin",
);
const SUSPENDED: Family<OriginName> = Family::gauge(
    "loangate_origin_addresses_suspended",
    Unit::Count,
    "Addresses of an origin that get trial requests only, since most requests failed",
);
const RESUMES: Family<(OriginName, ResumeOutcome)> = Family::counter(
    "loangate_origin_resumes_total",
    Unit::Count,
    "Requests to an origin for the rest of a broken body, by outcome",
);

pub(super) const DEFINITIONS: [Definition; 4] =
    [REQUESTS.definition, FIRST_BYTE.definition, SUSPENDED.definition, RESUMES.definition];

/// The name of an origin.
pub(super) struct OriginName(String);

impl Label for OriginName {
    const KEY: &'static str = "origin";

    fn values() -> LabelValues {
        LabelValues::Configured("the name of an `[[origins]]`")
    }

    fn value(&self) -> SharedString {
        SharedString::from_owned(self.0.clone())
    }
}

label_enum! {
    /// The result of a request to an origin.
    pub enum OriginOutcome: "outcome" {
        /// It answered with a 2xx status.
        Success = "2xx",
        /// It answered with a 3xx status.
        Redirection = "3xx",
        /// It answered with a 4xx status.
        ClientError = "4xx",
        /// It answered with a 5xx status.
        ServerError = "5xx",
        /// It cannot be reached, or its response is not valid.
        Failed = "failed",
        /// It did not respond in time.
        TimedOut = "timed_out",
        /// No request was sent: all connections are busy.
        Busy = "busy",
        /// No request was sent: the address or the retry budget is suspended.
        Suspended = "suspended",
    }
}

label_enum! {
    /// The result of a request for the rest of a broken body.
    pub enum ResumeOutcome: "outcome" {
        /// The body goes on.
        Resumed = "resumed",
        /// The request failed; another one may succeed.
        Failed = "failed",
        /// The origin now has another file.
        Changed = "changed",
    }
}

/// The metrics of one origin.
#[derive(Clone)]
pub struct OriginMetrics(Arc<Handles>);

struct Handles {
    outcomes: CounterPer<OriginOutcome>,
    first_byte: Histogram,
    suspended: Gauge,
}

impl fmt::Debug for OriginMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OriginMetrics")
    }
}

impl OriginMetrics {
    /// Counts a request that was not sent.
    pub fn not_sent(&self, outcome: OriginOutcome) {
        self.0.outcomes.increment(outcome);
    }

    /// Records a request to the origin: its outcome, and the time to its response head.
    pub fn request(&self, outcome: OriginOutcome, first_byte: Duration) {
        self.0.outcomes.increment(outcome);
        self.0.first_byte.record(first_byte.as_secs_f64());
    }

    /// Records how many addresses get trial requests only.
    pub fn suspended(&self, addresses: usize) {
        self.0.suspended.set(f64::from(u32::try_from(addresses).unwrap_or(u32::MAX)));
    }
}

impl Metrics {
    /// Returns the metrics of the origin with this name.
    pub fn origin(&self, name: &str) -> OriginMetrics {
        let registry = &self.inner.registry;
        let counter = |outcome| registry.counter(&REQUESTS, (OriginName(name.to_owned()), outcome));
        OriginMetrics(Arc::new(Handles {
            outcomes: CounterPer::new(counter),
            first_byte: registry.histogram(&FIRST_BYTE, OriginName(name.to_owned())),
            suspended: registry.gauge(&SUSPENDED, OriginName(name.to_owned())),
        }))
    }

    /// Counts a request to an origin for the rest of a broken body.
    pub fn origin_resume(&self, origin: &str, outcome: ResumeOutcome) {
        self.count(&RESUMES, (OriginName(origin.to_owned()), outcome));
    }
}
