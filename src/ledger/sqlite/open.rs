//! Opening the ledger: the file, the schema, the fingerprint of the key, and the writing task.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tokio::sync::mpsc;

use super::connection::{BUSY, WriteConnection};
use super::damaged_rows::DamagedRows;
use super::process::{OpeningLock, Process};
use crate::clock::Clock;
use crate::ledger::executor::{self, Writer};
use crate::ledger::write_check::WriteTest;
use crate::ledger::{AuditKey, Ledger, LedgerError, Settings, audit};
use crate::telemetry::Metrics;

static MIGRATIONS: Migrator = sqlx::migrate!("src/ledger/sqlite/migrations");

/// The number of 4 KiB pages after which SQLite checkpoints the write-ahead log. The same pages
/// change repeatedly, so a longer log saves writes. A log of 16 MB is still recovered quickly after
/// a kill.
const CHECKPOINT_PAGES: &str = "4000";
/// The maximum number of commands that wait for the writing task.
const QUEUE_CAPACITY: usize = 4096;
/// The number of read connections, and how long a query waits for one.
const READ_CONNECTIONS: u32 = 4;
const READ_ACQUIRE_DEADLINE: Duration = Duration::from_secs(5);
/// The number of connections for support queries, which may scan many rows. It is below the number
/// of cores of most machines.
const SUPPORT_CONNECTIONS: u32 = 2;

impl Ledger {
    /// Opens the ledger. Creates a missing file and migrates an older schema.
    ///
    /// The first opening stores `key_fingerprint`, and each later one compares it. `audit_key` is
    /// the key of the audit trail.
    ///
    /// # Errors
    /// [`LedgerError`], a sentence that names the file. The gate must not start then.
    pub async fn open(
        settings: &Settings,
        key_fingerprint: &[u8; 32],
        audit_key: AuditKey,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Ledger, LedgerError> {
        let file = settings.file.as_path();
        let unusable = |source| LedgerError::File { file: file.to_owned(), source };
        create_file(file).map_err(unusable)?;
        let failed = |source| LedgerError::Database { file: file.to_owned(), source };
        let options = write_options(file);
        // Held until the schema is current: SQLite and sqlx do not serialize two first starts.
        let opening = OpeningLock::acquire(file).await.map_err(unusable)?;
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
        audit::fill_in_hashes(&mut connection, &audit_key).await.map_err(failed)?;
        let head = audit::check_head_file(&mut connection, file).await?;
        let opened_at = head.number;
        drop(opening);
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                // A file never disconnects, and the test costs a round trip to the connection's
                // thread.
                .test_before_acquire(false)
                .acquire_timeout(READ_ACQUIRE_DEADLINE)
        };
        let readers = pool(READ_CONNECTIONS)
            .connect_with(options.clone().read_only(true))
            .await
            .map_err(failed)?;
        let support = pool(SUPPORT_CONNECTIONS).connect_lazy_with(options.clone().read_only(true));
        let process = Process::register(file).map_err(unusable)?;
        let process = Arc::new(process);
        let (commands, waiting) = mpsc::channel(QUEUE_CAPACITY);
        audit::remove_leftovers(file, |name| process.is_dead(name));
        metrics.ledger_writable(true);
        let damaged = DamagedRows::new(metrics.clone());
        let write_test = WriteTest::new(metrics.clone());
        let key = audit_key.clone();
        let writer = Writer {
            connection: WriteConnection::new(options, connection),
            clock,
            metrics,
            process: process.clone(),
            brake: settings.brake,
            audit_key,
            file: file.to_owned(),
            in_doubt: Vec::new(),
            head: (head.number > 0).then_some(head),
            head_write_at: tokio::time::Instant::now(),
            head_write: None,
            logged_at: None,
            #[cfg(test)]
            fault: None,
        };
        tokio::spawn(executor::run(writer, waiting));
        let file = Arc::new(file.to_owned());
        Ok(Ledger {
            file,
            commands,
            readers,
            support,
            process,
            write_test,
            damaged,
            opened_at,
            audit_key: key,
        })
    }
}

/// Returns the options of write connections.
pub(in crate::ledger) fn write_options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        // Overwrite deleted data, so that free pages do not contain it.
        .pragma("secure_delete", "ON")
        .busy_timeout(BUSY)
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        .statement_cache_capacity(64)
        .disable_statement_logging()
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
