//! The admin sockets of a gate that cannot start yet.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use super::{AdminSocket, ListenError, bind};

/// The source of admin sockets for the time before the gate can start.
#[derive(Debug)]
pub(crate) enum EarlyAdmin {
    /// A predecessor still serves the addresses.
    Elsewhere,
    /// This process serves them.
    Here {
        /// A socket of the service manager.
        received: Option<TcpListener>,
        /// The address to bind without one.
        address: SocketAddr,
        /// The path of the Unix socket, if it is configured.
        path: Option<PathBuf>,
    },
}

/// The admin sockets of a gate that waits.
#[derive(Debug)]
pub(crate) struct EarlySockets {
    pub(crate) tcp: TcpListener,
    pub(crate) local: Option<AdminSocket>,
}

impl EarlyAdmin {
    /// Opens the sockets; none if another gate has them.
    ///
    /// # Errors
    /// Returns [`ListenError`] if one cannot be bound.
    pub(crate) fn open(&self) -> Result<Option<EarlySockets>, ListenError> {
        let EarlyAdmin::Here { received, address, path } = self else { return Ok(None) };
        let tcp = match received {
            Some(socket) => socket.try_clone().map_err(ListenError::Socket)?,
            None => bind::exclusive(*address)
                .map_err(|source| ListenError::Admin { address: *address, source })?,
        };
        let bound = path.as_ref().map(|path| {
            AdminSocket::bind(path)
                .map_err(|source| ListenError::AdminSocket { path: path.clone(), source })
        });
        Ok(Some(EarlySockets { tcp, local: bound.transpose()? }))
    }
}
