//! What the tests of this module share: settings of a URL, and real servers.

use super::endpoint::{Endpoint, Sources};
use super::settings::{Listen, PostgresSettings};

/// Servers and databases, which `tests/it` uses too.
#[path = "../../../tests/support"]
pub(super) mod support {
    #![allow(dead_code, unreachable_pub, unused_imports)]
    mod external_program;
    mod postgres;
    mod tcp_proxy;
    pub(crate) use postgres::{Authority, Database, PgBouncer, Postgres};
    pub(crate) use tcp_proxy::{Link, TcpProxy};
}

/// Reads an endpoint without an environment.
pub(super) fn endpoint(url: &str) -> Endpoint {
    let sources = Sources { environment: &|_| None, path: &|file| file.into(), password: None };
    Endpoint::read(url, sources).unwrap().endpoint
}

/// Returns the default settings of a URL. Without a parameter, it connects without TLS.
pub(super) fn settings(url: &str) -> PostgresSettings {
    let url = if url.contains('?') { url.to_owned() } else { format!("{url}?sslmode=disable") };
    PostgresSettings {
        endpoint: endpoint(&url),
        listen: Listen::Same,
        connections: PostgresSettings::DEFAULT_CONNECTIONS,
        lease: PostgresSettings::DEFAULT_LEASE,
    }
}
