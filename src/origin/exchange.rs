//! One request and its response on a connection to a server. The body owns the connection until it
//! is complete.
//!
//! There is no background task. The task that waits for the response, or polls the body, reads the
//! socket directly. So received bytes wake only the task that needs them.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::Response;
use http_body::{Frame, SizeHint};
use memchr::memmem;
use rustix::io::Errno;

use super::body::Broken;
use super::connection_limit::Slot;
use super::connection_pool::Pool;
use super::framing::{Framing, Parsed};
use super::response_head::{self, Head};
use super::socket::Socket;
use crate::buffer_budget::{LEAST, Size};

/// Size of the first reads of a response in bytes: a small file arrives whole with its head.
const FIRST_READ: usize = 68 * 1024;
/// Largest size of one read in bytes.
const MAX_READ: usize = 1024 * 1024;

/// A connection between requests.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Socket,
    /// An empty buffer of an earlier response, for reuse.
    spare: BytesMut,
    /// Freed when the connection is closed.
    _slot: Slot,
    /// Whether it has served a request before.
    is_reused: bool,
}

/// Why there is no response.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// All connections are in use, and the queue for one is full or too slow; or this process has
    /// no file descriptor left.
    Busy,
    /// The server closed an idle connection at the moment at which a request was sent on it.
    Stale,
    /// No connection could be made.
    Unreachable(String),
    /// The connection broke, or its bytes are no response.
    Broken(String),
    /// As [`Failure::Broken`], and a second request failed as well.
    Repeated(String),
}

impl Failure {
    /// Returns whether a call failed because no file descriptor is left. This is not a fault of the
    /// origin and must not open its breaker.
    pub(super) fn is_of_descriptors(error: &std::io::Error) -> bool {
        matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Busy => f.write_str("all connections or file descriptors are in use"),
            Failure::Stale => f.write_str("the connection was closed while it was idle"),
            Failure::Unreachable(why) | Failure::Broken(why) | Failure::Repeated(why) => {
                f.write_str(why)
            }
        }
    }
}

impl Connection {
    pub(super) fn new(socket: Socket, slot: Slot) -> Connection {
        Connection { socket, spare: BytesMut::new(), _slot: slot, is_reused: false }
    }

    /// Returns whether the server has neither sent unsolicited bytes nor closed the connection.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.socket.is_quiet()
    }

    /// Sends a request. Returns its response when the head has arrived.
    pub(super) async fn send(
        mut self,
        request: &[u8],
        to_head: bool,
        pool: &Arc<Pool>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut buffer = std::mem::take(&mut self.spare);
        let written = self.socket.write_all(request).await;
        // A server may respond and close before it has read the whole request. So the response
        // counts, and a write error only if there is no response.
        let head = match self.read_head(&mut buffer, to_head).await {
            Ok(head) => head,
            Err(why) => {
                if self.is_reused && buffer.is_empty() {
                    return Err(Failure::Stale);
                }
                return Err(Failure::Broken(written.err().map_or(why, |error| error.to_string())));
            }
        };
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.version_mut() = head.version;
        *response.headers_mut() = head.fields;
        let (framing, keep_alive) = (head.framing, head.keep_alive);
        let mut body = Incoming {
            connection: Some(self),
            buffer,
            framing,
            keep_alive,
            size: None,
            pool: pool.clone(),
        };
        body.release_if_complete();
        Ok(response.map(|()| body))
    }

    async fn read_head(&mut self, buffer: &mut BytesMut, to_head: bool) -> Result<Head, String> {
        let mut interim = 0;
        loop {
            let before = buffer.len();
            let most = FIRST_READ.max(buffer.len() + 1) - buffer.len();
            let read = poll_fn(|context| self.socket.poll_fill(context, buffer, most)).await;
            if read.map_err(|error| error.to_string())? == 0 {
                return Err("it closed the connection before it answered".to_owned());
            }
            // A head that arrives byte by byte is parsed once, not once for each byte.
            let new = buffer.get(before.saturating_sub(3)..).unwrap_or_default();
            if before > 0
                && buffer.len() < response_head::MAX_HEAD
                && memmem::find(new, b"\r\n\r\n").is_none()
            {
                continue;
            }
            if let Some(head) = response_head::take(buffer, to_head, &mut interim)? {
                return Ok(head);
            }
        }
    }
}

