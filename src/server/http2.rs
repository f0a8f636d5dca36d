//! HTTP/2 on one connection, over the `h2` crate: a task for the connection and one for each
//! stream.
//!
//! `connection` calls [`serve`] after the handshake. A stream's body is requested from the origin
//! only while the stream's window is open, and no more is handed to `h2` than the window admits:
//! what `h2` holds waits for TCP alone. So a stream whose reader is too slow, or whose loan has
//! ended, can be reset without harm to the others on the connection. The limits of a connection as
//! a whole are in [`Deadlines`], which [`Watch`] feeds.

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

use super::connection::Asked;
use super::deadlines::{Deadlines, Seen, Step};
use super::limits::Limit;
use super::pending_responses::{PendingAnswer, PendingAnswers};
use super::request_body::RequestBody;
use super::tls_stream::Wire;
use super::{Worker, date, dispatch};
use crate::connection_handle::Connection;
use crate::delivery::{Body, BodyError, Chunk, Suspended};

/// The largest list of fields that is read, in bytes: a token is at most 8 KiB.
const HEADER_LIST: u32 = 16 * 1024;
/// What `h2` may queue for one stream, in bytes, for a reader at full speed.
const SEND_BUFFER: usize = 256 * 1024;
/// What is reserved of the windows before the length of the next chunk is known, in bytes.
const RESERVED: usize = 16 * 1024;
/// Streams that the gate may reset on one connection because of the peer's errors.
const LOCAL_RESETS: usize = 1024;
/// Without a byte from the peer for this long, it is pinged, and must answer within
/// [`PONG_WITHIN`].
const PING_AFTER: Duration = Duration::from_secs(60);
const PONG_WITHIN: Duration = Duration::from_secs(30);
/// How often a connection that holds a part of the buffers' budget is checked for whether it still
/// needs it.
const RELEASE_AFTER: Duration = Duration::from_secs(1);
/// How much later than `limits.send` a stalled answer's stream is reset: where nothing else is
/// under way, its connection is closed before that.
const RESET_AFTER_SEND: Duration = Duration::from_secs(1);
/// Bytes that the kernel must accept to count as progress on answers: more than a few frames that
/// answer PINGs.
const PROGRESS: u64 = 4096;

/// Serves a connection until its peer closes it, the gate drains and the last stream has ended, or
/// it is cut.
pub(super) async fn serve(wire: Wire, worker: Arc<Worker>, asked: Asked) {
    let connection = asked.connection.clone();
    let answers = PendingAnswers::default();
    let mut watch = Watch::new(&wire, &worker, &connection, answers.clone());
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(worker.limits.h2_streams)
        .max_header_list_size(HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        // A client may cancel all that it has asked for at once; `h2_resets_per_minute` bounds how
        // often.
        .max_pending_accept_reset_streams(worker.limits.h2_streams as usize)
        .max_local_error_reset_streams(Some(LOCAL_RESETS));
    let mut handshake = pin!(builder.handshake::<Wire, Chunk>(wire.clone()));
    let shaken = poll_fn(|context| {
        connection.listen(context);
        if connection.is_cut() || connection.is_draining() {
            return Poll::Ready(None);
        }
        let shaken = handshake.as_mut().poll(context);
        // The gate's settings leave before the peer's preface arrives.
        if let Poll::Ready(Err(_)) = wire.poll_send(context) {
            return Poll::Ready(None);
        }
        if shaken.is_ready() {
            return shaken.map(Result::ok);
        }
        // Nothing runs yet: whatever ends the connection closes it.
        watch.poll(context).map(|_| None)
    });
    let Some(mut http2) = shaken.await else { return };
    let mut peer = Peer::new(http2.ping_pong());
    let mut is_ending = false;
    poll_fn(|context| {
        connection.listen(context);
        if connection.is_cut() {
            return Poll::Ready(());
        }
        if connection.is_draining() && !std::mem::replace(&mut is_ending, true) {
            watch.deadlines.drain(Instant::now());
            // Two GOAWAYs: requests that are on their way to the gate are still answered.
            http2.graceful_shutdown();
        }
        if peer.poll(&wire, context).is_ready() {
            connection.cut();
            return Poll::Ready(());
        }
        let accepted = poll_streams(&mut http2, &worker, &asked, &answers, context);
        // What all streams have written in this round is sent together.
        match wire.poll_send(context) {
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Ready(Ok(())) if accepted.is_ready() => return Poll::Ready(()),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        match watch.poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Over::Finish) => {
                http2.graceful_shutdown();
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(Over::Close(limit)) => {
                if limit.is_some_and(Limit::is_abuse) {
                    http2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    let _ = poll_streams(&mut http2, &worker, &asked, &answers, context);
                    let _ = wire.poll_send(context);
                }
                Poll::Ready(())
            }
        }
    })
    .await;
}

/// Drives the connection and starts a task for each new stream; ready when the connection is over.
fn poll_streams(
    http2: &mut Http2<Wire, Chunk>,
    worker: &Arc<Worker>,
    asked: &Asked,
    answers: &PendingAnswers,
    context: &mut Context<'_>,
) -> Poll<()> {
    loop {
        match ready!(http2.poll_accept(context)) {
            Some(Ok((request, respond))) => {
                tokio::spawn(answer(
                    worker.clone(),
                    asked.clone(),
                    answers.clone(),
                    request,
                    respond,
                ));
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "an HTTP/2 connection broke");
                return Poll::Ready(());
            }
            None => return Poll::Ready(()),
        }
    }
}

