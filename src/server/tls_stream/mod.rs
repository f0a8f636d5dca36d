//! The TLS stream of a connection, between the HTTP library and the socket.
//!
//! `connection` creates a [`TlsStream`] after the handshake; `http1` and `http2` use it. A small
//! TLS record costs as much as a full one, and a system call costs more than the bytes it moves.
//! The stream therefore coalesces writes into full records and sends many records at once: when its
//! buffer is full, or when the caller calls [`TlsStream::poll_send`]. The buffer grows for a reader
//! at full speed and shrinks for a slow one.
//!
//! `read` and `write` are its two sides, and `socket` is what rustls reads and writes.
//! `sent_bodies` releases bodies once the kernel has accepted their bytes.

mod read;
mod sent_bodies;
mod socket;
mod write;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::frame_budget::FrameBudget;
use crate::buffer_budget::Size;
use crate::connection_handle::Connection;
use crate::lock::lock;
use sent_bodies::SentBodies;

/// The largest amount of sealed, unsent ciphertext, in bytes. More would leave the core's cache
/// before the kernel copies it.
pub(super) const MAX_SEALED: usize = 128 * 1024;
/// How many unsent bytes the kernel may buffer for a connection (TCP_NOTSENT_LOWAT), in addition to
/// the bytes in flight. Without a bound, a stalled reader occupies megabytes, and a player that
/// seeks discards them although the origin has sent them.
pub(super) const NOTSENT_LOWAT: u32 = 64 * 1024;

/// The TLS stream of a connection after its handshake. Clones share the connection: the HTTP
/// library has one, and the task that monitors the connection has another.
#[derive(Clone, Debug)]
pub(super) struct TlsStream {
    inner: Arc<Mutex<Inner>>,
    /// Whether flushed bytes wait for [`TlsStream::poll_send`]. HTTP/2 flushes after each frame.
    coalesces: bool,
}

#[derive(Debug)]
struct Inner {
    socket: TcpStream,
    session: ServerConnection,
    connection: Connection,
    /// Input that [`TlsStream::put_back`] returned; read before anything else.
    unread: Bytes,
    /// Whether input was read that has not become a request yet.
    has_unparsed_input: bool,
    /// Whether the peer has closed its side.
    is_closed_by_peer: bool,
    /// Buffered plaintext, shorter than a record.
    tail: Vec<u8>,
    /// Sealed and unsent ciphertext, in bytes; an estimate.
    unsent_ciphertext: usize,
    size: Size,
    /// The TCP_NOTSENT_LOWAT that is set on the socket.
    notsent_lowat: u32,
    /// How many bytes may be sealed whatever the buffer budget allows.
    immediate: usize,
    is_closing: bool,
    /// Counts the client's HTTP/2 frames; none over HTTP/1.1.
    frames: Option<Box<FrameBudget>>,
    /// Sealed plaintext since the start, in bytes.
    written: u64,
    /// Whether the HTTP library has flushed its buffer. Then all bytes that bodies report as
    /// written are sealed or in `tail`.
    is_flushed: bool,
    /// The bodies whose bytes the kernel has not accepted.
    bodies: SentBodies,
    /// Bytes read from the peer, TLS overhead included.
    read: u64,
    /// The bytes sent until the last call of [`TlsStream::release_if_stalled`].
    sent_at_last_check: u64,
}

/// The counters of a stream that [`Deadlines`](super::deadlines::Deadlines) needs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    /// Whether the client's HTTP/2 preface is incomplete; false over HTTP/1.1.
    pub(super) awaits_preface: bool,
    /// Whether an HTTP/2 head has begun to arrive.
    pub(super) is_within_head: bool,
    /// HTTP/2 heads that have arrived.
    pub(super) heads: u64,
    /// HTTP/2 streams that the client has reset.
    pub(super) resets: u64,
    /// Whether the client has sent too many HTTP/2 frames that do no work.
    pub(super) is_overspent: bool,
    /// Whether the kernel has accepted everything.
    pub(super) is_sent: bool,
    /// Bytes that the kernel has accepted.
    pub(super) sent: u64,
}

