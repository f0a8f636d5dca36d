//! Metrics of the export over OTLP.

use metrics::Unit;

use super::Metrics;
use super::family::{Definition, Family};
use super::label::label_enum;

const ITEMS: Family<(Signal, SignalOutcome)> = Family::counter(
    "loangate_otlp_items_total",
    Unit::Count,
    "Spans, log lines and reports of metrics for the OTLP collector, by signal and outcome",
);

pub(super) const DEFINITIONS: [Definition; 1] = [ITEMS.definition];

label_enum! {
    /// What is exported over OTLP.
    pub enum Signal: "signal" {
        /// Spans.
        Traces = "traces",
        /// Reports of all metrics.
        Metrics = "metrics",
        /// Log lines.
        Logs = "logs",
    }
}

label_enum! {
    /// What became of it.
    pub enum SignalOutcome: "outcome" {
        /// The collector accepted it.
        Exported = "exported",
        /// The collector could not be reached, was too slow or answered with an error.
        Failed = "failed",
        /// The collector refused it.
        Rejected = "rejected",
        /// The queue was full.
        Dropped = "dropped",
    }
}

impl Metrics {
    /// Counts spans, log lines or reports of metrics.
    pub(crate) fn otlp(&self, signal: Signal, outcome: SignalOutcome, count: u64) {
        self.inner.registry.counter(&ITEMS, (signal, outcome)).increment(count);
    }
}
