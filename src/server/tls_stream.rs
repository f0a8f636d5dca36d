//! A connection's own bytes: TLS between HTTP and the socket.
//!
//! `connection` makes a [`Wire`] of a socket whose handshake is over, lends it to hyper, and looks
//! after it: hyper writes plaintext in pieces as they come, but a record costs the same whether it
//! is full or not, and a system call costs more than what it moves. So whole records are made of
//! what hyper writes, and go out many at once: when so much has gathered as may be held, or when
//! the round is over. How much may be held follows the reader.

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

/// The plaintext of a full record (RFC 8446 §5.1).
const RECORD: usize = 16 * 1024;
/// What a record is longer than its plaintext, at the most, in TLS 1.3 with AES-GCM.
const OVERHEAD: usize = 22;
/// An upper bound of the same for every version and cipher.
const OVERHEAD_BOUND: u64 = 64;
/// The most that is sealed and not sent: more would not stay in the core's own cache until the
/// system copies it.
pub(super) const MOST: usize = 128 * 1024;
/// How much may wait in the system that has not been sent, in bytes; what is on its way and not yet
/// acknowledged comes on top. Without a bound it is megabytes for each reader who stands still, and
/// a player that jumps leaves them behind, read from the origin for nobody.
pub(super) const UNSENT: u32 = 64 * 1024;
/// The same for a reader who keeps up: then what is read at once from the origin finds room at
/// once, which makes a wake-up of four. It is half of what Linux itself would hold.
const UNSENT_FAST: u32 = 2 * 1024 * 1024;
/// What may be sealed at once of an answer to what has just been read: so much the system takes in
/// any case.
const AT_ONCE: usize = 80 * 1024;
/// Of what does not fill a record, so much is kept for the next one, which costs less to copy than
/// a record of its own.
const KEPT: usize = 4 * 1024;

/// What is copied into a record at once. From about 2 KiB on, glibc copies by `rep movsb` where a
/// processor claims to be fast at it, and on some virtual machines that is slow: it was a third of
/// all that a large file cost.
const PIECE: usize = 2 * 1024;

/// A connection after its handshake. Clones are the same one: hyper's, and that of whoever looks
/// after it.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    inner: Arc<Mutex<Sealed>>,
    /// Whether what hyper flushes waits for [`Wire::poll_send`]. HTTP/2 flushes after each frame.
    gathers: bool,
}

#[derive(Debug)]
struct Sealed {
    socket: TcpStream,
    session: ServerConnection,
    connection: Connection,
    /// Read before, to be read again.
    unread: Bytes,
    /// Whether something came that is no request yet.
    heard: bool,
    /// Whether the reader has closed its side.
    ended: bool,
    /// Plaintext that does not fill a record yet.
    tail: Vec<u8>,
    /// About how much is sealed and not sent.
    sealed: usize,
    size: Size,
    /// How much may wait in the system.
    unsent: u32,
    /// How much of [`AT_ONCE`] is left.
    at_once: usize,
    closing: bool,
    /// What the client sends over HTTP/2; none over HTTP/1.1.
    frames: Option<Box<FrameBudget>>,
    /// Plaintext that was sealed, in bytes.
    written: u64,
    /// Whether HTTP has written all that it had buffered, so that what bodies report as written is
    /// in the session.
    is_flushed: bool,
    /// Where the ciphertext ends that was made, at most, and how much of it is with the kernel.
    made: u64,
    sent: u64,
    /// Where in the ciphertext the last body ends that was released.
    released: u64,
    /// Bytes read from the peer, TLS included.
    read: u64,
    /// What had been sent when [`Wire::rest`] was last called.
    sent_at_rest: u64,
    /// What was written of bodies and is not with the kernel, by where it ends in the ciphertext.
    unsent_bodies: VecDeque<(u64, Written)>,
}

/// What the deadlines of a connection need to know of its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    /// Whether the client's HTTP/2 preface is still to come; false over HTTP/1.1.
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

impl Wire {
    pub(super) fn new(
        socket: TcpStream,
        session: ServerConnection,
        connection: Connection,
        size: Size,
        gathers: bool,
    ) -> Wire {
        let sealed = Sealed {
            socket,
            session,
            connection,
            unread: Bytes::new(),
            heard: false,
            ended: false,
            tail: Vec::new(),
            sealed: 0,
            size,
            unsent: UNSENT,
            at_once: 0,
            closing: false,
            frames: gathers.then(|| Box::new(FrameBudget::new())),
            written: 0,
            is_flushed: true,
            made: 0,
            sent: 0,
            released: 0,
            read: 0,
            sent_at_rest: 0,
            unsent_bodies: VecDeque::new(),
        };
        Wire { inner: Arc::new(Mutex::new(sealed)), gathers }
    }

