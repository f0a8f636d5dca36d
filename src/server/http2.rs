//! HTTP/2 on one connection, over the `h2` crate: one task for the connection and one for each
//! stream.
//!
//! `connection` calls [`serve`] after the handshake. A stream reads from the origin only while its
//! flow-control window is open, and queues no more in `h2` than the window allows. Bytes in `h2`
//! therefore wait for TCP only. A stream can be reset without harm to the others, when its reader
//! is too slow or its loan has ended. [`Http2Monitor`] checks the limits of the connection with
//! [`Deadlines`].

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf;
use h2::server::{Connection as Http2, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderMap, HeaderValue, Request};
use http_body::Body as _;
use tokio::time::{Instant, Sleep};

use super::connection::ConnectionInfo;
use super::deadlines::{Deadlines, Observed, Step};
use super::limits::{Limit, is_abuse};
use super::pending_responses::{PendingResponse, PendingResponses};
use super::request_body::RequestBody;
use super::tls_stream::TlsStream;
use super::{Worker, date, dispatch};
use crate::connection_handle::{Connection, InFlight};
use crate::delivery::{Body, BodyError, Chunk, Suspended};

/// The largest accepted header list, in bytes. A token is at most 8 KiB.
const MAX_HEADER_LIST: u32 = 16 * 1024;
/// The most that `h2` queues for one stream, in bytes. A reader at full speed needs it.
const MAX_SEND_BUFFER: usize = 256 * 1024;
/// The window capacity to reserve while the length of the next chunk is unknown, in bytes.
const DEFAULT_RESERVATION: usize = 16 * 1024;
/// Streams that the gate may reset on one connection because of the peer's errors.
const MAX_LOCAL_RESETS: usize = 1024;
/// How long the peer may be silent before it is pinged.
const PING_AFTER: Duration = Duration::from_secs(60);
/// How long the peer has to acknowledge the ping.
const PONG_TIMEOUT: Duration = Duration::from_secs(30);
/// How often to check whether a connection still needs its allowance of the buffer budget.
const RELEASE_AFTER: Duration = Duration::from_secs(1);
/// The delay after `limits.send` before a stalled response's stream is reset. If no
/// other is in flight, the connection's own deadline closes the connection first.
const RESET_AFTER_SEND: Duration = Duration::from_secs(1);
/// How many bytes the kernel must accept to count as progress on responses. A few acknowledgements
/// of PINGs must not count.
const PROGRESS_STEP: u64 = 4096;

/// Serves a connection until the peer closes it, a limit closes it, it is aborted, or the gate
/// drains and the last stream has ended.
pub(super) async fn serve(tls: TlsStream, worker: Arc<Worker>, info: ConnectionInfo) {
    let connection = info.connection.clone();
    let responses = PendingResponses::default();
    let mut monitor = Http2Monitor::new(&tls, &worker, &connection, responses.clone());
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(worker.limits.h2_streams)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buffer_size(MAX_SEND_BUFFER)
        // A client may cancel all its requests at once. `h2_resets_per_minute` limits how often.
        .max_pending_accept_reset_streams(worker.limits.h2_streams as usize)
        .max_local_error_reset_streams(Some(MAX_LOCAL_RESETS));
    let mut handshake = pin!(builder.handshake::<TlsStream, Chunk>(tls.clone()));
    let prepared = poll_fn(|context| {
        connection.register_waker(context);
        if connection.is_aborted() || connection.is_draining() {
            return Poll::Ready(None);
        }
        let polled = handshake.as_mut().poll(context);
        // Sends the gate's SETTINGS before the peer's preface arrives.
        if let Poll::Ready(Err(_)) = tls.poll_send(context) {
            return Poll::Ready(None);
        }
        if polled.is_ready() {
            return polled.map(Result::ok);
        }
        // No stream exists yet, so any limit closes the connection.
        monitor.poll(context).map(|_| None)
    });
    let Some(mut http2) = prepared.await else { return };
    let mut keep_alive = KeepAlive::new(http2.ping_pong());
    let mut is_ending = false;
    poll_fn(|context| {
        connection.register_waker(context);
        if connection.is_aborted() {
            return Poll::Ready(());
        }
        if connection.is_draining() && !std::mem::replace(&mut is_ending, true) {
            monitor.deadlines.drain(Instant::now());
            // Sends two GOAWAYs, so that requests in flight from the client still get a response.
            http2.graceful_shutdown();
        }
        if keep_alive.poll(&tls, context).is_ready() {
            connection.abort();
            return Poll::Ready(());
        }
        let accepted = poll_streams(&mut http2, &worker, &info, &responses, context);
        // Sends the bytes that all streams have written since the last poll.
        match tls.poll_send(context) {
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Ready(Ok(())) if accepted.is_ready() => return Poll::Ready(()),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        match monitor.poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(LimitAction::Finish) => {
                http2.graceful_shutdown();
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(LimitAction::Close(limit)) => {
                if limit.is_some_and(is_abuse) {
                    http2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    let _ = poll_streams(&mut http2, &worker, &info, &responses, context);
                    let _ = tls.poll_send(context);
                }
                Poll::Ready(())
            }
        }
    })
    .await;
}

/// Drives the connection and spawns a task for each new stream. Ready when the connection has
/// ended.
fn poll_streams(
    http2: &mut Http2<TlsStream, Chunk>,
    worker: &Arc<Worker>,
    info: &ConnectionInfo,
    responses: &PendingResponses,
    context: &mut Context<'_>,
) -> Poll<()> {
    loop {
        match ready!(http2.poll_accept(context)) {
            Some(Ok((request, respond))) => {
                tokio::spawn(handle_stream(
                    worker.clone(),
                    info.clone(),
                    info.connection.begin(),
                    responses.clone(),
                    request,
                    respond,
                ));
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "HTTP/2 connection broke");
                return Poll::Ready(());
            }
            None => return Poll::Ready(()),
        }
    }
}

