//! The body of a file: forwards chunks of the source, truncates them to the response's length, and
//! never ends early without an error.
//!
//! `body` polls it for the server. It stops when its loan ends or the monitor aborts it, and waits
//! while the connection is blocked. While its reader stalls, it releases the origin's connection.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http_body::Frame;

use super::body_end::BodyError;
use super::body_source::{BodySource, Received};
use super::chunk::Chunk;
use super::outgoing::{Outgoing, Suspension};
use crate::connection_handle::{Abort, OutgoingBody};
use crate::telemetry::{RequestId, Trace};

/// Largest chunk that a suspended body keeps, in bytes.
const MAX_KEPT_CHUNK: usize = 16 * 1024;

/// The result of suspending a body.
#[derive(Debug)]
pub(crate) enum Suspended {
    /// The body was suspended and keeps this unsent chunk, copied to a buffer of its exact size.
    /// `None` if the chunk will be fetched again.
    Keeps(Option<Chunk>),
    /// The remaining bytes cannot be fetched again.
    Impossible,
}

/// The body of a file.
pub(super) struct FileBody {
    source: BodySource,
    /// Bytes that are not yet chunks; `None` if the origin announced no length.
    left: Option<u64>,
    outgoing: Arc<Outgoing>,
    /// Whose log lines its polls write.
    request: Option<RequestId>,
    /// Which trace they belong to.
    trace: Option<Arc<Trace>>,
}

impl FileBody {
    /// Creates a body of the first `take` bytes of this source.
    pub(super) fn new(source: BodySource, take: Option<u64>, outgoing: Arc<Outgoing>) -> FileBody {
        let (request, trace) = (RequestId::current(), Trace::current());
        FileBody { source, left: take, outgoing, request, trace }
    }

    pub(super) fn outgoing(&self) -> &Arc<Outgoing> {
        &self.outgoing
    }

    /// Returns the number of bytes that are not yet chunks; `None` if it is unknown.
    pub(super) fn left(&self) -> Option<u64> {
        self.left
    }

    /// Polls for the next chunk. Log lines get the id of the request, and requests to the origin
    /// its trace.
    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, BodyError>>> {
        match (self.request, self.trace.clone()) {
            (Some(id), None) => id.within(|| self.poll_chunk(context)),
            (Some(id), Some(trace)) => trace.within(|| id.within(|| self.poll_chunk(context))),
            (None, _) => self.poll_chunk(context),
        }
    }

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
        self.outgoing.counters().record_chunk(count);
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

    /// See [`Body::suspend`](super::Body::suspend).
    pub(super) fn suspend(
        &mut self,
        suspension: Suspension,
        mut unsent: Option<Chunk>,
    ) -> Suspended {
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
        f.debug_struct("FileBody").field("left", &self.left).finish_non_exhaustive()
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
