//! Opens the readers' sockets of every address: those that were received, or new ones.
//!
//! Received sockets of wildcards may differ from what this process would bind. One socket of `[::]`
//! can receive IPv4, too, or there is one of `0.0.0.0` beside it. Both serve the same readers, so
//! either is used as it is: the system allows no change of a socket that is bound, and no second
//! one beside it.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use socket2::SockRef;

use super::bind::{self, Ipv6};
use super::{ListenError, Listeners, PUBLIC};
use crate::public_addresses::{
    PublicAddresses, is_ipv4, is_ipv4_wildcard, is_ipv6_wildcard, overlap,
};

impl Listeners {
    /// Opens the sockets of every address, `workers` at most of each that is bound. Returns the
    /// addresses with their actual ports, too.
    ///
    /// # Errors
    /// Returns [`ListenError`] if an address cannot be bound.
    pub(super) async fn open_public(
        &mut self,
        workers: usize,
    ) -> Result<(Vec<TcpListener>, PublicAddresses), ListenError> {
        let addresses = self.with_divided_wildcards();
        let mut opened = Vec::new();
        for address in addresses.iter() {
            let is_of = |at| addresses.of_socket(at) == Some(address);
            let taken = self.take(PUBLIC, |socket| socket.address().is_ok_and(is_of))?;
            opened.push((address, taken));
        }
        let dual: HashSet<u16> = opened.iter().filter_map(dual_port).collect();
        for (address, sockets) in &mut opened {
            let is_served = is_ipv4_wildcard(*address) && dual.contains(&address.port());
            if sockets.is_empty() && !is_served {
                *sockets = self.bind_public(&addresses, *address, workers).await?;
            }
        }
        let actual = opened.iter().map(|(address, sockets)| match sockets.first() {
            Some(socket) => socket.local_addr(),
            None => Ok(*address),
        });
        let actual = actual.collect::<Result<_, _>>().map_err(ListenError::Socket)?;
        let sockets = opened.into_iter().flat_map(|(_, sockets)| sockets).collect();
        Ok((sockets, PublicAddresses::from_list(actual).unwrap_or(addresses)))
    }

    /// Lists `0.0.0.0` beside a `[::]` that shall receive IPv4, too, if sockets of IPv4 with its
    /// port were received: there is one of their own for each family then.
    fn with_divided_wildcards(&self) -> PublicAddresses {
        let public = self.received.iter().filter(|socket| socket.name == PUBLIC);
        let at: Vec<SocketAddr> = public.filter_map(|socket| socket.address().ok()).collect();
        let configured = &self.addresses.public;
        configured.iter().fold(configured.clone(), |addresses, address| {
            let ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            let is_divided = is_ipv6_wildcard(address)
                && !addresses.is_ipv6_only(address)
                && at.iter().any(|at| is_ipv4(*at) && overlap(*at, ipv4));
            if is_divided { addresses.with(ipv4) } else { addresses }
        })
    }

    async fn bind_public(
        &self,
        addresses: &PublicAddresses,
        address: SocketAddr,
        workers: usize,
    ) -> Result<Vec<TcpListener>, ListenError> {
        let ipv6 = if addresses.is_ipv6_only(address) { Ipv6::Only } else { Ipv6::Default };
        let bound = self.bind(|| bind::shared(address, ipv6, workers)).await;
        bound.map_err(|source| ListenError::Public { address, source })
    }
}

/// Returns the port of received sockets of `[::]` that receive IPv4, too.
fn dual_port((address, sockets): &(SocketAddr, Vec<TcpListener>)) -> Option<u16> {
    let is_dual = |socket| SockRef::from(socket).only_v6().is_ok_and(|is_only| !is_only);
    let is_received = is_ipv6_wildcard(*address) && sockets.first().is_some_and(is_dual);
    is_received.then(|| address.port())
}
