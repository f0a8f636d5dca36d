//! The receiving side of a TLS stream: from the socket to the HTTP library.

use std::io::{self, BufRead};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::Inner;
use super::socket::Socket;

/// How many bytes may be sealed directly after a read, whatever the buffer budget allows. The
/// kernel accepts this much in any case.
const IMMEDIATE: usize = 80 * 1024;
/// How many bytes to discard in one read.
const DISCARDED_AT_ONCE: usize = 4 * 1024;

impl Inner {
    pub(super) fn poll_read(
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

    /// Reads ciphertext and discards it. Returns the number of bytes; 0 if the peer has closed its
    /// side.
    pub(super) fn poll_discard(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut bytes = [0; DISCARDED_AT_ONCE];
        let mut buffer = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.socket).poll_read(context, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
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
}
