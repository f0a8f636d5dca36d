//! The client's address behind a proxy that ends TLS: `X-Forwarded-For` or `Forwarded`.
//!
//! `client_addresses` asks for it with each request. A field counts only if the connection comes
//! from a network of `admin.proxies`, and only the configured one: a proxy that sets one of them
//! passes the other on as the client wrote it.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;
use rfc7239::NodeName;

use crate::client_networks;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The most addresses of a field that are considered, from the last one on.
const MAX_ADDRESSES: usize = 32;

/// The field to which proxies add the address of their client.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ForwardedField {
    /// `X-Forwarded-For`
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239)
    Forwarded,
}

/// The proxies in front of the admin listener.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// Their networks.
    pub networks: Vec<IpNet>,
    /// The field that they set.
    pub field: ForwardedField,
}

impl Proxies {
    /// Returns the client's address; none if the connection is no proxy's, or it names none.
    ///
    /// It is the last one that a proxy has added for something that is no proxy itself. What comes
    /// before it, the client may have written.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        if !self.contains(peer) {
            return None;
        }
        let mut named = self.forwarded(headers).take(MAX_ADDRESSES);
        // What comes before an unreadable address, the client may have written.
        named.find(|address| address.is_none_or(|address| !self.contains(address))).flatten()
    }

    /// Returns the addresses of the field, the last one first; none for an unreadable one.
    fn forwarded(&self, headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
        let (name, parse): (_, fn(&str) -> Option<IpAddr>) = match self.field {
            ForwardedField::XForwardedFor => (X_FORWARDED_FOR, address),
            ForwardedField::Forwarded => (header::FORWARDED, node),
        };
        let lines = headers.get_all(name).into_iter().rev();
        lines.flat_map(move |line| {
            let items = line.as_bytes().rsplit(|byte| *byte == b',');
            items.map(move |item| parse(std::str::from_utf8(item).ok()?.trim()))
        })
    }

    fn contains(&self, address: IpAddr) -> bool {
        client_networks::contains(&self.networks, address)
    }
}

/// Reads an address, which some proxies write with a port.
fn address(text: &str) -> Option<IpAddr> {
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.parse().ok().or_else(with_port)
}

/// Reads the `for` of an element of `Forwarded`. A quoted value that was cut at a comma or a
/// semicolon is of no node: a client may have written what follows.
fn node(element: &str) -> Option<IpAddr> {
    if element.split(';').any(|pair| pair.matches('"').count() % 2 != 0) {
        return None;
    }
    let node = rfc7239::parse(element).next()?.ok()?;
    match node.forwarded_for?.name {
        NodeName::Ip(address) => Some(address),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn client(field: ForwardedField, peer: &str, lines: &[(&str, &str)]) -> Option<String> {
        let networks = vec!["10.0.0.0/8".parse().unwrap(), "2001:db8:1::/48".parse().unwrap()];
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let proxies = Proxies { networks, field };
        proxies.client(peer.parse().unwrap(), &headers).map(|address| address.to_string())
    }

    #[test]
    fn client_is_the_last_address_that_is_no_proxy() {
        let of = |peer, lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            client(ForwardedField::XForwardedFor, peer, &lines)
        };
        assert_eq!(of("192.0.2.1", &["192.0.2.7"]), None, "no proxy");
        for (lines, expected) in [
            (&["192.0.2.7"][..], Some("192.0.2.7")),
            (&["192.0.2.7, 10.0.0.2"], Some("192.0.2.7")),
            (&["127.0.0.1, 192.0.2.7", "10.0.0.2"], Some("192.0.2.7")),
            (&["192.0.2.9, 192.0.2.7:4711"], Some("192.0.2.7")),
            (&["[2001:db8::7]:1, 2001:db8:1::2"], Some("2001:db8::7")),
            (&["\u{e6}, 192.0.2.7"], Some("192.0.2.7")),
            (&[], None),
            (&[""], None),
            (&["192.0.2.7, unknown"], None),
            (&["192.0.2.7, unknown, 10.0.0.2"], None),
            (&["10.0.0.4, 10.0.0.3"], None),
        ] {
            assert_eq!(of("10.0.0.1", lines).as_deref(), expected, "{lines:?}");
            assert_eq!(of("::ffff:10.0.0.1", lines).as_deref(), expected, "{lines:?}");
        }
        let long = vec!["10.0.0.5"; 5000].join(",");
        assert_eq!(of("10.0.0.1", &[&format!("192.0.2.7,{long}")]), None);
    }

    #[test]
    fn only_the_configured_field_counts() {
        let lines = [
            ("x-forwarded-for", "192.0.2.1"),
            ("forwarded", "for=192.0.2.2;proto=https, For=\"[2001:db8::7]:4711\""),
            ("forwarded", "for=10.0.0.3"),
        ];
        let of = |field| client(field, "10.0.0.1", &lines).unwrap();
        assert_eq!(of(ForwardedField::XForwardedFor), "192.0.2.1");
        assert_eq!(of(ForwardedField::Forwarded), "2001:db8::7");
        for hidden in [
            "for=unknown",
            "for=_hidden",
            "by=192.0.2.1",
            "x",
            "for=\"192.0.2.1",
            "for=192.0.2.9;host=\"x;for=192.0.2.1\"",
            "for=192.0.2.9;host=\"x, for=192.0.2.1;a=\"",
        ] {
            let of = client(ForwardedField::Forwarded, "10.0.0.1", &[("forwarded", hidden)]);
            assert_eq!(of, None, "{hidden}");
        }
    }
}