/// What to do with a connection that reached a limit.
enum LimitAction {
    /// Accept no further stream, and close after the last one.
    Finish,
    /// Close now.
    Close(Option<Limit>),
}

/// Checks the deadlines of a connection.
struct Http2Monitor<'a> {
    tls: &'a TlsStream,
    worker: &'a Worker,
    connection: &'a Connection,
    responses: PendingResponses,
    deadlines: Deadlines,
    next: Pin<Box<Sleep>>,
}

impl<'a> Http2Monitor<'a> {
    fn new(
        tls: &'a TlsStream,
        worker: &'a Worker,
        connection: &'a Connection,
        responses: PendingResponses,
    ) -> Http2Monitor<'a> {
        let deadlines = Deadlines::new(worker.limits.clone(), Instant::now());
        let next = Box::pin(tokio::time::sleep(Duration::ZERO));
        Http2Monitor { tls, worker, connection, responses, deadlines, next }
    }

    /// Ready when a limit is reached.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<LimitAction> {
        loop {
            let observed = self.observe();
            let until = match self.deadlines.check(Instant::now(), &observed) {
                Step::Wait(until) => until,
                Step::Finish(limit) => {
                    self.worker.services.metrics.limit_reached(limit);
                    return Poll::Ready(LimitAction::Finish);
                }
                Step::Close(limit) => {
                    if let Some(limit) = limit {
                        self.worker.services.metrics.limit_reached(limit);
                    }
                    return Poll::Ready(LimitAction::Close(limit));
                }
            };
            // An earlier timer is not reset: it only causes one more check.
            if until < self.next.deadline() || self.next.is_elapsed() {
                self.next.as_mut().reset(until);
            }
            ready!(self.next.as_mut().poll(context));
        }
    }

    fn observe(&self) -> Observed {
        let traffic = self.tls.traffic();
        Observed {
            awaits_preface: traffic.awaits_preface,
            partial_head: traffic.is_within_head,
            requests: traffic.heads,
            running: !self.connection.is_idle(),
            unsent: self.responses.waiting() > 0 || !traffic.is_sent,
            progress: self.responses.finished() + traffic.sent / PROGRESS_STEP,
            resets: traffic.resets,
            overspent: traffic.is_overspent,
        }
    }
}

/// The keep-alive of a connection: pings a silent peer, and releases buffers that it does not need.
struct KeepAlive {
    pings: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    /// Whether the timer is short because the connection holds an allowance of the buffer budget.
    is_short: bool,
    /// Bytes read from the peer until the last check.
    read: u64,
    /// When bytes were last read.
    last_read: Instant,
    /// When a ping was sent, if no byte has arrived since.
    pinged: Option<Instant>,
}

