//! The bytes of a response as they come from an origin: one part of a file, or several with what
//! stands between them.
//!
//! `body` draws from it. Each part is cut out where the origin sends more than was asked, and gone
//! on with where the origin breaks off (`resume`); a part that nobody has asked for yet is asked
//! for when its turn comes. Nothing is held but what is on its way.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::Body as _;
use tokio::time::Sleep;

use super::body::BodyError;
use super::range::Part;
use super::resume::{FetchOutcome, PendingFetch, Remainder};
use crate::origin;

/// What comes next.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every body is one file, and a box would be one more allocation"
)]
pub(super) enum Segment {
    /// These bytes, which are not the file's.
    Text(Bytes),
    /// A part of the file.
    File(FileSegment),
}

/// Bytes that came.
pub(super) struct Received {
    pub(super) data: Bytes,
    /// Where in the file the first of them is; none where they are not the file's.
    pub(super) at: Option<u64>,
}

/// A part of a file on its way.
pub(super) struct FileSegment {
    /// The origin's body; none while it is asked for it.
    incoming: Option<origin::Body>,
    pending: Option<PendingFetch>,
    /// What is to come, where it can be asked for again.
    remainder: Option<Remainder>,
    /// Bytes of the origin's that come before the part.
    skip: u64,
    /// The byte of the file that comes next.
    next: u64,
    /// Bytes of the part that are to come; none where the file's end is not known.
    left: Option<u64>,
    idle: Duration,
    /// Runs while the origin lets us wait.
    idle_timer: Option<Pin<Box<Sleep>>>,
    /// Whether the origin's body was dropped for a reader who takes nothing.
    is_suspended: bool,
}

/// All that comes, the next piece in front.
pub(super) struct BodySource {
    pieces: VecDeque<Segment>,
    /// How often the pieces that are over were gone on with.
    resumed: u32,
}

impl FileSegment {
    /// The part that begins after `skip` bytes of this body: from byte `next` of the file on,
    /// `left` bytes long.
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

    /// A part that is asked for when its turn comes.
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

    /// The next bytes of the part, or the error that ends it.
    fn poll_bytes(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Received, BodyError>>> {
        loop {
            if self.left == Some(0) {
                return Poll::Ready(None);
            }
            if let Some(pending) = &mut self.pending {
                let answer = ready!(pending.as_mut().poll(context));
                self.pending = None;
                if let Some(error) = self.accept(answer) {
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

    /// Asks for the rest, where that can be; the broken body is let go.
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

    /// Goes on with what an origin answered that was asked for the rest, or tells why the part ends
    /// here.
    fn accept(&mut self, answer: FetchOutcome) -> Option<BodyError> {
        if let Some(remainder) = &mut self.remainder {
            remainder.note(&answer);
        }
        match answer {
            FetchOutcome::Found(incoming, skip) => {
                (self.incoming, self.skip) = (Some(incoming), skip);
                None
            }
            FetchOutcome::Failed => (!self.retry()).then_some(BodyError::Origin),
            FetchOutcome::Changed => Some(BodyError::Changed),
        }
    }

    /// The next bytes of the origin's body, or the error that it has let us wait for too long.
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

    /// What of these bytes is the part's.
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
    /// What flows in these pieces.
    pub(super) fn of(pieces: impl Into<VecDeque<Segment>>) -> BodySource {
        BodySource { pieces: pieces.into(), resumed: 0 }
    }

    /// How often an origin that broke off was gone on with.
    pub(super) fn resumes(&self) -> u32 {
        match self.pieces.front() {
            Some(Segment::File(stretch)) => {
                self.resumed + stretch.remainder.as_ref().map_or(0, Remainder::resumed)
            }
            _ => self.resumed,
        }
    }

    /// Holds no more than it must while nobody asks for bytes.
    pub(super) fn release(&mut self) {
        if let Some(Segment::File(FileSegment { incoming: Some(incoming), .. })) =
            self.pieces.front_mut()
        {
            incoming.release();
        }
    }

    /// Drops the origin's body, to request the rest again when it is polled next. The last `unsent`
    /// bytes were not sent and are part of that rest. False, and nothing is dropped, where the rest
    /// cannot be requested.
    pub(super) fn suspend(&mut self, unsent: u64) -> bool {
        match self.pieces.front_mut() {
            Some(Segment::File(stretch)) => stretch.suspend(unsent),
            _ => false,
        }
    }

    /// The next bytes, or the error that ends it all.
    pub(super) fn poll_bytes(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Received, BodyError>>> {
        loop {
            match self.pieces.front_mut() {
                None => return Poll::Ready(None),
                Some(Segment::Text(text)) => {
                    let data = std::mem::take(text);
                    self.pieces.pop_front();
                    return Poll::Ready(Some(Ok(Received { data, at: None })));
                }
                Some(Segment::File(stretch)) => match ready!(stretch.poll_bytes(context)) {
                    Some(received) => return Poll::Ready(Some(received)),
                    None => {
                        self.resumed = self.resumes();
                        self.pieces.pop_front();
                    }
                },
            }
        }
    }
}
