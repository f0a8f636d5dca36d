//! Sends the body of a response on one HTTP/2 stream, or resets the stream.
//!
//! `stream` runs a [`BodySender`] after the head of the response. The sender polls the body only
//! while the windows of stream and connection are open. An abort, such as the end of the loan,
//! resets the stream alone.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf;
use h2::{Reason, SendStream};
use http_body::Body as _;
use tokio::time::Sleep;

use super::super::pending_responses::PendingResponse;
use crate::delivery::{Body, BodyError, Chunk, Suspended};

/// The window capacity to reserve while the length of the next chunk is unknown, in bytes.
const DEFAULT_RESERVATION: usize = 16 * 1024;
/// The delay after `limits.send` before a stalled response's stream is reset. If no other is in
/// flight, the connection's own deadline closes the connection first.
const RESET_AFTER_SEND: Duration = Duration::from_secs(1);

/// Sends a response body on a stream.
pub(super) struct BodySender {
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
    /// Creates the sender of a body. `send` is the timeout without progress of a body that is not a
    /// file's. `pending` counts such a body as pending.
    pub(super) fn new(
        body: Body,
        stream: SendStream<Chunk>,
        send: Duration,
        pending: Option<PendingResponse>,
    ) -> BodySender {
        let send = send + RESET_AFTER_SEND;
        BodySender { body, stream, next: None, send, deadline: None, _pending: pending }
    }

    /// Sends the body to its end, or resets the stream.
    pub(super) async fn run(mut self) {
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