impl KeepAlive {
    fn new(pings: Option<PingPong>) -> KeepAlive {
        let timer = Box::pin(tokio::time::sleep(PING_AFTER));
        KeepAlive {
            pings,
            timer,
            is_short: false,
            read: 0,
            last_read: Instant::now(),
            pinged: None,
        }
    }

    /// Ready when the connection is to be closed.
    fn poll(&mut self, tls: &TlsStream, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_short && tls.holds_buffers() {
            self.is_short = true;
            self.timer.as_mut().reset(Instant::now() + RELEASE_AFTER);
        }
        while self.timer.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            tls.release_if_stalled(now.into_std());
            self.is_short = tls.holds_buffers();
            if self.has_timed_out(tls.bytes_read(), now) {
                return Poll::Ready(());
            }
            let wait = match self.pinged {
                _ if self.is_short => RELEASE_AFTER,
                Some(_) => PONG_TIMEOUT,
                None => PING_AFTER,
            };
            self.timer.as_mut().reset(now + wait);
        }
        if let (Some(pings), Some(_)) = (&mut self.pings, self.pinged) {
            let _ = pings.poll_pong(context);
        }
        Poll::Pending
    }

    /// Whether the peer has not acknowledged a ping in time. Pings a silent peer.
    fn has_timed_out(&mut self, read: u64, now: Instant) -> bool {
        if std::mem::replace(&mut self.read, read) != read {
            (self.last_read, self.pinged) = (now, None);
        }
        if self.pinged.is_none() && now.duration_since(self.last_read) >= PING_AFTER {
            // If the ping cannot be sent, the connection is broken and times out below.
            let _ = self.pings.as_mut().map(|pings| pings.send_ping(Ping::opaque()));
            self.pinged = Some(now);
        }
        self.pinged.is_some_and(|at| now.duration_since(at) >= PONG_TIMEOUT)
    }
}

/// Handles the request of one stream.
async fn handle_stream(
    worker: Arc<Worker>,
    info: ConnectionInfo,
    in_flight: InFlight,
    responses: PendingResponses,
    request: Request<RecvStream>,
    mut respond: SendResponse<Chunk>,
) {
    let request = request.map(RequestBody::Http2);
    // A request that was reset before its task ran must not reach the origin.
    if poll_fn(|context| Poll::Ready(respond.poll_reset(context).is_ready())).await {
        return;
    }
    // Boxed, so it is freed once the head is sent.
    let mut dispatched =
        Box::pin(dispatch::dispatch(&worker.services, &worker.delivery, &info, request));
    let polled = poll_fn(|context| {
        if let Poll::Ready(response) = dispatched.as_mut().poll(context) {
            return Poll::Ready(Some(response));
        }
        respond.poll_reset(context).map(|_| None)
    });
    let Some(response) = polled.await else { return };
    drop(dispatched);
    let (mut head, body) = response.into_parts();
    add_fields(&mut head.headers, &body);
    let has_no_body = body.is_end_stream();
    let response = http::Response::from_parts(head, ());
    let stream = match respond.send_response(response, has_no_body) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "cannot send the head of a response");
            return respond.send_reset(Reason::INTERNAL_ERROR);
        }
    };
    if !has_no_body {
        let send = worker.limits.send + RESET_AFTER_SEND;
        let pending = (!body.is_file()).then(|| responses.enter());
        // The body of a file has a guard of its own.
        drop((worker, info, in_flight, respond));
        BodySender { body, stream, next: None, send, deadline: None, _pending: pending }
            .run()
            .await;
    }
}

