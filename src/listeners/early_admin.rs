//! The admin socket of a gate that cannot start yet.

use std::net::{SocketAddr, TcpListener};

use super::{ListenError, bind};

/// The source of an admin socket for the time before the gate can start.
#[derive(Debug)]
pub(crate) enum EarlyAdmin {
    /// A predecessor still serves the address.
    Elsewhere,
    Received(TcpListener),
    Unbound(SocketAddr),
}

impl EarlyAdmin {
    /// Opens the socket; none if another gate has it.
    ///
    /// # Errors
    /// Returns [`ListenError`] if the address cannot be bound.
    pub(crate) fn open(&self) -> Result<Option<TcpListener>, ListenError> {
        match self {
            EarlyAdmin::Elsewhere => Ok(None),
            EarlyAdmin::Received(socket) => {
                socket.try_clone().map(Some).map_err(ListenError::Socket)
            }
            EarlyAdmin::Unbound(address) => bind::exclusive(*address)
                .map(Some)
                .map_err(|source| ListenError::Admin { address: *address, source }),
        }
    }
}
