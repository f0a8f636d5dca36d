//! The TLS stream of a connection, between the HTTP library and the socket.
//!
//! `connection` creates a [`TlsStream`] after the handshake; `http1` and `http2` use it. A small
//! TLS record costs as much as a full one, and a system call costs more than the bytes it moves.
//! The stream therefore coalesces writes into full records and sends many records at once: when its
//! buffer is full, or when the caller calls [`TlsStream::poll_send`]. The buffer grows for a reader
//! at full speed and shrinks for a slow one.

use std::collections::VecDeque;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustls::ServerConnection;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::frame_budget::FrameBudget;
use crate::buffer_budget::{LEAST, Size};
use crate::connection_handle::{Connection, Written};

/// The plaintext of a full TLS record (RFC 8446 §5.1), in bytes.
const RECORD_SIZE: usize = 16 * 1024;
/// The overhead of a record in TLS 1.3 with AES-GCM, in bytes: an upper bound.
const OVERHEAD: usize = 22;
/// An upper bound of the overhead for every TLS version and cipher, in bytes.
const OVERHEAD_BOUND: u64 = 64;
/// The largest amount of sealed, unsent ciphertext, in bytes. More would leave the core's cache
/// before the kernel copies it.
pub(super) const MAX_SEALED: usize = 128 * 1024;
/// How many unsent bytes the kernel may buffer for a connection (TCP_NOTSENT_LOWAT), in addition to
/// the bytes in flight. Without a bound, a stalled reader occupies megabytes, and a player that
/// seeks discards them although the origin has sent them.
pub(super) const NOTSENT_LOWAT: u32 = 64 * 1024;
/// The same for a reader at full speed. One read from the origin then fits into one write, which
/// saves three of four wake-ups. It is half of what Linux buffers by default.
const NOTSENT_LOWAT_FAST: u32 = 2 * 1024 * 1024;
/// How many bytes may be sealed directly after a read, whatever the buffer budget allows. The
/// kernel accepts this much in any case.
const IMMEDIATE: usize = 80 * 1024;
/// The longest remainder that is buffered for the next record, in bytes. Up to this length, a copy
/// costs less than a record of its own.
const MAX_REMAINDER: usize = 4 * 1024;

/// The largest chunk that is copied into a record in one call, in bytes. Above about 2 KiB, glibc
/// copies with `rep movsb` where the processor reports that it is fast. On some virtual machines it
/// is slow, and took a third of the CPU time of a large file.
const COPY_CHUNK: usize = 2 * 1024;

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
    /// How many bytes of [`IMMEDIATE`] are left.
    immediate: usize,
    is_closing: bool,
    /// Counts the client's HTTP/2 frames; none over HTTP/1.1.
    frames: Option<Box<FrameBudget>>,
    /// Sealed plaintext since the start, in bytes.
    written: u64,
    /// Whether the HTTP library has flushed its buffer. Then all bytes that bodies report as
    /// written are sealed or in `tail`.
    is_flushed: bool,
    /// Ciphertext produced since the start, in bytes; an upper bound.
    produced: u64,
    /// The position in the ciphertext up to which the kernel has accepted it.
    sent: u64,
    /// The position in the ciphertext where the last released body ends.
    released_end: u64,
    /// Bytes read from the peer, TLS overhead included.
    read: u64,
    /// The bytes sent until the last call of [`TlsStream::release_if_stalled`].
    sent_at_last_check: u64,
    /// Written parts of bodies that the kernel has not accepted, with their end in the ciphertext.
    unsent_bodies: VecDeque<(u64, Written)>,
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
            produced: 0,
            sent: 0,
            released_end: 0,
            read: 0,
            sent_at_last_check: 0,
            unsent_bodies: VecDeque::new(),
        };
        TlsStream { inner: Arc::new(Mutex::new(inner)), coalesces }
    }

    /// Seals and sends all written bytes; ready when the kernel has accepted them.
    pub(super) fn poll_send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().poll_send(context)
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
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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