/// Adds Date and Content-Length. The gate sets no field that HTTP/2 forbids (RFC 9113 §8.2.2),
/// which `h2` would refuse to send.
fn add_fields(fields: &mut HeaderMap, body: &Body) {
    if !fields.contains_key(DATE) {
        fields.extend(date::now().map(|now| (DATE, now)));
    }
    if let (Some(length @ 1..), false) =
        (body.size_hint().exact(), fields.contains_key(CONTENT_LENGTH))
    {
        fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// Sends a response body on a stream.
struct BodySender {
    body: Body,
    stream: SendStream<Chunk>,
    /// The next chunk, not yet queued in `h2`.
    next: Option<Chunk>,
    /// How long a body without a file may wait for room.
    send: Duration,
    /// When the current wait ends.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Counts the response as pending; none for a file.
    _pending: Option<PendingResponse>,
}

/// Why a stream ends before the end of its body.
enum StreamError {
    /// The peer has reset the stream, or the connection has ended.
    Gone,
    /// The gate must reset the stream.
    Reset(Reason),
}

impl From<BodyError> for StreamError {
    fn from(error: BodyError) -> StreamError {
        match error {
            BodyError::LoanEnded | BodyError::TooSlow => StreamError::Reset(Reason::CANCEL),
            _ => StreamError::Reset(Reason::INTERNAL_ERROR),
        }
    }
}

impl BodySender {
    /// Sends the body to its end, or resets the stream.
    async fn run(mut self) {
        if let Err(StreamError::Reset(reason)) = poll_fn(|context| self.poll_send(context)).await {
            self.next = None;
            // Discards what `h2` has queued.
            self.stream.send_reset(reason);
            self.body.hold_until_flushed();
        }
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        // Registers the waker first. Aborts and suspensions are checked after it, so none is
        // missed.
        if let Poll::Ready(why) = self.body.poll_aborted(context) {
            return Poll::Ready(Err(BodyError::from(why).into()));
        }
        if let Poll::Ready(sent) = self.poll_chunks(context) {
            return Poll::Ready(sent);
        }
        // `poll_chunks` detects a reset as well. This registers the waker for one.
        self.stream.poll_reset(context).map(|_| Err(StreamError::Gone))
    }

    /// Queues as many chunks as the window allows.
    fn poll_chunks(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        loop {
            if let Some(why) = self.body.abort_reason() {
                return Poll::Ready(Err(BodyError::from(why).into()));
            }
            let wanted = self.next.as_ref().map_or_else(|| self.expected_length(), Buf::remaining);
            if self.stream.capacity() < wanted {
                self.stream.reserve_capacity(wanted);
            }
            ready!(self.poll_room(context))?;
            if self.next.is_none() {
                match self.body_frame(context) {
                    Poll::Ready(Some(chunk)) => self.next = Some(chunk?),
                    Poll::Ready(None) => {
                        self.queue(Chunk::default(), true)?;
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Pending => {
                        // Reserved capacity is not available to the other streams.
                        self.stream.reserve_capacity(0);
                        return Poll::Pending;
                    }
                }
            }
            if self.send_next()? {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Estimates the length of the next chunk, in bytes.
    fn expected_length(&self) -> usize {
        let left = self.body.size_hint().exact().and_then(|left| usize::try_from(left).ok());
        left.unwrap_or(DEFAULT_RESERVATION).clamp(1, DEFAULT_RESERVATION)
    }

    /// Ready when the stream's window, the connection's window and the queue have room.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        while self.stream.capacity() == 0 {
            self.body.mark_waiting_for_reader();
            if let Some(suspension) = self.body.take_suspension() {
                match self.body.suspend(suspension, self.next.take()) {
                    Suspended::Keeps(next) => self.next = next,
                    Suspended::Impossible => return Poll::Ready(Err(BodyError::TooSlow.into())),
                }
            }
            if !self.body.is_file() {
                // For a file, `delivery.idle` applies instead.
                let send = self.send;
                let deadline =
                    self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(send)));
                if deadline.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Err(StreamError::Reset(Reason::CANCEL)));
                }
            }
            match ready!(self.stream.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(StreamError::Gone)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn body_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Chunk, StreamError>>> {
        loop {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    if let Ok(chunk) = frame.into_data() {
                        return Poll::Ready(Some(Ok(chunk)));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => return Poll::Ready(None),
            }
        }
    }

    /// Queues as much of the next chunk as the window allows. Returns true after the last byte.
    fn send_next(&mut self) -> Result<bool, StreamError> {
        let Some(mut next) = self.next.take() else { return Ok(false) };
        let length = next.remaining();
        if self.stream.capacity() < length {
            self.stream.reserve_capacity(length);
        }
        let room = self.stream.capacity();
        if room < length {
            let first = next.split_to(room);
            self.next = Some(next);
            if room > 0 {
                self.queue(first, false)?;
            }
            return Ok(false);
        }
        let is_last = self.body.is_end_stream();
        self.queue(next, is_last)?;
        Ok(is_last)
    }

    fn queue(&mut self, chunk: Chunk, is_last: bool) -> Result<(), StreamError> {
        self.deadline = None;
        self.stream.send_data(chunk, is_last).map_err(|_| StreamError::Gone)
    }
}