/// The body of a response.
#[derive(Debug)]
pub(super) struct Incoming {
    /// `None` once the body is complete or broken: the connection is then pooled or closed.
    connection: Option<Connection>,
    /// Bytes that were read and not yet returned.
    buffer: BytesMut,
    framing: Framing,
    keep_alive: bool,
    /// Size of the next read; `None` before the first read after the head.
    size: Option<Size>,
    pool: Arc<Pool>,
}

impl Incoming {
    /// Polls for the next bytes, without copying them.
    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        loop {
            match self.framing.take(&mut self.buffer) {
                Ok(Parsed::Data(data)) => {
                    self.release_if_complete();
                    self.drop_small_buffer();
                    return Poll::Ready(Some(Ok(data)));
                }
                Ok(Parsed::Complete) => {
                    self.release_if_complete();
                    return Poll::Ready(None);
                }
                Ok(Parsed::Incomplete) => {}
                Err(Broken) => return self.broken(),
            }
            match ready!(self.poll_fill(context)) {
                Some(0) if self.framing.may_close() => {
                    self.connection = None;
                    return Poll::Ready(None);
                }
                None | Some(0) => return self.broken(),
                Some(_) => {}
            }
        }
    }

    /// Reads an amount that fits the reader's speed. Returns `None` if the connection broke.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<Option<usize>> {
        let Some(connection) = &mut self.connection else { return Poll::Ready(None) };
        let size = self.size.get_or_insert_with(|| Size::new(self.pool.buffers(), MAX_READ));
        let left = self.framing.left().and_then(|left| usize::try_from(left).ok());
        let most = size.next(Instant::now()).min(left.unwrap_or(MAX_READ));
        let read = ready!(connection.socket.poll_fill(context, &mut self.buffer, most));
        Poll::Ready(read.ok().inspect(|read| size.record_arrival(*read, Instant::now())))
    }

    /// Drops a buffer whose spare capacity is too small for another read. It would keep the whole
    /// allocation alive while the reader stalls.
    fn drop_small_buffer(&mut self) {
        if self.size.is_some() && self.buffer.is_empty() && self.buffer.capacity() < LEAST {
            self.buffer = BytesMut::new();
        }
    }

    /// Releases the empty read buffer of a stalled reader. If the stall lasts, also releases its
    /// share of the buffer budget.
    pub(super) fn release(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        if let Some(size) = &mut self.size {
            size.rest(Instant::now());
        }
    }

    fn broken(&mut self) -> Poll<Option<Result<Bytes, Broken>>> {
        self.connection = None;
        Poll::Ready(Some(Err(Broken)))
    }

    /// Returns the connection to the pool once the body is complete. Closes it if it cannot be
    /// reused, or if bytes follow the body.
    fn release_if_complete(&mut self) {
        if !self.framing.is_complete() {
            return;
        }
        let is_good = self.keep_alive && self.buffer.is_empty();
        // The next response reuses the buffer of a small one.
        let spare = std::mem::take(&mut self.buffer);
        if let Some(mut connection) = self.connection.take().filter(|_| is_good) {
            if self.size.is_none() {
                connection.spare = spare;
            }
            connection.is_reused = true;
            self.pool.put(connection);
        }
        self.size = None;
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let bytes = ready!(self.get_mut().poll_bytes(context));
        Poll::Ready(bytes.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.framing.is_complete()
    }

    fn size_hint(&self) -> SizeHint {
        self.framing.left().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
