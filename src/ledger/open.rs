//! Opening the ledger: the file, the schema, the key's fingerprint, and the task that writes.

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
use super::process::{Opening, Process};
use super::write::{self, Writer};
use super::write_check::WriteTest;
use super::{AuditKey, Ledger, LedgerError, Settings, audit};
use crate::clock::Clock;
use crate::telemetry::Metrics;

static MIGRATIONS: Migrator = sqlx::migrate!("src/ledger/migrations");

/// After how many pages of 4 KiB the write-ahead log is folded into the file. The same pages change
/// again and again, and the longer the log, the fewer of them are written twice; at 16 MB it is
/// still read within a moment after a kill.
const FOLDED_AT: &str = "4000";
/// How many commands may wait for the writer.
const QUEUE: usize = 4096;
/// Connections that only read, and how long a query waits for one of them.
const READERS: u32 = 4;
const READER_DEADLINE: Duration = Duration::from_secs(5);
/// Connections of support queries, which may scan many rows: fewer than there are cores on most
/// machines.
const SUPPORT_READERS: u32 = 2;

impl Ledger {
    /// Opens the ledger, makes it where there is none, and brings its schema up to date.
    ///
    /// `key_fingerprint` is written at the first opening and compared at every later one;
    /// `audit_key` is that of the chain of steps.
    ///
    /// # Errors
    /// [`LedgerError`], in a sentence that names the file; the gate must then not start.
    pub async fn open(
        settings: &Settings,
        key_fingerprint: &[u8; 32],
        audit_key: AuditKey,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Ledger, LedgerError> {
        let file = settings.file.as_path();
        let unusable = |source| LedgerError::File { file: file.to_owned(), source };
        make(file).map_err(unusable)?;
        let failed = |source| LedgerError::Database { file: file.to_owned(), source };
        let options = write_options(file);
        // Until the schema is up to date: neither SQLite nor sqlx keeps two first starts apart.
        let opening = Opening::acquire(file).await.map_err(unusable)?;
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
        audit::fill_in(&mut connection, &audit_key).await.map_err(failed)?;
        let head = audit::opened(&mut connection, file).await?;
        let opened_at = head.number;
        drop(opening);
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                // A file does not hang up; the test would double the ways to the connection's
                // thread.
                .test_before_acquire(false)
                .acquire_timeout(READER_DEADLINE)
        };
        let readers =
            pool(READERS).connect_with(options.clone().read_only(true)).await.map_err(failed)?;
        let support = pool(SUPPORT_READERS).connect_lazy_with(options.clone().read_only(true));
        let process = Process::enter(file).map_err(unusable)?;
        let process = Arc::new(process);
        let (commands, waiting) = mpsc::channel(QUEUE);
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
            keep_at: tokio::time::Instant::now(),
            keeping: None,
            logged_at: None,
            #[cfg(test)]
            fault: None,
        };
        tokio::spawn(write::run(writer, waiting));
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

/// How connections that write are opened.
pub(super) fn write_options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        // What is deleted is overwritten, and does not stay behind in free pages.
        .pragma("secure_delete", "ON")
        .busy_timeout(BUSY)
        .pragma("wal_autocheckpoint", FOLDED_AT)
        .statement_cache_capacity(64)
        .disable_statement_logging()
}

/// Makes the file for its owner alone: it tells who reads what.
fn make(file: &Path) -> std::io::Result<()> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(file).map(drop)
}

async fn migrate(connection: &mut SqliteConnection) -> Result<(), MigrateError> {
    MIGRATIONS.run(connection).await
}

/// Whether the ledger is of this pseudonym key; a new one becomes so.
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
    let kept: Vec<u8> = sqlx::query_scalar("SELECT value FROM meta WHERE name = 'pseudonym key'")
        .fetch_one(connection)
        .await?;
    Ok(kept == key)
}
