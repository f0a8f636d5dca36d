//! The source of a body's bytes: one part of a file, or several parts with multipart text between
//! them.
//!
//! `body` reads from it. It discards bytes outside the requested part. It resumes a part that the
//! origin broke off (`resume`). It requests each further part when the one before is complete. It
//! buffers nothing.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::Body as _;
use tokio::time::Sleep;

use super::body_end::BodyError;
use super::range::Part;
use super::resume::{FetchOutcome, PendingFetch, Remainder};
use crate::origin;

/// One segment of a body.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every body is one file, and a box would be one more allocation"
)]
pub(super) enum Segment {
    /// Multipart text, which is not part of the file.
    Text(Bytes),
    /// One part of the file.
    File(FileSegment),
}

/// Bytes that were received.
pub(super) struct Received {
    pub(super) data: Bytes,
    /// Offset of the first byte in the file; `None` for multipart text.
    pub(super) at: Option<u64>,
}

/// A part of a file that an origin sends.
pub(super) struct FileSegment {
    /// The origin's body; `None` before its response has arrived.
    incoming: Option<origin::Body>,
    pending: Option<PendingFetch>,
    /// The remaining range; `None` if it cannot be requested again.
    remainder: Option<Remainder>,
    /// Bytes to discard before the part begins.
    skip: u64,
    /// Offset of the next byte in the file.
    next: u64,
    /// Remaining bytes of the part; `None` if the file's length is unknown.
    left: Option<u64>,
    idle: Duration,
    /// Runs while the origin sends nothing.
    idle_timer: Option<Pin<Box<Sleep>>>,
    /// Whether the origin's body was dropped because the reader stalled.
    is_suspended: bool,
}

/// All remaining segments of a body, in order.
pub(super) struct BodySource {
    segments: VecDeque<Segment>,
    /// Times that the completed segments were resumed.
    resumed: u32,
}

impl FileSegment {
    /// Creates a part from a body that has arrived. It starts after `skip` bytes of the body, at
    /// offset `next` of the file, and has `left` bytes.
    pub(super) fn started(
        incoming: origin::Body,
        skip: u64,
        (next, left): (u64, Option<u64>),
        idle: Duration,
        remainder: Option<Remainder>,
    ) -> FileSegment {
        FileSegment {
            incoming: Some(incoming),
            pending: None,
            remainder,
            skip,
            next,
            left,
            idle,
            idle_timer: None,
            is_suspended: false,
        }
    }

    /// Creates a part that is requested when it is first polled.
    pub(super) fn deferred(remainder: Remainder, part: Part, idle: Duration) -> FileSegment {
        let (incoming, pending, remainder, left) =
            (None, None, Some(remainder), Some(part.length()));
        let (skip, next, idle_timer, is_suspended) = (0, part.first, None, false);
        FileSegment {
            incoming,
            pending,
            remainder,
            skip,
            next,
            left,
            idle,
            idle_timer,
            is_suspended,
        }
    }

