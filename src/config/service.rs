//! Reads the tables of the service: listen, server, cors, admin, gate, metering, log.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use toml::de::DeValue;

use super::handover::Handover;
use super::socket_path::socket_path;
use super::table::Table;
use super::tls::{self, Tls};
use super::values::{
    self, address, boolean, duration, list, nonzero_duration, number, one_of, size,
};
use super::{limits, public_addresses};
use crate::circulation::Licences;
use crate::ledger::PostgresSettings;
use crate::loan::LibraryId;
use crate::public_addresses::{PublicAddresses, is_ipv6_wildcard};
use crate::{admin, delivery, gate, metering, server, telemetry};

/// The longest time for which requests are stored.
const MAX_STORED: Duration = Duration::from_secs(7 * 86_400);

#[derive(Debug, Default)]
pub(super) struct Listen {
    pub(super) public: Option<PublicAddresses>,
    pub(super) admin: Option<SocketAddr>,
    /// The Unix socket of the admin listener.
    pub(super) admin_socket: Option<PathBuf>,
    /// The networks of `proxy_protocol`.
    pub(super) proxies: Vec<IpNet>,
    /// The addresses of `proxy_protocol_at`.
    pub(super) proxied: Vec<SocketAddr>,
}

pub(super) fn listen(root: &mut Table<'_>) -> Listen {
    let Some(mut table) =
        root.required_table("listen", "public = \"0.0.0.0:8443\" and admin = \"127.0.0.1:9443\"")
    else {
        return Listen::default();
    };
    let public = table.required("public", "public = \"0.0.0.0:8443\"", public_addresses::read);
    let admin = table.required("admin", "admin = \"127.0.0.1:9443\"", address);
    let both = public.as_ref().zip(admin);
    match both.and_then(|(public, admin)| public.overlapping(admin)) {
        Some(address) if Some(address) == admin => {
            table.mistake("admin", "it is the same address as public. Write another port");
        }
        Some(address) => {
            let sentence = format!("it overlaps the public address {address}. Write another port");
            table.mistake("admin", sentence);
        }
        None => {}
    }
    let source = table.source();
    let admin_socket =
        table.optional("admin_socket", |value| socket_path(value, source, "remove the key"));
    let proxies = table.or("proxy_protocol", Vec::new(), list(limits::proxy_network));
    let proxied = table.or("proxy_protocol_at", Vec::new(), list(address));
    let is_public =
        |at: &SocketAddr| public.iter().flat_map(PublicAddresses::iter).any(|one| one == *at);
    if public.is_some()
        && let Some(other) = proxied.iter().find(|at| !is_public(at))
    {
        let sentence = format!("listen.public has no {other}. Write an address that it has");
        table.mistake("proxy_protocol_at", sentence);
    }
    if proxies.is_empty() && !proxied.is_empty() {
        let sentence = "proxy_protocol lists no network that sends a header. Add it, or remove \
                        this key";
        table.mistake("proxy_protocol_at", sentence);
    }
    table.finish();
    let proxied = with_ipv4(proxied, public.as_ref());
    Listen { public, admin, admin_socket, proxies, proxied }
}

/// Adds `0.0.0.0` to each `[::]` that also receives IPv4. Which socket receives it can differ from
/// the list, after an upgrade and with sockets of a service manager.
fn with_ipv4(mut addresses: Vec<SocketAddr>, public: Option<&PublicAddresses>) -> Vec<SocketAddr> {
    let is_dual = |at: &&SocketAddr| {
        is_ipv6_wildcard(**at) && public.is_some_and(|public| !public.is_ipv6_only(**at))
    };
    let ipv4 = |at: &SocketAddr| SocketAddr::from((Ipv4Addr::UNSPECIFIED, at.port()));
    let added: Vec<SocketAddr> = addresses.iter().filter(is_dual).map(ipv4).collect();
    addresses.extend(added);
    addresses
}

#[cfg(test)]
#[test]
fn ipv6_wildcard_includes_ipv4_unless_it_is_listed() {
    let at = |address: &str| address.parse::<SocketAddr>().unwrap();
    let listed = |list: &[&str]| {
        PublicAddresses::from_list(list.iter().map(|address| at(address)).collect()).unwrap()
    };
    let found = |public: &[&str]| with_ipv4(vec![at("[::]:1")], Some(&listed(public)));
    assert_eq!(found(&["[::]:1"]), [at("[::]:1"), at("0.0.0.0:1")]);
    assert_eq!(found(&["[::]:1", "0.0.0.0:1"]), [at("[::]:1")]);
    assert_eq!(found(&["[::]:1", "10.0.1.5:1"]), [at("[::]:1")]);
    assert_eq!(with_ipv4(vec![at("[::1]:1")], Some(&listed(&["[::1]:1"]))), [at("[::1]:1")]);
}

