//! The addresses of the public listener: which sockets belong to them, and which overlap.
//!
//! `config` creates them, `listeners` opens their sockets, and `app` and `cli` show them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The addresses of the public listener, in the order of the configuration: at least one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PublicAddresses {
    first: SocketAddr,
    others: Vec<SocketAddr>,
}

impl From<SocketAddr> for PublicAddresses {
    fn from(first: SocketAddr) -> PublicAddresses {
        PublicAddresses { first, others: Vec::new() }
    }
}

impl PublicAddresses {
    /// Returns none for an empty list.
    pub(crate) fn from_list(list: Vec<SocketAddr>) -> Option<PublicAddresses> {
        let mut list = list.into_iter();
        Some(PublicAddresses { first: list.next()?, others: list.collect() })
    }

    /// The first address. Its port is the one in the names of the gate, links and files.
    pub fn first(&self) -> SocketAddr {
        self.first
    }

    /// Returns all addresses, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        std::iter::once(self.first).chain(self.others.iter().copied())
    }

    /// The addresses after the first one.
    pub(crate) fn others(&self) -> &[SocketAddr] {
        &self.others
    }

    /// Returns these addresses and another one.
    pub(crate) fn with(mut self, address: SocketAddr) -> PublicAddresses {
        self.others.push(address);
        self
    }

    /// Returns the listed address of a socket at this address. Port 0 stands for any port that is
    /// not listed.
    pub(crate) fn of_socket(&self, at: SocketAddr) -> Option<SocketAddr> {
        let listed = |port| self.iter().find(|one| one.ip() == at.ip() && one.port() == port);
        listed(at.port()).or_else(|| listed(0))
    }

    /// Whether the sockets of an address must receive IPv6 only: those of `[::]`, if an IPv4
    /// address with its port is listed, too.
    pub(crate) fn is_ipv6_only(&self, address: SocketAddr) -> bool {
        let is_of_port = |one: SocketAddr| is_ipv4(one) && has_port_of(one, address);
        is_ipv6_wildcard(address) && self.iter().any(is_of_port)
    }

    /// Returns the listed address whose sockets cannot be open together with an exclusive one at
    /// this address.
    pub(crate) fn overlapping(&self, exclusive: SocketAddr) -> Option<SocketAddr> {
        let receives_both = |wildcard, other| {
            is_ipv6_wildcard(wildcard) && is_ipv4(other) && has_port_of(wildcard, other)
        };
        self.iter().find(|listed| {
            overlap(*listed, exclusive)
                || receives_both(exclusive, *listed)
                || receives_both(*listed, exclusive) && !self.is_ipv6_only(*listed)
        })
    }
}

impl fmt::Display for PublicAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        self.others.iter().try_for_each(|address| write!(f, ", {address}"))
    }
}

/// Whether two listed addresses cannot both be bound: they are the same, or one is the wildcard of
/// the other's family. Each port 0 is another port.
pub(crate) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    has_port_of(one, other) && (includes(one.ip(), other.ip()) || includes(other.ip(), one.ip()))
}

/// Whether a listed address has the connections to this local address. A socket of `[::]` that also
/// receives IPv4 has local addresses that are mapped to IPv6. Port 0 stands for any port.
pub(crate) fn receives(listed: SocketAddr, local: SocketAddr) -> bool {
    let has_port = listed.port() == local.port() || listed.port() == 0;
    has_port && includes(listed.ip(), local.ip())
}

/// Whether both are the same, or the first is the wildcard of the family.
fn includes(listed: IpAddr, ip: IpAddr) -> bool {
    let (listed, ip) = (listed.to_canonical(), ip.to_canonical());
    listed == ip || listed.is_unspecified() && listed.is_ipv4() == ip.is_ipv4()
}

/// Whether this is `0.0.0.0`, which `[::]` can receive for, too.
pub(crate) fn is_ipv4_wildcard(address: SocketAddr) -> bool {
    address.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED)
}

pub(crate) fn is_ipv6_wildcard(address: SocketAddr) -> bool {
    address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
}

pub(crate) fn is_ipv4(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_ipv4()
}

