//! All metrics as OTLP describes them: those of `/metrics`, with the same names.
//!
//! They are read from the text that the registry renders, so that both show one snapshot.

use std::collections::HashMap;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar as OtlpExemplar, Gauge, Histogram, HistogramDataPoint, Metric,
    NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, exemplar, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;

use super::super::metrics::text::{Sample, samples};
use super::super::metrics::{Definition, Exemplar, MetricKind, Via, definitions};
use super::{scope, text_attribute};

/// The histogram whose buckets have exemplars.
const HEAD: &str = "loangate_head_seconds";

/// A snapshot of the registry.
pub(super) struct Snapshot<'t> {
    /// The text that Prometheus reads.
    pub(super) text: &'t str,
    /// When counting began, in nanoseconds since the epoch.
    pub(super) start: u64,
    /// When the text was rendered.
    pub(super) time: u64,
    /// Sampled requests as examples of [`HEAD`].
    pub(super) exemplars: &'t [(Via, Exemplar)],
}

type Labels<'t> = Vec<(&'t str, String)>;

/// Returns the request that exports a snapshot.
pub(super) fn request(resource: &Resource, snapshot: &Snapshot<'_>) -> ExportMetricsServiceRequest {
    let mut by_name: HashMap<&str, Vec<Sample<'_>>> = HashMap::new();
    for sample in samples(snapshot.text) {
        by_name.entry(sample.name).or_default().push(sample);
    }
    let metrics = definitions().filter_map(|definition| snapshot.metric(definition, &by_name));
    let scope_metrics =
        ScopeMetrics { scope: scope(), metrics: metrics.collect(), ..ScopeMetrics::default() };
    let of_gate = ResourceMetrics {
        resource: Some(resource.clone()),
        scope_metrics: vec![scope_metrics],
        ..ResourceMetrics::default()
    };
    ExportMetricsServiceRequest { resource_metrics: vec![of_gate] }
}

impl Snapshot<'_> {
    /// Returns a metric; none if it has no series yet.
    fn metric(
        &self,
        definition: &Definition,
        samples: &HashMap<&str, Vec<Sample<'_>>>,
    ) -> Option<Metric> {
        let cumulative = AggregationTemporality::Cumulative.into();
        let of = |suffix: &str| {
            let name = format!("{}{suffix}", definition.name);
            samples.get(name.as_str()).map_or(&[][..], Vec::as_slice)
        };
        let data = match definition.kind {
            MetricKind::Counter => Data::Sum(Sum {
                data_points: of("").iter().filter_map(|sample| self.count(sample)).collect(),
                aggregation_temporality: cumulative,
                is_monotonic: true,
            }),
            MetricKind::Gauge => Data::Gauge(Gauge {
                data_points: of("").iter().filter_map(|sample| self.reading(sample)).collect(),
            }),
            MetricKind::Histogram => Data::Histogram(Histogram {
                data_points: self
                    .distributions(definition.name, (of("_bucket"), of("_sum"), of("_count"))),
                aggregation_temporality: cumulative,
            }),
        };
        let is_empty = match &data {
            Data::Sum(sum) => sum.data_points.is_empty(),
            Data::Gauge(gauge) => gauge.data_points.is_empty(),
            Data::Histogram(histogram) => histogram.data_points.is_empty(),
            _ => true,
        };
        (!is_empty).then(|| Metric {
            name: definition.name.to_owned(),
            description: definition.help.to_owned(),
            unit: unit(definition.unit()).to_owned(),
            data: Some(data),
            ..Metric::default()
        })
    }

    fn count(&self, sample: &Sample<'_>) -> Option<NumberDataPoint> {
        let count = sample.value.parse().ok()?;
        Some(self.point(sample, number_data_point::Value::AsInt(count)))
    }

    fn reading(&self, sample: &Sample<'_>) -> Option<NumberDataPoint> {
        let reading = sample.value.parse().ok()?;
        Some(self.point(sample, number_data_point::Value::AsDouble(reading)))
    }

    fn point(&self, sample: &Sample<'_>, value: number_data_point::Value) -> NumberDataPoint {
        NumberDataPoint {
            attributes: attributes(&sample.labels),
            start_time_unix_nano: self.start,
            time_unix_nano: self.time,
            value: Some(value),
            ..NumberDataPoint::default()
        }
    }

    /// Returns the distributions of a histogram, one for each combination of its labels.
    fn distributions(
        &self,
        name: &str,
        (buckets, sums, counts): (&[Sample<'_>], &[Sample<'_>], &[Sample<'_>]),
    ) -> Vec<HistogramDataPoint> {
        let distribution = |count: &Sample<'_>| {
            let sum = sums.iter().find(|sum| sum.labels == count.labels)?;
            let own = buckets.iter().filter_map(|bucket| {
                let (bound, labels) = bucket.labels.split_last()?;
                (*labels == count.labels).then_some((bound.1.as_str(), bucket.value))
            });
            let (mut bucket_counts, mut explicit_bounds, mut below) = (Vec::new(), Vec::new(), 0);
            for (bound, value) in own {
                // The text counts all values up to a bound, and OTLP those since the bound before.
                let until: u64 = value.parse().ok()?;
                bucket_counts.push(until.saturating_sub(below));
                below = until;
                let bound: f64 = bound.parse().ok()?;
                explicit_bounds.extend(Some(bound).filter(|bound| bound.is_finite()));
            }
            Some(HistogramDataPoint {
                attributes: attributes(&count.labels),
                start_time_unix_nano: self.start,
                time_unix_nano: self.time,
                count: count.value.parse().ok()?,
                sum: sum.value.parse().ok(),
                bucket_counts,
                explicit_bounds,
                exemplars: self.exemplars_of(name, &count.labels),
                ..HistogramDataPoint::default()
            })
        };
        counts.iter().filter_map(distribution).collect()
    }
}

