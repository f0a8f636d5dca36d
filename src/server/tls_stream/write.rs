//! The sending side of a TLS stream: from the HTTP library into full records, and to the socket.

use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::AsyncWrite;

use super::socket::Socket;
use super::{Inner, NOTSENT_LOWAT};
use crate::buffer_budget::LEAST;

/// The plaintext of a full TLS record (RFC 8446 §5.1), in bytes.
pub(super) const RECORD_SIZE: usize = 16 * 1024;
/// The overhead of a record in TLS 1.3 with AES-GCM, in bytes: an upper bound.
const OVERHEAD: usize = 22;
/// An upper bound of the overhead for every TLS version and cipher, in bytes.
const OVERHEAD_BOUND: u64 = 64;
/// The most unsent bytes in the kernel for a reader at full speed. One read from the origin then
/// fits into one write, which saves three of four wake-ups. It is half of what Linux buffers by
/// default.
const NOTSENT_LOWAT_FAST: u32 = 2 * 1024 * 1024;
/// The longest remainder that is buffered for the next record, in bytes. Up to this length, a copy
/// costs less than a record of its own.
const MAX_REMAINDER: usize = 4 * 1024;
/// The largest chunk that is copied into a record in one call, in bytes. Above about 2 KiB, glibc
/// copies with `rep movsb` where the processor reports that it is fast. On some virtual machines it
/// is slow, and took a third of the CPU time of a large file.
const COPY_CHUNK: usize = 2 * 1024;

impl Inner {
    pub(super) fn poll_write(
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
            self.tail.reserve(offered);
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
        self.bodies.record_produced(length as u64 + records as u64 * OVERHEAD_BOUND);
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
                self.connection.note_sent(sent);
                self.bodies.record_sent(sent, is_all);
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

    /// Adjusts TCP_NOTSENT_LOWAT to the speed of the reader.
    fn adjust_notsent_lowat(&mut self) {
        let lowat = if self.size.is_at_maximum() { NOTSENT_LOWAT_FAST } else { NOTSENT_LOWAT };
        if lowat != self.notsent_lowat {
            self.notsent_lowat = lowat;
            // On an error the old value stays.
            let _ = SockRef::from(&self.socket).set_tcp_notsent_lowat(lowat);
        }
    }

    pub(super) fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.tail.is_empty() {
            self.seal(&[], 0)?;
            self.tail = Vec::new();
        }
        if self.is_flushed {
            self.bodies.list(&self.connection);
        }
        while self.session.wants_write() {
            ready!(self.poll_send_some(context))?;
        }
        self.bodies.release_all();
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
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
            self.bodies.count_unfinished(&self.connection);
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
