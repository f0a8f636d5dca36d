//! The body of a response. It forwards chunks, truncates them to the range, and never ends early
//! without an error.
//!
//! The server polls it. An error resets the stream (HTTP/2) or closes the connection (HTTP/1.1), so
//! that a client cannot mistake a truncated body for a complete one. Back-pressure limits the
//! origin to the reader's speed. Permit and limits stay in force in its chunks (`outgoing`) until
//! the kernel has the last byte.

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
use crate::telemetry::{RequestId, StreamEnd};

/// The body of a response to a reader.
#[derive(Debug, Default)]
pub struct Body(Kind);

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    File(Box<FileBody>),
}

/// Callback that receives the result of a body.
pub type OnEnd = Box<dyn FnOnce(Delivered) + Send + Sync>;

/// The result of suspending a body.
#[derive(Debug)]
pub enum Suspended {
    /// The body was suspended and keeps this unsent chunk, copied to a buffer of its exact size.
    /// `None` if the chunk will be fetched again.
    Keeps(Option<Chunk>),
    /// The remaining bytes cannot be fetched again.
    Impossible,
}

/// Why a body ended early.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BodyError {
    /// The origin broke off, or sent fewer bytes than it had announced.
    #[error("the origin's body broke off")]
    Origin,
    /// The origin sent nothing for `idle`.
    #[error("the origin's body stalled")]
    Stalled,
    /// The origin has another file now.
    #[error("the file has changed at the origin")]
    Changed,
    /// The loan ended during the transfer.
    #[error("the loan has ended")]
    LoanEnded,
    /// The reader was idle or too slow.
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

/// The result of a body: what was sent, and how it ended.
#[derive(Clone, Copy, Debug)]
pub struct Delivered {
    /// Body bytes that the kernel accepted.
    pub bytes: u64,
    /// Why the body ended.
    pub end: StreamEnd,
    /// Status of the response.
    pub status: StatusCode,
    /// When the response's head was ready.
    pub opened: Instant,
    /// Times resumed after the origin broke off.
    pub resumes: u32,
}

struct FileBody {
    source: BodySource,
    /// Bytes that are not yet chunks; `None` if the origin announced no length.
    left: Option<u64>,
    outgoing: Arc<Outgoing>,
    /// Whose log lines its polls write.
    request: Option<RequestId>,
}

/// Largest chunk that a suspended body keeps, in bytes.
const MAX_KEPT_CHUNK: usize = 16 * 1024;

impl Body {
    /// Returns an empty body.
    pub fn empty() -> Body {
        Body::default()
    }

    /// Returns a body of these bytes, without a permit or limit.
    pub fn full(bytes: Bytes) -> Body {
        if bytes.is_empty() { Body::empty() } else { Body(Kind::Full(bytes)) }
    }

    /// Returns a body of the first `take` bytes of this source.
    pub(super) fn measured(source: BodySource, take: Option<u64>, outgoing: Arc<Outgoing>) -> Body {
        let request = RequestId::current();
        Body(Kind::File(Box::new(FileBody { source, left: take, outgoing, request })))
    }

    /// Returns whether this is a file's body, which the stall monitor checks.
    pub fn is_file(&self) -> bool {
        matches!(self.0, Kind::File(_))
    }

    /// Returns why no more of the body may be sent: it was aborted, or its loan has ended.
    pub fn abort_reason(&self) -> Option<Abort> {
        if let Kind::File(file) = &self.0 { file.outgoing.abort_reason() } else { None }
    }

    /// Waits for the body to be aborted. Also wakes the task when [`Body::take_suspension`] has a
    /// request.
    pub fn poll_aborted(&self, context: &Context<'_>) -> Poll<Abort> {
        match &self.0 {
            Kind::File(file) => file.outgoing.poll_aborted(context),
            _ => Poll::Pending,
        }
    }

    /// Records that the next bytes are available and wait for the reader.
    pub fn mark_waiting_for_reader(&self) {
        if let Kind::File(file) = &self.0 {
            file.outgoing.set_waits(false);
        }
    }

