//! One connection: the handshake, the HTTP version by ALPN, and the end of it.
//!
//! A task of its worker; called by the accept loop. It goes on until the reader goes, the gate drains and the
//! last answer is out, or the gate cuts.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::{Worker, dispatch};
use crate::delivery::Body;

/// How long a handshake may take: a slow one holds memory and does nothing.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a request's head may take, the wait of a kept connection included.
const HEAD: Duration = Duration::from_secs(75);
/// The largest head that is read, in bytes: a token is at most 8 KiB.
const HEAD_SIZE: u32 = 32 * 1024;
/// What HTTP/1.1 may buffer for a connection, in each direction, in bytes: a head must fit.
const BUFFER: usize = 32 * 1024;
/// What may be sealed and not sent yet, in bytes.
const SEALED: usize = 32 * 1024;
/// Requests at once on one HTTP/2 connection: apps open a book of many files at once.
const STREAMS: u32 = 128;
/// What HTTP/2 may buffer for one stream, in bytes.
const SEND_BUFFER: usize = 256 * 1024;

type Io = TokioIo<TlsStream<TcpStream>>;

/// Serves one connection to its end.
pub(super) async fn serve(socket: TcpStream, worker: Arc<Worker>) {
    let stopping = worker.stopping.clone();
    let cut = CancellationToken::new();
    tokio::select! {
        () = shake_hands_and_serve(socket, worker, cut.clone()) => {}
        // The loan of a body on it has ended, and the reader takes nothing.
        () = cut.cancelled() => {}
        () = stopping.cut.cancelled() => {}
    }
}

async fn shake_hands_and_serve(socket: TcpStream, worker: Arc<Worker>, cut: CancellationToken) {
    let _ = socket.set_nodelay(true);
    let acceptor = TlsAcceptor::from(worker.certificates.config());
    let accepted = acceptor.accept_with(socket, |session| session.set_buffer_limit(Some(SEALED)));
    let shaken = tokio::time::timeout(HANDSHAKE, accepted).await;
    let metrics = &worker.line.metrics;
    let Ok(Ok(stream)) = shaken else {
        metrics.handshake(false);
        return;
    };
    metrics.handshake(true);
    metrics.connection_opened();
    let _closed = Opened(worker.clone());
    let (_, tls) = stream.get_ref();
    let name: Option<Arc<str>> = tls.server_name().map(Arc::from);
    if tls.alpn_protocol() == Some(b"h2") {
        serve_http2(TokioIo::new(stream), worker, Asked { name, cut }).await;
    } else {
        serve_http1(TokioIo::new(stream), worker, Asked { name, cut }).await;
    }
}

async fn serve_http1(io: Io, worker: Arc<Worker>, asked: Asked) {
    let drain = worker.stopping.drain.clone();
    let service = service_fn(move |request| answer(worker.clone(), asked.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_header_size(HEAD_SIZE as usize)
        .max_buf_size(BUFFER)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => note(ended),
        () = drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            note(connection.await);
        }
    }
}

async fn serve_http2(io: Io, worker: Arc<Worker>, asked: Asked) {
    let drain = worker.stopping.drain.clone();
    let service = service_fn(move |request| answer(worker.clone(), asked.clone(), request));
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_SIZE)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(Duration::from_secs(60))
        .keep_alive_timeout(Duration::from_secs(30))
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => note(ended),
        () = drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            note(connection.await);
        }
    }
}

/// What a request's connection tells about it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// The name by which the reader asked for this server (SNI).
    pub(super) name: Option<Arc<str>>,
    /// Cuts the connection.
    pub(super) cut: CancellationToken,
}

async fn answer(
    worker: Arc<Worker>,
    asked: Asked,
    request: http::Request<Incoming>,
) -> Result<http::Response<Body>, Infallible> {
    Ok(dispatch::dispatch(&worker.line, &worker.delivery, &asked, request).await)
}

/// A connection that breaks is the reader's everyday business, and tells us nothing but at debug.
fn note(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Counts the connection as closed however it ends.
struct Opened(Arc<Worker>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.line.metrics.connection_closed();
    }
}
