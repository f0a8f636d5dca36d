//! HTTP/1.1 on one connection: requests one after the other, and nothing held between them.
//!
//! `connection` calls [`serve`] after the handshake. Between requests the connection is *parked*: hyper's state is
//! dropped, and built again when bytes arrive.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::Worker;
use super::connection::{Asked, HEAD_SIZE, answer, note, unless_cut};
use super::wire::Wire;
use crate::buffers::LEAST;
use crate::connection::Connection;

/// How long a request's head may take, the wait of a kept connection included.
const HEAD: Duration = Duration::from_secs(75);
/// How often to look whether a connection over HTTP/1.1 can be parked.
const LOOK: Duration = Duration::from_millis(200);
/// How often while an answer is under way: thousands of readers who stand still are not to be looked at all the time.
const LOOK_AT_WORK: Duration = Duration::from_secs(10);
/// What HTTP/1.1 may buffer for a connection, in each direction, in bytes: a head must fit, and of a body no more is to
/// lie here than one piece for a reader who is slow.
const BUFFER: usize = LEAST;

/// HTTP/1.1, parked whenever it is at rest.
pub(super) async fn serve(wire: Wire, worker: &Arc<Worker>, asked: Asked) {
    loop {
        let heard = pin!(heard(&wire, &asked.connection));
        if unless_cut(&asked.connection, heard).await != Some(true) {
            return;
        }
        match Box::pin(answer_requests(&wire, worker, &asked)).await {
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
async fn answer_requests(wire: &Wire, worker: &Arc<Worker>, asked: &Asked) -> Option<Bytes> {
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
