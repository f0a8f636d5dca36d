//! What the tests of this module share: settings of a URL, and real servers.

use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::endpoint::{Endpoint, Sources};
use super::migrations::{MIGRATIONS, Migration};
use super::settings::PostgresSettings;
use crate::clock::Clock;
use crate::ledger::test_support::{KEY, audit_key};
use crate::ledger::{Brake, Ledger, LedgerError, Settings, StoreSettings};
use crate::telemetry::Metrics;

/// Returns the migrations of the program, without its indexes, and then these. Contractions and
/// builds of indexes would wait for the program's own.
pub(super) const fn without_indexes<const ALL: usize>(next: &[Migration]) -> [Migration; ALL] {
    let mut all = [Migration::Expansion { sql: "" }; ALL];
    let mut place = 0;
    while place < ALL {
        if place >= MIGRATIONS.len() {
            all[place] = next[place - MIGRATIONS.len()];
        } else if !matches!(MIGRATIONS[place], Migration::Index { .. }) {
            all[place] = MIGRATIONS[place];
        }
        place += 1;
    }
    all
}

/// Servers and databases, which `tests/it` uses too.
#[path = "../../../tests/support"]
pub(in crate::ledger) mod support {
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
pub(in crate::ledger) fn settings(url: &str) -> PostgresSettings {
    let url = if url.contains('?') { url.to_owned() } else { format!("{url}?sslmode=disable") };
    PostgresSettings {
        endpoint: endpoint(&url),
        direct: None,
        connections: PostgresSettings::DEFAULT_CONNECTIONS,
        lease: PostgresSettings::DEFAULT_LEASE,
        freshness: PostgresSettings::DEFAULT_FRESHNESS,
        heads: std::path::PathBuf::new(),
        migrations: MIGRATIONS,
    }
}

/// A ledger in a database, with a directory of its own for the heads.
pub(super) struct Node {
    pub(super) ledger: Ledger,
    pub(super) heads: TempDir,
}

impl Node {
    pub(super) async fn open(database: &support::Database) -> Node {
        Node::open_with(settings(&database.url()), Brake::default()).await
    }

    pub(super) async fn open_with(postgres: PostgresSettings, brake: Brake) -> Node {
        let heads = tempfile::tempdir().unwrap();
        // As a gate does at its start: a busy machine may take longer to connect than the deadline.
        for _ in 0..10 {
            match open(postgres.clone(), brake, &heads).await {
                Err(error) if error.is_unreachable() => {}
                opened => return Node { ledger: opened.unwrap(), heads },
            }
        }
        panic!("the database does not respond");
    }

    /// Opens a ledger whose heads are in this directory.
    pub(super) async fn try_open(
        postgres: PostgresSettings,
        heads: &TempDir,
    ) -> Result<Ledger, LedgerError> {
        open(postgres, Brake::default(), heads).await
    }

    /// Closes the ledger and returns the directory of its heads.
    pub(super) async fn close(self) -> TempDir {
        self.ledger.close().await;
        self.heads
    }
}

async fn open(
    mut postgres: PostgresSettings,
    brake: Brake,
    heads: &TempDir,
) -> Result<Ledger, LedgerError> {
    postgres.heads = heads.path().to_owned();
    let settings = Settings { store: StoreSettings::Postgres(Box::new(postgres)), brake };
    Ledger::open(&settings, &KEY, audit_key(), Clock::system(), Metrics::new().unwrap()).await
}

/// Waits until something is true.
pub(super) async fn until(what: &str, mut is_true: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_true().await {
        assert!(Instant::now() < end, "did not happen: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}
