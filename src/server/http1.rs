//! HTTP/1.1 on one connection: requests one after the other, and nothing held between them.
//!
//! `connection` calls [`serve`] after the handshake. Between requests the connection is *parked*:
//! hyper's state is dropped, and built again when bytes arrive.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::header::CONNECTION;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::Worker;
use super::connection::{Asked, HEAD_SIZE, answer, note, unless_cut};
use super::deadlines::{Deadlines, Seen, Step};
use super::limits::Limit;
use super::tls_stream::Wire;
use crate::buffer_budget::LEAST;
use crate::connection_handle::Connection;

/// How often to check whether hyper's state can be dropped, and whether a deadline has passed.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// The same while the rest of an answer waits for the client.
const SEND_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The same while an answer is under way: thousands of stalled readers must not cost CPU.
const RUNNING_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// What HTTP/1.1 may buffer for a connection, in each direction, in bytes: a head must fit, and no
/// more than one chunk for a slow reader.
const BUFFER: usize = LEAST;

/// Serves a connection to its end. It is parked whenever it is idle.
pub(super) async fn serve(wire: Wire, worker: &Arc<Worker>, asked: Asked) {
    let deadlines = Deadlines::new(worker.limits.clone(), Instant::now());
    let requests = Arc::new(Requests::new(worker.limits.requests_per_connection));
    let mut watch =
        Watch { wire: &wire, worker, connection: &asked.connection, requests, deadlines };
    loop {
        if !watch.wait_for_bytes().await {
            return;
        }
        match Box::pin(answer_requests(&mut watch, &asked)).await {
            Some(unread) => wire.put_back(unread),
            None => return,
        }
    }
}

/// Answers requests until the connection is over; or until it can be parked, with what was read of
/// the next request.
async fn answer_requests(watch: &mut Watch<'_>, asked: &Asked) -> Option<Bytes> {
    let (wire, worker) = (watch.wire, watch.worker);
    let service = service_fn({
        let (worker, asked, wire) = (worker.clone(), asked.clone(), wire.clone());
        let requests = watch.requests.clone();
        move |request: http::Request<Incoming>| {
            let is_last = requests.note(&request);
            if is_last {
                worker.line.metrics.limit_reached(Limit::Requests.name());
            }
            wire.forget_heard();
            let has_body = !request.body().is_end_stream();
            let (worker, asked, wire) = (worker.clone(), asked.clone(), wire.clone());
            // Boxed, so it is freed once the head is sent: hyper keeps the room of a bare future
            // until the end.
            Box::pin(async move {
                let mut response = answer(worker, asked, request).await;
                if has_body {
                    wire.forget_heard(); // what has arrived since was the body, and no head
                }
                if let (true, Ok(response)) = (is_last, &mut response) {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                response
            })
        }
    });
    let mut served = http1::Builder::new()
        .header_read_timeout(None)
        .max_header_size(HEAD_SIZE)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(wire.clone()), service);
    asked.connection.note_idle();
    let mut next = pin!(tokio::time::sleep(CHECK_INTERVAL));
    let (mut was_running, mut is_ending) = (false, false);
    let is_parked = poll_fn(|context| {
        asked.connection.listen(context);
        if asked.connection.is_cut() {
            return Poll::Ready(false);
        }
        if let Poll::Ready(ended) = Pin::new(&mut served).poll(context) {
            note(ended);
            return Poll::Ready(false);
        }
        // After hyper has read a request that was waiting: it closes a connection that is idle
        // then.
        if asked.connection.is_draining() && !std::mem::replace(&mut is_ending, true) {
            watch.deadlines.drain(Instant::now());
            Pin::new(&mut served).graceful_shutdown();
            context.waker().wake_by_ref();
        }
        if was_running && !watch.is_running() {
            was_running = false;
            next.as_mut().reset(Instant::now() + CHECK_INTERVAL);
        }
        while next.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            was_running = watch.is_running();
            match watch.check(now) {
                Check::Park => return Poll::Ready(!is_ending),
                Check::Close => return Poll::Ready(false),
                Check::Finish => {
                    is_ending = true;
                    Pin::new(&mut served).graceful_shutdown();
                    context.waker().wake_by_ref();
                }
                // The body is polled once more, so that it releases what it need not hold for a
                // stalled reader.
                Check::Again(_) if was_running => context.waker().wake_by_ref(),
                Check::Again(_) => {}
            }
            next.as_mut().reset(watch.next_check(now));
        }
        Poll::Pending
    });
    is_parked.await.then(|| served.into_parts().read_buf)
}

