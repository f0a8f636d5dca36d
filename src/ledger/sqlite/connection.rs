//! Write connections of SQLite.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, SqliteConnection};
use tokio::time::timeout;

use super::transaction::SqliteTransaction;
#[cfg(test)]
use crate::ledger::store::DiskFault;
use crate::ledger::store::{LastCommit, LedgerStore, StoreConnection};
use crate::loan::LibraryId;

/// How long a write waits for another process's transaction, for example during an upgrade.
const BUSY: Duration = Duration::from_secs(10);
/// How long an attempt to reopen waits for another writer.
const REOPEN_BUSY: Duration = Duration::from_secs(1);
/// The number of 4 KiB pages after which SQLite checkpoints the write-ahead log. The same pages
/// change repeatedly, so a longer log saves writes. A log of 16 MB is still recovered quickly after
/// a kill.
const CHECKPOINT_PAGES: &str = "4000";
/// The deadline of each statement at the end of this process.
const FINISH_DEADLINE: Duration = Duration::from_secs(5);
/// The size of the probe row.
const PROBE_BYTES: usize = 32 << 10;

/// A ledger file, as the source of write connections.
pub(in crate::ledger) struct SqliteStore {
    file: PathBuf,
}

impl SqliteStore {
    pub(super) fn new(file: &Path) -> SqliteStore {
        SqliteStore { file: file.to_owned() }
    }
}

impl LedgerStore for SqliteStore {
    type Connection = WriteHandle;

    const SPANS_LIBRARIES: bool = true;
    const RECORDS_COMMITS: bool = false;
    const TRANSACTION_DEADLINE: Duration = Duration::from_secs(20);
    const MAX_COMMANDS: usize = 512;
    // A statement costs no round trip.
    const WORK_LIMIT: Duration = Duration::MAX;

    fn is_of_connection(_error: &sqlx::Error) -> bool {
        false
    }

    async fn connect(&self, now: Timestamp) -> Result<WriteHandle, sqlx::Error> {
        let mut connection = write_options(&self.file).busy_timeout(REOPEN_BUSY).connect().await?;
        let mut transaction = connection.begin_with(BEGIN).await?;
        write_probe(&mut transaction, now).await?;
        transaction.commit().await?;
        let busy = format!("PRAGMA busy_timeout = {}", BUSY.as_millis());
        sqlx::query(AssertSqlSafe(busy)).execute(&mut connection).await?;
        Ok(WriteHandle::new(connection))
    }
}

/// Takes the write lock at once: a transaction that reads first could fail to write later.
pub(in crate::ledger) const BEGIN: &str = "BEGIN IMMEDIATE";

/// A connection that writes.
pub(in crate::ledger) struct WriteHandle {
    connection: SqliteConnection,
    /// The fault to simulate in the next transaction.
    #[cfg(test)]
    fault: Option<DiskFault>,
}

impl WriteHandle {
    pub(super) fn new(connection: SqliteConnection) -> WriteHandle {
        WriteHandle {
            connection,
            #[cfg(test)]
            fault: None,
        }
    }
}

impl StoreConnection for WriteHandle {
    type Transaction<'a> = SqliteTransaction<'a>;

    async fn begin(
        &mut self,
        _library: Option<LibraryId>,
    ) -> Result<SqliteTransaction<'_>, sqlx::Error> {
        #[cfg(test)]
        let fault = self.fault.take();
        let transaction = SqliteTransaction::new(self.connection.begin_with(BEGIN).await?);
        #[cfg(test)]
        let transaction = transaction.with_fault(fault);
        Ok(transaction)
    }

    async fn last_commit(
        &mut self,
        _library: Option<LibraryId>,
    ) -> Result<LastCommit, sqlx::Error> {
        Ok(LastCommit::Unknown)
    }

    /// Checkpoints the write-ahead log, so that the database file alone is a complete copy.
    async fn finish(&mut self) {
        for statement in ["PRAGMA optimize", "PRAGMA wal_checkpoint(TRUNCATE)"] {
            let executed = sqlx::query(statement).execute(&mut self.connection);
            let error = match timeout(FINISH_DEADLINE, executed).await {
                Ok(Ok(_)) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no response within {} s", FINISH_DEADLINE.as_secs()),
            };
            tracing::warn!(%error, statement, "cannot checkpoint the ledger on closing");
        }
    }

    async fn close(self) {
        let _ = self.connection.close().await;
    }

    #[cfg(test)]
    async fn inject(&mut self, fault: DiskFault) {
        match fault {
            // The limit holds for this connection only. SQLite raises it to the current page count.
            DiskFault::Full => {
                let limit = sqlx::query("PRAGMA max_page_count = 1");
                limit.execute(&mut self.connection).await.unwrap();
            }
            other => self.fault = Some(other),
        }
    }
}

/// Returns the options of write connections.
pub(super) fn write_options(file: &Path) -> SqliteConnectOptions {
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

/// Writes a probe row, to test that the ledger can be written. The row is larger than a usual batch
/// of loans, so the test does not succeed on a disk where the next loan would fail.
pub(super) async fn write_probe(
    connection: &mut SqliteConnection,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    let mut value = vec![0; PROBE_BYTES];
    value.extend_from_slice(&now.as_millisecond().to_be_bytes());
    sqlx::query(
        "INSERT INTO meta (name, value) VALUES ('last write test', ?) \
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .bind(value)
    .execute(connection)
    .await
    .map(drop)
}
