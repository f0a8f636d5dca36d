//! The socket to an origin server, plain or with TLS. The caller sets the size of each read.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::io::poll_read_buf;

/// A server, named as in requests and certificates.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Server {
    /// Whether connections use TLS.
    pub(super) secure: bool,
    pub(super) host: String,
    pub(super) port: u16,
}

#[derive(Debug)]
pub(super) enum Socket {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Connects to the first address that responds. `timeout` includes the TLS handshake.
    pub(super) async fn connect(
        server: &Server,
        tls: &TlsConnector,
        timeout: Duration,
    ) -> io::Result<Socket> {
        let connecting = async {
            // URLs put IPv6 addresses in brackets; the resolver expects none.
            let host = server.host.trim_start_matches('[').trim_end_matches(']');
            let socket = TcpStream::connect((host, server.port)).await?;
            socket.set_nodelay(true)?;
            if !server.secure {
                return Ok(Socket::Plain(socket));
            }
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
            Ok(Socket::Secure(Box::new(tls.connect(name, socket).await?)))
        };
        let late =
            || io::Error::new(io::ErrorKind::TimedOut, "the connection was not made in time");
        tokio::time::timeout(timeout, connecting).await.unwrap_or_else(|_| Err(late()))
    }

    /// Appends at most `max_bytes` to the buffer. Returns 0 once the server has closed.
    pub(super) fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut BytesMut,
        max_bytes: usize,
    ) -> Poll<io::Result<usize>> {
        match self {
            Socket::Plain(socket) => {
                // Allocates only when bytes are ready, so that an idle socket holds no buffer.
                ready!(socket.poll_read_ready(context))?;
                make_room(buffer, max_bytes);
                poll_read_buf(Pin::new(socket), context, &mut buffer.limit(max_bytes))
            }
            Socket::Secure(socket) => {
                make_room(buffer, max_bytes);
                poll_read_buf(Pin::new(socket.as_mut()), context, &mut buffer.limit(max_bytes))
            }
        }
    }

    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Socket::Plain(socket) => write_all(socket, bytes).await,
            Socket::Secure(socket) => write_all(socket.as_mut(), bytes).await,
        }
    }

    /// Returns whether the server has sent nothing since its last response: no unsolicited bytes,
    /// and no close. It peeks into the kernel's buffer: the runtime may not have polled yet.
    pub(super) fn is_quiet(&mut self) -> bool {
        match self {
            Socket::Plain(socket) => has_no_bytes(socket),
            Socket::Secure(socket) => {
                let mut byte = [0];
                let mut buffer = tokio::io::ReadBuf::new(&mut byte);
                let mut context = Context::from_waker(Waker::noop());
                // The TLS layer may have decrypted bytes while the kernel's buffer is empty.
                let is_pending =
                    Pin::new(socket.as_mut()).poll_read(&mut context, &mut buffer).is_pending();
                is_pending && has_no_bytes(socket.get_ref().0)
            }
        }
    }
}

/// Returns whether a peek would block.
fn has_no_bytes(socket: &TcpStream) -> bool {
    let peeked = SockRef::from(socket).peek(&mut [MaybeUninit::uninit()]);
    peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Reserves room for `max_bytes` more bytes. Replaces an empty buffer that is too small, since its
/// allocation could otherwise only grow.
fn make_room(buffer: &mut BytesMut, max_bytes: usize) {
    if buffer.is_empty() && buffer.capacity() < max_bytes {
        *buffer = BytesMut::with_capacity(max_bytes);
    }
    buffer.reserve(max_bytes);
}

async fn write_all<S: AsyncWrite + Unpin>(socket: &mut S, bytes: &[u8]) -> io::Result<()> {
    use tokio::io::AsyncWriteExt;
    socket.write_all(bytes).await?;
    socket.flush().await
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    async fn pair() -> (Socket, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Socket::Plain(socket), listener.accept().unwrap().0)
    }

    #[tokio::test]
    async fn unsolicited_bytes_are_seen_before_the_runtime_polls() {
        let (mut socket, mut server) = pair().await;
        assert!(socket.is_quiet());
        server.write_all(b"H").unwrap();
        // No await in between: only the kernel knows of the byte.
        assert!(!socket.is_quiet());
    }

    #[tokio::test]
    async fn close_is_seen_before_the_runtime_polls() {
        let (mut socket, server) = pair().await;
        assert!(socket.is_quiet());
        drop(server);
        assert!(!socket.is_quiet());
    }
}
