//! One side of a copy: a ledger of either store, while no gate runs.

use aws_lc_rs::digest::{Context, SHA256};
use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row as _, SqliteConnection};
use tokio::time::sleep;
use uuid::Uuid;

use super::Keys;
use super::read_postgres::postgres_rows;
use super::read_sqlite::{Rows, sqlite_rows};
use super::rows::{Position, Table};
use crate::ledger::accesses::ACCESS;
use crate::ledger::audit::head_record::NO_LOAN;
use crate::ledger::audit::{AuditKey, Head, Verified};
use crate::ledger::postgres::{
    ATTEMPTS, Deadlines, ExclusiveDatabase, RETRY_PAUSE, is_of_connection,
};
use crate::ledger::sqlite::{self, ExclusiveFile, read_head};
use crate::ledger::{LedgerError, RowsRead, StoreSettings, postgres};

/// A ledger that no gate uses.
pub(super) enum ExclusiveLedger {
    Sqlite(Box<ExclusiveFile>),
    Postgres(Box<ExclusiveDatabase>),
}

use ExclusiveLedger::{Postgres, Sqlite};

impl ExclusiveLedger {
    /// Returns whether a file or a database has a ledger. Creates nothing.
    pub(super) async fn exists(store: &StoreSettings) -> Result<bool, LedgerError> {
        match store {
            StoreSettings::Sqlite(file) => Ok(file.exists()),
            StoreSettings::Postgres(settings) => {
                ExclusiveDatabase::has_ledger(settings).await.map_err(LedgerError::Server)
            }
        }
    }

    /// Opens a ledger as a gate does, but also a half copied one. Creates a missing one.
    pub(super) async fn open(
        store: &StoreSettings,
        keys: &Keys,
        deadlines: Deadlines,
    ) -> Result<ExclusiveLedger, LedgerError> {
        Ok(match store {
            StoreSettings::Sqlite(file) => {
                Sqlite(Box::new(ExclusiveFile::open(file, &keys.fingerprint, &keys.audit).await?))
            }
            StoreSettings::Postgres(settings) => {
                let opened =
                    ExclusiveDatabase::open(settings, &keys.fingerprint, &keys.audit, deadlines);
                Postgres(Box::new(Box::pin(opened).await?))
            }
        })
    }

    /// Returns whether a file with steps has its head file. A database needs none.
    pub(super) async fn has_head_file(&mut self) -> Result<bool, LedgerError> {
        match self {
            Sqlite(file) => file.has_head_file().await,
            Postgres(_) => Ok(true),
        }
    }