    /// Sends what was handed over; ready when all of it is with the system.
    pub(super) fn poll_send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().poll_send(context)
    }

    /// Ready when there is something to read, or the reader has gone. Nothing is held meanwhile.
    pub(super) fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.lock();
        if !this.unread.is_empty() || !this.session.wants_read() {
            return Poll::Ready(Ok(()));
        }
        this.socket.poll_read_ready(context)
    }

    /// Releases the part of the buffers' budget that is held for a reader who has stalled, or
    /// requests nothing.
    pub(super) fn rest(&self, now: Instant) {
        let mut this = self.lock();
        this.size.rest(now);
        let sent = this.connection.sent();
        if std::mem::replace(&mut this.sent_at_rest, sent) == sent && !this.session.wants_write() {
            this.size.shrink();
        }
    }

    /// Whether it holds a part of the buffers' budget.
    pub(super) fn holds_buffers(&self) -> bool {
        !self.lock().size.is_least()
    }

    /// Whether all that was handed over is with the system.
    pub(super) fn is_sent(&self) -> bool {
        let this = self.lock();
        this.tail.is_empty() && !this.session.wants_write()
    }

    /// Whether anything was heard of the reader since [`Wire::forget_heard`].
    pub(super) fn was_heard(&self) -> bool {
        self.lock().heard
    }

    /// What was heard has become a request.
    pub(super) fn forget_heard(&self) {
        self.lock().heard = false;
    }

    /// What has passed so far.
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
            // What was written is nearly all payload: frames without any are answered by frames of
            // their size.
            is_overspent: frames.is_overspent(this.written),
            ..traffic
        }
    }

    /// How many bytes were read from the peer, TLS included.
    pub(super) fn bytes_read(&self) -> u64 {
        self.lock().read
    }

    /// Whether it gathers what hyper writes.
    pub(super) fn gathers(&self) -> bool {
        self.gathers
    }

    /// Has this read before anything else.
    pub(super) fn put_back(&self, unread: Bytes) {
        self.lock().unread = unread;
    }

    fn lock(&self) -> MutexGuard<'_, Sealed> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.lock().poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
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
        if self.gathers { Poll::Ready(Ok(())) } else { this.poll_send(context) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().poll_close(context)
    }
}

