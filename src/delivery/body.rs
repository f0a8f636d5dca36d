//! A response's body: passed on chunk by chunk, truncated to its range, and never short without an
//! error.
//!
//! The server polls it. An error resets the stream (HTTP/2) or closes the connection (HTTP/1.1), so
//! that a short body cannot look whole. The origin is read only as fast as the reader reads. What a
//! body is bound by outlives it in its chunks (`outgoing`), until the last byte is with the kernel.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes};
use http::StatusCode;
use http_body::{Frame, SizeHint};

use super::body_source::{BodySource, Received};
use super::chunk::Chunk;
use super::outgoing::{self, Outgoing, Suspension};
use crate::connection_handle::{Abort, OutgoingBody};

/// A response's body.
#[derive(Debug, Default)]
pub struct Body(Kind);

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    File(Box<FileBody>),
}

/// Is notified how a body ended.
pub type OnEnd = Box<dyn FnOnce(Delivered) + Send + Sync>;

/// What a suspended body could release.
#[derive(Debug)]
pub enum Suspended {
    /// The chunk that was not sent, in a buffer of its own size; none where it will be fetched
    /// again.
    Keeps(Option<Chunk>),
    /// The rest cannot be fetched again.
    Impossible,
}

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
    /// The reader took nothing, or too little.
    #[error("the reader is too slow")]
    TooSlow,
}

impl From<Abort> for BodyError {
    fn from(why: Abort) -> BodyError {
        match why {
            Abort::LoanEnded => BodyError::LoanEnded,
            Abort::TooSlow => BodyError::TooSlow,
        }
    }
}

/// How a body ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// Its last byte is with the kernel.
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
    /// Body bytes that were handed to the kernel.
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

struct FileBody {
    source: BodySource,
    /// Bytes that are still to become chunks; none where the origin named no length.
    left: Option<u64>,
    outgoing: Arc<Outgoing>,
}

/// The largest chunk that a suspended body keeps, in bytes.
const MAX_KEPT_CHUNK: usize = 16 * 1024;

impl Body {
    /// No body.
    pub fn empty() -> Body {
        Body::default()
    }

    /// A whole body, which no permit or limit binds.
    pub fn full(bytes: Bytes) -> Body {
        if bytes.is_empty() { Body::empty() } else { Body(Kind::Full(bytes)) }
    }

    /// `take` bytes of what flows from an origin, which begin under these obligations.
    pub(super) fn measured(source: BodySource, take: Option<u64>, outgoing: Arc<Outgoing>) -> Body {
        Body(Kind::File(Box::new(FileBody { source, left: take, outgoing })))
    }

    /// Whether it is a file's, which the monitor checks.
    pub fn is_file(&self) -> bool {
        matches!(self.0, Kind::File(_))
    }

    /// Why nothing more of it may leave, if so: it was aborted, or its loan has ended.
    pub fn why_over(&self) -> Option<Abort> {
        if let Kind::File(file) = &self.0 { file.outgoing.why_over() } else { None }
    }

    /// Ready when the body is aborted. The task is woken for that, and when [`Body::takes_suspend`]
    /// becomes true.
    pub fn poll_aborted(&self, context: &Context<'_>) -> Poll<Abort> {
        match &self.0 {
            Kind::File(file) => file.outgoing.poll_aborted(context),
            _ => Poll::Pending,
        }
    }

    /// Notes that the next bytes wait for the reader.
    pub fn waits_for_reader(&self) {
        if let Kind::File(file) = &self.0 {
            file.outgoing.set_waits(false);
        }
    }

    /// Whether it is to be suspended, as its reader has taken nothing for a while; once.
    pub fn takes_suspend(&self) -> Option<Suspension> {
        if let Kind::File(file) = &self.0 { file.outgoing.takes_suspend() } else { None }
    }

    /// Releases the origin's connection and all buffers, where the rest can be fetched again later.
    /// `unsent` is the chunk that comes next.
    pub fn suspend(&mut self, suspension: Suspension, unsent: Option<Chunk>) -> Suspended {
        match &mut self.0 {
            Kind::File(file) => file.suspend(suspension, unsent),
            _ => Suspended::Keeps(unsent),
        }
    }

    /// Has the connection hold the body until what was written before is with the kernel. A body
    /// that was aborted and does not get there in time costs its connection.
    pub fn hold_until_flushed(&self) {
        if let Kind::File(file) = &self.0 {
            outgoing::hold_until_flushed(&file.outgoing);
        }
    }
}

