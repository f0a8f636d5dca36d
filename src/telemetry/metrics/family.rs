//! Families of metrics: a name with its unit and meaning, and one time series for each combination
//! of its labels.
//!
//! The files of this directory declare each family as a constant of a [`Family`], whose type
//! parameter is the labels. The [`Registry`] creates the handles that count.

use std::marker::PhantomData;

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Level, Metadata, Recorder, SharedString, Unit,
};
use metrics_exporter_prometheus::{
    BuildError, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use super::label::{Label, LabelEnum, LabelValues};

/// Upper bounds of the histogram buckets, in seconds.
pub(super) const DURATION_BUCKETS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0];
/// The most time series of a counter that are created at the start.
const MAX_CREATED: usize = 40;
const METADATA: Metadata<'static> = Metadata::new("loangate", Level::INFO, None);

/// The type of a metric, as in Prometheus.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MetricKind {
    /// A number that only rises.
    Counter,
    /// A number that rises and falls.
    Gauge,
    /// The distribution of a duration.
    Histogram,
}

/// What a metric means, for its registration and the documentation.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// The name on the wire.
    pub name: &'static str,
    /// The type of the metric.
    pub kind: MetricKind,
    /// The meaning, as a sentence without a full stop.
    pub help: &'static str,
    unit: Unit,
    labels: fn() -> Vec<(&'static str, LabelValues)>,
}

impl Definition {
    /// Returns the name of the unit, such as `seconds`.
    pub fn unit(&self) -> &'static str {
        self.unit.as_str()
    }

    /// Returns the name and the values of each label.
    pub fn labels(&self) -> Vec<(&'static str, LabelValues)> {
        (self.labels)()
    }
}

/// A metric with one time series for each combination of the labels `L`.
pub(super) struct Family<L> {
    pub(super) definition: Definition,
    labels: PhantomData<fn(L)>,
}

impl<L: Labels> Family<L> {
    pub(super) const fn counter(name: &'static str, unit: Unit, help: &'static str) -> Family<L> {
        Family::new(MetricKind::Counter, name, unit, help)
    }

    pub(super) const fn gauge(name: &'static str, unit: Unit, help: &'static str) -> Family<L> {
        Family::new(MetricKind::Gauge, name, unit, help)
    }

    /// Returns a histogram of durations in seconds.
    pub(super) const fn histogram(name: &'static str, help: &'static str) -> Family<L> {
        Family::new(MetricKind::Histogram, name, Unit::Seconds, help)
    }

    const fn new(
        kind: MetricKind,
        name: &'static str,
        unit: Unit,
        help: &'static str,
    ) -> Family<L> {
        let definition = Definition { name, kind, help, unit, labels: L::definitions };
        Family { definition, labels: PhantomData }
    }

    fn key(&self, labels: &L) -> Key {
        Key::from_parts(self.definition.name, labels.values())
    }
}

/// The labels of a family: none, one or two.
pub(super) trait Labels {
    /// Returns the name and the values of each label.
    fn definitions() -> Vec<(&'static str, LabelValues)>;

    /// Returns the labels of one time series.
    fn values(&self) -> Vec<metrics::Label>;
}

impl Labels for () {
    fn definitions() -> Vec<(&'static str, LabelValues)> {
        Vec::new()
    }

    fn values(&self) -> Vec<metrics::Label> {
        Vec::new()
    }
}

impl<A: Label> Labels for A {
    fn definitions() -> Vec<(&'static str, LabelValues)> {
        vec![(A::KEY, A::values())]
    }

    fn values(&self) -> Vec<metrics::Label> {
        vec![metrics::Label::new(A::KEY, self.value())]
    }
}

impl<A: Label, B: Label> Labels for (A, B) {
    fn definitions() -> Vec<(&'static str, LabelValues)> {
        vec![(A::KEY, A::values()), (B::KEY, B::values())]
    }

    fn values(&self) -> Vec<metrics::Label> {
        let (first, second) = self;
        vec![
            metrics::Label::new(A::KEY, first.value()),
            metrics::Label::new(B::KEY, second.value()),
        ]
    }
}

/// The registry of one gate.
pub(super) struct Registry {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

impl Registry {
    /// Creates a registry with the descriptions of these metrics.
    pub(super) fn new<'a>(
        definitions: impl Iterator<Item = &'a Definition>,
    ) -> Result<Registry, BuildError> {
        let recorder = PrometheusBuilder::new().set_buckets(&DURATION_BUCKETS)?.build_recorder();
        let all: Vec<&Definition> = definitions.collect();
        for definition in &all {
            let (name, unit) = (KeyName::from(definition.name), Some(definition.unit));
            let help = SharedString::const_str(definition.help);
            match definition.kind {
                MetricKind::Counter => recorder.describe_counter(name, unit, help),
                MetricKind::Gauge => recorder.describe_gauge(name, unit, help),
                MetricKind::Histogram => recorder.describe_histogram(name, unit, help),
            }
        }
        let registry = Registry { handle: recorder.handle(), recorder };
        all.iter().for_each(|definition| registry.create_counters(definition));
        Ok(registry)
    }

    /// Creates the time series of a counter, if its labels say all of them and they are few. An
    /// increase from no series to 1 is none for Prometheus, so an alert would miss the first event.
    fn create_counters(&self, definition: &Definition) {
        if definition.kind != MetricKind::Counter {
            return;
        }
        let mut combinations = vec![Vec::new()];
        for (key, values) in definition.labels() {
            let LabelValues::Fixed(values) = values else { return };
            let with_each = |labels: Vec<metrics::Label>| {
                values.clone().into_iter().map(move |value| {
                    let mut labels = labels.clone();
                    labels.push(metrics::Label::from_static_parts(key, value));
                    labels
                })
            };
            combinations = combinations.into_iter().flat_map(with_each).collect();
        }
        if combinations.len() > MAX_CREATED {
            return;
        }
        for labels in combinations {
            let key = Key::from_parts(definition.name, labels);
            self.recorder.register_counter(&key, &METADATA).increment(0);
        }
    }

    /// Returns all metrics in the text format of Prometheus.
    pub(super) fn render(&self) -> String {
        self.fold();
        self.handle.render()
    }

    /// Aggregates the recorded values of the histograms.
    pub(super) fn fold(&self) {
        self.handle.run_upkeep();
    }

    pub(super) fn counter<L: Labels>(&self, family: &Family<L>, labels: L) -> Counter {
        self.recorder.register_counter(&family.key(&labels), &METADATA)
    }

    pub(super) fn gauge<L: Labels>(&self, family: &Family<L>, labels: L) -> Gauge {
        self.recorder.register_gauge(&family.key(&labels), &METADATA)
    }

    pub(super) fn histogram<L: Labels>(&self, family: &Family<L>, labels: L) -> Histogram {
        self.recorder.register_histogram(&family.key(&labels), &METADATA)
    }
}

/// One counter for each value of a label, created at the start: counting is one atomic addition.
pub(super) struct CounterPer<L> {
    counters: Box<[Counter]>,
    label: PhantomData<fn(L)>,
}

impl<L: LabelEnum> CounterPer<L> {
    /// Creates the counter of each value by `create`.
    pub(super) fn new(create: impl FnMut(L) -> Counter) -> CounterPer<L> {
        let counters = L::ALL.iter().copied().map(create).collect();
        CounterPer { counters, label: PhantomData }
    }

    pub(super) fn increment(&self, value: L) {
        // Always there: `new` creates one counter for each value.
        if let Some(counter) = self.counters.get(value.index()) {
            counter.increment(1);
        }
    }
}
