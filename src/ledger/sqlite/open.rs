//! Opening a ledger file: the file, its schema, the fingerprint of the key, and the audit trail.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Connection, SqliteConnection};

use super::chain;
use super::connection::{SqliteStore, WriteHandle, write_options};
use super::damaged_rows::DamagedRows;
use super::process::{OpeningLock, Process};
use super::queries::Queries;
use crate::ledger::LedgerError;
use crate::ledger::audit::{AuditKey, Head, head_file};
use crate::ledger::membership::Membership;
use crate::telemetry::Metrics;

static MIGRATIONS: Migrator = sqlx::migrate!("src/ledger/sqlite/migrations");

/// A ledger file that is ready to use.
pub(in crate::ledger) struct Opened {
    pub(in crate::ledger) store: SqliteStore,
    pub(in crate::ledger) connection: WriteHandle,
    pub(in crate::ledger) queries: Queries,
    /// Queries with connections of their own.
    pub(in crate::ledger) support: Queries,
    pub(in crate::ledger) membership: Arc<dyn Membership>,
    /// The newest link of the audit trail.
    pub(in crate::ledger) head: Head,
}

/// Opens a ledger file. Creates a missing one and migrates an older schema.
pub(in crate::ledger) async fn open(
    file: &Path,
    key_fingerprint: &[u8; 32],
    audit_key: &AuditKey,
    metrics: &Metrics,
) -> Result<Opened, LedgerError> {
    let unusable = |source| LedgerError::File { file: file.to_owned(), source };
    let failed = |source| LedgerError::Database { file: file.to_owned(), source };
    create_file(file).map_err(unusable)?;
    // Held until the schema is current: SQLite and sqlx do not serialize two first starts.
    let opening = OpeningLock::acquire(file).await.map_err(unusable)?;
    let options = write_options(file);
    let mut connection = SqliteConnection::connect_with(&options).await.map_err(failed)?;
    migrate(&mut connection).await.map_err(|error| match error {
        MigrateError::VersionMissing(_) | MigrateError::VersionTooNew(..) => {
            LedgerError::NewerSchema
        }
        other => failed(sqlx::Error::Migrate(Box::new(other))),
    })?;
    check_fingerprint(&mut connection, key_fingerprint)
        .await
        .map_err(failed)?
        .then_some(())
        .ok_or(LedgerError::OtherPseudonymKey)?;
    chain::fill_in_hashes(&mut connection, audit_key).await.map_err(failed)?;
    let head = chain::check_head_file(&mut connection, file).await?;
    drop(opening);
    let damaged = DamagedRows::new(metrics.clone());
    let (queries, support) = Queries::open(file, damaged).await.map_err(failed)?;
    let process = Process::register(file).map_err(unusable)?;
    head_file::remove_leftovers(file, |name| process.is_dead(name));
    Ok(Opened {
        store: SqliteStore::new(file),
        connection: WriteHandle::new(connection),
        queries,
        support,
        membership: Arc::new(process),
        head,
    })
}

/// Creates the file with access for its owner only, since it shows who reads what.
fn create_file(file: &Path) -> std::io::Result<()> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(file).map(drop)
}

async fn migrate(connection: &mut SqliteConnection) -> Result<(), MigrateError> {
    MIGRATIONS.run(connection).await
}

/// Compares the fingerprint of the pseudonym key with the stored one. A new ledger stores it.
async fn check_fingerprint(
    connection: &mut SqliteConnection,
    key: &[u8; 32],
) -> Result<bool, sqlx::Error> {
    sqlx::query(
        "INSERT INTO meta (name, value) VALUES ('pseudonym key', ?) ON CONFLICT DO NOTHING",
    )
    .bind(key.as_slice())
    .execute(&mut *connection)
    .await?;
    let stored: Vec<u8> = sqlx::query_scalar("SELECT value FROM meta WHERE name = 'pseudonym key'")
        .fetch_one(connection)
        .await?;
    Ok(stored == key)
}