/// What a limit asks of a connection.
enum Over {
    /// Accept no further stream, and close after the last one.
    Finish,
    /// Close now.
    Close(Option<Limit>),
}

/// What is seen of a connection, and the deadlines that follow from it.
struct Watch<'a> {
    wire: &'a Wire,
    worker: &'a Worker,
    connection: &'a Connection,
    answers: PendingAnswers,
    deadlines: Deadlines,
    next: Pin<Box<Sleep>>,
}

impl<'a> Watch<'a> {
    fn new(
        wire: &'a Wire,
        worker: &'a Worker,
        connection: &'a Connection,
        answers: PendingAnswers,
    ) -> Watch<'a> {
        let deadlines = Deadlines::new(worker.limits.clone(), Instant::now());
        let next = Box::pin(tokio::time::sleep(Duration::ZERO));
        connection.note_idle();
        Watch { wire, worker, connection, answers, deadlines, next }
    }

    /// Ready when a limit is reached.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Over> {
        loop {
            let seen = self.see();
            let until = match self.deadlines.look(Instant::now(), &seen) {
                Step::Wait(until) => until,
                Step::Finish(limit) => {
                    self.worker.line.metrics.limit_reached(limit.name());
                    return Poll::Ready(Over::Finish);
                }
                Step::Close(limit) => {
                    limit
                        .iter()
                        .for_each(|limit| self.worker.line.metrics.limit_reached(limit.name()));
                    return Poll::Ready(Over::Close(limit));
                }
            };
            // An earlier timer stays as it is: it only looks once more.
            if until < self.next.deadline() || self.next.is_elapsed() {
                self.next.as_mut().reset(until);
            }
            ready!(self.next.as_mut().poll(context));
        }
    }

    fn see(&self) -> Seen {
        let traffic = self.wire.traffic();
        Seen {
            awaits_preface: traffic.awaits_preface,
            partial_head: traffic.is_within_head,
            requests: traffic.heads,
            running: !self.connection.is_idle(),
            unsent: self.answers.waiting() > 0 || !traffic.is_sent,
            progress: self.answers.taken() + traffic.sent / PROGRESS,
            resets: traffic.resets,
            overspent: traffic.is_overspent,
        }
    }
}

/// Whether the peer still answers, and whether its connection needs its part of the buffers'
/// budget.
struct Peer {
    pings: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    /// Whether the timer is short, since the connection holds a part of the buffers' budget.
    is_short: bool,
    /// Bytes read from the peer, and when there last were more.
    read: u64,
    heard: Instant,
    /// When the peer was pinged that has not answered since.
    pinged: Option<Instant>,
}