    /// Polls for the next bytes of the part, or for the error that ends it.
    fn poll_bytes(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Received, BodyError>>> {
        loop {
            if self.left == Some(0) {
                return Poll::Ready(None);
            }
            if let Some(pending) = &mut self.pending {
                let outcome = ready!(pending.as_mut().poll(context));
                self.pending = None;
                if let Some(error) = self.accept(outcome) {
                    return Poll::Ready(Some(Err(error)));
                }
                continue;
            }
            if std::mem::take(&mut self.is_suspended) {
                self.pending = self.remainder.as_mut().map(Remainder::refetch);
                continue;
            }
            let error = match ready!(self.poll_origin(context)) {
                Some(Ok(data)) => match self.trim(data) {
                    received if received.data.is_empty() => continue,
                    received => return Poll::Ready(Some(Ok(received))),
                },
                None if self.left.is_none() => return Poll::Ready(None),
                None => BodyError::Origin,
                Some(Err(error)) => error,
            };
            if !self.retry() {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }

    /// See [`BodySource::suspend`].
    fn suspend(&mut self, unsent: u64) -> bool {
        let Some(remainder) = &mut self.remainder else { return false };
        if self.left == Some(0) && unsent == 0 {
            return true;
        }
        let Some(next) = self.next.checked_sub(unsent) else { return false };
        remainder.rewind(unsent);
        self.next = next;
        self.left = self.left.map(|left| left + unsent);
        (self.incoming, self.pending, self.idle_timer, self.is_suspended) =
            (None, None, None, true);
        true
    }

    /// Requests the remaining range and drops the broken body. Returns false if it cannot.
    fn retry(&mut self) -> bool {
        if let (Some(remainder), Some(incoming)) = (&mut self.remainder, &self.incoming) {
            remainder.record_break(incoming);
        }
        self.pending = self.remainder.as_mut().and_then(Remainder::retry);
        if self.pending.is_some() {
            (self.incoming, self.idle_timer) = (None, None);
        }
        self.pending.is_some()
    }

    /// Continues with the response to a resume request. Returns the error that ends the part.
    fn accept(&mut self, outcome: FetchOutcome) -> Option<BodyError> {
        if let Some(remainder) = &mut self.remainder {
            remainder.record_outcome(&outcome);
        }
        match outcome {
            FetchOutcome::Found(incoming, skip) => {
                (self.incoming, self.skip) = (Some(incoming), skip);
                None
            }
            FetchOutcome::Failed => (!self.retry()).then_some(BodyError::Origin),
            FetchOutcome::Changed => Some(BodyError::Changed),
        }
    }

    /// Polls for the next bytes of the origin's body. Fails if it is idle for too long.
    fn poll_origin(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(Some(Err(BodyError::Origin)));
        };
        loop {
            match Pin::new(&mut *incoming).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.idle_timer = None;
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Some(Err(BodyError::Origin))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    let idle = self.idle;
                    let idle_timer =
                        self.idle_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
                    ready!(idle_timer.as_mut().poll(context));
                    return Poll::Ready(Some(Err(BodyError::Stalled)));
                }
            }
        }
    }

    /// Trims received bytes to the part.
    fn trim(&mut self, mut data: Bytes) -> Received {
        let skipped = usize::try_from(self.skip).map_or(data.len(), |skip| skip.min(data.len()));
        data.advance(skipped);
        self.skip -= skipped as u64;
        if let Some(left) = &mut self.left {
            let taken = usize::try_from(*left).map_or(data.len(), |left| left.min(data.len()));
            data.truncate(taken);
            *left -= taken as u64;
        }
        if let Some(remainder) = self.remainder.as_mut().filter(|_| !data.is_empty()) {
            remainder.advance(data.len());
        }
        let at = self.next;
        self.next += data.len() as u64;
        Received { data, at: Some(at) }
    }
}

impl BodySource {
    /// Creates a source of these segments.
    pub(super) fn of(segments: impl Into<VecDeque<Segment>>) -> BodySource {
        BodySource { segments: segments.into(), resumed: 0 }
    }

    /// Returns how often a body was resumed.
    pub(super) fn resumes(&self) -> u32 {
        match self.segments.front() {
            Some(Segment::File(segment)) => {
                self.resumed + segment.remainder.as_ref().map_or(0, Remainder::resumed)
            }
            _ => self.resumed,
        }
    }

    /// Releases the buffers that an idle body does not need.
    pub(super) fn release(&mut self) {
        if let Some(Segment::File(FileSegment { incoming: Some(incoming), .. })) =
            self.segments.front_mut()
        {
            incoming.release();
        }
    }

    /// Drops the origin's body and requests the remaining range at the next poll. That range
    /// includes the last `unsent` bytes, which were received but not sent. Returns false, and drops
    /// nothing, if the range cannot be requested again.
    pub(super) fn suspend(&mut self, unsent: u64) -> bool {
        match self.segments.front_mut() {
            Some(Segment::File(segment)) => segment.suspend(unsent),
            _ => false,
        }
    }

    /// Polls for the next bytes, or for the error that ends the body.
    pub(super) fn poll_bytes(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Received, BodyError>>> {
        loop {
            match self.segments.front_mut() {
                None => return Poll::Ready(None),
                Some(Segment::Text(text)) => {
                    let data = std::mem::take(text);
                    self.segments.pop_front();
                    return Poll::Ready(Some(Ok(Received { data, at: None })));
                }
                Some(Segment::File(segment)) => match ready!(segment.poll_bytes(context)) {
                    Some(received) => return Poll::Ready(Some(received)),
                    None => {
                        self.resumed = self.resumes();
                        self.segments.pop_front();
                    }
                },
            }
        }
    }
}