pub(super) fn server(
    root: &mut Table<'_>,
    listen: &Listen,
    tls: Option<Tls>,
    admin: server::AdminTls,
) -> Option<(server::Settings, Handover)> {
    let mut table = root.optional_table("server");
    let drain = table.or("drain", Duration::from_secs(60), duration);
    let drain_delay = table.or("drain_delay", Duration::ZERO, duration);
    let handover = Handover::read(&mut table, listen.admin_socket.as_deref());
    let buffers = table.or("buffers", 256 << 20, buffers);
    let hsts = table.or("hsts", Duration::from_secs(180 * 86_400), duration);
    let recent_requests = table.or("recent_requests", 10_000, number(0, 10_000_000));
    let store_requests = table.or("store_requests", Duration::ZERO, duration);
    if store_requests > MAX_STORED {
        let sentence = "it is longer than support needs who read what when. Write at most \"7d\"";
        table.mistake("store_requests", sentence);
    }
    if recent_requests == 0 && !store_requests.is_zero() {
        let sentence = "requests are stored from memory. Write recent_requests = 10000";
        table.mistake("store_requests", sentence);
    }
    table.finish();
    let limits = limits::limits(root, listen);
    let cors = cors(root);
    let listen = listen.public.clone()?;
    let Tls { certificate, ordered, extra, ticket_keys, choice, .. } = tls?;
    let settings = server::Settings {
        listen,
        certificate,
        ordered,
        extra,
        ticket_keys,
        tls: choice,
        admin,
        drain,
        drain_delay,
        buffers,
        cors,
        limits,
        hsts,
        recent_requests: usize::try_from(recent_requests).unwrap_or(usize::MAX),
        store_requests,
    };
    Some((settings, handover))
}

/// Reads the buffer budget of all streams. A smaller one would not help even one fast reader.
fn buffers(value: &DeValue<'_>) -> Result<usize, String> {
    const MIN_BUFFERS: u64 = 1 << 20;
    match usize::try_from(size(value)?) {
        Ok(size) if size as u64 >= MIN_BUFFERS => Ok(size),
        _ => {
            Err("it is too little for one fast reader. Write at least \"1MiB\", better \"256MiB\""
                .to_owned())
        }
    }
}

/// Reads `[cors]`: which web pages and apps may send requests.
fn cors(root: &mut Table<'_>) -> server::Cors {
    let mut table = root.optional_table("cors");
    let read = |value: &DeValue<'_>| server::AllowedOrigin::parse(&values::text(value)?);
    let origins = table.or("origins", Vec::new(), list(read));
    table.finish();
    server::Cors { origins }
}

/// Reads `[admin]`, with what differs in its TLS.
pub(super) fn admin(
    root: &mut Table<'_>,
    listen: &Listen,
) -> Option<(admin::Settings, server::AdminTls)> {
    let mut table = root.required_table("admin", "token = { file = \"certs/admin.token\" }")?;
    let token = table.secret("token", "token = { file = \"certs/admin.token\" }");
    let too_short = token.as_ref().and_then(|token| values::long_enough(token).err());
    too_short.into_iter().for_each(|sentence| table.mistake("token", sentence));
    let tls = table.or("tls", false, boolean);
    let own_tls = tls::admin_tls(&mut table);
    let open_metrics = table.or("open_metrics", false, boolean);
    let hosts = table.or("hosts", Vec::new(), list(host_name));
    let networks = table.or("proxies", Vec::new(), list(limits::proxy_network));
    let fields = [
        ("x-forwarded-for", admin::ForwardedField::XForwardedFor),
        ("forwarded", admin::ForwardedField::Forwarded),
    ];
    let field = table.or("proxies_set", admin::ForwardedField::default(), one_of(&fields));
    table.finish();
    let (listen, socket) = (listen.admin?, listen.admin_socket.clone());
    let has_own = own_tls.certificate.is_some() || own_tls.client_ca.is_some();
    let tls = tls || has_own || needs_tls(listen);
    let proxies = admin::Proxies { networks, field };
    let token = token?;
    let settings = admin::Settings { listen, socket, token, tls, open_metrics, hosts, proxies };
    Some((settings, own_tls))
}

/// Whether the admin listener has TLS whatever the configuration says: outside this machine, the
/// token and the loans travel only over TLS.
pub(super) fn needs_tls(admin: SocketAddr) -> bool {
    !admin.ip().is_loopback()
}