impl Peer {
    fn new(pings: Option<PingPong>) -> Peer {
        let timer = Box::pin(tokio::time::sleep(PING_AFTER));
        Peer { pings, timer, is_short: false, read: 0, heard: Instant::now(), pinged: None }
    }

    /// Ready when the connection is to be closed.
    fn poll(&mut self, wire: &Wire, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_short && wire.holds_buffers() {
            self.is_short = true;
            self.timer.as_mut().reset(Instant::now() + RELEASE_AFTER);
        }
        while self.timer.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            wire.rest(now.into_std());
            self.is_short = wire.holds_buffers();
            if self.is_gone(wire.bytes_read(), now) {
                return Poll::Ready(());
            }
            let wait = match self.pinged {
                _ if self.is_short => RELEASE_AFTER,
                Some(_) => PONG_WITHIN,
                None => PING_AFTER,
            };
            self.timer.as_mut().reset(now + wait);
        }
        if let (Some(pings), Some(_)) = (&mut self.pings, self.pinged) {
            let _ = pings.poll_pong(context);
        }
        Poll::Pending
    }

    /// Whether the peer has not answered a ping in time. Pings one from which nothing arrives.
    fn is_gone(&mut self, read: u64, now: Instant) -> bool {
        if std::mem::replace(&mut self.read, read) != read {
            (self.heard, self.pinged) = (now, None);
        }
        if self.pinged.is_none() && now.duration_since(self.heard) >= PING_AFTER {
            // A connection that can send no ping is over, and answers none.
            let _ = self.pings.as_mut().map(|pings| pings.send_ping(Ping::opaque()));
            self.pinged = Some(now);
        }
        self.pinged.is_some_and(|at| now.duration_since(at) >= PONG_WITHIN)
    }
}

/// Answers the request of one stream.
async fn answer(
    worker: Arc<Worker>,
    asked: Asked,
    answers: PendingAnswers,
    request: Request<RecvStream>,
    mut respond: SendResponse<Chunk>,
) {
    let request = request.map(RequestBody::Http2);
    // A request that was cancelled before its task ran costs the origin nothing.
    if poll_fn(|context| Poll::Ready(respond.poll_reset(context).is_ready())).await {
        return;
    }
    // Boxed, so it is freed once the head is sent.
    let mut answer = Box::pin(dispatch::dispatch(&worker.line, &worker.delivery, &asked, request));
    let answered = poll_fn(|context| {
        if let Poll::Ready(response) = answer.as_mut().poll(context) {
            return Poll::Ready(Some(response));
        }
        respond.poll_reset(context).map(|_| None)
    });
    let Some(response) = answered.await else { return };
    drop(answer);
    let (mut head, body) = response.into_parts();
    complete(&mut head.headers, &body);
    let is_over = body.is_end_stream();
    let response = http::Response::from_parts(head, ());
    let stream = match respond.send_response(response, is_over) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "an answer's head could not be sent");
            return respond.send_reset(Reason::INTERNAL_ERROR);
        }
    };
    if !is_over {
        let send = worker.limits.send + RESET_AFTER_SEND;
        let pending = (!body.is_file()).then(|| answers.enter());
        drop((worker, asked, respond));
        Sending { body, stream, next: None, send, deadline: None, _pending: pending }.run().await;
    }
}