impl Inner {
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let length = self.unread.len().min(buffer.remaining());
            buffer.put_slice(&self.unread.split_to(length));
            self.has_unparsed_input = true;
            return Poll::Ready(Ok(()));
        }
        let mut is_waiting = false;
        while !self.is_closed_by_peer && self.session.wants_read() && !is_waiting {
            match self.poll_read_tls(context) {
                Poll::Ready(count) => self.is_closed_by_peer = count? == 0,
                Poll::Pending => is_waiting = true,
            }
        }
        let mut reader = self.session.reader();
        let plain = match reader.fill_buf() {
            Ok(plain) => plain,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && is_waiting => {
                return Poll::Pending;
            }
            Err(error) => return Poll::Ready(Err(error)),
        };
        let length = plain.len().min(buffer.remaining());
        let read = plain.get(..length).unwrap_or_default();
        buffer.put_slice(read);
        if let Some(frames) = &mut self.frames {
            frames.read(read);
        }
        reader.consume(length);
        self.has_unparsed_input |= length > 0;
        self.immediate = IMMEDIATE;
        Poll::Ready(Ok(()))
    }

    /// Reads TLS records from the socket. Returns 0 if the peer has closed its side.
    fn poll_read_tls(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut socket = Socket { socket: &mut self.socket, context };
        let count = match self.session.read_tls(&mut socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            count => count?,
        };
        self.read += count as u64;
        if let Err(error) = self.session.process_new_packets() {
            // Sends the TLS alert, if the socket accepts it.
            let _ = self.session.write_tls(&mut Socket { socket: &mut self.socket, context });
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        Poll::Ready(Ok(count))
    }

    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_flushed = false;
        loop {
            let room = self.room();
            if room > 0 {
                return Poll::Ready(self.accept(slices, room));
            }
            ready!(self.poll_send_some(context))?;
        }
    }

    /// Returns how many bytes of plaintext may be sealed now, in whole records.
    fn room(&mut self) -> usize {
        let may_hold =
            if self.immediate > 0 { self.immediate } else { self.size.next(Instant::now()) };
        match may_hold.saturating_sub(self.unsent_ciphertext) {
            0 => 0,
            // The least allowance is shorter than a record: seal a short record.
            room if self.unsent_ciphertext == 0 && may_hold == LEAST => room,
            room if self.unsent_ciphertext == 0 => (room / RECORD_SIZE).max(1) * RECORD_SIZE,
            // After a partial send, a room shorter than a record is not worth a short record.
            room => room / RECORD_SIZE * RECORD_SIZE,
        }
    }

    /// Seals the tail and these slices into full records, and buffers the remainder. Returns how
    /// many bytes of the slices it accepted.
    fn accept(&mut self, slices: &[IoSlice<'_>], room: usize) -> io::Result<usize> {
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        let all = self.tail.len() + offered;
        if all < RECORD_SIZE && offered <= MAX_REMAINDER {
            slices.iter().for_each(|slice| self.tail.extend_from_slice(slice));
            return Ok(offered);
        }
        // The tail may be longer than the room. Accept at least one byte: `Ok(0)` would
        // report that the stream is closed for writing.
        let room = room.max(self.tail.len() + 1);
        let sealed = if all <= room { all - self.remainder(all) } else { room };
        let mut taken = sealed.saturating_sub(self.tail.len());
        self.seal(slices, taken)?;
        // The remainder of the last record stays in the tail.
        if all <= room {
            append_after(slices, taken, &mut self.tail);
            taken = offered;
        }
        Ok(taken)
    }

    /// Returns how many of `all` bytes stay in the tail for the next record.
    fn remainder(&self, all: usize) -> usize {
        let remainder = all % RECORD_SIZE;
        if remainder <= MAX_REMAINDER && all > RECORD_SIZE { remainder } else { 0 }
    }

    /// Seals the tail and the first `count` bytes of the slices.
    fn seal(&mut self, slices: &[IoSlice<'_>], count: usize) -> io::Result<()> {
        let length = self.tail.len() + count;
        let mut parts = Vec::with_capacity(length / COPY_CHUNK + slices.len() + 2);
        parts.extend(self.tail.chunks(COPY_CHUNK).map(IoSlice::new));
        let mut left = count;
        for slice in slices {
            let part = slice.get(..left.min(slice.len())).unwrap_or_default();
            left -= part.len();
            parts.extend(part.chunks(COPY_CHUNK).map(IoSlice::new));
        }
        let sealed = self.session.writer().write_vectored(&parts)?;
        if sealed != length {
            return Err(io::Error::other("rustls accepted only a part of the plaintext"));
        }
        let records = length.div_ceil(RECORD_SIZE);
        self.unsent_ciphertext += length + records * OVERHEAD;
        self.produced += length as u64 + records as u64 * OVERHEAD_BOUND;
        self.written += length as u64;
        self.immediate = self.immediate.saturating_sub(length);
        self.tail.clear();
        Ok(())
    }

    /// Writes some of the ciphertext to the socket.
    fn poll_send_some(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.session.write_tls(&mut Socket { socket: &mut self.socket, context }) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.connection.set_write_blocked(true);
                Poll::Pending
            }
            Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Ok(sent) => {
                let is_all = !self.session.wants_write();
                self.unsent_ciphertext =
                    if is_all { 0 } else { self.unsent_ciphertext.saturating_sub(sent) };
                self.note_sent(sent, is_all);
                if self.immediate == 0 {
                    self.size.record_arrival(sent, Instant::now());
                }
                self.adjust_notsent_lowat();
                self.connection.set_write_blocked(false);
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Counts ciphertext that the kernel accepted, and releases the bodies that it completes.
    fn note_sent(&mut self, sent: usize, is_all: bool) {
        self.sent = if is_all { self.produced } else { self.sent + sent as u64 };
        self.connection.note_sent(sent);
        self.release_bodies();
    }

    fn release_bodies(&mut self) {
        while self.unsent_bodies.front().is_some_and(|(end, _)| *end <= self.sent) {
            if let Some((end, Written { body, at, count })) = self.unsent_bodies.pop_front() {
                self.released_end = end;
                body.left(at, count);
            }
        }
    }

    /// Counts the sent bytes of unfinished bodies after the connection broke: the reader may have
    /// received them.
    fn count_unfinished(&mut self) {
        self.list_bodies();
        let mut sent =
            usize::try_from(self.sent.saturating_sub(self.released_end)).unwrap_or(usize::MAX);
        for (_, Written { body, at, count }) in self.unsent_bodies.drain(..) {
            let part = count.min(sent);
            if part > 0 {
                body.left(at, part);
            }
            sent -= part;
        }
    }

    /// Queues the parts of bodies written since the last call. All of them are sealed.
    fn list_bodies(&mut self) {
        let (produced, unsent) = (self.produced, &mut self.unsent_bodies);
        self.connection.take_written(|written| unsent.push_back((produced, written)));
    }

    /// Adjusts TCP_NOTSENT_LOWAT to the speed of the reader.
    fn adjust_notsent_lowat(&mut self) {
        let lowat = if self.size.is_at_maximum() { NOTSENT_LOWAT_FAST } else { NOTSENT_LOWAT };
        if lowat != self.notsent_lowat {
            self.notsent_lowat = lowat;
            // On an error the old value stays.
            let _ = SockRef::from(&self.socket).set_tcp_notsent_lowat(lowat);
        }
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.tail.is_empty() {
            self.seal(&[], 0)?;
            self.tail = Vec::new();
        }
        if self.is_flushed {
            self.list_bodies();
        }
        while self.session.wants_write() {
            ready!(self.poll_send_some(context))?;
        }
        // Everything is sent, so `sent` catches up with the upper bound `produced`.
        self.sent = self.produced;
        self.release_bodies();
        self.released_end = self.produced;
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.is_closing, true) {
            if !self.tail.is_empty() {
                self.seal(&[], 0)?;
            }
            self.session.send_close_notify();
        }
        ready!(self.poll_send(context))?;
        match ready!(Pin::new(&mut self.socket).poll_shutdown(context)) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for Inner {
    /// Makes the kernel discard unsent bytes of an aborted connection. They would arrive after the
    /// loan's end.
    fn drop(&mut self) {
        if self.connection.is_aborted() {
            let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
        } else {
            self.count_unfinished();
        }
        self.connection.note_closed();
    }
}

/// Appends the bytes of the slices after the first `skip` bytes.
fn append_after(slices: &[IoSlice<'_>], mut skip: usize, to: &mut Vec<u8>) {
    for slice in slices {
        let skipped = skip.min(slice.len());
        to.extend_from_slice(slice.get(skipped..).unwrap_or_default());
        skip -= skipped;
    }
}

/// Adapts the socket to the blocking I/O traits of rustls, within one poll.
struct Socket<'a, 'b> {
    socket: &'a mut TcpStream,
    context: &'a mut Context<'b>,
}

fn or_would_block<T>(polled: Poll<io::Result<T>>) -> io::Result<T> {
    match polled {
        Poll::Ready(done) => done,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl Read for Socket<'_, '_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(bytes);
        or_would_block(Pin::new(&mut *self.socket).poll_read(self.context, &mut buffer))?;
        Ok(buffer.filled().len())
    }
}

impl Write for Socket<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.socket).poll_write(self.context, bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.socket).poll_write_vectored(self.context, slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
