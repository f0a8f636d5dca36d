//! Metrics of readers' requests and of the bodies that answer them.

use std::sync::Mutex;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, SharedString, Unit};

use super::Metrics;
use super::family::{CounterPer, DURATION_BUCKETS, Definition, Family, Registry};
use super::label::{Label, LabelEnum, LabelValues, label_enum};
use crate::lock::lock;
use crate::problem::ProblemType;

pub(super) const REQUESTS: Family<(RequestOutcome, Via)> = Family::counter(
    "loangate_requests_total",
    Unit::Count,
    "Requests, by outcome (ok or the slug of the problem) and via",
);
pub(super) const HEAD: Family<Via> =
    Family::histogram("loangate_head_seconds", "Time from a request to its response head, by via");
pub(super) const DELIVERED: Family<()> =
    Family::counter("loangate_delivered_bytes_total", Unit::Bytes, "Body bytes sent to readers");
pub(super) const STREAMS: Family<()> =
    Family::gauge("loangate_streams", Unit::Count, "Response bodies in progress");
const STREAMS_CLOSED: Family<StreamEnd> = Family::counter(
    "loangate_streams_closed_total",
    Unit::Count,
    "Response bodies that ended, by the way they ended",
);
const ACCESS_LINES_LOST: Family<()> = Family::counter(
    "loangate_access_lines_lost_total",
    Unit::Count,
    "Lines of the access log that could not be written in time",
);

pub(super) const DEFINITIONS: [Definition; 6] = [
    REQUESTS.definition,
    HEAD.definition,
    DELIVERED.definition,
    STREAMS.definition,
    STREAMS_CLOSED.definition,
    ACCESS_LINES_LOST.definition,
];

label_enum! {
    /// The source of a request's permission: the `via` of metrics and request lines.
    pub enum Via: "via" {
        /// An open route: no loan is needed.
        Open = "open",
        /// An earlier decision, from the cache.
        Cache = "cache",
        /// An existing loan in the ledger.
        Ledger = "ledger",
        /// A loan that was begun for this request, or that the request waited for.
        Registered = "registered",
        /// No decision was reached.
        None = "none",
    }
}

label_enum! {
    /// How a response body ended.
    pub enum StreamEnd: "end" {
        /// The kernel accepted the last byte.
        Complete = "complete",
        /// The origin broke off or stalled.
        OriginFailed = "origin_failed",
        /// The reader closed the stream or the connection.
        HungUp = "hung_up",
        /// The loan ended during the transfer.
        Cut = "cut",
        /// The reader was idle or too slow.
        TooSlow = "too_slow",
    }
}

/// The result of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RequestOutcome {
    /// It was answered.
    Ok,
    /// It was a CORS preflight, which needs no credentials.
    Preflight,
    /// It was refused with a problem of this type.
    Refused(ProblemType),
}

impl RequestOutcome {
    fn name(self) -> &'static str {
        match self {
            RequestOutcome::Ok => "ok",
            RequestOutcome::Preflight => "preflight",
            RequestOutcome::Refused(problem) => problem.slug(),
        }
    }
}

impl Label for RequestOutcome {
    const KEY: &'static str = "outcome";

    fn values() -> LabelValues {
        let refused = ProblemType::ALL.iter().copied().map(RequestOutcome::Refused);
        let all = [RequestOutcome::Ok, RequestOutcome::Preflight].into_iter().chain(refused);
        LabelValues::Fixed(all.map(RequestOutcome::name).collect())
    }

    fn value(&self) -> SharedString {
        SharedString::const_str(self.name())
    }
}

/// A sampled request, as an example of the values in one bucket of [`HEAD`].
#[cfg_attr(not(feature = "otlp"), allow(dead_code))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exemplar {
    /// The time to its response head, in seconds.
    pub(crate) seconds: f64,
    /// When the head was ready, in nanoseconds since the epoch.
    pub(crate) time: u64,
    pub(crate) trace: u128,
    pub(crate) span: u64,
}

/// The newest exemplar of each bucket, by the index of [`Via`]. Only sampled requests lock it.
type Exemplars = Mutex<[[Option<Exemplar>; DURATION_BUCKETS.len() + 1]; Via::ALL.len()]>;

