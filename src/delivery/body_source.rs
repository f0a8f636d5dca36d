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
use super::resume::{Answer, Asking, Rest};
use crate::origin;

/// What comes next.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every body is one file, and a box would be one more allocation"
)]
pub(super) enum Piece {
    /// These bytes, which are not the file's.
    Text(Bytes),
    /// A part of the file.
    File(Stretch),
}

/// Bytes that came.
pub(super) struct Came {
    pub(super) data: Bytes,
    /// Where in the file the first of them is; none where they are not the file's.
    pub(super) at: Option<u64>,
}

/// A part of a file on its way.
pub(super) struct Stretch {
    /// The origin's body; none while it is asked for it.
    incoming: Option<origin::Body>,
    asking: Option<Asking>,
    /// What is to come, where it can be asked for again.
    rest: Option<Rest>,
    /// Bytes of the origin's that come before the part.
    skip: u64,
    /// The byte of the file that comes next.
    next: u64,
    /// Bytes of the part that are to come; none where the file's end is not known.
    left: Option<u64>,
    idle: Duration,
    /// Runs while the origin lets us wait.
    waiting: Option<Pin<Box<Sleep>>>,
    /// Whether the origin's body was dropped for a reader who takes nothing.
    is_suspended: bool,
}

/// All that comes, the next piece in front.
pub(super) struct Flow {
    pieces: VecDeque<Piece>,
    /// How often the pieces that are over were gone on with.
    resumed: u32,
}

impl Stretch {
    /// The part that begins after `skip` bytes of this body: from byte `next` of the file on,
    /// `left` bytes long.
    pub(super) fn coming(
        incoming: origin::Body,
        skip: u64,
        (next, left): (u64, Option<u64>),
        idle: Duration,
        rest: Option<Rest>,
    ) -> Stretch {
        Stretch {
            incoming: Some(incoming),
            asking: None,
            rest,
            skip,
            next,
            left,
            idle,
            waiting: None,
            is_suspended: false,
        }
    }

    /// A part that is asked for when its turn comes.
    pub(super) fn to_ask_for(rest: Rest, part: Part, idle: Duration) -> Stretch {
        let (incoming, asking, rest, left) = (None, None, Some(rest), Some(part.length()));
        let (skip, next, waiting, is_suspended) = (0, part.first, None, false);
        Stretch { incoming, asking, rest, skip, next, left, idle, waiting, is_suspended }
    }

    /// The next bytes of the part, or the error that ends it.
    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Came, BodyError>>> {
        loop {
            if self.left == Some(0) {
                return Poll::Ready(None);
            }
            if let Some(asking) = &mut self.asking {
                let answer = ready!(asking.as_mut().poll(context));
                self.asking = None;
                if let Some(error) = self.take_up(answer) {
                    return Poll::Ready(Some(Err(error)));
                }
                continue;
            }
            if std::mem::take(&mut self.is_suspended) {
                self.asking = self.rest.as_mut().map(Rest::ask_now);
                continue;
            }
            let error = match ready!(self.poll_origin(context)) {
                Some(Ok(data)) => match self.cut(data) {
                    came if came.data.is_empty() => continue,
                    came => return Poll::Ready(Some(Ok(came))),
                },
                None if self.left.is_none() => return Poll::Ready(None),
                None => BodyError::Origin,
                Some(Err(error)) => error,
            };
            if !self.ask_again() {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }

    /// See [`Flow::suspend`].
    fn suspend(&mut self, unsent: u64) -> bool {
        let Some(rest) = &mut self.rest else { return false };
        if self.left == Some(0) && unsent == 0 {
            return true;
        }
        let Some(next) = self.next.checked_sub(unsent) else { return false };
        rest.rewind(unsent);
        self.next = next;
        self.left = self.left.map(|left| left + unsent);
        (self.incoming, self.asking, self.waiting, self.is_suspended) = (None, None, None, true);
        true
    }

    /// Asks for the rest, where that can be; the broken body is let go.
    fn ask_again(&mut self) -> bool {
        if let (Some(rest), Some(incoming)) = (&mut self.rest, &self.incoming) {
            rest.broke(incoming);
        }
        self.asking = self.rest.as_mut().and_then(Rest::ask);
        if self.asking.is_some() {
            (self.incoming, self.waiting) = (None, None);
        }
        self.asking.is_some()
    }

    /// Goes on with what an origin answered that was asked for the rest, or tells why the part ends
    /// here.
    fn take_up(&mut self, answer: Answer) -> Option<BodyError> {
        if let Some(rest) = &mut self.rest {
            rest.note(&answer);
        }
        match answer {
            Answer::Rest(incoming, skip) => {
                (self.incoming, self.skip) = (Some(incoming), skip);
                None
            }
            Answer::Failed => (!self.ask_again()).then_some(BodyError::Origin),
            Answer::Changed => Some(BodyError::Changed),
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
                    self.waiting = None;
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Some(Err(BodyError::Origin))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    let idle = self.idle;
                    let waiting =
                        self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
                    ready!(waiting.as_mut().poll(context));
                    return Poll::Ready(Some(Err(BodyError::Stalled)));
                }
            }
        }
    }

