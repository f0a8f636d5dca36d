//! All metrics, with their names, labels, units and meanings. No other module names a metric.
//!
//! Each file declares the metrics and labels of one subject, and the methods of [`Metrics`] that
//! count them. The handles of the hot path are created at the start, so counting is one atomic
//! addition. Each gate has a separate registry, so two gates in one process do not mix their
//! counts. `docs/metrics.md` is generated from [`definitions`].

mod balance;
mod connections;
mod family;
mod label;
mod ledger;
mod lending;
mod loans;
mod login_keys;
mod origins;
mod otlp;
mod process;
mod readings;
mod requests;
mod tasks;
pub(super) mod text;
mod watch;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use balance::{FindingAction, FindingKind};
pub use connections::{Handshake, Limit};
pub use family::{Definition, MetricKind};
use family::{Family, Labels, Registry};
pub use label::LabelValues;
pub use ledger::{FencedMember, FlushOutcome, RequestStorage};
pub use lending::{Breach, CallKind, CallOutcome, LendingCall};
pub use loans::{BrakeAction, BrakeLimit, LateBeginFinder, LoanEvent};
pub use login_keys::KeyFetch;
use metrics_exporter_prometheus::BuildError;
pub use origins::{OriginMetrics, OriginOutcome, ResumeOutcome};
pub use otlp::{Signal, SignalOutcome};
pub use readings::{Calls, Durations, Readings};
pub(crate) use requests::Exemplar;
pub use requests::{RequestOutcome, StreamEnd, Via};
pub use tasks::{OrderOutcome, ReloadOutcome, Task};
pub use watch::{ProblemSeverity, Service, ServiceStatus};

/// The definitions of all metrics, by subject.
const SUBJECTS: [&[Definition]; 12] = [
    &requests::DEFINITIONS,
    &connections::DEFINITIONS,
    &login_keys::DEFINITIONS,
    &loans::DEFINITIONS,
    &lending::DEFINITIONS,
    &balance::DEFINITIONS,
    &origins::DEFINITIONS,
    &ledger::DEFINITIONS,
    &tasks::DEFINITIONS,
    &otlp::DEFINITIONS,
    &watch::DEFINITIONS,
    &process::DEFINITIONS,
];

/// Returns the definitions of all metrics, by subject.
pub fn definitions() -> impl Iterator<Item = &'static Definition> {
    SUBJECTS.into_iter().flatten()
}

/// The metrics of one gate, for all modules. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    requests: requests::Handles,
    connections: connections::Handles,
    lease: Mutex<Option<ledger::LeaseProbe>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Creates a registry with all metrics.
    ///
    /// # Errors
    /// Returns an error if the exporter rejects the buckets of the histograms.
    pub fn new() -> Result<Metrics, BuildError> {
        let registry = Registry::new(definitions())?;
        let requests = requests::Handles::new(&registry);
        let connections = connections::Handles::new(&registry);
        let inner = Inner { registry, requests, connections, lease: Mutex::default() };
        let metrics = Metrics { inner: Arc::new(inner) };
        metrics.process_started();
        Ok(metrics)
    }

    /// Returns all metrics in the text format of Prometheus.
    pub fn render(&self) -> String {
        self.read_lease();
        self.inner.registry.render()
    }

    /// Aggregates the recorded values of the histograms. Without regular calls, they store every
    /// value until the next [`Metrics::render`].
    pub fn fold(&self) {
        self.inner.registry.fold();
    }

    fn count<L: Labels>(&self, family: &Family<L>, labels: L) {
        self.inner.registry.counter(family, labels).increment(1);
    }

    fn set<L: Labels>(&self, family: &Family<L>, labels: L, value: f64) {
        self.inner.registry.gauge(family, labels).set(value);
    }

    fn record_duration<L: Labels>(&self, family: &Family<L>, labels: L, duration: Duration) {
        self.inner.registry.histogram(family, labels).record(duration.as_secs_f64());
    }
}