/// The handles that a request on the hot path uses.
pub(super) struct Handles {
    /// By the index of [`Via`], so that a request finds both by one look.
    vias: Box<[ViaHandles]>,
    delivered: Counter,
    streams: Gauge,
    closed: CounterPer<StreamEnd>,
    exemplars: Exemplars,
}

/// The handles of the requests with one source of permission.
struct ViaHandles {
    /// Successful requests.
    ok: Counter,
    head: Histogram,
}

impl Handles {
    pub(super) fn new(registry: &Registry) -> Handles {
        Handles {
            vias: Via::ALL.map(|via| ViaHandles::new(registry, via)).into(),
            delivered: registry.counter(&DELIVERED, ()),
            streams: registry.gauge(&STREAMS, ()),
            closed: CounterPer::new(|end| registry.counter(&STREAMS_CLOSED, end)),
            exemplars: Mutex::default(),
        }
    }
}

impl ViaHandles {
    fn new(registry: &Registry, via: Via) -> ViaHandles {
        let ok = registry.counter(&REQUESTS, (RequestOutcome::Ok, via));
        ViaHandles { ok, head: registry.histogram(&HEAD, via) }
    }
}

impl Metrics {
    /// Records a request whose response head is ready. `head` is the time until then.
    pub fn request(&self, outcome: RequestOutcome, via: Via, head: Duration) {
        // Always there: each value has its handles.
        let Some(handles) = self.inner.requests.vias.get(via.index()) else { return };
        handles.head.record(head.as_secs_f64());
        match outcome {
            RequestOutcome::Ok => handles.ok.increment(1),
            RequestOutcome::Preflight | RequestOutcome::Refused(_) => {
                self.count(&REQUESTS, (outcome, via));
            }
        }
    }

    /// Counts lines of the access log that are lost.
    pub(in crate::telemetry) fn access_lines_lost(&self, lines: u64) {
        self.inner.registry.counter(&ACCESS_LINES_LOST, ()).increment(lines);
    }

    /// Records a sampled request as the exemplar of its bucket.
    pub(crate) fn exemplar(&self, via: Via, exemplar: Exemplar) {
        let bucket = DURATION_BUCKETS.partition_point(|bound| *bound < exemplar.seconds);
        let mut exemplars = lock(&self.inner.requests.exemplars);
        let slot = exemplars.get_mut(via.index()).and_then(|buckets| buckets.get_mut(bucket));
        if let Some(slot) = slot {
            *slot = Some(exemplar);
        }
    }

    /// Takes the exemplars of the requests since the last call.
    #[cfg_attr(not(feature = "otlp"), allow(dead_code))]
    pub(crate) fn take_exemplars(&self) -> Vec<(Via, Exemplar)> {
        let exemplars = std::mem::take(&mut *lock(&self.inner.requests.exemplars));
        let of_vias = Via::ALL.into_iter().zip(exemplars);
        of_vias
            .flat_map(|(via, buckets)| buckets.into_iter().flatten().map(move |one| (via, one)))
            .collect()
    }

    /// Counts body bytes sent to a reader.
    pub fn delivered(&self, bytes: u64) {
        self.inner.requests.delivered.increment(bytes);
    }

    /// Records the start of a response body.
    pub fn stream_opened(&self) {
        self.inner.requests.streams.increment(1.0);
    }

    /// Records the end of a response body, and how it ended.
    pub fn stream_closed(&self, end: StreamEnd) {
        self.inner.requests.streams.decrement(1.0);
        self.inner.requests.closed.increment(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rendered_text_has_counts_and_descriptions() {
        let metrics = Metrics::new().unwrap();
        metrics.request(RequestOutcome::Ok, Via::Cache, Duration::from_millis(1));
        let refused = RequestOutcome::Refused(ProblemType::LoanRefused);
        metrics.request(refused, Via::Ledger, Duration::from_millis(1));
        metrics.delivered(1000);
        let text = metrics.render();
        assert!(text.contains(r#"loangate_requests_total{outcome="ok",via="cache"} 1"#), "{text}");
        assert!(text.contains(r#"outcome="loan-refused",via="ledger"} 1"#), "{text}");
        assert!(text.contains("loangate_delivered_bytes_total 1000"), "{text}");
        assert!(text.contains("# HELP loangate_delivered_bytes_total"), "{text}");
    }
}
