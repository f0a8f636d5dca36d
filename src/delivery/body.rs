//! The body on its way to the reader: passed on frame by frame, cut to its part, counted, and never short
//! without an error. Where the origin breaks off, the body goes on with what `resume` gets of it.
//!
//! hyper answers a body's error by resetting the stream (HTTP/2) or the connection (HTTP/1.1), so that a reader
//! cannot take a part for the whole. The origin is read only as fast as the reader takes.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http::StatusCode;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::resume::{Answer, Asking, Rest};
use crate::gate::Permit;
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
}

impl End {
    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            End::Complete => "complete",
            End::OriginFailed => "origin_failed",
            End::HungUp => "hung_up",
            End::Cut => "cut",
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
}

struct Measured {
    /// The origin's body; none while it is asked for the rest.
    incoming: Option<Incoming>,
    asking: Option<Asking>,
    /// What is to come, where it can be asked for again.
    rest: Option<Rest>,
    /// Bytes of the origin's that come before the reader's part.
    skip: u64,
    /// Bytes that the reader still has coming; none where the origin named no length.
    left: Option<u64>,
    idle: Duration,
    /// Runs while the origin lets us wait.
    waiting: Option<Pin<Box<Sleep>>>,
    bytes: u64,
    opened: Instant,
    told: Option<Told>,
}

/// No body.
pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// The origin's body without its first `skip` bytes, `take` bytes long; where it breaks, its `rest` is asked for.
pub(super) fn measured(
    incoming: Incoming,
    skip: u64,
    take: Option<u64>,
    idle: Duration,
    rest: Option<Rest>,
    told: Told,
) -> Body {
    told.metrics.stream_opened();
    let (incoming, told, opened) = (Some(incoming), Some(told), Instant::now());
    let (asking, waiting, bytes) = (None, None, 0);
    Measured { incoming, asking, rest, skip, left: take, idle, waiting, bytes, opened, told }.boxed_unsync()
}

impl Measured {
    fn over(&mut self, end: End) {
        if let Some(told) = self.told.take() {
            told.metrics.stream_closed(end.name());
            let resumes = self.rest.as_ref().map_or(0, Rest::resumed);
            let (bytes, status, opened) = (self.bytes, told.status, self.opened);
            let delivered = Delivered { bytes, end, status, opened, resumes };
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

    /// The next bytes of the origin's, from wherever they come, or the error that ends it.
    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            if let Some(asking) = &mut self.asking {
                let answer = ready!(asking.as_mut().poll(context));
                self.asking = None;
                if let Some(error) = self.take_up(answer) {
                    return Poll::Ready(Some(Err(error)));
                }
                continue;
            }
            let error = match ready!(self.poll_origin(context)) {
                Some(Ok(data)) => return Poll::Ready(Some(Ok(data))),
                None if self.left.is_none() => return Poll::Ready(None),
                None => BodyError::Origin,
                Some(Err(error)) => error,
            };
            if !self.ask_again() {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }

    /// Asks for the rest, where that can be; the broken body is let go.
    fn ask_again(&mut self) -> bool {
        self.asking = self.rest.as_mut().and_then(Rest::ask);
        if self.asking.is_some() {
            (self.incoming, self.waiting) = (None, None);
        }
        self.asking.is_some()
    }

    /// Goes on with what an origin answered that was asked for the rest, or tells why the body ends here.
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
                    let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
                    ready!(waiting.as_mut().poll(context));
                    return Poll::Ready(Some(Err(BodyError::Stalled)));
                }
            }
        }
    }

    /// What of these bytes is the reader's.
    fn cut(&mut self, mut data: Bytes) -> Bytes {
        let skipped = usize::try_from(self.skip).map_or(data.len(), |skip| skip.min(data.len()));
        data.advance(skipped);
        self.skip -= skipped as u64;
        if let Some(left) = &mut self.left {
            let taken = usize::try_from(*left).map_or(data.len(), |left| left.min(data.len()));
            data.truncate(taken);
            *left -= taken as u64;
        }
        self.bytes += data.len() as u64;
        if let Some(rest) = self.rest.as_mut().filter(|_| !data.is_empty()) {
            rest.advance(data.len());
        }
        if let Some(told) = &self.told {
            told.metrics.delivered(data.len() as u64);
        }
        data
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
            match ready!(this.poll_bytes(context)) {
                // It may have ended while the origin was waited for.
                Some(Ok(_)) if this.is_cut() => return this.broken(BodyError::LoanEnded),
                Some(Ok(data)) => {
                    let data = this.cut(data);
                    if this.left == Some(0) {
                        this.over(End::Complete);
                    }
                    if !data.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Some(Err(error)) => return this.broken(error),
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
            _ => End::HungUp,
        };
        self.over(end);
    }
}
