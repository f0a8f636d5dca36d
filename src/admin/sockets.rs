//! The listening sockets of the admin listener: TCP, and a Unix socket if it is configured.
//!
//! `listen` accepts connections from each of them, without knowing which it is.

use std::io::{self, Error};
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::client_addresses::{MAX_CONNECTIONS, Source};
use crate::accept::{self, AcceptRetry};

/// Sockets that listen and do not block.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) tcp: std::net::TcpListener,
    /// The Unix socket, whose permissions let only the user of the gate connect.
    pub(crate) local: Option<std::os::unix::net::UnixListener>,
}

/// A listening socket.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Local(UnixListener),
}

/// A connection.
#[derive(Debug)]
pub(super) enum Connection {
    Tcp(TcpStream),
    /// Plain HTTP, whatever the configuration says about TLS.
    Local(UnixStream),
}

impl Sockets {
    /// Returns the address of the TCP socket, and the listeners on the current runtime.
    pub(super) fn listeners(self) -> io::Result<(SocketAddr, Vec<Listener>)> {
        let address = self.tcp.local_addr()?;
        let mut listeners = vec![Listener::Tcp(TcpListener::from_std(self.tcp)?)];
        if let Some(local) = self.local {
            listeners.push(Listener::Local(UnixListener::from_std(local)?));
        }
        Ok((address, listeners))
    }
}

impl Listener {
    /// Waits for the next connection, like [`accept::next`].
    pub(super) async fn next(
        &self,
        stop: &CancellationToken,
        on_failure: impl FnMut(&Error) -> AcceptRetry,
    ) -> Option<(Connection, Source)> {
        match self {
            Listener::Tcp(listener) => {
                let listeners = std::slice::from_ref(listener);
                let (stream, address) = accept::next(listeners, stop, on_failure).await?;
                Some((Connection::Tcp(stream), Source::Address(address.ip())))
            }
            Listener::Local(listener) => {
                let stream = accept::next_local(listener, stop, on_failure).await?;
                Some((Connection::Local(stream), Source::Local))
            }
        }
    }

    /// Returns the connections that wait at a Unix socket. A successor may have another one.
    pub(super) fn queued(&self) -> impl Iterator<Item = (Connection, Source)> {
        let queued = match self {
            Listener::Tcp(_) => Vec::new(),
            Listener::Local(listener) => accept::queued_local(listener, MAX_CONNECTIONS),
        };
        queued.into_iter().map(|stream| (Connection::Local(stream), Source::Local))
    }
}
