//! One connection: the handshake, the HTTP version by ALPN, and the end of it.
//!
//! A task of its worker; called by the accept loop. It goes on until the reader goes, the gate drains and the
//! last answer is out, or somebody cuts it. Over HTTP/1.1 it holds hardly anything between requests: then it is
//! *parked*, and hyper's part of it is built anew when something is heard.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::wire::{self, Wire};
use super::workers::Seat;
use super::{Worker, dispatch};
use crate::buffers::{LEAST, Size};
use crate::connection::Connection;
use crate::delivery::Body;

/// How long a handshake may take: a slow one holds memory and does nothing.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a request's head may take, the wait of a kept connection included.
const HEAD: Duration = Duration::from_secs(75);
/// How often to look whether a connection over HTTP/1.1 can be parked.
const LOOK: Duration = Duration::from_millis(200);
/// How often while an answer is under way: thousands of readers who stand still are not to be looked at all the time.
const LOOK_AT_WORK: Duration = Duration::from_secs(10);
/// The largest head that is read, in bytes: a token is at most 8 KiB.
const HEAD_SIZE: u32 = 16 * 1024;
/// What HTTP/1.1 may buffer for a connection, in each direction, in bytes: a head must fit, and of a body no more is to
/// lie here than one piece for a reader who is slow.
const BUFFER: usize = LEAST;
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
        serve_http1(wire, &worker, asked).await;
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
async fn unless_cut<F: Future + Unpin>(connection: &Connection, mut future: F) -> Option<F::Output> {
    poll_fn(|context| {
        connection.listen(context);
        if connection.is_cut() {
            return Poll::Ready(None);
        }
        Pin::new(&mut future).poll(context).map(Some)
    })
    .await
}

/// HTTP/1.1, parked whenever it is at rest.
async fn serve_http1(wire: Wire, worker: &Arc<Worker>, asked: Asked) {
    loop {
        let heard = pin!(heard(&wire, &asked.connection));
        if unless_cut(&asked.connection, heard).await != Some(true) {
            return;
        }
        match Box::pin(answer_http1(&wire, worker, &asked)).await {
            Some(unread) => wire.put_back(unread),
            None => return,
        }
    }
}

/// Waits until something is heard of the reader; false where nothing is for too long, or the gate drains.
async fn heard(wire: &Wire, connection: &Connection) -> bool {
    let readable = poll_fn(|context| {
        if connection.is_draining() {
            return Poll::Ready(false);
        }
        wire.poll_readable(context).map(|readable| readable.is_ok())
    });
    tokio::time::timeout(HEAD, readable).await.unwrap_or(false)
}

/// Answers requests until the connection is over; or until it can be parked, with what was read of the next request.
async fn answer_http1(wire: &Wire, worker: &Arc<Worker>, asked: &Asked) -> Option<Bytes> {
    let requests = Arc::new(Requests::default());
    let service = service_fn({
        let (worker, asked, wire, requests) = (worker.clone(), asked.clone(), wire.clone(), requests.clone());
        move |request: http::Request<Incoming>| {
            requests.note(&request);
            wire.forget_heard();
            // In a box, which is let go of when the head is out: hyper keeps the room of a bare future until the end.
            Box::pin(answer(worker.clone(), asked.clone(), request))
        }
    });
    let mut served = http1::Builder::new()
        .header_read_timeout(None)
        .max_header_size(HEAD_SIZE as usize)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(wire.clone()), service);
    let mut rest = Rest::new(wire, &asked.connection, &requests);
    let mut look = pin!(tokio::time::sleep(LOOK));
    let (mut is_at_work, mut is_ending) = (false, false);
    let is_parked = poll_fn(|context| {
        asked.connection.listen(context);
        if asked.connection.is_cut() {
            return Poll::Ready(false);
        }
        if asked.connection.is_draining() && !std::mem::replace(&mut is_ending, true) {
            Pin::new(&mut served).graceful_shutdown();
        }
        if let Poll::Ready(ended) = Pin::new(&mut served).poll(context) {
            note(ended);
            return Poll::Ready(false);
        }
        if is_at_work && rest.is_at_rest() {
            is_at_work = false;
            look.as_mut().reset(Instant::now() + LOOK);
        }
        while look.as_mut().poll(context).is_ready() {
            match rest.look(Instant::now()) {
                Look::AtWork => {
                    is_at_work = true;
                    // The body is asked once more, so that it lets go of what it need not hold where the reader stands
                    // still.
                    context.waker().wake_by_ref();
                    look.as_mut().reset(Instant::now() + LOOK_AT_WORK);
                }
                Look::Again => look.as_mut().reset(Instant::now() + LOOK),
                Look::Parks => return Poll::Ready(!is_ending),
                Look::TooLong => return Poll::Ready(false),
            }
        }
        Poll::Pending
    });
    is_parked.await.then(|| served.into_parts().read_buf)
}

/// The requests that hyper has brought.
#[derive(Debug, Default)]
struct Requests {
    count: AtomicU64,
    with_body: AtomicBool,
}

impl Requests {
    fn note(&self, request: &http::Request<Incoming>) {
        self.count.fetch_add(1, Ordering::Relaxed);
        if !request.body().is_end_stream() {
            self.with_body.store(true, Ordering::Relaxed);
        }
    }
}

/// Whether nothing is under way, and since when.
struct Rest<'a> {
    wire: &'a Wire,
    connection: &'a Connection,
    requests: &'a Requests,
    /// How many hold the connection where no request does.
    holders: usize,
    seen: u64,
    since: Instant,
}

/// What a look at a connection tells.
enum Look {
    /// An answer is under way.
    AtWork,
    Again,
    Parks,
    TooLong,
}

impl<'a> Rest<'a> {
    fn new(wire: &'a Wire, connection: &'a Connection, requests: &'a Requests) -> Rest<'a> {
        let (holders, since) = (connection.holders(), Instant::now());
        Rest { wire, connection, requests, holders, seen: 0, since }
    }

    fn is_at_rest(&self) -> bool {
        self.connection.holders() == self.holders && self.wire.is_sent()
    }

    fn look(&mut self, now: Instant) -> Look {
        self.wire.rest(now.into_std());
        let count = self.requests.count.load(Ordering::Relaxed);
        let is_at_rest = self.is_at_rest();
        if !is_at_rest || std::mem::replace(&mut self.seen, count) != count {
            self.since = now;
            return if is_at_rest { Look::Again } else { Look::AtWork };
        }
        // hyper may still have something to read of a request's body: what comes must not be taken for a request.
        let can_park = !self.wire.was_heard() && !self.requests.with_body.load(Ordering::Relaxed);
        match can_park {
            true => Look::Parks,
            false if now.duration_since(self.since) >= HEAD => Look::TooLong,
            false => Look::Again,
        }
    }
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
        self.0.line.metrics.connection_closed(self.0.number);
    }
}