/// The requests that hyper has read on one connection.
#[derive(Debug)]
struct Requests {
    allowed: u64,
    count: AtomicU64,
    with_body: AtomicBool,
}

impl Requests {
    fn new(allowed: u64) -> Requests {
        Requests { allowed, count: AtomicU64::new(0), with_body: AtomicBool::new(false) }
    }

    /// Counts a request; true where it is the last one that the connection may carry.
    fn note(&self, request: &http::Request<Incoming>) -> bool {
        if !request.body().is_end_stream() {
            self.with_body.store(true, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed) + 1 == self.allowed
    }
}

/// One connection and its deadlines.
struct Watch<'a> {
    wire: &'a Wire,
    worker: &'a Arc<Worker>,
    connection: &'a Connection,
    requests: Arc<Requests>,
    deadlines: Deadlines,
}

/// What a check of a connection found.
enum Check {
    /// Nothing to do until this time.
    Again(Instant),
    /// It is idle, and hyper holds nothing of the next request.
    Park,
    Finish,
    Close,
}

impl Watch<'_> {
    /// Waits for the next request's first byte; false where the connection is over: it was aborted,
    /// the gate drains, or a deadline has passed.
    async fn wait_for_bytes(&mut self) -> bool {
        loop {
            let (wire, connection) = (self.wire, self.connection);
            connection.note_idle();
            let Check::Again(until) = self.look(Instant::now()) else { return false };
            // A request that has arrived is answered although the connection drains.
            let readable = poll_fn(|context| match wire.poll_readable(context) {
                Poll::Pending if connection.is_draining() => Poll::Ready(false),
                readable => readable.map(|readable| readable.is_ok()),
            });
            let waited = pin!(tokio::time::timeout_at(until, readable));
            match unless_cut(connection, waited).await {
                Some(Ok(is_readable)) => return is_readable,
                Some(Err(_)) => {} // the time to look again
                None => return false,
            }
        }
    }

    /// Whether a request is being handled, or a file is being sent.
    fn is_running(&self) -> bool {
        !self.connection.is_idle()
    }

    /// Checks a connection that hyper serves.
    fn check(&mut self, now: Instant) -> Check {
        self.wire.rest(now.into_std());
        let count = self.deadlines.requests();
        let check = self.look(now);
        let is_idle =
            !self.is_running() && self.wire.is_sent() && count == self.deadlines.requests();
        // hyper may still have to read the rest of a request's body: it must not be taken for a
        // request.
        let can_park = !self.wire.was_heard() && !self.requests.with_body.load(Ordering::Relaxed);
        match check {
            Check::Again(_) if is_idle && can_park => Check::Park,
            check => check,
        }
    }

    fn look(&mut self, now: Instant) -> Check {
        let running = self.is_running();
        let traffic = self.wire.traffic();
        let seen = Seen {
            // While an answer waits to be sent, hyper parses nothing: what has arrived may be a
            // whole head.
            partial_head: !running && traffic.is_sent && self.wire.was_heard(),
            requests: self.requests.count.load(Ordering::Relaxed),
            running,
            unsent: !traffic.is_sent,
            progress: traffic.sent,
            ..Seen::default()
        };
        match self.deadlines.look(now, &seen) {
            Step::Wait(until) => Check::Again(until),
            Step::Finish(limit) => {
                // The last request has been counted when it began.
                if limit != Limit::Requests {
                    self.worker.line.metrics.limit_reached(limit.name());
                }
                Check::Finish
            }
            Step::Close(limit) => {
                limit.iter().for_each(|limit| self.worker.line.metrics.limit_reached(limit.name()));
                Check::Close
            }
        }
    }

    /// When to check next.
    fn next_check(&self, now: Instant) -> Instant {
        now + match () {
            () if self.is_running() => RUNNING_CHECK_INTERVAL,
            () if !self.wire.is_sent() => SEND_CHECK_INTERVAL,
            () => CHECK_INTERVAL,
        }
    }
}
