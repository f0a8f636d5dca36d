//! The ledger that the gates of a cluster share, and its faults.

use std::path::Path;
use std::time::Duration;

use super::patroni::Patroni;
use crate::support::postgres::Database;
use crate::support::tcp_proxy::Link;
use crate::support::{Postgres, TcpProxy};

/// The kind of the shared ledger.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Store {
    /// One SQLite file.
    Sqlite,
    /// One PostgreSQL server of the cluster's own.
    Postgres,
    /// Two PostgreSQL servers that Patroni manages.
    Patroni,
}

impl Store {
    /// Returns how long after Bokbasen recorded an end a gate may still open the loan.
    ///
    /// With PostgreSQL, an end is sent only once no gate opens the loan. With SQLite it is sent at
    /// once, and a gate that was paused then trusts its cache for `gate.freshness`.
    pub(super) fn stale_bound(self, freshness: Duration) -> Duration {
        match self {
            Store::Sqlite => freshness + Duration::from_secs(1),
            Store::Postgres | Store::Patroni => Duration::ZERO,
        }
    }
}

/// The running store.
#[derive(Debug)]
pub(crate) enum StoreServer {
    Sqlite { url: String },
    Postgres(Box<PostgresStore>),
    Patroni(Box<Patroni>),
}

/// A server, and a proxy in front of it for each gate.
#[derive(Debug)]
pub(crate) struct PostgresStore {
    pub(crate) links: Vec<TcpProxy>,
    pub(crate) database: Database,
    pub(crate) server: Postgres,
}

impl StoreServer {
    /// Starts the store. Returns `None` where its server is not installed.
    pub(super) async fn start(kind: Store, directory: &Path, gates: usize) -> Option<StoreServer> {
        if kind == Store::Sqlite {
            let url = format!("sqlite:{}", directory.join("data/loangate.db").display());
            return Some(StoreServer::Sqlite { url });
        }
        if kind == Store::Patroni {
            return Some(StoreServer::Patroni(Box::new(Patroni::start().await?)));
        }
        let server = Postgres::start().await?;
        let database = server.database().await;
        let address = ([127, 0, 0, 1], server.port()).into();
        let links = futures_util::future::join_all((0..gates).map(|_| TcpProxy::start(address)));
        let links = links.await;
        Some(StoreServer::Postgres(Box::new(PostgresStore { links, database, server })))
    }

    /// Returns the lines of `[ledger]` that say where the ledger is, for a gate.
    pub(super) fn lines(&self, gate: usize) -> String {
        match self {
            StoreServer::Sqlite { url } => format!("url = \"{url}\"\n"),
            StoreServer::Postgres(store) => {
                let url = store.database.url_at(store.links[gate].port());
                format!("url = \"{url}?sslmode=disable\"\n")
            }
            StoreServer::Patroni(patroni) => patroni.lines(gate).to_owned(),
        }
    }

    pub(crate) fn postgres(&self) -> Option<&PostgresStore> {
        match self {
            StoreServer::Postgres(store) => Some(store),
            _ => None,
        }
    }

    pub(crate) fn patroni(&self) -> Option<&Patroni> {
        match self {
            StoreServer::Patroni(patroni) => Some(patroni),
            _ => None,
        }
    }

    /// Connects every gate and starts a server that was killed.
    pub(super) async fn heal(&self) {
        let Some(store) = self.postgres() else { return };
        for link in &store.links {
            link.refuse(false);
            link.set(Link::Open);
        }
        store.server.resume();
        if !store.server.is_running() {
            store.server.restart().await;
        }
    }
}
