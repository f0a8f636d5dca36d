//! HTTP/1.1 on one connection, one request after the other.
//!
//! `connection` calls [`serve`] after the handshake. An idle connection is *parked*: hyper's state
//! and its buffers are dropped, and created again when bytes arrive.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::header::CONNECTION;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::connection::{ConnectionInfo, HEAD_SIZE, unless_aborted};
use super::deadlines::{Deadlines, DrainNotice, Observed, Step};
use super::limits::Limit;
use super::request_body::RequestBody;
use super::tls_stream::TlsStream;
use super::{Worker, dispatch};
use crate::buffer_budget::LEAST;
use crate::connection_handle::Connection;
use crate::delivery::Body;

/// How often to check whether hyper's state can be dropped, and whether a deadline has passed.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// The same while the rest of a response waits for the client.
const SEND_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The same while a response is in flight. Thousands of stalled readers must not cost CPU.
const RUNNING_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The size of hyper's buffer in each direction, in bytes: one request head, and at most one chunk
/// for a slow reader.
const BUFFER_SIZE: usize = LEAST;

/// Serves a connection to its end, and parks it whenever it is idle.
pub(super) async fn serve(tls: TlsStream, worker: &Arc<Worker>, info: ConnectionInfo) {
    let limits = worker.config.get().limits.clone();
    let deadlines = Deadlines::new(limits.clone(), Instant::now());
    let requests = Arc::new(Requests::new(limits.requests_per_connection));
    let mut monitor =
        Http1Monitor { tls: &tls, worker, connection: &info.connection, requests, deadlines };
    loop {
        if !monitor.wait_for_bytes().await {
            let close = |context: &mut Context<'_>| {
                monitor.close(context);
                Poll::Ready(())
            };
            return poll_fn(close).await;
        }
        match Box::pin(serve_requests(&mut monitor, &info)).await {
            Some(unread) => tls.put_back(unread),
            None => return,
        }
    }
}

/// Serves requests until the connection ends or can be parked. When it can be parked, returns the
/// bytes already read of the next request.
async fn serve_requests(monitor: &mut Http1Monitor<'_>, info: &ConnectionInfo) -> Option<Bytes> {
    let tls = monitor.tls;
    let (worker, requests) = (monitor.worker.clone(), monitor.requests.clone());
    let handler = RequestHandler { worker, info: info.clone(), tls: tls.clone(), requests };
    // Boxed, so it is freed once the head is sent: hyper keeps the memory of an unboxed future
    // until the response ends.
    let service = service_fn(move |request| Box::pin(handler.handle(request)));
    let mut served = http1::Builder::new()
        .header_read_timeout(None)
        .max_header_size(HEAD_SIZE)
        .max_buf_size(BUFFER_SIZE)
        .serve_connection(TokioIo::new(tls.clone()), service);
    let mut next = pin!(tokio::time::sleep(CHECK_INTERVAL));
    let (mut was_running, mut is_draining, mut is_ending) = (false, false, false);
    let is_parked = poll_fn(|context| {
        info.connection.register_waker(context);
        if info.connection.is_aborted() {
            return Poll::Ready(false);
        }
        if let Poll::Ready(ended) = Pin::new(&mut served).poll(context) {
            if let Err(error) = ended {
                tracing::debug!(%error, "HTTP/1.1 connection broke");
            }
            return Poll::Ready(false);
        }
        // Only after hyper has read a request that was waiting, since hyper closes an idle
        // connection here. A client that may send another request gets time for it instead: the
        // response says that it is the last one.
        if info.connection.is_draining() && !std::mem::replace(&mut is_draining, true) {
            if monitor.drain(Instant::now()) {
                return Poll::Ready(true);
            }
            is_ending = info.connection.is_evicted();
            if is_ending {
                Pin::new(&mut served).graceful_shutdown();
                context.waker().wake_by_ref();
            }
        }
        if was_running && !monitor.is_running() {
            was_running = false;
            next.as_mut().reset(Instant::now() + CHECK_INTERVAL);
        }
        while next.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            was_running = monitor.is_running();
            match monitor.check(now) {
                Check::Park => return Poll::Ready(!is_ending),
                Check::Close => {
                    monitor.close(context);
                    return Poll::Ready(false);
                }
                Check::Finish => {
                    is_ending = true;
                    Pin::new(&mut served).graceful_shutdown();
                    context.waker().wake_by_ref();
                }
                // Polls the body again, so that it releases its buffers if the reader has stalled.
                Check::Again(_) if was_running => context.waker().wake_by_ref(),
                Check::Again(_) => {}
            }
            next.as_mut().reset(monitor.next_check(now));
        }
        Poll::Pending
    });
    is_parked.await.then(|| served.into_parts().read_buf)
}

/// Handles the requests that hyper reads on one connection.
struct RequestHandler {
    worker: Arc<Worker>,
    info: ConnectionInfo,
    tls: TlsStream,
    requests: Arc<Requests>,
}

impl RequestHandler {
    /// Counts a request as in flight, and returns the future of its response.
    fn handle(
        &self,
        request: http::Request<Incoming>,
    ) -> impl Future<Output = Result<http::Response<Body>, Infallible>> + use<> {
        let is_last = self.requests.count_request(&request);
        if is_last {
            self.worker.services.metrics.limit_reached(Limit::Requests);
        }
        self.tls.clear_unparsed_input();
        let has_body = !request.body().is_end_stream();
        let (worker, info, tls) = (self.worker.clone(), self.info.clone(), self.tls.clone());
        let in_flight = info.connection.begin();
        async move {
            let request = request.map(RequestBody::new);
            let config = worker.config.get();
            let mut response = dispatch::dispatch(&worker.services, &config, &info, request).await;
            let is_last = is_last || info.connection.is_draining();
            drop(in_flight); // the body of a file has a guard of its own
            if has_body {
                tls.clear_unparsed_input(); // the input since then was the body
            }
            if is_last {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        }
    }
}

/// Counts the requests that hyper has read on one connection.
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