/// Adds the fields that every answer has. None of the gate's answers has a field that HTTP/2
/// forbids (RFC 9113 §8.2.2); `h2` would not send it.
fn complete(fields: &mut HeaderMap, body: &Body) {
    if !fields.contains_key(DATE) {
        fields.extend(date::now().map(|now| (DATE, now)));
    }
    if let (Some(length @ 1..), false) =
        (body.size_hint().exact(), fields.contains_key(CONTENT_LENGTH))
    {
        fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// A body on its way into a stream.
struct Sending {
    body: Body,
    stream: SendStream<Chunk>,
    /// The chunk that comes next, of which nothing was handed to `h2`.
    next: Option<Chunk>,
    /// How long a body that is no file's waits for room, and until when.
    send: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Held where the body is no file's.
    _pending: Option<PendingAnswer>,
}

/// Why a stream ends before its body.
enum Broken {
    /// The peer has reset it, or the connection is over.
    Gone,
    /// It is to be reset.
    Reset(Reason),
}

impl From<BodyError> for Broken {
    fn from(error: BodyError) -> Broken {
        match error {
            BodyError::LoanEnded | BodyError::TooSlow => Broken::Reset(Reason::CANCEL),
            _ => Broken::Reset(Reason::INTERNAL_ERROR),
        }
    }
}

impl Sending {
    /// Sends the body to its end, or resets the stream.
    async fn run(mut self) {
        if let Err(Broken::Reset(reason)) = poll_fn(|context| self.poll_send(context)).await {
            self.next = None;
            // Discards what `h2` has queued.
            self.stream.send_reset(reason);
            self.body.hold_until_flushed();
        }
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        // First, so that no wake-up is lost: an abort and a suspension are checked for after it.
        if let Poll::Ready(why) = self.body.poll_aborted(context) {
            return Poll::Ready(Err(BodyError::from(why).into()));
        }
        if let Poll::Ready(sent) = self.poll_chunks(context) {
            return Poll::Ready(sent);
        }
        // A reset shows in `poll_chunks` as well; a body that waits is woken for it.
        self.stream.poll_reset(context).map(|_| Err(Broken::Gone))
    }

    /// Hands over what the reader's window admits.
    fn poll_chunks(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            if let Some(why) = self.body.why_over() {
                return Poll::Ready(Err(BodyError::from(why).into()));
            }
            let wanted = self.next.as_ref().map_or_else(|| self.expected(), Buf::remaining);
            if self.stream.capacity() < wanted {
                self.stream.reserve_capacity(wanted);
            }
            ready!(self.poll_room(context))?;
            if self.next.is_none() {
                match self.body_frame(context) {
                    Poll::Ready(Some(chunk)) => self.next = Some(chunk?),
                    Poll::Ready(None) => {
                        self.hand_over(Chunk::default(), true)?;
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Pending => {
                        // What is reserved and not used is kept from the other streams of the
                        // connection.
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

    /// About how long the next chunk will be.
    fn expected(&self) -> usize {
        let left = self.body.size_hint().exact().and_then(|left| usize::try_from(left).ok());
        left.unwrap_or(RESERVED).clamp(1, RESERVED)
    }

    /// Ready when the stream's window, the connection's and the queue have room.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while self.stream.capacity() == 0 {
            self.body.waits_for_reader();
            if let Some(suspension) = self.body.takes_suspend() {
                match self.body.suspend(suspension, self.next.take()) {
                    Suspended::Keeps(next) => self.next = next,
                    Suspended::Impossible => return Poll::Ready(Err(BodyError::TooSlow.into())),
                }
            }
            if !self.body.is_file() {
                // A file's body has `delivery.idle`.
                let send = self.send;
                let deadline =
                    self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(send)));
                if deadline.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Err(Broken::Reset(Reason::CANCEL)));
                }
            }
            match ready!(self.stream.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(Broken::Gone)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn body_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, Broken>>> {
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

    /// Hands over what the window admits of the next chunk. True after the last byte of the body.
    fn send_next(&mut self) -> Result<bool, Broken> {
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
                self.hand_over(first, false)?;
            }
            return Ok(false);
        }
        let is_last = self.body.is_end_stream();
        self.hand_over(next, is_last)?;
        Ok(is_last)
    }

    fn hand_over(&mut self, chunk: Chunk, is_last: bool) -> Result<(), Broken> {
        self.deadline = None;
        self.stream.send_data(chunk, is_last).map_err(|_| Broken::Gone)
    }
}
