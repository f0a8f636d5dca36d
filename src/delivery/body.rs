//! The body of a response: empty, a few bytes, or a file (`file_body`).
//!
//! The server polls it. An error resets the stream (HTTP/2) or closes the connection (HTTP/1.1), so
//! that a client cannot mistake a truncated body for a complete one. Back-pressure limits the
//! origin to the reader's speed. Permit and limits stay in force in its chunks (`outgoing`) until
//! the kernel has the last byte.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::body_end::BodyError;
use super::body_source::BodySource;
use super::chunk::Chunk;
use super::file_body::{FileBody, Suspended};
use super::outgoing::{self, Outgoing, Suspension};
use crate::connection_handle::Abort;

/// The body of a response to a reader.
#[derive(Debug, Default)]
pub(crate) struct Body(Kind);

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    File(Box<FileBody>),
}

impl Body {
    /// Returns an empty body.
    pub(crate) fn empty() -> Body {
        Body::default()
    }

    /// Returns a body of these bytes, without a permit or limit.
    pub(crate) fn full(bytes: Bytes) -> Body {
        if bytes.is_empty() { Body::empty() } else { Body(Kind::Full(bytes)) }
    }

    /// Returns a body of the first `take` bytes of this source.
    pub(super) fn measured(source: BodySource, take: Option<u64>, outgoing: Arc<Outgoing>) -> Body {
        Body(Kind::File(Box::new(FileBody::new(source, take, outgoing))))
    }

    /// Returns whether this is a file's body, which the stall monitor checks.
    pub(crate) fn is_file(&self) -> bool {
        matches!(self.0, Kind::File(_))
    }

    /// Returns why no more of the body may be sent: it was aborted, or its loan has ended.
    pub(crate) fn abort_reason(&self) -> Option<Abort> {
        if let Kind::File(file) = &self.0 { file.outgoing().abort_reason() } else { None }
    }

    /// Waits for the body to be aborted. Also wakes the task when [`Body::take_suspension`] has a
    /// request.
    pub(crate) fn poll_aborted(&self, context: &Context<'_>) -> Poll<Abort> {
        match &self.0 {
            Kind::File(file) => file.outgoing().poll_aborted(context),
            _ => Poll::Pending,
        }
    }

    /// Records that the next bytes are available and wait for the reader.
    pub(crate) fn mark_waiting_for_reader(&self) {
        if let Kind::File(file) = &self.0 {
            file.outgoing().set_waits(false);
        }
    }

    /// Takes the monitor's request to suspend this body; each request is returned once.
    pub(crate) fn take_suspension(&self) -> Option<Suspension> {
        if let Kind::File(file) = &self.0 { file.outgoing().take_suspension() } else { None }
    }

    /// Releases the origin's connection and all buffers if the remaining bytes can be fetched
    /// again. `unsent` is the next chunk.
    pub(crate) fn suspend(&mut self, suspension: Suspension, unsent: Option<Chunk>) -> Suspended {
        match &mut self.0 {
            Kind::File(file) => file.suspend(suspension, unsent),
            _ => Suspended::Keeps(unsent),
        }
    }

    /// Keeps the body alive until the kernel has everything written before. If an aborted body does
    /// not get there in time, its connection is closed.
    pub(crate) fn hold_until_flushed(&self) {
        if let Kind::File(file) = &self.0 {
            outgoing::hold_until_flushed(file.outgoing());
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
            Kind::File(file) => file.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(_) => false,
            Kind::File(file) => file.left() == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::File(file) => file.left().map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}
