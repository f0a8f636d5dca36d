//! Tests of the spans of a trace.

use http::HeaderMap;
use ipnet::IpNet;
use tokio::sync::mpsc::{self, Receiver};

use super::*;
use crate::clock::Clock;
use crate::telemetry::Metrics;

fn tracer(sample: f64, queue: usize) -> (Tracer, Receiver<FinishedSpan>, Metrics) {
    let (sender, spans) = mpsc::channel(queue);
    let trusted: Vec<IpNet> = vec!["192.0.2.0/24".parse().unwrap()];
    let metrics = Metrics::new().unwrap();
    (Tracer::new(sample, trusted, sender, Clock::system(), metrics.clone()), spans, metrics)
}

fn all(spans: &mut Receiver<FinishedSpan>) -> Vec<FinishedSpan> {
    std::iter::from_fn(|| spans.try_recv().ok()).collect()
}

#[test]
fn calls_are_spans_of_the_step_that_sends_them() {
    let (tracer, mut spans, _) = tracer(1.0, 16);
    let id = RequestId::generate();
    let trace = tracer.request(id, &HeaderMap::new(), false).unwrap();
    trace.enter("gate");
    let outgoing = trace.within(|| {
        let mut span = Span::begin("ledger").unwrap();
        span.set("db.operation.name", "newest");
        Trace::outgoing().unwrap()
    });
    trace.enter("delivery");
    trace.finish(TraceEnd { error: Some("hung_up"), ..TraceEnd::default() });
    trace.finish(TraceEnd::default());
    drop(trace);
    let spans = all(&mut spans);
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_ref()).collect();
    assert_eq!(names, ["ledger", "gate", "delivery", "request"]);
    let [ledger, gate, delivery, request] = &spans[..] else { panic!("{spans:?}") };
    assert!(spans.iter().all(|span| span.trace == id.uuid().as_u128() && span.start <= span.end));
    assert_eq!(
        (ledger.parent, gate.parent, delivery.parent),
        (gate.span, request.span, request.span)
    );
    assert_eq!(request.parent, 0);
    assert_eq!((outgoing.span, outgoing.is_sampled), (ledger.span, true));
    assert_eq!(delivery.attributes, [("error.type", "hung_up".into())]);
    assert!(Trace::current().is_none());
}

#[test]
fn share_of_traces_is_sampled_by_the_id() {
    for (sample, range) in [(0.0, 0..=0), (0.1, 800..=1200), (1.0, 10_000..=10_000)] {
        let (tracer, _spans, _) = tracer(sample, 1);
        let sampled = (0..10_000)
            .filter(|_| tracer.request(RequestId::generate(), &HeaderMap::new(), false).is_some());
        let sampled = sampled.count();
        assert!(range.contains(&sampled), "{sampled} of 10000 at {sample}");
    }
    assert!(Tracer::default().background("work").is_none());
}

#[test]
fn only_a_trusted_client_decides_on_its_trace() {
    let (tracer, mut spans, _) = tracer(0.0, 16);
    let mut headers = HeaderMap::new();
    let sampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    headers.insert(TRACEPARENT, sampled.parse().unwrap());
    assert!(tracer.trusts("192.0.2.7".parse().unwrap()));
    assert!(tracer.trusts("::ffff:192.0.2.7".parse().unwrap()));
    assert!(!tracer.trusts("198.51.100.7".parse().unwrap()));
    assert!(tracer.request(RequestId::generate(), &headers, false).is_none());
    drop(tracer.request(RequestId::generate(), &headers, true).unwrap());
    let of_client = all(&mut spans).pop().unwrap();
    assert_eq!(of_client.trace, 0x4bf92f3577b34da6a3ce929d0e0e4736);
    assert_eq!(of_client.parent, 0x00f067aa0ba902b7);
    assert_eq!(of_client.attributes, [("error.type", "cancelled".into())]);
    headers.insert(TRACEPARENT, sampled.replace("-01", "-00").parse().unwrap());
    let trace = tracer.request(RequestId::generate(), &headers, true).unwrap();
    let outgoing = trace.within(Trace::outgoing).unwrap();
    assert_eq!((outgoing.trace, outgoing.is_sampled), (of_client.trace, false));
    assert!(trace.sampled_id().is_none());
    drop(trace);
    assert!(all(&mut spans).is_empty(), "the client does not sample it");
}

#[test]
fn unsampled_request_names_itself_to_others() {
    let id = RequestId::generate();
    let outgoing = id.within(Trace::outgoing).unwrap();
    assert_eq!((outgoing.trace, outgoing.is_sampled), (id.uuid().as_u128(), false));
    assert_eq!(Trace::outgoing(), None, "nothing to name outside of a request");
    let (tracer, mut spans, _) = tracer(0.0, 16);
    let trace = id.within(|| tracer.current()).unwrap();
    let outgoing = trace.within(Trace::outgoing_of_current).unwrap();
    assert_eq!((outgoing.trace, outgoing.is_sampled), (id.uuid().as_u128(), false));
    assert!(trace.within(|| Span::begin("ledger")).is_none());
    drop(trace);
    assert!(all(&mut spans).is_empty());
}

#[test]
fn spans_beyond_a_bound_are_dropped_and_counted() {
    let (full, mut spans, metrics) = tracer(1.0, 2);
    for _ in 0..5 {
        drop(full.background("work"));
    }
    assert_eq!(all(&mut spans).len(), 2);
    let dropped = "loangate_otlp_items_total{signal=\"traces\",outcome=\"dropped\"} 3";
    assert!(metrics.render().contains(dropped), "{}", metrics.render());
    let (tracer, mut spans, _) = tracer(1.0, 1000);
    let trace = tracer.background("work").unwrap();
    trace.within(|| (0..500).for_each(|_| drop(Span::begin("origin"))));
    drop(trace);
    assert_eq!(all(&mut spans).len(), MAX_SPANS as usize + 1);
}
