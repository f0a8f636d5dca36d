//! Networks of clients: whether one of them has an address, and which one is a subscriber's. Every
//! module with a listener may call it.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The prefix length of the IPv6 network of one subscriber.
const IPV6_PREFIX: u8 = 64;

/// Returns whether one of the networks has the address.
pub(crate) fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// Returns the network of one subscriber: an IPv4 address, or an IPv6 /64.
pub(crate) fn subscriber(address: IpAddr) -> IpNet {
    match address.to_canonical() {
        IpAddr::V4(address) => IpNet::V4(Ipv4Net::from(address)),
        IpAddr::V6(address) => {
            let network =
                Ipv6Net::new(address, IPV6_PREFIX).unwrap_or_else(|_| Ipv6Net::from(address));
            IpNet::V6(network.trunc())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscriber_of(address: &str) -> IpNet {
        subscriber(address.parse().unwrap())
    }

    #[test]
    fn ipv6_subscriber_is_one_network() {
        let one = subscriber_of("2001:db8:0:1::1");
        assert_eq!(one, subscriber_of("2001:db8:0:1:ffff::2"));
        assert_ne!(one, subscriber_of("2001:db8:0:2::1"));
        assert_eq!(subscriber_of("192.0.2.1"), subscriber_of("::ffff:192.0.2.1"));
    }
}
