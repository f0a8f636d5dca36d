//! Spans as OTLP describes them.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyKind;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind as OtlpKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

use super::super::trace::{FinishedSpan, SpanKind, Value};
use super::{attribute, scope};

/// Returns the request that exports these spans.
pub(super) fn request(resource: &Resource, spans: Vec<FinishedSpan>) -> ExportTraceServiceRequest {
    let spans = spans.into_iter().map(span).collect();
    let scope_spans = vec![ScopeSpans { scope: scope(), spans, ..ScopeSpans::default() }];
    let resource = Some(resource.clone());
    let of_gate = ResourceSpans { resource, scope_spans, ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![of_gate] }
}

fn span(span: FinishedSpan) -> Span {
    let kind = match span.kind {
        SpanKind::Internal => OtlpKind::Internal,
        SpanKind::Server => OtlpKind::Server,
        SpanKind::Client => OtlpKind::Client,
    };
    let parent_span_id = match span.parent {
        0 => Vec::new(),
        parent => parent.to_be_bytes().to_vec(),
    };
    let failed = Status { code: StatusCode::Error.into(), ..Status::default() };
    Span {
        trace_id: span.trace.to_be_bytes().to_vec(),
        span_id: span.span.to_be_bytes().to_vec(),
        parent_span_id,
        flags: 1,
        name: span.name.into_owned(),
        kind: kind.into(),
        start_time_unix_nano: span.start,
        end_time_unix_nano: span.end,
        attributes: span.attributes.into_iter().map(key_value).collect(),
        status: span.is_failed.then_some(failed),
        ..Span::default()
    }
}

fn key_value((name, value): (&'static str, Value)) -> KeyValue {
    attribute(
        name,
        match value {
            Value::Text(text) => AnyKind::StringValue(text.into_owned()),
            Value::Number(number) => AnyKind::IntValue(number),
        },
    )
}