impl FileBody {
    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Chunk>, BodyError>>> {
        match error {
            BodyError::Origin | BodyError::Stalled | BodyError::Changed => {
                self.outgoing.set_failed()
            }
            // Over HTTP/1.1 this cuts the connection: else the kernel would deliver what it holds.
            BodyError::LoanEnded => self.outgoing.abort(Abort::LoanEnded),
            BodyError::TooSlow => self.outgoing.abort(Abort::TooSlow),
        }
        Poll::Ready(Some(Err(error)))
    }

    /// Makes a chunk of what arrived, truncated to what the head announced.
    fn chunk(&mut self, received: Received) -> Chunk {
        let Received { mut data, at } = received;
        if let Some(left) = &mut self.left {
            let taken = usize::try_from(*left).map_or(data.len(), |left| left.min(data.len()));
            data.truncate(taken);
            *left -= taken as u64;
        }
        let count = data.len() as u64;
        self.outgoing.note_handed(count);
        if self.outgoing.has_allowance() {
            self.outgoing
                .accounting()
                .allowance
                .iter_mut()
                .for_each(|allowance| allowance.charge(count));
        }
        Chunk::held(data, at, self.outgoing.clone())
    }

    /// Whether the reader is to take first what was written before.
    fn poll_backpressure(&mut self, context: &Context<'_>) -> bool {
        let poll_backpressure = self.outgoing.connection_ref().poll_takes(context).is_pending();
        if poll_backpressure {
            self.outgoing.set_waits(false);
            self.outgoing.listen(context);
            if self.outgoing.takes_suspend().is_some() {
                self.source.suspend(0);
            }
            self.source.release();
        }
        poll_backpressure
    }

    /// The next bytes, once the borrower's rate allows them.
    fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Received, BodyError>>> {
        if self.outgoing.has_allowance()
            && let Some(allowance) = &mut self.outgoing.accounting().allowance
        {
            ready!(allowance.poll_ready(context));
        }
        self.source.poll_bytes(context)
    }

    fn suspend(&mut self, suspension: Suspension, mut unsent: Option<Chunk>) -> Suspended {
        // What stands between two parts of a file is not the file's: it cannot be requested again.
        if let Some(mut text) = unsent.take_if(|chunk| !chunk.is_of_file()) {
            self.source.suspend(0);
            text.shrink();
            return Suspended::Keeps(Some(text));
        }
        let count = unsent.as_ref().map_or(0, Buf::remaining);
        if self.source.suspend(count as u64) {
            self.outgoing.take_back(count as u64);
            if let Some(left) = &mut self.left {
                *left += count as u64;
            }
            return Suspended::Keeps(None);
        }
        match unsent {
            unsent if suspension == Suspension::Early => Suspended::Keeps(unsent),
            // All that is left is in hand.
            Some(mut chunk) if self.left == Some(0) && count <= MAX_KEPT_CHUNK => {
                chunk.shrink();
                Suspended::Keeps(Some(chunk))
            }
            _ => Suspended::Impossible,
        }
    }

    fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, BodyError>>> {
        loop {
            if self.left == Some(0) {
                return Poll::Ready(None);
            }
            if let Some(why) = self.outgoing.why_over() {
                return self.fail(why.into());
            }
            // What the reader cannot take yet is not fetched: it would only occupy memory.
            if self.poll_backpressure(context) {
                return Poll::Pending;
            }
            let polled = self.poll_next(context);
            self.outgoing.set_waits(polled.is_pending());
            match ready!(polled) {
                // It may have ended while the origin was waited for.
                Some(Ok(_)) if self.outgoing.is_loan_over() => {
                    return self.fail(BodyError::LoanEnded);
                }
                Some(Ok(received)) => {
                    let chunk = self.chunk(received);
                    if self.left == Some(0) {
                        self.outgoing.set_whole();
                    }
                    if chunk.has_remaining() {
                        return Poll::Ready(Some(Ok(Frame::data(chunk))));
                    }
                }
                Some(Err(error)) => return self.fail(error),
                None if self.left.is_some() => return self.fail(BodyError::Origin),
                None => {
                    self.outgoing.set_whole();
                    return Poll::Ready(None);
                }
            }
        }
    }
}

impl std::fmt::Debug for FileBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Measured").field("left", &self.left).finish_non_exhaustive()
    }
}

impl Drop for FileBody {
    fn drop(&mut self) {
        self.outgoing.set_resumes(self.source.resumes());
        if self.left == Some(0) {
            self.outgoing.set_whole();
        }
    }
}

impl http_body::Body for Body {
    type Data = Chunk;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, BodyError>>> {
        let this = self.get_mut();
        match &mut this.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.0 = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
            }
            Kind::File(file) => file.poll_chunk(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(_) => false,
            Kind::File(file) => file.left == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::File(file) => file.left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}
