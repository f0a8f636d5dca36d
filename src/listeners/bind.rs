//! Opens new listening sockets.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// The length of the accept queue of a listening socket.
const BACKLOG: i32 = 4096;

/// Opens listening sockets that share an address, one for each worker.
///
/// # Errors
/// `AddrInUse` if a socket listens there already, also one of this user that shares its address:
/// two gates would divide the readers among them.
pub(super) fn shared(address: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
    if address.port() != 0 {
        drop(bound(address, false)?);
    }
    let first = listening(bound(address, true)?)?;
    let address = first.local_addr()?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(listening(bound(address, true)?)?);
    }
    Ok(sockets)
}

/// Opens a listening socket that shares its address with no other.
pub(super) fn exclusive(address: SocketAddr) -> io::Result<TcpListener> {
    listening(bound(address, false)?)
}

fn bound(address: SocketAddr, is_shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listening(socket: Socket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_of_a_listening_gate_is_not_shared_with_another() {
        let sockets = shared("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let address = sockets[0].local_addr().unwrap();
        assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == address));
        for attempt in [shared(address, 1).map(drop), exclusive(address).map(drop)] {
            assert_eq!(attempt.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
        drop(sockets);
        assert_eq!(shared(address, 2).unwrap().len(), 2);
    }
}