    /// What of these bytes is the part's.
    fn cut(&mut self, mut data: Bytes) -> Came {
        let skipped = usize::try_from(self.skip).map_or(data.len(), |skip| skip.min(data.len()));
        data.advance(skipped);
        self.skip -= skipped as u64;
        if let Some(left) = &mut self.left {
            let taken = usize::try_from(*left).map_or(data.len(), |left| left.min(data.len()));
            data.truncate(taken);
            *left -= taken as u64;
        }
        if let Some(rest) = self.rest.as_mut().filter(|_| !data.is_empty()) {
            rest.advance(data.len());
        }
        let at = self.next;
        self.next += data.len() as u64;
        Came { data, at: Some(at) }
    }
}

impl Flow {
    /// What flows in these pieces.
    pub(super) fn of(pieces: impl Into<VecDeque<Piece>>) -> Flow {
        Flow { pieces: pieces.into(), resumed: 0 }
    }

    /// How often an origin that broke off was gone on with.
    pub(super) fn resumes(&self) -> u32 {
        match self.pieces.front() {
            Some(Piece::File(stretch)) => {
                self.resumed + stretch.rest.as_ref().map_or(0, Rest::resumed)
            }
            _ => self.resumed,
        }
    }

    /// Holds no more than it must while nobody asks for bytes.
    pub(super) fn release(&mut self) {
        if let Some(Piece::File(Stretch { incoming: Some(incoming), .. })) = self.pieces.front_mut()
        {
            incoming.release();
        }
    }

    /// Drops the origin's body, to request the rest again when it is polled next. The last `unsent`
    /// bytes were not sent and are part of that rest. False, and nothing is dropped, where the rest
    /// cannot be requested.
    pub(super) fn suspend(&mut self, unsent: u64) -> bool {
        match self.pieces.front_mut() {
            Some(Piece::File(stretch)) => stretch.suspend(unsent),
            _ => false,
        }
    }

    /// The next bytes, or the error that ends it all.
    pub(super) fn poll_bytes(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Came, BodyError>>> {
        loop {
            match self.pieces.front_mut() {
                None => return Poll::Ready(None),
                Some(Piece::Text(text)) => {
                    let data = std::mem::take(text);
                    self.pieces.pop_front();
                    return Poll::Ready(Some(Ok(Came { data, at: None })));
                }
                Some(Piece::File(stretch)) => match ready!(stretch.poll_bytes(context)) {
                    Some(came) => return Poll::Ready(Some(came)),
                    None => {
                        self.resumed = self.resumes();
                        self.pieces.pop_front();
                    }
                },
            }
        }
    }
}