    /// Returns the name of the store.
    pub(super) fn store(&self) -> &'static str {
        match self {
            Sqlite(_) => "SQLite",
            Postgres(_) => "PostgreSQL",
        }
    }

    /// Wraps an error of the database.
    pub(super) fn failed(&self, source: sqlx::Error) -> LedgerError {
        match self {
            Sqlite(file) => file.failed(source),
            Postgres(_) => LedgerError::Server(source),
        }
    }

    /// Returns whether no gate uses the ledger. Waits for gates that were killed.
    pub(super) async fn is_alone(
        &mut self,
        mut on_wait: impl FnMut(usize),
    ) -> Result<bool, LedgerError> {
        let database = match self {
            Sqlite(file) => return Ok(file.is_alone()),
            Postgres(database) => database,
        };
        // The connection may have been idle for so long that it is lost.
        let mut attempts = 0;
        loop {
            attempts += 1;
            match Box::pin(database.is_alone(&mut on_wait)).await {
                Err(error) if is_of_connection(&error) && attempts < ATTEMPTS => {
                    sleep(RETRY_PAUSE).await;
                }
                read => return read.map_err(LedgerError::Server),
            }
        }
    }

    /// Waits until no gate that did not leave delivers files. In SQLite, a gate that runs keeps the
    /// copy out.
    pub(super) async fn wait_for_silence(
        &mut self,
        on_wait: impl FnMut(usize),
    ) -> Result<(), LedgerError> {
        match self {
            Sqlite(_) => Ok(()),
            Postgres(database) => {
                Box::pin(database.wait_for_silence(on_wait)).await.map_err(LedgerError::Server)
            }
        }
    }

    /// Returns whether begins are closed, since the database lost steps.
    pub(super) async fn begins_are_closed(&mut self) -> Result<bool, LedgerError> {
        match self {
            Sqlite(_) => Ok(false),
            Postgres(database) => database.begins_are_closed().await.map_err(LedgerError::Server),
        }
    }

    /// Verifies the audit trail and compares every loan with its last step.
    pub(super) async fn verify(&mut self, key: &AuditKey) -> Result<Verified, LedgerError> {
        match self {
            Sqlite(file) => sqlite::verify(&file.file, key, &RowsRead::default()).await,
            Postgres(database) => {
                Box::pin(postgres::verify(&database.settings, key, &RowsRead::default())).await
            }
        }
    }

    /// Reads how far the ledger is written.
    pub(super) async fn extent(&mut self) -> Result<Extent, LedgerError> {
        let extent = match self {
            Sqlite(file) => extent_of_file(&mut file.connection).await,
            Postgres(database) => database.read_table(extent_of_chains).await,
        };
        extent.map_err(|source| self.failed(source))
    }

    /// Seals the chains with this name, if the store has a chain for each library.
    pub(super) async fn seal_chains(
        &mut self,
        chain: Uuid,
        key: &AuditKey,
    ) -> Result<(), LedgerError> {
        match self {
            Sqlite(_) => Ok(()),
            Postgres(database) => {
                let seal = async |connection: &mut PgConnection| {
                    postgres::seal_copied(connection, chain, key).await
                };
                database.write(seal).await.map_err(LedgerError::Server)
            }
        }
    }

    /// Writes the newest link where the store keeps it outside of the database.
    pub(super) async fn write_head_file(&mut self) -> Result<(), LedgerError> {
        match self {
            Sqlite(file) => file.write_head_file().await,
            Postgres(_) => Ok(()),
        }
    }

    /// Counts the rows of a table.
    pub(super) async fn count(&mut self, table: Table) -> Result<u64, LedgerError> {
        self.count_by(format!("SELECT count(*) FROM {}", table.sql_name())).await
    }

    /// Counts the rows of a table that are copied. A head record belongs to no loan, and is not.
    pub(super) async fn count_copied(&mut self, table: Table) -> Result<u64, LedgerError> {
        let which = match table {
            Table::Steps => format!("loan NOT IN ('{NO_LOAN}', '{ACCESS}')"),
            Table::Accesses => format!("loan = '{ACCESS}'"),
            Table::Loans | Table::Delivered | Table::Doubts | Table::Reports => {
                return self.count(table).await;
            }
        };
        self.count_by(format!("SELECT count(*) FROM {} WHERE {which}", table.sql_name())).await
    }

    async fn count_by(&mut self, sql: String) -> Result<u64, LedgerError> {
        let count: Result<i64, sqlx::Error> = match self {
            Sqlite(file) => {
                let query = sqlx::query_scalar(AssertSqlSafe(sql));
                query.fetch_one(&mut file.connection).await
            }
            Postgres(database) => {
                let count = async |connection: &mut PgConnection| {
                    let query = sqlx::query_scalar(AssertSqlSafe(sql.clone())).persistent(false);
                    query.fetch_one(connection).await
                };
                database.read_table(count).await
            }
        };
        count.map(i64::unsigned_abs).map_err(|source| self.failed(source))
    }

    /// Begins a snapshot for [`ExclusiveLedger::rows`], in SQLite.
    pub(super) async fn begin_reading(&mut self) -> Result<(), LedgerError> {
        self.execute("BEGIN").await
    }

    /// Ends the snapshot.
    pub(super) async fn end_reading(&mut self) -> Result<(), LedgerError> {
        self.execute("ROLLBACK").await
    }

    async fn execute(&mut self, sqlite: &'static str) -> Result<(), LedgerError> {
        let executed = match self {
            Sqlite(file) => sqlx::raw_sql(sqlite).execute(&mut file.connection).await.map(drop),
            Postgres(_) => Ok(()),
        };
        executed.map_err(|source| self.failed(source))
    }

    /// Reads the rows of a table after a position. PostgreSQL returns pages of `page` rows.
    pub(super) fn rows<'a>(
        &'a mut self,
        table: Table,
        after: &Position,
        page: usize,
        key: &'a AuditKey,
    ) -> Rows<'a> {
        match self {
            Sqlite(file) => {
                let path = file.file.clone();
                let failed = move |source| LedgerError::Database { file: path.clone(), source };
                sqlite_rows(&mut file.connection, failed, table, after, key)
            }
            Postgres(database) => postgres_rows(database, table, after, page, key),
        }
    }

    /// Closes the connection, with which SQLite checkpoints its log.
    pub(super) async fn close(self) {
        match self {
            Sqlite(file) => drop(file.connection.close().await),
            Postgres(database) => database.close().await,
        }
    }
}

/// How far a ledger is written. It differs after each transaction of a gate on loans.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Extent {
    /// The newest link. With several chains, the sum of their numbers and a hash of their links.
    pub(super) head: Head,
    /// The number of transactions, some of which write no step. Zero in SQLite, where the copy
    /// keeps gates out by a lock.
    transactions: i64,
}

pub(super) async fn extent_of_file(
    connection: &mut SqliteConnection,
) -> Result<Extent, sqlx::Error> {
    Ok(Extent { head: read_head(connection).await?, transactions: 0 })
}

pub(super) async fn extent_of_chains(connection: &mut PgConnection) -> Result<Extent, sqlx::Error> {
    let sql = "SELECT library, chain, batch, number, mac FROM chains ORDER BY library, chain";
    let mut rows = sqlx::query(sql).persistent(false).fetch(connection);
    let (mut number, mut transactions, mut hash) = (0_i64, 0_i64, Context::new(&SHA256));
    while let Some(row) = rows.try_next().await? {
        let (library, chain): (String, Uuid) = (row.try_get("library")?, row.try_get("chain")?);
        let (last, mac): (i64, Vec<u8>) = (row.try_get("number")?, row.try_get("mac")?);
        transactions = transactions.wrapping_add(row.try_get("batch")?);
        if last == 0 {
            continue;
        }
        number = number.wrapping_add(last);
        for part in [library.as_bytes(), chain.as_bytes(), &last.to_be_bytes(), &mac] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
    }
    let head = Head { number, mac: hash.finish().as_ref().to_vec() };
    Ok(Extent { head, transactions })
}
