//! One side of a copy: a ledger of either store, while no gate runs.

use aws_lc_rs::digest::{Context, SHA256};
use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row as _};
use uuid::Uuid;

use super::Keys;
use super::read::{Rows, postgres_rows, sqlite_rows};
use super::rows::{Position, Table};
use crate::ledger::audit::{AuditKey, Head, Verified};
use crate::ledger::postgres::ExclusiveDatabase;
use crate::ledger::sqlite::{self, ExclusiveFile, read_head};
use crate::ledger::{LedgerError, StoreSettings, postgres};

/// A snapshot for as long as the tables are large.
const POSTGRES_READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
     SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0";

/// A ledger that no gate uses.
pub(super) enum ExclusiveLedger {
    Sqlite(ExclusiveFile),
    Postgres(Box<ExclusiveDatabase>),
}

use ExclusiveLedger::{Postgres, Sqlite};

impl ExclusiveLedger {
    /// Opens a ledger as a gate does, but also a half copied one. Creates a missing one.
    pub(super) async fn open(
        store: &StoreSettings,
        keys: &Keys,
    ) -> Result<ExclusiveLedger, LedgerError> {
        Ok(match store {
            StoreSettings::Sqlite(file) => {
                Sqlite(ExclusiveFile::open(file, &keys.fingerprint, &keys.audit).await?)
            }
            StoreSettings::Postgres(settings) => {
                let opened = ExclusiveDatabase::open(settings, &keys.fingerprint, &keys.audit);
                Postgres(Box::new(Box::pin(opened).await?))
            }
        })
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
        on_wait: impl FnMut(usize),
    ) -> Result<bool, LedgerError> {
        match self {
            Sqlite(file) => Ok(file.is_alone()),
            Postgres(database) => {
                Box::pin(database.is_alone(on_wait)).await.map_err(LedgerError::Server)
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
            Sqlite(file) => sqlite::verify(&file.file, key).await,
            Postgres(database) => Box::pin(postgres::verify(&database.settings, key)).await,
        }
    }

    /// Returns the newest link. With several chains, the sum of their numbers and a hash of their
    /// links.
    pub(super) async fn head(&mut self) -> Result<Head, LedgerError> {
        let head = match self {
            Sqlite(file) => read_head(&mut file.connection).await,
            Postgres(database) => head_of_chains(&mut database.connection).await,
        };
        head.map_err(|source| self.failed(source))
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
                let sealed = postgres::seal_copied(&mut database.connection, chain, key).await;
                sealed.map_err(LedgerError::Server)
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

    pub(super) async fn count(&mut self, table: Table) -> Result<u64, LedgerError> {
        let sql = AssertSqlSafe(format!("SELECT count(*) FROM {}", table.sql_name()));
        let count: Result<i64, sqlx::Error> = match self {
            Sqlite(file) => sqlx::query_scalar(sql).fetch_one(&mut file.connection).await,
            Postgres(database) => {
                let query = sqlx::query_scalar(sql).persistent(false);
                query.fetch_one(&mut database.connection).await
            }
        };
        count.map(i64::unsigned_abs).map_err(|source| self.failed(source))
    }

    /// Begins a snapshot for [`ExclusiveLedger::rows`].
    pub(super) async fn begin_reading(&mut self) -> Result<(), LedgerError> {
        self.execute("BEGIN", POSTGRES_READ).await
    }

    /// Ends the snapshot.
    pub(super) async fn end_reading(&mut self) -> Result<(), LedgerError> {
        self.execute("ROLLBACK", "ROLLBACK").await
    }

    async fn execute(
        &mut self,
        sqlite: &'static str,
        postgres: &'static str,
    ) -> Result<(), LedgerError> {
        let executed = match self {
            Sqlite(file) => sqlx::raw_sql(sqlite).execute(&mut file.connection).await.map(drop),
            Postgres(database) => {
                sqlx::raw_sql(postgres).execute(&mut database.connection).await.map(drop)
            }
        };
        executed.map_err(|source| self.failed(source))
    }

    /// Reads the rows of a table after a position.
    pub(super) fn rows<'a>(
        &'a mut self,
        table: Table,
        after: &Position,
        key: &'a AuditKey,
    ) -> Rows<'a> {
        match self {
            Sqlite(file) => {
                let path = file.file.clone();
                let failed = move |source| LedgerError::Database { file: path.clone(), source };
                sqlite_rows(&mut file.connection, failed, table, after, key)
            }
            Postgres(database) => postgres_rows(&mut database.connection, table, after, key),
        }
    }

    /// Closes the connection, with which SQLite checkpoints its log.
    pub(super) async fn close(self) {
        let _ = match self {
            Sqlite(file) => file.connection.close().await,
            Postgres(database) => database.connection.close().await,
        };
    }
}

async fn head_of_chains(connection: &mut PgConnection) -> Result<Head, sqlx::Error> {
    let sql = "SELECT library, chain, number, mac FROM chains WHERE number > 0 \
         ORDER BY library, chain";
    let mut rows = sqlx::query(sql).persistent(false).fetch(connection);
    let (mut number, mut hash) = (0, Context::new(&SHA256));
    while let Some(row) = rows.try_next().await? {
        let (library, chain): (String, Uuid) = (row.try_get("library")?, row.try_get("chain")?);
        let (last, mac): (i64, Vec<u8>) = (row.try_get("number")?, row.try_get("mac")?);
        number += last;
        for part in [library.as_bytes(), chain.as_bytes(), &last.to_be_bytes(), &mac] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
    }
    Ok(Head { number, mac: hash.finish().as_ref().to_vec() })
}
