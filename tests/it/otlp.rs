//! Traces, metrics and log lines over OTLP, and W3C Trace Context to the origin and Bokbasen.

use std::collections::BTreeSet;

use http::{HeaderMap, StatusCode};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::{Value, json};

use crate::support::collector::{Collector, Manner, attribute};
use crate::support::{BOOK, File, LIBRARY, Scene, Setting, metric};

/// The other parts of the gate and a collector, with these keys in `[otlp]`.
async fn stage(manner: Manner, keys: &str) -> (Scene, Collector) {
    let collector = Collector::start(manner).await;
    let scene = Scene::without_gate(Setting::default()).await;
    let otlp = format!("[otlp]\nendpoint = \"{}\"\n{keys}\n\n[ledger]", collector.url);
    scene.replace_in_config("[ledger]", &otlp);
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
    (scene, collector)
}

/// Requests the book, and returns the id of the request as a trace id.
async fn read_book(scene: &Scene, traceparent: Option<&str>) -> String {
    let path = format!("/files/{BOOK}/book.epub");
    let mut request = scene.get(&scene.http2(), &path, &scene.token("kari"));
    if let Some(parent) = traceparent {
        request = request.header("traceparent", parent).header("baggage", "reader=kari");
        request = request.header("tracestate", "app=kari");
    }
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let id = answer.headers()["x-request-id"].to_str().unwrap().replace('-', "");
    assert_eq!(answer.bytes().await.unwrap().len(), 5000);
    id
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the header that names this span.
fn parent_text(span: &Span) -> String {
    format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id))
}

fn traceparent(headers: &HeaderMap) -> String {
    assert!(!headers.contains_key("tracestate") && !headers.contains_key("baggage"));
    headers["traceparent"].to_str().unwrap().to_owned()
}

