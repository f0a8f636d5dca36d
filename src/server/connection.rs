//! One connection: the handshake, the HTTP version by ALPN, and its end.
//!
//! The accept loop calls it; it runs as a task of its worker. It ends when the client closes, a
//! limit is reached, the gate drains and the last answer is sent, or another part of the gate
//! aborts it.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use hyper::body::Incoming;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::limits::Limit;
use super::open_connections::Entry;
use super::placement::Seat;
use super::request_body::RequestBody;
use super::tls_stream::{self, Wire};
use super::{Worker, dispatch, http1, http2};
use crate::buffer_budget::Size;
use crate::connection_handle::Connection;
use crate::delivery::Body;

/// The largest head that is read, in bytes: a token is at most 8 KiB.
pub(super) const HEAD_SIZE: usize = 16 * 1024;

/// What a request's connection tells about it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// The name by which the reader asked for this server (SNI).
    pub(super) name: Option<Arc<str>>,
    /// What it came on.
    pub(super) connection: Connection,
}

/// Serves one connection to its end, in its seat at this worker and its place among the open ones.
pub(super) async fn serve(socket: TcpStream, worker: Arc<Worker>, _seat: Seat, entry: Entry) {
    let connection = entry.connection();
    let handshake = Box::pin(shake_hands(socket, &worker, connection));
    let shaken = unless_over(connection, true, handshake).await;
    let Some((wire, asked)) = shaken.flatten() else { return worker.line.metrics.handshake(false) };
    worker.line.metrics.handshake(true);
    worker.line.metrics.connection_opened(worker.number);
    let _closed = Opened(worker.clone());
    if wire.gathers() {
        Box::pin(http2::serve(wire, worker.clone(), asked)).await;
    } else {
        http1::serve(wire, &worker, asked).await;
    }
}

/// The connection after its handshake; none where that failed or took too long.
async fn shake_hands(
    socket: TcpStream,
    worker: &Worker,
    connection: &Connection,
) -> Option<(Wire, Asked)> {
    let _ = socket.set_nodelay(true);
    let acceptor = TlsAcceptor::from(worker.certificates.config());
    let accepted = acceptor.accept_with(socket, |session| session.set_buffer_limit(None));
    let Ok(accepted) = tokio::time::timeout(worker.limits.handshake, accepted).await else {
        worker.line.metrics.limit_reached(Limit::Handshake.name());
        return None;
    };
    let stream = accepted.ok()?;
    let (socket, session) = stream.into_inner();
    let name = session.server_name().map(Arc::from);
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    if is_http2 {
        connection.set_multiplexed();
    }
    let size = Size::new(&worker.line.buffers, tls_stream::MOST);
    let wire = Wire::new(socket, session, connection.clone(), size, is_http2);
    Some((wire, Asked { name, connection: connection.clone() }))
}

/// What the future returns, unless the connection is aborted before.
pub(super) async fn unless_cut<F: Future + Unpin>(
    connection: &Connection,
    future: F,
) -> Option<F::Output> {
    unless_over(connection, false, future).await
}

/// As [`unless_cut`]; with `or_draining`, a drain ends it as well.
async fn unless_over<F: Future + Unpin>(
    connection: &Connection,
    or_draining: bool,
    mut future: F,
) -> Option<F::Output> {
    poll_fn(|context| {
        connection.listen(context);
        if connection.is_cut() || (or_draining && connection.is_draining()) {
            return Poll::Ready(None);
        }
        Pin::new(&mut future).poll(context).map(Some)
    })
    .await
}

pub(super) async fn answer(
    worker: Arc<Worker>,
    asked: Asked,
    request: http::Request<Incoming>,
) -> Result<http::Response<Body>, Infallible> {
    let request = request.map(RequestBody::Http1);
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