/// Reads a host name as in the `Host` header, without a port.
fn host_name(value: &DeValue<'_>) -> Result<String, String> {
    let text = values::text(value)?.to_ascii_lowercase();
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    match text.bytes().all(is_name) {
        true => Ok(text),
        false => Err(format!(
            "{text:?} is not a host name. Write it without a scheme and a port, like \
             \"gate.example.no\""
        )),
    }
}

/// Reads `[gate]`. `freshness` is the default of that key, if the ledger has one of its own.
pub(super) fn gate(root: &mut Table<'_>, freshness: Option<Duration>) -> gate::Settings {
    let mut settings = gate::Settings::default();
    settings.freshness = freshness.unwrap_or(settings.freshness);
    let mut table = root.optional_table("gate");
    settings.patience = table.or("patience", settings.patience, nonzero_duration);
    settings.refusal_ttl = table.or("refusal_ttl", settings.refusal_ttl, duration);
    settings.freshness = table.or("freshness", settings.freshness, nonzero_duration);
    let max = PostgresSettings::MAX_FRESHNESS;
    if freshness.is_some() && settings.freshness > max {
        let sentence = format!(
            "with PostgreSQL, other gates wait for this time when a gate dies. Write at most \
             \"{}s\"",
            max.as_secs()
        );
        table.mistake("freshness", sentence);
    }
    table.finish();
    settings
}

/// Reads `[licences]`: which licence a loan uses.
pub(super) fn licences(root: &mut Table<'_>) -> Licences {
    let mut table = root.optional_table("licences");
    let order = table.or("order", Vec::new(), list(licence_type));
    let mut never = HashMap::new();
    if let Some(libraries) = table.table("never") {
        for (library, types) in libraries.all(list(licence_type)) {
            match library.parse::<LibraryId>() {
                Ok(isil) => drop(never.insert(isil, types)),
                Err(error) => {
                    libraries.mistake_at(&library, format!("this is no library: {error}"))
                }
            }
        }
    }
    table.finish();
    Licences { order, never }
}

/// Reads a licence type, spelt as Bokbasen spells it.
pub(super) fn licence_type(value: &DeValue<'_>) -> Result<String, String> {
    let text = values::text(value)?;
    match text
        .bytes()
        .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
    {
        true => Ok(text),
        false => Err(format!(
            "{text:?} is not a licence type. Write it as Bokbasen does, like \"PAY_PER_LOAN\""
        )),
    }
}

pub(super) fn log(root: &mut Table<'_>) -> telemetry::Settings {
    use tracing::Level;
    let levels = [
        ("error", Level::ERROR),
        ("warn", Level::WARN),
        ("info", Level::INFO),
        ("debug", Level::DEBUG),
        ("trace", Level::TRACE),
    ];
    let mut table = root.optional_table("log");
    let level = table.or("level", Level::INFO, one_of(&levels));
    let json = table.or("format", false, one_of(&[("text", false), ("json", true)]));
    table.finish();
    telemetry::Settings { level, json }
}

/// Reads `[metering]`: how often delivered bytes are written to the ledger.
pub(super) fn metering(root: &mut Table<'_>) -> metering::Settings {
    let mut table = root.optional_table("metering");
    let flush = table.or("flush", Duration::from_secs(5), nonzero_duration);
    table.finish();
    metering::Settings { flush }
}

/// Reads `[delivery]`: the limits of one response and one reader.
pub(super) fn delivery(root: &mut Table<'_>) -> delivery::Settings {
    let default = delivery::Settings::default();
    let mut table = root.optional_table("delivery");
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let settings = delivery::Settings {
        max_ranges: table.or("max_ranges", 16, number(1, 1000)).try_into().unwrap_or(16),
        idle: table.or("idle", default.idle, nonzero_duration),
        min_rate: table.or("min_rate", default.min_rate, size),
        min_rate_grace: table.or("min_rate_grace", default.min_rate_grace, nonzero_duration),
        streams_per_borrower: count(table.or("streams_per_borrower", 0, number(0, 10_000))),
        rate_per_borrower: table.or("rate_per_borrower", default.rate_per_borrower, size),
        suspend_after: default.suspend_after,
    };
    if settings.rate_per_borrower > 0 && settings.rate_per_borrower <= settings.min_rate {
        table.mistake(
            "min_rate",
            "no reader could reach it, since rate_per_borrower allows no more. Write a lower rate",
        );
    }
    table.finish();
    settings
}