/// Returns the `traceparent` of the last request for the book at the origin.
fn at_origin(scene: &Scene) -> String {
    let requests = scene.origin.requests();
    let request = requests.iter().rev().find(|request| request.path.ends_with("book.epub"));
    traceparent(&request.unwrap().headers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_request_is_one_trace_of_all_steps() {
    let (mut scene, collector) = stage(Manner::Accepts, "sample = 1.0").await;
    let bokbasen = scene.rewritten().await;
    scene.start_gate().await;
    let id = read_book(&scene, None).await;
    let name = "GET /files/{isbn}/{*file}";
    scene.until("the trace", async || collector.named(name).len() == 1).await;
    let server = &collector.named(name)[0];
    assert_eq!((hex(&server.trace_id), server.kind), (id.clone(), SpanKind::Server as i32));
    assert!(server.parent_span_id.is_empty());
    let is_of_request = |span: &Span| span.trace_id == server.trace_id;
    let spans: Vec<Span> = collector.spans().into_iter().filter(is_of_request).collect();
    let only = |name: &str| -> &Span {
        let named: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
        assert_eq!(named.len(), 1, "{name} in {spans:?}");
        named[0]
    };
    for step in ["reader", "gate", "delivery"] {
        assert_eq!(only(step).parent_span_id, server.span_id, "{step}");
    }
    let calls = spans.iter().filter(|span| matches!(span.name.as_str(), "ledger" | "bokbasen"));
    let calls: Vec<&Span> = calls.collect();
    assert!(calls.iter().all(|call| call.parent_span_id == only("gate").span_id), "{calls:?}");
    let operations: BTreeSet<String> =
        calls.iter().filter_map(|call| attribute(&call.attributes, "db.operation.name")).collect();
    for operation in ["newest", "intended", "begun", "opened"] {
        assert!(operations.contains(operation), "{operation} in {operations:?}");
    }
    assert_eq!(only("origin").parent_span_id, only("delivery").span_id);
    let of_server = |name: &str| attribute(&server.attributes, name);
    assert_eq!(of_server("http.request.method").unwrap(), "GET");
    assert_eq!(of_server("http.route").unwrap(), "/files/{isbn}/{*file}");
    assert_eq!(of_server("http.response.status_code").unwrap(), "200");
    assert_eq!(of_server("loangate.via").unwrap(), "registered");
    assert_eq!(of_server("error.type"), None);
    assert!(spans.iter().all(|span| server.start_time_unix_nano <= span.start_time_unix_nano
        && span.end_time_unix_nano <= server.end_time_unix_nano));
    // What the other systems received names the span of their call.
    assert_eq!(at_origin(&scene), parent_text(only("origin")));
    let begin = calls
        .iter()
        .find(|call| attribute(&call.attributes, "loangate.call").as_deref() == Some("begin"));
    let at_bokbasen: Vec<String> = bokbasen
        .calls()
        .iter()
        .filter(|call| call.method == "POST")
        .map(|call| traceparent(&call.headers))
        .collect();
    assert_eq!(at_bokbasen, [parent_text(begin.unwrap())]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumed_body_stays_in_its_trace() {
    let (mut scene, collector) = stage(Manner::Accepts, "sample = 1.0").await;
    let file = File { abort_after: Some(200_000), ..File::of(300_000) };
    scene.origin.put(&format!("{BOOK}/broken.epub"), file);
    scene.start_gate().await;
    let path = format!("/files/{BOOK}/broken.epub");
    let request = scene.get(&scene.http2(), &path, &scene.token("kari"));
    let answer = request.send().await.unwrap();
    let id = answer.headers()["x-request-id"].to_str().unwrap().replace('-', "");
    assert_eq!(answer.bytes().await.unwrap().len(), 300_000);
    let name = "GET /files/{isbn}/{*file}";
    scene.until("the trace", async || collector.named(name).len() == 1).await;
    let calls = collector.named("origin");
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert!(calls.iter().all(|call| hex(&call.trace_id) == id));
    let requests = scene.origin.requests().into_iter();
    let requests = requests.filter(|request| request.path.ends_with("broken.epub"));
    let sent: Vec<String> = requests.map(|request| traceparent(&request.headers)).collect();
    assert_eq!(sent, [parent_text(&calls[0]), parent_text(&calls[1])]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_of_a_loan_is_a_trace_of_its_own() {
    let (mut scene, collector) = stage(Manner::Accepts, "sample = 1.0").await;
    let bokbasen = scene.rewritten().await;
    scene.start_gate().await;
    read_book(&scene, None).await;
    let before = bokbasen.calls().len();
    let path = format!("/loans/{BOOK}");
    let (status, _) = scene.call_api("DELETE", &path, &scene.token("kari"), "").await;
    assert!(status.is_success(), "{status}");
    scene.until("the end", async || !collector.named("end of a loan").is_empty()).await;
    let end = &collector.named("end of a loan")[0];
    assert!(end.parent_span_id.is_empty());
    let mut calls = collector.named("bokbasen").into_iter();
    let call = calls.rfind(|call| call.trace_id == end.trace_id).unwrap();
    assert_eq!(call.parent_span_id, end.span_id);
    let sent = bokbasen.calls()[before..].last().map(|call| traceparent(&call.headers));
    assert_eq!(sent, Some(parent_text(&call)));
    let returned = &collector.named("DELETE /loans")[0];
    assert_ne!(returned.trace_id, end.trace_id);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsampled_requests_export_nothing_and_name_themselves() {
    let (mut scene, collector) = stage(Manner::Accepts, "sample = 0\nmetrics = false").await;
    let bokbasen = scene.rewritten().await;
    scene.start_gate().await;
    let forced = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let id = read_book(&scene, Some(forced)).await;
    let (origin, begin) = (at_origin(&scene), bokbasen.calls());
    let begin = begin.iter().find(|call| call.method == "POST").unwrap();
    for sent in [origin, traceparent(&begin.headers)] {
        assert!(sent.starts_with(&format!("00-{id}-")) && sent.ends_with("-00"), "{sent}");
    }
    scene.stop_gate().await;
    assert!(collector.exports().is_empty(), "{:?}", collector.exports());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parents_of_trusted_networks_are_followed_if_well_formed() {
    let keys = "sample = 0\nmetrics = false\ntrust_parent = [\"127.0.0.0/8\"]";
    let (mut scene, collector) = stage(Manner::Accepts, keys).await;
    scene.start_gate().await;
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = |flags: &str| format!("00-{TRACE}-00f067aa0ba902b7-{flags}");
    read_book(&scene, Some(&parent("01"))).await;
    let name = "GET /files/{isbn}/{*file}";
    scene.until("the trace", async || collector.named(name).len() == 1).await;
    let server = &collector.named(name)[0];
    assert_eq!(
        (hex(&server.trace_id), hex(&server.parent_span_id)),
        (TRACE.to_owned(), "00f067aa0ba902b7".to_owned())
    );
    assert!(at_origin(&scene).starts_with(&format!("00-{TRACE}-")));
    let exported = collector.spans().len();
    read_book(&scene, Some(&parent("00"))).await;
    let sent = at_origin(&scene);
    assert!(sent.starts_with(&format!("00-{TRACE}-")) && sent.ends_with("-00"), "{sent}");
    let valid = parent("01");
    let malformed = [
        valid[1..].to_owned(),
        valid[..54].to_owned(),
        format!("{valid}-"),
        format!("{valid}0"),
        valid.to_uppercase(),
        valid.replace('-', "_"),
        valid.replace('-', ""),
        format!("ff{}", &valid[2..]),
        format!("zz{}", &valid[2..]),
        format!("cc{}.", &valid[2..]),
        valid.replace(TRACE, &"0".repeat(32)),
        valid.replace("00f067aa0ba902b7", &"0".repeat(16)),
        valid.replace("4bf92", "4bg92"),
        valid.replace("00f06", "00x06"),
        format!("{}0g", &valid[..53]),
        format!("{valid},{valid}"),
        format!("0{valid}"),
        "01".to_owned(),
        "-".repeat(55),
        "kari".to_owned(),
        "0".repeat(4000),
    ];
    for text in malformed {
        let id = read_book(&scene, Some(&text)).await;
        let sent = at_origin(&scene);
        assert!(sent.starts_with(&format!("00-{id}-")) && sent.ends_with("-00"), "{text}: {sent}");
    }
    scene.stop_gate().await;
    assert_eq!(collector.spans().len(), exported, "nothing else is sampled");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_collectors_harm_no_download() {
    let manners = [
        Manner::Hangs,
        Manner::Answers(500),
        Manner::Answers(404),
        Manner::Redirects,
        Manner::NeverEnds,
        Manner::Closes,
    ];
    for manner in manners {
        let (mut scene, collector) = stage(manner, "sample = 1.0\ntimeout = \"300ms\"").await;
        scene.start_gate().await;
        for _ in 0..20 {
            read_book(&scene, None).await;
        }
        scene
            .until("a failed export", async || {
                metric(
                    &scene.metrics().await,
                    "loangate_otlp_items_total",
                    "traces\",outcome=\"failed",
                ) > 0.0
            })
            .await;
        read_book(&scene, None).await;
        let exported = metric(&scene.metrics().await, "loangate_otlp_items_total", "exported");
        assert_eq!(exported, 0.0, "{manner:?}");
        let stopped = tokio::time::Instant::now();
        scene.stop_gate().await;
        // The bound of the last export, and time for a busy machine.
        assert!(stopped.elapsed().as_secs() < 20, "{manner:?}");
        assert!(collector.exports().iter().all(|export| export.path.starts_with("/v1/")));
        // Socket buffers, and what the gate reads: not what a fast sender could send in 300 ms.
        assert!(collector.endless_bytes() < 32 << 20, "{}", collector.endless_bytes());
        scene.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exported_telemetry_names_no_reader_and_no_title() {
    let keys = "sample = 1.0\nlogs = true\ninterval = \"1s\"";
    let (mut scene, collector) = stage(Manner::Accepts, keys).await;
    scene.start_gate().await;
    read_book(&scene, None).await;
    let token = scene.token("kari");
    let client = scene.http1();
    for path in [
        format!("/files/{BOOK}/mislaid.epub?secret-query=1"),
        format!("/files/9788299999999/other.epub?access_token={token}"),
        "/no/zzplace/xyzzy".to_owned(),
        format!("/loans/{BOOK}"),
    ] {
        scene.get(&client, &path, &token).send().await.unwrap();
    }
    let link = scene.link(&["--isbn", BOOK]);
    client.get(format!("{}/~{link}/files/{BOOK}/book.epub", scene.base)).send().await.unwrap();
    scene
        .fault(
            &json!({ "call": "return", "times": 1, "effect": { "refuse": { "code": "NO_SUCH" } } }),
        )
        .await;
    scene.call_api("DELETE", &format!("/loans/{BOOK}"), &token, "").await;
    scene.until("the end", async || !collector.named("end of a loan").is_empty()).await;
    let borrower = scene.books().await[0]["borrower"].as_str().unwrap().to_owned();
    let loans = scene.ledger().await;
    let lending_id = loans[0]["lending_id"].as_str().unwrap().to_owned();
    scene.stop_gate().await;
    let exports = collector.exports();
    assert!(exports.iter().any(|export| export.path == "/v1/traces"));
    let forbidden = [
        "kari",
        LIBRARY,
        BOOK,
        "9788299999999",
        "book.epub",
        "mislaid",
        "other.epub",
        "secret-query",
        "xyzzy",
        &borrower,
        &lending_id,
        &token,
        &link,
    ];
    for export in exports {
        let text = String::from_utf8_lossy(&export.body);
        for word in forbidden {
            assert!(!text.contains(word), "{} contains {word}: {text}", export.path);
        }
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_those_of_the_listener_with_exemplars() {
    let (mut scene, collector) = stage(Manner::Accepts, "sample = 1.0").await;
    scene.start_gate().await;
    let id = read_book(&scene, None).await;
    let text = scene.metrics().await;
    let counters = |text: &str| -> BTreeSet<String> {
        let counters = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let names = counters.filter_map(|line| line.split(' ').next());
        names.filter(|name| name.starts_with("loangate_")).map(str::to_owned).collect()
    };
    // The last report is sent when the gate stops.
    scene.stop_gate().await;
    let reports = collector.metrics();
    let report = reports.last().unwrap();
    let names: BTreeSet<String> = report.iter().map(|metric| metric.name.clone()).collect();
    assert!(counters(&text).is_subset(&names), "{text} {names:?}");
    let named = |name: &str| report.iter().find(|metric| metric.name == name).unwrap();
    let Some(Data::Sum(requests)) = &named("loangate_requests_total").data else { panic!() };
    let ok = requests.data_points.iter().find(|point| {
        attribute(&point.attributes, "outcome").as_deref() == Some("ok")
            && attribute(&point.attributes, "via").as_deref() == Some("registered")
    });
    assert_eq!(ok.unwrap().value, Some(number_data_point::Value::AsInt(1)));
    assert!(requests.is_monotonic);
    let Some(Data::Histogram(head)) = &named("loangate_head_seconds").data else { panic!() };
    let exemplars = head.data_points.iter().flat_map(|point| &point.exemplars);
    let traces: Vec<String> = exemplars.map(|exemplar| hex(&exemplar.trace_id)).collect();
    assert_eq!(traces, [id]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_lines_are_those_of_the_text_log_except_requests() {
    let (mut scene, collector) = stage(Manner::Accepts, "sample = 1.0\nlogs = true").await;
    let mut gate = scene.spawn_gate().await;
    scene.origin.put(&format!("{BOOK}/broken.epub"), File { silent: true, ..File::of(1) });
    scene.replace_in_config("[[origins]]", "[[origins]]\nfirst_byte = \"200ms\"");
    scene.admin_post("/api/v1/reload", &json!({})).await;
    let path = format!("/files/{BOOK}/broken.epub");
    let request = scene.get(&scene.http1(), &path, &scene.token("kari"));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let with_message = |message: &'static str| {
        let is_of = move |line: &LogRecord| format!("{:?}", line.body).contains(message);
        collector.logs().into_iter().find(is_of)
    };
    let late = "an origin did not answer in time";
    scene.until("the line", async || with_message(late).is_some()).await;
    let name = "GET /files/{isbn}/{*file}";
    scene.until("the trace", async || !collector.named(name).is_empty()).await;
    let line = with_message(late).unwrap();
    assert_eq!((hex(&line.trace_id), line.severity_text.as_str()), (id.replace('-', ""), "WARN"));
    assert_eq!(attribute(&line.attributes, "loangate.request"), Some(id));
    let origin = collector.named("origin").into_iter().next().unwrap();
    assert_eq!(line.span_id, origin.span_id);
    assert_eq!(attribute(&origin.attributes, "error.type").as_deref(), Some("timed_out"));
    let failed = &collector.named(name)[0];
    assert_eq!(attribute(&failed.attributes, "error.type").as_deref(), Some("origin-timeout"));
    gate.terminate();
    gate.exit().await;
    assert!(with_message("the configuration was reloaded").is_some());
    let all = collector.exports().into_iter().filter(|export| export.path == "/v1/logs");
    for export in all {
        let text = String::from_utf8_lossy(&export.body).into_owned();
        for word in ["kari", BOOK, "broken.epub", "loangate::request"] {
            assert!(!text.contains(word), "{word}: {text}");
        }
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_carry_the_headers_and_attributes_of_the_configuration() {
    let keys = "sample = 1.0\nresource = { \"deployment.environment.name\" = \"test\" }\n\
                headers = [{ name = \"x-key\", value = { file = \"certs/admin.token\" } }]";
    let (mut scene, collector) = stage(Manner::Accepts, keys).await;
    scene.start_gate().await;
    read_book(&scene, None).await;
    scene.until("an export", async || !collector.spans().is_empty()).await;
    let export = &collector.exports()[0];
    assert_eq!(export.headers["x-key"].to_str().unwrap(), scene.admin_token());
    assert_eq!(export.headers["content-type"], "application/x-protobuf");
    let resource = collector.traces()[0].resource_spans[0].resource.clone().unwrap();
    let attribute = |name: &str| attribute(&resource.attributes, name).unwrap();
    assert_eq!(attribute("service.name"), "loangate");
    assert_eq!(attribute("service.version"), env!("CARGO_PKG_VERSION"));
    assert!(attribute("service.instance.id").contains(':'));
    assert_eq!(attribute("deployment.environment.name"), "test");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collector_must_have_a_certificate_of_the_named_authority() {
    for is_trusted in [true, false] {
        let mut scene = Scene::without_gate(Setting::default()).await;
        scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
        let collector = Collector::start_tls(scene.dir.path()).await;
        let ca = if is_trusted { "ca = \"certs/ca.pem\"" } else { "" };
        let url = &collector.url;
        let otlp = format!("[otlp]\nendpoint = \"{url}\"\nsample = 1\n{ca}\n\n[ledger]");
        scene.replace_in_config("[ledger]", &otlp);
        scene.start_gate().await;
        read_book(&scene, None).await;
        let outcome = if is_trusted { "exported" } else { "failed" };
        let labels = format!("traces\",outcome=\"{outcome}");
        scene
            .until("the export", async || {
                metric(&scene.metrics().await, "loangate_otlp_items_total", &labels) > 0.0
            })
            .await;
        assert_eq!(!collector.exports().is_empty(), is_trusted);
        scene.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reload_begins_no_export_and_names_no_trace() {
    let collector = Collector::start(Manner::Accepts).await;
    let mut scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
    let otlp = format!("[otlp]\nendpoint = \"{}\"\nsample = 1\n\n[ledger]", collector.url);
    scene.replace_in_config("[ledger]", &otlp);
    let reloaded: Value =
        scene.admin_post("/api/v1/reload", &json!({})).await.json().await.unwrap();
    let waits = reloaded["needs_restart"].as_array().unwrap().iter();
    let waits: Vec<&str> = waits.map(|changed| changed["key"].as_str().unwrap()).collect();
    assert_eq!(waits, ["otlp.endpoint", "otlp.sample"], "{reloaded}");
    read_book(&scene, None).await;
    let requests = scene.origin.requests();
    assert!(requests.iter().all(|request| !request.headers.contains_key("traceparent")));
    scene.stop_gate().await;
    assert!(collector.exports().is_empty());
    scene.end().await;
}
