//! A listening socket with a name.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use socket2::SockRef;

/// A listening socket and its name. It may be of any address family.
#[derive(Debug)]
pub(super) struct NamedSocket {
    pub(super) name: String,
    pub(super) socket: OwnedFd,
}

impl NamedSocket {
    /// Returns the address of a TCP socket.
    pub(super) fn address(&self) -> std::io::Result<SocketAddr> {
        let address = SockRef::from(&self.socket).local_addr()?;
        address.as_socket().ok_or_else(|| std::io::ErrorKind::Unsupported.into())
    }

    /// Whether the socket has this configured address. Port 0 stands for any port.
    pub(super) fn is_at(&self, configured: SocketAddr) -> bool {
        self.address().is_ok_and(|address| match configured.port() {
            0 => address.ip() == configured.ip(),
            _ => address.ip() == configured.ip() && address.port() == configured.port(),
        })
    }

    /// Whether it is a stream socket that listens.
    pub(super) fn is_listening(&self) -> bool {
        SockRef::from(&self.socket).is_listener().is_ok_and(|listens| listens)
    }

    pub(super) fn duplicate(&self) -> std::io::Result<TcpListener> {
        nonblocking(self.socket.try_clone()?)
    }
}

/// Returns a listener for an event loop.
pub(super) fn nonblocking(socket: OwnedFd) -> std::io::Result<TcpListener> {
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}
