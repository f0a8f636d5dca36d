//! The body on its way to the reader: passed on frame by frame, cut to its part, counted, and never short
//! without an error.
//!
//! hyper answers a body's error by resetting the stream (HTTP/2) or the connection (HTTP/1.1), so that a reader
//! cannot take a part for the whole. The origin is read only as fast as the reader takes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};

use super::flow::{Came, Flow};
use super::share::Share;
use super::watch::{Pace, Watch};
use crate::connection::Connection;
use crate::gate::Permit;
use crate::metering::Metered;
use crate::telemetry::Metrics;

/// A response's body.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Who is told how a body ended.
pub type OnEnd = Box<dyn FnOnce(Delivered) + Send>;

/// Why a body broke off.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BodyError {
    /// The origin broke off, or sent another length than it had named.
    #[error("the origin's body broke off")]
    Origin,
    /// The origin stood still for too long.
    #[error("the origin's body stood still")]
    Stalled,
    /// The origin has another file now.
    #[error("the file has changed at the origin")]
    Changed,
    /// The loan ended under way.
    #[error("the loan has ended")]
    LoanEnded,
}

/// How a body ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// All of it was taken.
    Complete,
    /// The origin broke off or stood still.
    OriginFailed,
    /// The reader went away.
    HungUp,
    /// The loan ended, and with it the body.
    Cut,
    /// The reader took nothing, or too little.
    TooSlow,
}

impl End {
    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            End::Complete => "complete",
            End::OriginFailed => "origin_failed",
            End::HungUp => "hung_up",
            End::Cut => "cut",
            End::TooSlow => "too_slow",
        }
    }
}

/// What left, and how it ended.
#[derive(Clone, Copy, Debug)]
pub struct Delivered {
    /// Body bytes that were taken to be sent.
    pub bytes: u64,
    /// How it ended.
    pub end: End,
    /// The response's status.
    pub status: StatusCode,
    /// When the response's head was ready.
    pub opened: Instant,
    /// How often an origin that broke off was gone on with.
    pub resumes: u32,
}

/// What is to be told at the end.
pub(super) struct Told {
    pub(super) on_end: OnEnd,
    pub(super) status: StatusCode,
    pub(super) metrics: Metrics,
    /// Under which it runs; none for an open file.
    pub(super) permit: Option<Permit>,
    /// Where it is counted under its loan; nowhere for an open file.
    pub(super) metered: Option<Metered>,
    pub(super) reader: Reader,
}

/// The reader's side of a body.
pub(super) struct Reader {
    pub(super) connection: Connection,
    pub(super) watch: Watch,
    /// What the borrower may take, where that is bounded.
    pub(super) share: Option<Share>,
}

struct Measured {
    flow: Flow,
    /// Bytes that the reader still has coming; none where the origin named no length.
    left: Option<u64>,
    bytes: u64,
    opened: Instant,
    told: Option<Told>,
    /// Where the reader is watched: from the first bytes on that are not the last.
    pace: Option<Arc<Pace>>,
}

/// No body.
pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// What flows to the reader, `take` bytes of it, counted and told of at its end.
pub(super) fn measured(flow: Flow, take: Option<u64>, told: Told) -> Body {
    told.metrics.stream_opened();
    let (opened, told) = (Instant::now(), Some(told));
    Measured { flow, left: take, bytes: 0, opened, told, pace: None }.boxed_unsync()
}

impl Measured {
    fn over(&mut self, end: End) {
        if let Some(told) = self.told.take() {
            drop(told.metered);
            told.metrics.stream_closed(end.name());
            let (bytes, status, opened) = (self.bytes, told.status, self.opened);
            let delivered = Delivered { bytes, end, status, opened, resumes: self.flow.resumes() };
            (told.on_end)(delivered);
        }
    }

    /// Whether the loan has ended under way.
    fn is_cut(&self) -> bool {
        self.told.as_ref().and_then(|told| told.permit.as_ref()).is_some_and(Permit::is_over)
    }

    fn broken(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.over(match error {
            BodyError::Origin | BodyError::Stalled | BodyError::Changed => End::OriginFailed,
            BodyError::LoanEnded => End::Cut,
        });
        Poll::Ready(Some(Err(error)))
    }

    /// Counts what leaves; never more than was told.
    fn count(&mut self, came: Came) -> Bytes {
        let mut data = came.data;
        if let Some(left) = &mut self.left {
            let taken = usize::try_from(*left).map_or(data.len(), |left| left.min(data.len()));
            data.truncate(taken);
            *left -= taken as u64;
        }
        let count = data.len() as u64;
        self.bytes += count;
        if let Some(told) = &mut self.told {
            told.metrics.delivered(count);
            if let (Some(metered), Some(at)) = (&mut told.metered, came.at) {
                metered.sent(at, count);
            }
            if let Some(share) = &mut told.reader.share {
                share.owe(count);
            }
            if self.left != Some(0) {
                let pace =
                    self.pace.get_or_insert_with(|| told.reader.watch.enter(told.reader.connection.clone()));
                pace.took(self.bytes);
            }
        }
        data
    }

    /// Whether the reader is to take first what it has been given.
    fn is_held_up(&mut self, context: &Context<'_>) -> bool {
        let Some(told) = &self.told else { return false };
        let is_held_up = told.reader.connection.poll_takes(context).is_pending();
        if is_held_up {
            self.flow.release();
            self.pace.iter().for_each(|pace| pace.waits(false));
        }
        is_held_up
    }

    /// The next bytes, once what the borrower has taken before allows it.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Came, BodyError>>> {
        let share = self.told.as_mut().and_then(|told| told.reader.share.as_mut());
        if let Some(share) = share {
            ready!(share.poll_paid(context));
        }
        self.flow.poll_bytes(context)
    }
}

impl http_body::Body for Measured {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            if this.left == Some(0) {
                this.over(End::Complete);
                return Poll::Ready(None);
            }
            if this.is_cut() {
                return this.broken(BodyError::LoanEnded);
            }
            // What the reader cannot take yet is not fetched: it would only lie here.
            if this.is_held_up(context) {
                return Poll::Pending;
            }
            let polled = this.poll_next(context);
            if let Some(pace) = &this.pace {
                pace.waits(polled.is_pending());
            }
            match ready!(polled) {
                // It may have ended while the origin was waited for.
                Some(Ok(_)) if this.is_cut() => return this.broken(BodyError::LoanEnded),
                Some(Ok(came)) => {
                    let data = this.count(came);
                    if this.left == Some(0) {
                        this.over(End::Complete);
                    }
                    if !data.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Some(Err(error)) => return this.broken(error),
                None if this.left.is_some() => return this.broken(BodyError::Origin),
                None => {
                    this.over(End::Complete);
                    return Poll::Ready(None);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Measured {
    /// A body that is dropped before its end has lost its reader, unless nothing of it was to come.
    fn drop(&mut self) {
        let end = match self.left {
            Some(0) => End::Complete,
            _ if self.is_cut() => End::Cut,
            _ if self.pace.as_ref().is_some_and(|pace| pace.is_cut()) => End::TooSlow,
            _ => End::HungUp,
        };
        self.over(end);
    }
}
