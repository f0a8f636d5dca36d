//! One connection: the handshake, the HTTP version by ALPN, and its end.
//!
//! The accept loop calls it; it runs as a task of its worker. It ends when the client closes, a limit is reached, the
//! gate drains and the last answer is sent, or another part of the gate aborts it.

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
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::deadlines::{Deadlines, Seen, Step};
use super::limits::Limit;
use super::open::Entry;
use super::pending::PendingAnswers;
use super::wire::{self, Wire};
use super::workers::Seat;
use super::{Worker, dispatch, http1};
use crate::buffers::Size;
use crate::connection::Connection;
use crate::delivery::Body;

/// The largest head that is read, in bytes: a token is at most 8 KiB.
pub(super) const HEAD_SIZE: u32 = 16 * 1024;
/// Bytes that the kernel must accept to be progress on answers of which hyper shows nothing: more than a few frames
/// that answer PINGs.
const PROGRESS: u64 = 4096;
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
    let Ok(accepted) = tokio::time::timeout(worker.limits.handshake, accepted).await else {
        worker.line.metrics.limit_reached(Limit::Handshake.name());
        return None;
    };
    let stream = accepted.ok()?;
    let (socket, session) = stream.into_inner();
    let name = session.server_name().map(Arc::from);
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    let size = Size::new(&worker.line.buffers, wire::MOST);
    let wire = Wire::new(socket, session, connection.clone(), size, is_http2);
    Some((wire, Asked { name, connection: connection.clone() }))
}

/// What the future returns, unless the connection is aborted before.
pub(super) async fn unless_cut<F: Future + Unpin>(connection: &Connection, future: F) -> Option<F::Output> {
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

/// HTTP/2 to its end.
async fn serve_http2(wire: Wire, worker: &Arc<Worker>, asked: Asked) {
    let (connection, answers) = (asked.connection.clone(), PendingAnswers::default());
    let service = service_fn({
        let (worker, answers) = (worker.clone(), answers.clone());
        move |request| {
            let (answer, answers) = (answer(worker.clone(), asked.clone(), request), answers.clone());
            Box::pin(async move { answer.await.map(|response| answers.watch(response)) })
        }
    });
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(worker.limits.h2_streams)
        .max_header_list_size(HEAD_SIZE)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(Duration::from_secs(60))
        .keep_alive_timeout(Duration::from_secs(30))
        .serve_connection(TokioIo::new(wire.clone()), service);
    let (mut served, mut is_ending) = (pin!(served), false);
    let holders = connection.holders();
    let mut deadlines = Deadlines::new(worker.limits.clone(), Instant::now());
    let mut next = pin!(tokio::time::sleep(Duration::ZERO));
    poll_fn(|context| {
        connection.listen(context);
        if connection.is_cut() {
            return Poll::Ready(());
        }
        if connection.is_draining() && !std::mem::replace(&mut is_ending, true) {
            deadlines.drain(Instant::now());
            served.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(ended) = served.as_mut().poll(context) {
            note(ended);
            return Poll::Ready(());
        }
        // What all streams have written in this round goes out together.
        if let Poll::Ready(Err(_)) = wire.poll_send(context) {
            return Poll::Ready(());
        }
        loop {
            let seen = see_http2(&wire, &answers, connection.holders() > holders);
            let until = match deadlines.look(Instant::now(), &seen) {
                Step::Wait(until) => until,
                Step::Finish(limit) => {
                    worker.line.metrics.limit_reached(limit.name());
                    served.as_mut().graceful_shutdown();
                    context.waker().wake_by_ref();
                    continue;
                }
                Step::Close(limit) => {
                    limit.iter().for_each(|limit| worker.line.metrics.limit_reached(limit.name()));
                    return Poll::Ready(());
                }
            };
            // An earlier timer is left as it is: it only looks once more.
            if until < next.deadline() || next.is_elapsed() {
                next.as_mut().reset(until);
            }
            if next.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
}

/// What can be seen of an HTTP/2 connection.
fn see_http2(wire: &Wire, answers: &PendingAnswers, running: bool) -> Seen {
    let traffic = wire.traffic();
    Seen {
        awaits_preface: traffic.awaits_preface,
        partial_head: traffic.is_within_head,
        requests: traffic.heads,
        running,
        unsent: answers.waiting() > 0 || !traffic.is_sent,
        progress: answers.taken() + traffic.sent / PROGRESS,
        resets: traffic.resets,
        overspent: traffic.is_overspent,
    }
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