impl Snapshot<'_> {
    /// Returns the exemplars of one distribution.
    fn exemplars_of(&self, name: &str, labels: &Labels<'_>) -> Vec<OtlpExemplar> {
        let is_of = |via: &Via| {
            name == HEAD && labels.iter().any(|(_, value)| value.as_str() == via.name())
        };
        let own = self.exemplars.iter().filter(|(via, _)| is_of(via));
        own.map(|(_, exemplar)| OtlpExemplar {
            time_unix_nano: exemplar.time,
            trace_id: exemplar.trace.to_be_bytes().to_vec(),
            span_id: exemplar.span.to_be_bytes().to_vec(),
            value: Some(exemplar::Value::AsDouble(exemplar.seconds)),
            ..OtlpExemplar::default()
        })
        .collect()
    }
}

/// Returns a unit as OTLP writes it (UCUM).
fn unit(name: &str) -> &str {
    match name {
        "seconds" => "s",
        "bytes" => "By",
        "count" => "1",
        other => other,
    }
}

fn attributes(labels: &Labels<'_>) -> Vec<KeyValue> {
    labels.iter().map(|(name, value)| text_attribute(name, value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::{Metrics, RequestOutcome, Via};

    fn exported(metrics: &Metrics) -> Vec<Metric> {
        let text = metrics.render();
        let exemplars = metrics.take_exemplars();
        let snapshot = Snapshot { text: &text, start: 1, time: 2, exemplars: &exemplars };
        let request = request(&Resource::default(), &snapshot);
        request.resource_metrics[0].scope_metrics[0].metrics.clone()
    }

    #[test]
    fn every_series_of_the_text_is_exported() {
        let metrics = Metrics::new().unwrap();
        metrics.request(RequestOutcome::Ok, Via::Cache, Duration::from_millis(3));
        metrics.request(RequestOutcome::Ok, Via::Cache, Duration::from_secs(90));
        for (seconds, span) in [(0.003, 1), (0.004, 2), (90.0, 3)] {
            metrics.exemplar(Via::Cache, Exemplar { seconds, time: 9, trace: 7, span });
        }
        metrics
            .origin("a \"name\"")
            .request(crate::telemetry::OriginOutcome::Success, Duration::from_millis(1));
        let text = metrics.render();
        let mut lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let series = lines.clone().count();
        assert!(lines.any(|line| line.contains(r#"origin="a \"name\"""#)), "{text}");
        let all = exported(&metrics);
        let count = |metric: &Metric| match metric.data.as_ref().unwrap() {
            Data::Sum(sum) => sum.data_points.len(),
            Data::Gauge(gauge) => gauge.data_points.len(),
            Data::Histogram(histogram) => {
                histogram.data_points.iter().map(|point| point.bucket_counts.len() + 2).sum()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(all.iter().map(count).sum::<usize>(), series);
        let head = all.iter().find(|metric| metric.name == "loangate_head_seconds").unwrap();
        assert_eq!(head.unit, "s");
        let Some(Data::Histogram(histogram)) = &head.data else { panic!("{head:?}") };
        let point = histogram.data_points.iter().find(|point| point.count == 2).unwrap();
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert_eq!(point.bucket_counts.iter().sum::<u64>(), 2);
        assert_eq!((point.bucket_counts[3], point.bucket_counts.last()), (1, Some(&1)));
        let spans: Vec<u8> = point.exemplars.iter().map(|exemplar| exemplar.span_id[7]).collect();
        assert_eq!(spans, [2, 3], "the newest of each bucket");
        assert!(metrics.take_exemplars().is_empty());
        assert!((point.sum.unwrap() - 90.003).abs() < 1e-6);
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (1, 2));
    }
}