/// Whether both have the same port. Each port 0 is another port.
fn has_port_of(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port() && one.port() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    fn listed(addresses: &[&str]) -> PublicAddresses {
        let list = addresses.iter().map(|address| at(address)).collect();
        PublicAddresses::from_list(list).unwrap()
    }

    #[test]
    fn addresses_keep_their_order() {
        let addresses = listed(&["127.0.0.1:8443", "[::1]:8443"]);
        assert_eq!(addresses.first(), at("127.0.0.1:8443"));
        assert_eq!(addresses.to_string(), "127.0.0.1:8443, [::1]:8443");
        assert_eq!(addresses, PublicAddresses::from(addresses.first()).with(at("[::1]:8443")));
        assert_eq!(PublicAddresses::from_list(Vec::new()), None);
    }

    #[test]
    fn wildcards_and_equal_addresses_overlap() {
        for (one, other, expected) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("127.0.0.1:1", "[::ffff:127.0.0.1]:1", true),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("[::1]:1", "[::]:1", true),
            ("0.0.0.0:1", "[::]:1", false),
            ("127.0.0.1:1", "[::]:1", false),
        ] {
            assert_eq!(overlap(at(one), at(other)), expected, "{one} {other}");
            assert_eq!(overlap(at(other), at(one)), expected, "{other} {one}");
        }
    }

    #[test]
    fn ipv6_wildcard_beside_ipv4_receives_ipv6_only() {
        for (addresses, expected) in [
            (&["[::]:1"] as &[_], false),
            (&["[::]:1", "0.0.0.0:1"], true),
            (&["127.0.0.1:1", "[::]:1"], true),
            (&["0.0.0.0:2", "[::]:1"], false),
            (&["[::1]:1", "[::]:1"], false),
        ] {
            assert_eq!(listed(addresses).is_ipv6_only(at("[::]:1")), expected, "{addresses:?}");
        }
        let addresses = listed(&["[::]:0", "0.0.0.0:0", "[::1]:1", "127.0.0.1:1"]);
        assert!(addresses.iter().all(|address| !addresses.is_ipv6_only(address)));
    }

    #[test]
    fn admin_address_overlaps_what_the_list_receives() {
        let both = ["0.0.0.0:1", "[::]:1"];
        for (addresses, admin, expected) in [
            (&["127.0.0.1:2", "127.0.0.1:1"] as &[_], "127.0.0.1:1", Some("127.0.0.1:1")),
            (&["127.0.0.1:2"], "127.0.0.1:1", None),
            (&["127.0.0.1:0"], "127.0.0.1:0", None),
            (&both, "127.0.0.1:1", Some("0.0.0.0:1")),
            (&both, "[::1]:1", Some("[::]:1")),
            (&["[::]:1"], "127.0.0.1:1", Some("[::]:1")),
            (&["127.0.0.2:1", "[::]:1"], "127.0.0.1:1", None),
            (&["127.0.0.1:1"], "[::]:1", Some("127.0.0.1:1")),
            (&["0.0.0.0:1"], "[::1]:1", None),
        ] {
            let found = listed(addresses).overlapping(at(admin));
            assert_eq!(found, expected.map(at), "{addresses:?} {admin}");
        }
    }

    #[test]
    fn socket_belongs_to_the_address_with_its_port() {
        let addresses = listed(&["127.0.0.1:0", "127.0.0.1:1", "[::1]:1"]);
        for (socket, expected) in [
            ("127.0.0.1:1", Some("127.0.0.1:1")),
            ("127.0.0.1:9", Some("127.0.0.1:0")),
            ("[::1]:1", Some("[::1]:1")),
            ("[::1]:9", None),
            ("127.0.0.2:1", None),
        ] {
            assert_eq!(addresses.of_socket(at(socket)), expected.map(at), "{socket}");
        }
    }

    #[test]
    fn listed_address_receives_what_its_socket_receives() {
        for (listed, local, is_received) in [
            ("10.0.1.5:8443", "10.0.1.5:8443", true),
            ("10.0.1.5:8443", "[::ffff:10.0.1.5]:8443", true),
            ("10.0.1.5:8443", "10.0.1.5:9443", false),
            ("10.0.1.5:8443", "10.0.1.6:8443", false),
            ("10.0.1.5:0", "10.0.1.5:40000", true),
            ("0.0.0.0:8443", "10.0.1.5:8443", true),
            ("0.0.0.0:8443", "[2001:db8::1]:8443", false),
            ("[::]:8443", "[2001:db8::1]:8443", true),
            ("0.0.0.0:8443", "[::ffff:10.0.1.5]:8443", true),
            ("[::]:8443", "[::ffff:10.0.1.5]:8443", false),
            ("[::]:8443", "10.0.1.5:8443", false),
        ] {
            let (one, other) = (listed.parse().unwrap(), local.parse().unwrap());
            assert_eq!(receives(one, other), is_received, "{listed} {local}");
        }
    }
}