    /// Counts a request. Returns true for the last one that the connection accepts.
    fn count_request(&self, request: &http::Request<Incoming>) -> bool {
        if !request.body().is_end_stream() {
            self.with_body.store(true, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed) + 1 == self.allowed
    }
}

/// A connection, with what is needed to check its deadlines.
struct Http1Monitor<'a> {
    tls: &'a TlsStream,
    worker: &'a Arc<Worker>,
    connection: &'a Connection,
    requests: Arc<Requests>,
    deadlines: Deadlines,
}

/// The result of a check of a connection.
enum Check {
    /// Nothing to do until this time.
    Again(Instant),
    /// It is idle, and hyper holds no bytes of the next request.
    Park,
    /// Accept no further request, and close after the response in flight.
    Finish,
    /// Close now.
    Close,
}

impl Http1Monitor<'_> {
    /// Waits for the first byte of the next request. Returns false if the connection ends before:
    /// it closed or was aborted, or a deadline has passed. While the gate drains, the client still
    /// gets some time for a request, since HTTP/1.1 has no GOAWAY.
    async fn wait_for_bytes(&mut self) -> bool {
        loop {
            let (tls, connection) = (self.tls, self.connection);
            let is_draining = connection.is_draining();
            if is_draining {
                self.deadlines.drain(Instant::now(), connection.is_evicted(), DrainNotice::None);
            }
            let Check::Again(until) = self.check_deadlines(Instant::now()) else { return false };
            let may_wait = !connection.is_evicted();
            // A request that has arrived gets a response even if the connection drains.
            let readable = poll_fn(|context| match tls.poll_readable(context) {
                Poll::Pending if connection.is_draining() && !may_wait => Poll::Ready(Some(false)),
                Poll::Pending if connection.is_draining() && !is_draining => Poll::Ready(None),
                readable => readable.map(|readable| Some(readable.is_ok())),
            });
            let waited = pin!(tokio::time::timeout_at(until, readable));
            match unless_aborted(connection, waited).await {
                Some(Ok(Some(is_readable))) => return is_readable,
                Some(Ok(None) | Err(_)) => {} // check the deadlines again
                None => return false,
            }
        }
    }

    /// Notes that the gate drains, or that the connection is evicted. Returns whether the
    /// connection can be parked.
    fn drain(&mut self, now: Instant) -> bool {
        self.check_deadlines(now);
        self.deadlines.drain(now, self.connection.is_evicted(), DrainNotice::None);
        self.can_park()
    }

    /// Sends a close_notify on an idle connection (RFC 8446 §6.1), if the socket accepts it
    /// at once.
    /// An incomplete response must not end with one.
    fn close(&self, context: &mut Context<'_>) {
        if !self.connection.is_aborted() && !self.is_running() && self.tls.is_sent() {
            let _ = self.tls.poll_close(context);
        }
    }

    /// Whether a request is being handled, or a file is being sent.
    fn is_running(&self) -> bool {
        !self.connection.is_idle()
    }

    /// Checks a connection that is not parked.
    fn check(&mut self, now: Instant) -> Check {
        self.tls.release_if_stalled(now.into_std());
        let count = self.deadlines.requests();
        let check = self.check_deadlines(now);
        match check {
            Check::Again(_) if count == self.deadlines.requests() && self.can_park() => Check::Park,
            check => check,
        }
    }

    /// Whether hyper's state can be dropped.
    fn can_park(&self) -> bool {
        let is_idle = !self.is_running() && self.tls.is_sent();
        // hyper may still have to read the rest of a request's body. After parking, those bytes
        // would be parsed as a request.
        let is_parsed =
            !self.tls.has_unparsed_input() && !self.requests.with_body.load(Ordering::Relaxed);
        is_idle && is_parsed
    }

    fn check_deadlines(&mut self, now: Instant) -> Check {
        let running = self.is_running();
        let traffic = self.tls.traffic();
        let observed = Observed {
            // hyper parses no input while a response waits to be sent, so the input may be a whole
            // head.
            partial_head: !running && traffic.is_sent && self.tls.has_unparsed_input(),
            requests: self.requests.count.load(Ordering::Relaxed),
            running,
            unsent: !traffic.is_sent,
            progress: traffic.sent,
            ..Observed::default()
        };
        match self.deadlines.check(now, &observed) {
            Step::Wait(until) => Check::Again(until),
            Step::Finish(limit) => {
                // `Limit::Requests` was counted when the last request began.
                if limit != Limit::Requests {
                    self.worker.services.metrics.limit_reached(limit);
                }
                Check::Finish
            }
            Step::Close(limit) => {
                limit
                    .into_iter()
                    .for_each(|limit| self.worker.services.metrics.limit_reached(limit));
                Check::Close
            }
        }
    }

    /// Returns when to check again.
    fn next_check(&self, now: Instant) -> Instant {
        now + match () {
            () if self.is_running() => RUNNING_CHECK_INTERVAL,
            () if !self.tls.is_sent() => SEND_CHECK_INTERVAL,
            () => CHECK_INTERVAL,
        }
    }
}
