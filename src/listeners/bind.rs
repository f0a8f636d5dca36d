//! Opens new listening sockets.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// The length of the accept queue of a listening socket.
const BACKLOG: i32 = 4096;

/// What the sockets of an IPv6 address receive.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ipv6 {
    /// What the system lets them receive: those of `[::]` receive IPv4, too.
    Default,
    Only,
}

/// Opens listening sockets that share an address, one for each worker.
///
/// # Errors
/// `AddrInUse` if a socket listens there already, also one of this user that shares its address:
/// two gates would divide the readers among them.
pub(super) fn shared(
    address: SocketAddr,
    ipv6: Ipv6,
    workers: usize,
) -> io::Result<Vec<TcpListener>> {
    if address.port() != 0 {
        drop(bound(address, ipv6, false)?);
    }
    let first = listening(bound(address, ipv6, true)?)?;
    let address = first.local_addr()?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(listening(bound(address, ipv6, true)?)?);
    }
    Ok(sockets)
}

/// Opens a listening socket that shares its address with no other.
pub(super) fn exclusive(address: SocketAddr) -> io::Result<TcpListener> {
    listening(bound(address, Ipv6::Default, false)?)
}

fn bound(address: SocketAddr, ipv6: Ipv6, is_shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if ipv6 == Ipv6::Only {
        socket.set_only_v6(true)?;
    }
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
        let shared = |address, workers| shared(address, Ipv6::Default, workers);
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
