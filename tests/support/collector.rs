//! An OpenTelemetry collector on loopback: it records what arrives over OTLP/HTTP, or is hostile.

use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyKind;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// What the collector does with a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Manner {
    /// It accepts everything.
    Accepts,
    /// It never answers.
    Hangs,
    /// It answers with a status.
    Answers(u16),
    /// It redirects to the path `/elsewhere` of its own.
    Redirects,
    /// It answers with a body that has no end.
    NeverEnds,
    /// It closes each connection at once.
    Closes,
}

/// A request that the collector received.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

#[derive(Debug)]
struct State {
    manner: Mutex<Manner>,
    exports: Mutex<Vec<Export>>,
    /// Bytes of bodies without an end that were sent.
    endless: AtomicU64,
}

/// A running collector.
#[derive(Debug)]
pub(crate) struct Collector {
    pub(crate) url: String,
    state: Arc<State>,
    stop: CancellationToken,
}

impl Collector {
    pub(crate) async fn start(manner: Manner) -> Collector {
        Collector::with(manner, None).await
    }

    /// Starts a collector with the certificate of `localhost` that `loangate init` made here.
    pub(crate) async fn start_tls(directory: &Path) -> Collector {
        let certificates = CertificateDer::pem_file_iter(directory.join("certs/server.pem"));
        let chain = certificates.unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(directory.join("certs/server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Collector::with(Manner::Accepts, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn with(manner: Manner, tls: Option<TlsAcceptor>) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = match &tls {
            Some(_) => format!("https://localhost:{port}"),
            None => format!("http://127.0.0.1:{port}"),
        };
        let manner = Mutex::new(manner);
        let state = State { manner, exports: Mutex::default(), endless: AtomicU64::default() };
        let collector = Collector { url, state: Arc::new(state), stop: CancellationToken::new() };
        tokio::spawn(accept(listener, tls, collector.state.clone(), collector.stop.clone()));
        collector
    }

    /// Returns everything that was received.
    pub(crate) fn exports(&self) -> Vec<Export> {
        self.state.exports.lock().unwrap().clone()
    }

    fn decoded<M: Message + Default>(&self, path: &str) -> Vec<M> {
        let exports = self.exports().into_iter().filter(|export| export.path == path);
        exports.map(|export| M::decode(export.body).unwrap()).collect()
    }

    pub(crate) fn traces(&self) -> Vec<ExportTraceServiceRequest> {
        self.decoded("/v1/traces")
    }

    /// Returns all spans, in the order in which they ended.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let of_gates = self.traces().into_iter().flat_map(|request| request.resource_spans);
        of_gates.flat_map(|of_gate| of_gate.scope_spans).flat_map(|scope| scope.spans).collect()
    }

    /// Returns the spans with this name.
    pub(crate) fn named(&self, name: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.name == name).collect()
    }

    /// Returns the reports of all metrics, the oldest first.
    pub(crate) fn metrics(&self) -> Vec<Vec<Metric>> {
        let reports = self.decoded::<ExportMetricsServiceRequest>("/v1/metrics").into_iter();
        let metrics = |report: ExportMetricsServiceRequest| {
            let scopes = report.resource_metrics.into_iter().flat_map(|of| of.scope_metrics);
            scopes.flat_map(|scope| scope.metrics).collect()
        };
        reports.map(metrics).collect()
    }

    pub(crate) fn logs(&self) -> Vec<LogRecord> {
        let requests = self.decoded::<ExportLogsServiceRequest>("/v1/logs").into_iter();
        let of_gates = requests.flat_map(|request| request.resource_logs);
        of_gates.flat_map(|of| of.scope_logs).flat_map(|scope| scope.log_records).collect()
    }

    /// Returns how many bytes of bodies without an end were sent.
    pub(crate) fn endless_bytes(&self) -> u64 {
        self.state.endless.load(Ordering::Relaxed)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Returns the text or the number of an attribute, as text.
pub(crate) fn attribute(attributes: &[KeyValue], name: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    match &found.value {
        Some(AnyValue { value: Some(AnyKind::StringValue(text)) }) => Some(text.clone()),
        Some(AnyValue { value: Some(AnyKind::IntValue(number)) }) => Some(number.to_string()),
        other => panic!("{name} is {other:?}"),
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    state: Arc<State>,
    stop: CancellationToken,
) {
    while let Some(Ok((socket, _))) = stop.run_until_cancelled(listener.accept()).await {
        if *state.manner.lock().unwrap() == Manner::Closes {
            continue;
        }
        let (state, stop, tls) = (state.clone(), stop.clone(), tls.clone());
        tokio::spawn(async move {
            let served = async {
                match tls {
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(socket).await {
                            serve(stream, state).await;
                        }
                    }
                    None => serve(socket, state).await,
                }
            };
            stop.run_until_cancelled(served).await;
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, state: Arc<State>) {
    let service = service_fn(|request| answer(state.clone(), request));
    let served = hyper::server::conn::http1::Builder::new();
    let _ = served.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Ok(Response::new(Answer(None))) };
    let (path, body) = (parts.uri.path().to_owned(), body.to_bytes());
    state.exports.lock().unwrap().push(Export { path, headers: parts.headers, body });
    let manner = *state.manner.lock().unwrap();
    let mut response = Response::new(Answer(None));
    match manner {
        Manner::Accepts | Manner::Closes => {}
        Manner::Hangs => tokio::time::sleep(Duration::from_secs(3600)).await,
        Manner::Answers(status) => *response.status_mut() = StatusCode::from_u16(status).unwrap(),
        Manner::Redirects => {
            *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
            response.headers_mut().insert("location", "/elsewhere".parse().unwrap());
        }
        Manner::NeverEnds => *response.body_mut() = Answer(Some(state)),
    }
    Ok(response)
}

/// An empty body, or one without an end.
struct Answer(Option<Arc<State>>);

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        const CHUNK: &[u8] = &[0; 16 * 1024];
        let frame = self.0.as_ref().map(|state| {
            state.endless.fetch_add(CHUNK.len() as u64, Ordering::Relaxed);
            Ok(Frame::data(Bytes::from_static(CHUNK)))
        });
        Poll::Ready(frame)
    }
}
