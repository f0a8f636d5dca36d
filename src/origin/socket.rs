//! The socket to a server that has the files: in the clear or under TLS, read in pieces of a wanted
//! size.

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

/// A server by its name, as requests and certificates have it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Server {
    /// Whether it is spoken to under TLS.
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
    /// Connects, to the first of the name's addresses that answers; TLS included, it may take so
    /// long.
    pub(super) async fn connect(
        server: &Server,
        tls: &TlsConnector,
        within: Duration,
    ) -> io::Result<Socket> {
        let connecting = async {
            // An address of IPv6 stands in brackets, except here.
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
        tokio::time::timeout(within, connecting).await.unwrap_or_else(|_| Err(late()))
    }

    /// Reads at most so many bytes after what the buffer holds; 0 where the server has closed.
    pub(super) fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut BytesMut,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        match self {
            Socket::Plain(socket) => {
                // Only then is there need of room: who waits holds none.
                ready!(socket.poll_read_ready(context))?;
                make_room(buffer, most);
                poll_read_buf(Pin::new(socket), context, &mut buffer.limit(most))
            }
            Socket::Secure(socket) => {
                make_room(buffer, most);
                poll_read_buf(Pin::new(socket.as_mut()), context, &mut buffer.limit(most))
            }
        }
    }

    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Socket::Plain(socket) => write_all(socket, bytes).await,
            Socket::Secure(socket) => write_all(socket.as_mut(), bytes).await,
        }
    }

    /// Whether the server has sent nothing since its last response: no unsolicited bytes, and no
    /// close. It looks into the kernel's buffer, since the runtime may not have polled the socket
    /// since.
    pub(super) fn is_quiet(&mut self) -> bool {
        match self {
            Socket::Plain(socket) => has_no_bytes(socket),
            Socket::Secure(socket) => {
                let mut byte = [0];
                let mut buffer = tokio::io::ReadBuf::new(&mut byte);
                let mut context = Context::from_waker(Waker::noop());
                // Decrypted bytes may lie in the TLS layer, where the kernel has none.
                let is_pending =
                    Pin::new(socket.as_mut()).poll_read(&mut context, &mut buffer).is_pending();
                is_pending && has_no_bytes(socket.get_ref().0)
            }
        }
    }
}

/// Whether a peek would have to wait.
fn has_no_bytes(socket: &TcpStream) -> bool {
    let peeked = SockRef::from(socket).peek(&mut [MaybeUninit::uninit()]);
    peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Makes room for so many bytes more. A new buffer where it is empty: an old one's would be as
/// large as it ever was.
fn make_room(buffer: &mut BytesMut, most: usize) {
    if buffer.is_empty() && buffer.capacity() < most {
        *buffer = BytesMut::with_capacity(most);
    }
    buffer.reserve(most);
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