    /// Takes the monitor's request to suspend this body; each request is returned once.
    pub fn take_suspension(&self) -> Option<Suspension> {
        if let Kind::File(file) = &self.0 { file.outgoing.take_suspension() } else { None }
    }

    /// Releases the origin's connection and all buffers if the remaining bytes can be fetched
    /// again. `unsent` is the next chunk.
    pub fn suspend(&mut self, suspension: Suspension, unsent: Option<Chunk>) -> Suspended {
        match &mut self.0 {
            Kind::File(file) => file.suspend(suspension, unsent),
            _ => Suspended::Keeps(unsent),
        }
    }

    /// Keeps the body alive until the kernel has everything written before. If an aborted body does
    /// not get there in time, its connection is closed.
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
            // Over HTTP/1.1 this resets the connection. A plain close would deliver the bytes that
            // the kernel holds.
            BodyError::LoanEnded => self.outgoing.abort(Abort::LoanEnded),
            BodyError::TooSlow => self.outgoing.abort(Abort::TooSlow),
        }
        Poll::Ready(Some(Err(error)))
    }

    /// Creates a chunk, truncated to the length in the response head.
    fn chunk(&mut self, received: Received) -> Chunk {
        let Received { mut data, at } = received;
        if let Some(left) = &mut self.left {
            let taken = usize::try_from(*left).map_or(data.len(), |left| left.min(data.len()));
            data.truncate(taken);
            *left -= taken as u64;
        }
        let count = data.len() as u64;
        self.outgoing.record_chunk(count);
        if self.outgoing.has_allowance() {
            self.outgoing
                .accounting()
                .allowance
                .iter_mut()
                .for_each(|allowance| allowance.charge(count));
        }
        Chunk::held(data, at, self.outgoing.clone())
    }

    /// Returns whether the connection's buffer is full, and then releases what can be released.
    fn is_blocked(&mut self, context: &Context<'_>) -> bool {
        let is_blocked = self.outgoing.connection().poll_writable(context).is_pending();
        if is_blocked {
            self.outgoing.set_waits(false);
            self.outgoing.listen(context);
            if self.outgoing.take_suspension().is_some() {
                self.source.suspend(0);
            }
            self.source.release();
        }
        is_blocked
    }

    /// Polls for the next bytes, once the borrower's rate limit allows them.
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
        // Multipart text does not come from the origin, so it cannot be requested again.
        if let Some(mut text) = unsent.take_if(|chunk| !chunk.is_of_file()) {
            self.source.suspend(0);
            text.shrink();
            return Suspended::Keeps(Some(text));
        }
        let count = unsent.as_ref().map_or(0, Buf::remaining);
        if self.source.suspend(count as u64) {
            self.outgoing.record_discarded(count as u64);
            if let Some(left) = &mut self.left {
                *left += count as u64;
            }
            return Suspended::Keeps(None);
        }
        match unsent {
            unsent if suspension == Suspension::Early => Suspended::Keeps(unsent),
            // The unsent chunk is the last one.
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
            if let Some(why) = self.outgoing.abort_reason() {
                return self.fail(why.into());
            }
            // Bytes that the reader cannot accept yet would only occupy memory.
            if self.is_blocked(context) {
                return Poll::Pending;
            }
            let polled = self.poll_next(context);
            self.outgoing.set_waits(polled.is_pending());
            match ready!(polled) {
                // The loan may have ended while the body waited for the origin.
                Some(Ok(_)) if self.outgoing.is_loan_over() => {
                    return self.fail(BodyError::LoanEnded);
                }
                Some(Ok(received)) => {
                    let chunk = self.chunk(received);
                    if self.left == Some(0) {
                        self.outgoing.set_complete();
                    }
                    if chunk.has_remaining() {
                        return Poll::Ready(Some(Ok(Frame::data(chunk))));
                    }
                }
                Some(Err(error)) => return self.fail(error),
                None if self.left.is_some() => return self.fail(BodyError::Origin),
                None => {
                    self.outgoing.set_complete();
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
            self.outgoing.set_complete();
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
            Kind::File(file) => match file.request {
                Some(id) => id.within(|| file.poll_chunk(context)),
                None => file.poll_chunk(context),
            },
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