impl Sealed {
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let length = self.unread.len().min(buffer.remaining());
            buffer.put_slice(&self.unread.split_to(length));
            self.heard = true;
            return Poll::Ready(Ok(()));
        }
        let mut is_waiting = false;
        while !self.ended && self.session.wants_read() && !is_waiting {
            match self.poll_hear(context) {
                Poll::Ready(heard) => self.ended = heard? == 0,
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
        self.heard |= length > 0;
        self.at_once = AT_ONCE;
        Poll::Ready(Ok(()))
    }

    /// Takes up what the socket has; 0 where the reader has closed its side.
    fn poll_hear(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut socket = Socket { socket: &mut self.socket, context };
        let heard = match self.session.read_tls(&mut socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            heard => heard?,
        };
        self.read += heard as u64;
        if let Err(error) = self.session.process_new_packets() {
            // The reader is told why, where it still listens.
            let _ = self.session.write_tls(&mut Socket { socket: &mut self.socket, context });
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        Poll::Ready(Ok(heard))
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
                return Poll::Ready(self.take(slices, room));
            }
            ready!(self.poll_send_some(context))?;
        }
    }

    /// How much may be sealed now, in whole records.
    fn room(&mut self) -> usize {
        let may_hold = if self.at_once > 0 { self.at_once } else { self.size.next(Instant::now()) };
        match may_hold.saturating_sub(self.sealed) {
            0 => 0,
            // So little that it is no whole record is still worth one, where it is all that may
            // ever be held.
            room if self.sealed == 0 && may_hold == LEAST => room,
            room if self.sealed == 0 => (room / RECORD).max(1) * RECORD,
            // What was sent in part leaves less than a record's room: it is not worth a record of
            // its own.
            room => room / RECORD * RECORD,
        }
    }

    /// Makes whole records of what is kept and of these, and tells how much of these was taken.
    fn take(&mut self, slices: &[IoSlice<'_>], room: usize) -> io::Result<usize> {
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        let all = self.tail.len() + offered;
        if all < RECORD && offered <= KEPT {
            slices.iter().for_each(|slice| self.tail.extend_from_slice(slice));
            return Ok(offered);
        }
        // What is kept may be more than the room: something of these goes with it, or it would seem
        // that nothing can.
        let room = room.max(self.tail.len() + 1);
        let sealed = if all <= room { all - self.left_over(all) } else { room };
        let mut taken = sealed.saturating_sub(self.tail.len());
        self.seal(slices, taken)?;
        // What is left over of all that there is waits for the next record.
        if all <= room {
            copy(slices, taken, &mut self.tail);
            taken = offered;
        }
        Ok(taken)
    }

    /// How much of so many bytes is kept for the next record.
    fn left_over(&self, all: usize) -> usize {
        let left_over = all % RECORD;
        if left_over <= KEPT && all > RECORD { left_over } else { 0 }
    }

    /// Seals what is kept and so much of these.
    fn seal(&mut self, slices: &[IoSlice<'_>], count: usize) -> io::Result<()> {
        let length = self.tail.len() + count;
        let mut parts = Vec::with_capacity(length / PIECE + slices.len() + 2);
        parts.extend(self.tail.chunks(PIECE).map(IoSlice::new));
        let mut left = count;
        for slice in slices {
            let part = slice.get(..left.min(slice.len())).unwrap_or_default();
            left -= part.len();
            parts.extend(part.chunks(PIECE).map(IoSlice::new));
        }
        let sealed = self.session.writer().write_vectored(&parts)?;
        if sealed != length {
            return Err(io::Error::other("TLS did not take what it was given"));
        }
        let records = length.div_ceil(RECORD);
        self.sealed += length + records * OVERHEAD;
        self.made += length as u64 + records as u64 * OVERHEAD_BOUND;
        self.written += length as u64;
        self.at_once = self.at_once.saturating_sub(length);
        self.tail.clear();
        Ok(())
    }

    /// Hands some of what is sealed to the system.
    fn poll_send_some(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.session.write_tls(&mut Socket { socket: &mut self.socket, context }) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.connection.held_up(true);
                Poll::Pending
            }
            Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Ok(sent) => {
                let is_all = !self.session.wants_write();
                self.sealed = if is_all { 0 } else { self.sealed.saturating_sub(sent) };
                self.note_sent(sent, is_all);
                if self.at_once == 0 {
                    self.size.came(sent, Instant::now());
                }
                self.follow();
                self.connection.held_up(false);
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Releases the bodies whose bytes are with the kernel.
    fn note_sent(&mut self, sent: usize, is_all: bool) {
        self.sent = if is_all { self.made } else { self.sent + sent as u64 };
        self.connection.note_sent(sent);
        self.release_bodies();
    }

    fn release_bodies(&mut self) {
        while self.unsent_bodies.front().is_some_and(|(end, _)| *end <= self.sent) {
            if let Some((end, Written { body, at, count })) = self.unsent_bodies.pop_front() {
                self.released = end;
                body.left(at, count);
            }
        }
    }

    /// Counts what was sent of bodies whose last byte was not: the connection broke, and the reader
    /// may have received it.
    fn count_unfinished(&mut self) {
        self.list_bodies();
        let mut sent =
            usize::try_from(self.sent.saturating_sub(self.released)).unwrap_or(usize::MAX);
        for (_, Written { body, at, count }) in self.unsent_bodies.drain(..) {
            let part = count.min(sent);
            if part > 0 {
                body.left(at, part);
            }
            sent -= part;
        }
    }

    /// Lists what bodies have written since the last call; all of it is sealed.
    fn list_bodies(&mut self) {
        let (made, unsent) = (self.made, &mut self.unsent_bodies);
        self.connection.take_written(|written| unsent.push_back((made, written)));
    }

    /// Has the system hold what suits this reader.
    fn follow(&mut self) {
        let unsent = if self.size.is_most() { UNSENT_FAST } else { UNSENT };
        if unsent != self.unsent {
            self.unsent = unsent;
            // Where it cannot be set it is as it was.
            let _ = SockRef::from(&self.socket).set_tcp_notsent_lowat(unsent);
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
        // What was written before all was sent the last time.
        self.sent = self.made;
        self.release_bodies();
        self.released = self.made;
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.closing, true) {
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

impl Drop for Sealed {
    /// Has the kernel discard what is unsent of a connection that was cut: it would be delivered
    /// after the loan's end.
    fn drop(&mut self) {
        if self.connection.is_cut() {
            let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
        } else {
            self.count_unfinished();
        }
        self.connection.closed();
    }
}

/// Appends what these hold after the first so many bytes.
fn copy(slices: &[IoSlice<'_>], mut skip: usize, to: &mut Vec<u8>) {
    for slice in slices {
        let skipped = skip.min(slice.len());
        to.extend_from_slice(slice.get(skipped..).unwrap_or_default());
        skip -= skipped;
    }
}

/// The socket as TLS reads and writes it, within a task.
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
