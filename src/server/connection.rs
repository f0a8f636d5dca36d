//! One connection: the handshake, the HTTP version by ALPN, and the end of it.
//!
//! A task of its worker; called by the accept loop. It goes on until the reader goes, the gate drains and the
//! last answer is out, or somebody cuts it. Over HTTP/1.1 it holds hardly anything between requests: then it is
//! *parked*, and hyper's part of it is built anew when something is heard.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::wire::{self, Wire};
use super::workers::Seat;
use super::{Worker, dispatch, http1};
use crate::buffers::Size;
use crate::connection::Connection;
use crate::delivery::Body;

/// How long a handshake may take: a slow one holds memory and does nothing.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The largest head that is read, in bytes: a token is at most 8 KiB.
pub(super) const HEAD_SIZE: u32 = 16 * 1024;
/// Requests at once on one HTTP/2 connection: apps open a book of many files at once.
const STREAMS: u32 = 128;
/// What HTTP/2 may buffer for one stream, in bytes.
const SEND_BUFFER: usize = 256 * 1024;

/// What a request's connection tells about it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// The name by which the reader asked for this server (SNI).
    pub(super) name: Option<Arc<str>>,
    /// What it came on.
    pub(super) connection: Connection,
}

/// Serves one connection to its end, in its seat at this worker.
pub(super) async fn serve(socket: TcpStream, worker: Arc<Worker>, _seat: Seat) {
    let connection = Connection::new();
    let _listed = worker.open.enter(&connection);
    let shaken = unless_cut(&connection, Box::pin(shake_hands(socket, &worker, &connection))).await;
    let Some((wire, asked)) = shaken.flatten() else { return worker.line.metrics.handshake(false) };
    worker.line.metrics.handshake(true);
    worker.line.metrics.connection_opened(worker.number);
    let _closed = Opened(worker.clone());
    if wire.gathers() {
        Box::pin(serve_http2(wire, &worker, asked)).await;
    } else {
        http1::serve(wire, &worker, asked).await;
    }
}

/// The connection after its handshake; none where that failed or took too long.
async fn shake_hands(socket: TcpStream, worker: &Worker, connection: &Connection) -> Option<(Wire, Asked)> {
    let _ = socket.set_nodelay(true);
    let acceptor = TlsAcceptor::from(worker.certificates.config());
    let accepted = acceptor.accept_with(socket, |session| session.set_buffer_limit(None));
    let stream = tokio::time::timeout(HANDSHAKE, accepted).await.ok()?.ok()?;
    let (socket, session) = stream.into_inner();
    let name = session.server_name().map(Arc::from);
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    let size = Size::new(&worker.line.buffers, wire::MOST);
    let wire = Wire::new(socket, session, connection.clone(), size, is_http2);
    Some((wire, Asked { name, connection: connection.clone() }))
}

/// What the future gives, unless the connection is cut before.
pub(super) async fn unless_cut<F: Future + Unpin>(
    connection: &Connection,
    mut future: F,
) -> Option<F::Output> {
    poll_fn(|context| {
        connection.listen(context);
        if connection.is_cut() {
            return Poll::Ready(None);
        }
        Pin::new(&mut future).poll(context).map(Some)
    })
    .await
}

/// HTTP/2 to its end.
async fn serve_http2(wire: Wire, worker: &Arc<Worker>, asked: Asked) {
    let (worker, connection) = (worker.clone(), asked.connection.clone());
    let service = service_fn(move |request| Box::pin(answer(worker.clone(), asked.clone(), request)));
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_SIZE)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(Duration::from_secs(60))
        .keep_alive_timeout(Duration::from_secs(30))
        .serve_connection(TokioIo::new(wire.clone()), service);
    let (mut served, mut is_ending) = (pin!(served), false);
    poll_fn(|context| {
        connection.listen(context);
        if connection.is_cut() {
            return Poll::Ready(());
        }
        if connection.is_draining() && !std::mem::replace(&mut is_ending, true) {
            served.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(ended) = served.as_mut().poll(context) {
            note(ended);
            return Poll::Ready(());
        }
        // What all streams have written in this round goes out together.
        match wire.poll_send(context) {
            Poll::Ready(Err(_)) => Poll::Ready(()),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    })
    .await;
}

pub(super) async fn answer(
    worker: Arc<Worker>,
    asked: Asked,
    request: http::Request<Incoming>,
) -> Result<http::Response<Body>, Infallible> {
    Ok(dispatch::dispatch(&worker.line, &worker.delivery, &asked, request).await)
}

/// A connection that breaks is the reader's everyday business, and tells us nothing but at debug.
pub(super) fn note(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Counts the connection as closed however it ends.
struct Opened(Arc<Worker>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.line.metrics.connection_closed(self.0.number);
    }
}
