//! The socket to a server that has the files: in the clear or under TLS, read in pieces of a wanted size.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use rustls::pki_types::ServerName;
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
    /// Connects, to the first of the name's addresses that answers; TLS included, it may take so long.
    pub(super) async fn connect(server: &Server, tls: &TlsConnector, within: Duration) -> io::Result<Socket> {
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
        let late = || io::Error::new(io::ErrorKind::TimedOut, "the connection was not made in time");
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

    /// Whether nothing has come since the last answer: no end, and nothing that nobody asked for.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = tokio::io::ReadBuf::new(&mut byte);
        let mut context = Context::from_waker(Waker::noop());
        match self {
            Socket::Plain(socket) => Pin::new(socket).poll_read(&mut context, &mut buffer).is_pending(),
            Socket::Secure(socket) => {
                Pin::new(socket.as_mut()).poll_read(&mut context, &mut buffer).is_pending()
            }
        }
    }
}

/// Makes room for so many bytes more. A new buffer where it is empty: an old one's would be as large as it ever was.
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
