//! A connection to a storage whose reads follow the reader: small at first, larger while all that comes is taken at once,
//! small again when somebody lets it wait.
//!
//! The size of a read decides what a byte costs: few large reads mean few wake-ups. But each read is held until the reader
//! has taken it, and a thousand readers who stand still would hold a thousand large ones. hyper makes its buffer no larger
//! than what it is given fills.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::net::TcpStream;
use tower_service::Service;

/// The least and the most that is read at once.
pub(super) const LEAST: usize = 16 * 1024;
pub(super) const MOST: usize = 256 * 1024;
/// After how many bytes reads begin to grow, twofold each time after so many full ones: what a reader takes at first may
/// lie in the buffers of both systems, and say nothing.
const GROWS_FROM: usize = 6 * 1024 * 1024;
const GROWS_AFTER: u32 = 16;
/// How long between a read and the next question a reader is thought to keep up.
const KEEPS_UP: Duration = Duration::from_millis(20);

/// How much to read next.
#[derive(Debug)]
struct Size {
    bytes: usize,
    /// Bytes that came at the least size.
    first: usize,
    full: u32,
    /// When the last read brought something; none while more is waited for.
    read: Option<Instant>,
}

impl Size {
    fn new() -> Size {
        Size { bytes: LEAST, first: 0, full: 0, read: None }
    }

    /// How much is to be read now.
    fn next(&mut self, now: Instant) -> usize {
        // Nobody asked for more for a while: the reader is slower than the storage.
        if self.read.take().is_some_and(|read| now.duration_since(read) > KEEPS_UP) {
            *self = Size::new();
        }
        self.bytes
    }

    /// Notes that so much came.
    fn came(&mut self, bytes: usize, now: Instant) {
        self.read = Some(now);
        if self.first < GROWS_FROM {
            self.first += bytes;
            return;
        }
        if bytes + 1 < self.bytes {
            return;
        }
        self.full += 1;
        if self.full >= GROWS_AFTER {
            (self.bytes, self.full) = ((self.bytes * 2).min(MOST), 0);
        }
    }
}

/// The connection.
#[derive(Debug)]
pub(super) struct Reads {
    // Its limit is set anew before each read: the way to a smaller part of a buffer without `unsafe`.
    socket: Take<TcpStream>,
    size: Size,
}

impl AsyncRead for Reads {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let wanted = this.size.next(Instant::now());
        // hyper makes its buffer larger once a read has filled it: one byte less, and it stays as it is.
        let offered = buffer.remaining();
        this.socket.set_limit(if offered < wanted { offered } else { wanted - 1 } as u64);
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.socket).poll_read(context, buffer);
        if polled.is_ready() {
            this.size.came(buffer.filled().len() - before, Instant::now());
        }
        polled
    }
}

impl AsyncWrite for Reads {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.get_mut().socket.get_mut()).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.get_mut().socket.get_mut()).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.get_ref().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().socket.get_mut()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().socket.get_mut()).poll_shutdown(context)
    }
}

impl Connection for Reads {
    fn connected(&self) -> Connected {
        self.socket.get_ref().connected()
    }
}

/// Makes such connections.
#[derive(Clone, Debug)]
pub(super) struct Connector(pub(super) HttpConnector);

impl Service<Uri> for Connector {
    type Response = TokioIo<Reads>;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let connecting = self.0.call(address);
        Box::pin(async move {
            let socket = connecting.await?.into_inner().take(0);
            Ok(TokioIo::new(Reads { socket, size: Size::new() }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_grow_while_all_is_taken_at_once_and_shrink_when_somebody_lets_it_wait() {
        let mut size = Size::new();
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let read = |size: &mut Size, millis| {
            let wanted = size.next(at(millis));
            size.came(wanted - 1, at(millis));
            wanted
        };
        let mut sizes: Vec<usize> = (0..GROWS_FROM / LEAST).map(|_| read(&mut size, 0)).collect();
        sizes.dedup();
        assert_eq!(sizes, [LEAST], "so much may lie in buffers");
        let mut sizes: Vec<usize> = (0..6 * GROWS_AFTER).map(|_| read(&mut size, 0)).collect();
        sizes.dedup();
        assert_eq!(sizes, [LEAST, 2 * LEAST, 4 * LEAST, 8 * LEAST, MOST]);
        assert_eq!(size.next(at(10)), MOST);
        // The storage lets wait: that says nothing of the reader.
        assert_eq!(size.next(at(9000)), MOST);
        size.came(MOST - 1, at(9000));
        assert_eq!(size.next(at(9100)), LEAST, "the reader did");
    }

    #[test]
    fn what_comes_in_small_pieces_is_read_in_small_pieces() {
        let mut size = Size::new();
        let now = Instant::now();
        for _ in 0..2 * GROWS_FROM / 1000 {
            size.next(now);
            size.came(1000, now);
        }
        assert_eq!(size.next(now), LEAST);
    }
}
