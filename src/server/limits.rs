//! `[limits]`: the number of connections, and the timeouts of each phase of a connection.
//!
//! `config` builds [`Limits`]. `app` reduces it to the available file descriptors, and the server
//! applies it to every connection. [`Limit`] names a reached limit in metrics.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::client_networks;
use crate::public_addresses::receives;
pub(super) use crate::telemetry::Limit;

/// The fewest connections that [`Limits::fit`] allows. With fewer file descriptors, the process
/// fails elsewhere.
const MIN_CONNECTIONS: usize = 16;
/// The fewest file descriptors reserved for connections to origins and their files, but at most
/// half of the descriptors for readers and origins.
const MIN_ORIGIN_DESCRIPTORS: u64 = 1024;

/// The keys of `[limits]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limits {
    /// The maximum number of open connections of all readers.
    pub connections: usize,
    /// The maximum number of connections from one address without accepted credentials.
    pub connections_per_address: usize,
    /// Networks that are exempt from `connections_per_address`, such as those of load balancers.
    pub exempt_networks: Vec<IpNet>,
    /// Networks of load balancers, whose connections begin with a header of the PROXY protocol.
    pub proxy_protocol: Vec<IpNet>,
    /// The public addresses at which they do so; empty for all of them.
    pub proxy_protocol_at: Vec<SocketAddr>,
    /// The timeout of the TLS handshake, and of such a header before it.
    pub handshake: Duration,
    /// The timeout from the handshake to the end of the client's HTTP/2 preface.
    pub preface: Duration,
    /// The timeout from the first to the last byte of a request's head.
    pub head: Duration,
    /// The timeout from the end of a request's head to the end of its body.
    pub body: Duration,
    /// The idle timeout between requests.
    pub idle: Duration,
    /// The timeout without progress on a response that is not a file. For files, `delivery.idle`
    /// applies.
    pub send: Duration,
    /// The number of requests after which a connection ends.
    pub requests_per_connection: u64,
    /// The age at which a connection ends, once its responses in flight are sent.
    pub connection_age: Duration,
    /// The maximum number of concurrent streams of one HTTP/2 connection.
    pub h2_streams: u32,
    /// The maximum number of streams that a client may reset per minute on one HTTP/2 connection.
    pub h2_resets_per_minute: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 10_000,
            connections_per_address: 256,
            exempt_networks: Vec::new(),
            proxy_protocol: Vec::new(),
            proxy_protocol_at: Vec::new(),
            handshake: Duration::from_secs(10),
            preface: Duration::from_secs(10),
            head: Duration::from_secs(20),
            body: Duration::from_secs(20),
            idle: Duration::from_secs(75),
            send: Duration::from_secs(60),
            requests_per_connection: 10_000,
            connection_age: Duration::from_secs(3600),
            h2_streams: 128,
            h2_resets_per_minute: 1000,
        }
    }
}

impl Limits {
    /// Returns the limits, with the number of connections reduced to what `descriptors` allow. Of
    /// these, `origins` are for connections to origins, and `reserved` for other parts of the
    /// process. One address gets at most a quarter of all connections.
    #[must_use]
    pub fn fit(&self, descriptors: u64, origins: u64, reserved: u64) -> Limits {
        let free = descriptors.saturating_sub(reserved);
        let allowed = free - origins.max(MIN_ORIGIN_DESCRIPTORS).min(free / 2);
        let allowed = usize::try_from(allowed).unwrap_or(usize::MAX).max(MIN_CONNECTIONS);
        let connections = self.connections.min(allowed);
        let connections_per_address = self.connections_per_address.min(connections / 4).max(1);
        Limits { connections, connections_per_address, ..self.clone() }
    }

    /// Whether `connections_per_address` does not apply to this address.
    pub(super) fn is_exempt(&self, address: IpAddr) -> bool {
        client_networks::contains(&self.exempt_networks, address)
    }

    /// Whether a connection from this address begins with a header of the PROXY protocol. `local`
    /// returns the gate's address of the connection.
    pub(super) fn has_proxy_header(
        &self,
        peer: IpAddr,
        local: impl FnOnce() -> Option<SocketAddr>,
    ) -> bool {
        let is_listed = |local| self.proxy_protocol_at.iter().any(|at| receives(*at, local));
        // If the local address is unknown, the header is required.
        let is_required = || self.proxy_protocol_at.is_empty() || local().is_none_or(is_listed);
        client_networks::contains(&self.proxy_protocol, peer) && is_required()
    }
}

/// Raises the soft limit of open file descriptors to the hard limit. Returns the limit in force
/// afterwards.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let in_force = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        // Some systems refuse their own maximum. The old limit then stays.
        Err(error) => {
            tracing::warn!(%error, "the limit of open files was not raised");
            limit.current
        }
    };
    in_force.unwrap_or(u64::MAX)
}

/// Returns the limit of open file descriptors in force.
pub(super) fn descriptor_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Returns whether only an abusive client reaches the limit. HTTP/2 then closes with
/// ENHANCE_YOUR_CALM (RFC 9113 §7).
pub(super) fn is_abuse(limit: Limit) -> bool {
    matches!(limit, Limit::H2Resets | Limit::H2Frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_into_the_descriptors() {
        let limits = Limits::default();
        let fitted_beside = |origins, descriptors, reserved| {
            let fitted = limits.fit(descriptors, origins, reserved);
            (fitted.connections, fitted.connections_per_address)
        };
        let fitted = |descriptors, reserved| fitted_beside(256, descriptors, reserved);
        assert_eq!(fitted(1_000_000, 200), (10_000, 256));
        assert_eq!(fitted(2_200, 200), (1000, 250), "a quarter of all for one address");
        assert_eq!(fitted(20_000, 200), (10_000, 256));
        assert_eq!(fitted(300, 200), (50, 12), "half of them for origins");
        assert_eq!(fitted(100, 200), (16, 4), "never below the minimum");
        assert_eq!(fitted(u64::MAX, 0), (10_000, 256));
        assert_eq!(fitted_beside(6000, 15_200, 200), (9000, 256));
        assert_eq!(fitted_beside(u64::MAX, 15_200, 200), (7500, 256), "never more than half");
    }

    #[test]
    fn soft_descriptor_limit_is_raised_to_the_hard_one() {
        let raised = raise_descriptor_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(raised, limit.maximum.unwrap_or(u64::MAX));
    }

    #[test]
    fn exempt_network_covers_its_addresses() {
        let exempt_networks = vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        let limits = Limits { exempt_networks, ..Limits::default() };
        for (address, exempt) in
            [("10.1.2.3", true), ("11.1.2.3", false), ("2001:db8::1", true), ("::1", false)]
        {
            assert_eq!(limits.is_exempt(address.parse().unwrap()), exempt, "{address}");
        }
    }
}