impl TlsStream {
    pub(super) fn new(
        socket: TcpStream,
        session: ServerConnection,
        connection: Connection,
        size: Size,
        coalesces: bool,
    ) -> TlsStream {
        let inner = Inner {
            socket,
            session,
            connection,
            unread: Bytes::new(),
            has_unparsed_input: false,
            is_closed_by_peer: false,
            tail: Vec::new(),
            unsent_ciphertext: 0,
            size,
            notsent_lowat: NOTSENT_LOWAT,
            immediate: 0,
            is_closing: false,
            frames: coalesces.then(|| Box::new(FrameBudget::new())),
            written: 0,
            is_flushed: true,
            bodies: SentBodies::default(),
            read: 0,
            sent_at_last_check: 0,
        };
        TlsStream { inner: Arc::new(Mutex::new(inner)), coalesces }
    }

    /// Seals and sends all written bytes; ready when the kernel has accepted them.
    pub(super) fn poll_send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().poll_send(context)
    }

    /// Seals and sends all written bytes, and closes the gate's side of the connection.
    pub(super) fn poll_close(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().poll_close(context)
    }

    /// Reads input and discards it. Returns the number of bytes; 0 if the peer has closed its side.
    pub(super) fn poll_discard(&self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.lock().poll_discard(context)
    }

    /// Ready when there is input, or the peer has closed. Allocates no buffer while it waits.
    pub(super) fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.lock();
        if !this.unread.is_empty() || !this.session.wants_read() {
            return Poll::Ready(Ok(()));
        }
        this.socket.poll_read_ready(context)
    }

    /// Releases this connection's allowance of the buffer budget if the reader has stalled or the
    /// connection is idle.
    pub(super) fn release_if_stalled(&self, now: Instant) {
        let mut this = self.lock();
        this.size.rest(now);
        let sent = this.connection.sent();
        if std::mem::replace(&mut this.sent_at_last_check, sent) == sent
            && !this.session.wants_write()
        {
            this.size.shrink();
        }
    }

    /// Whether the connection holds an allowance of the buffer budget.
    pub(super) fn holds_buffers(&self) -> bool {
        !self.lock().size.is_at_minimum()
    }

    /// Whether the kernel has accepted all written bytes.
    pub(super) fn is_sent(&self) -> bool {
        let this = self.lock();
        this.tail.is_empty() && !this.session.wants_write()
    }

    /// Whether input was read since the last [`TlsStream::clear_unparsed_input`].
    pub(super) fn has_unparsed_input(&self) -> bool {
        self.lock().has_unparsed_input
    }

    /// Records that all input so far has become a request.
    pub(super) fn clear_unparsed_input(&self) {
        self.lock().has_unparsed_input = false;
    }

    /// Returns the counters up to now.
    pub(super) fn traffic(&self) -> Traffic {
        let this = self.lock();
        let is_sent = this.tail.is_empty() && !this.session.wants_write();
        let traffic = Traffic { is_sent, sent: this.connection.sent(), ..Traffic::default() };
        let Some(frames) = &this.frames else { return traffic };
        Traffic {
            awaits_preface: frames.awaits_preface(),
            is_within_head: frames.is_within_head(),
            heads: frames.heads(),
            resets: frames.resets(),
            // The written bytes are nearly all payload: the library replies to a frame without
            // payload with a frame of the same size.
            is_overspent: frames.is_overspent(this.written),
            ..traffic
        }
    }

    /// Bytes read from the peer, TLS overhead included.
    pub(super) fn bytes_read(&self) -> u64 {
        self.lock().read
    }

    /// Whether flushed bytes wait for [`TlsStream::poll_send`].
    pub(super) fn coalesces(&self) -> bool {
        self.coalesces
    }

    /// Returns input to the stream, to be read before anything else.
    pub(super) fn put_back(&self, unread: Bytes) {
        self.lock().unread = unread;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.lock().poll_read(context, buffer)
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.lock().poll_write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.lock().poll_write(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.lock();
        this.is_flushed = true;
        if self.coalesces { Poll::Ready(Ok(())) } else { this.poll_send(context) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().poll_close(context)
    }
}

#[cfg(test)]
mod tests;
