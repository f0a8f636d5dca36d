//! Reads `[limits]`: how many connections are allowed, and the timeouts of each.

use std::net::IpAddr;

use ipnet::IpNet;
use toml::de::DeValue;

use super::service::Listen;
use super::table::Table;
use super::values::{self, list, nonzero_duration, number};
use crate::server::Limits;

/// Reads the table. `listen` has the networks of load balancers that send a header.
pub(super) fn limits(root: &mut Table<'_>, listen: &Listen) -> Limits {
    let default = Limits::default();
    let mut table = root.optional_table("limits");
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let connections = table.optional("connections", number(4, 1_000_000)).map(count);
    let per_address = table.optional("connections_per_address", number(1, 250_000)).map(count);
    let limits = Limits {
        connections: connections.unwrap_or(default.connections),
        connections_per_address: per_address.unwrap_or(default.connections_per_address),
        proxy_protocol: listen.proxies.clone(),
        proxy_protocol_at: listen.proxied.clone(),
        exempt_networks: table.or("exempt_networks", Vec::new(), list(network)),
        handshake: table.or("handshake", default.handshake, nonzero_duration),
        preface: table.or("preface", default.preface, nonzero_duration),
        head: table.or("head", default.head, nonzero_duration),
        body: table.or("body", default.body, nonzero_duration),
        idle: table.or("idle", default.idle, nonzero_duration),
        send: table.or("send", default.send, nonzero_duration),
        requests_per_connection: table.or(
            "requests_per_connection",
            default.requests_per_connection,
            number(1, 1_000_000_000),
        ),
        connection_age: table.or("connection_age", default.connection_age, nonzero_duration),
        h2_streams: u32::try_from(table.or(
            "h2_streams",
            u64::from(default.h2_streams),
            number(1, 1000),
        ))
        .unwrap_or(default.h2_streams),
        h2_resets_per_minute: table.or(
            "h2_resets_per_minute",
            default.h2_resets_per_minute,
            number(1, 1_000_000),
        ),
    };
    if per_address.is_some_and(|per_address| per_address > limits.connections / 4) {
        let most = limits.connections / 4;
        let sentence = format!(
            "one address may use at most a quarter of limits.connections. Write {most} or \
             less"
        );
        table.mistake("connections_per_address", sentence);
    }
    table.finish();
    limits
}

/// A network of proxies, which name their clients. Everybody would be one with prefix length 0.
pub(super) fn proxy_network(value: &DeValue<'_>) -> Result<IpNet, String> {
    let network = network(value)?;
    match network.prefix_len() {
        0 => Err(format!(
            "{network} has every address, so each client could claim to be another. Write the \
             networks of the proxies"
        )),
        _ => Ok(network),
    }
}

/// A network, or a single address.
fn network(value: &DeValue<'_>) -> Result<IpNet, String> {
    let text = values::text(value)?;
    let network =
        text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    network.map(|network| network.trunc()).ok_or_else(|| {
        format!("{text:?} is no network. Write one like \"10.0.0.0/8\" or \"2001:db8::/32\"")
    })
}
