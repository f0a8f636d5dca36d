//! The rows of `meta` that a copy reads and writes, in both stores: the marks, and the origins.

use jiff::Timestamp;
use sqlx::{Connection, PgConnection, SqliteConnection};

use super::exclusive::ExclusiveLedger;
use super::exclusive::ExclusiveLedger::{Postgres, Sqlite};
use super::exclusive::{Extent, extent_of_chains, extent_of_file};
use super::mark::Mark;
use super::origin::{self, Origin};
use crate::ledger::copy_mark::{BEING_COPIED, COPIED_FROM, IN_PROGRESS, MOVED};
use crate::ledger::pauses::PAUSED;
use crate::ledger::postgres::lock_to_mark;
use crate::ledger::reports::RECONCILED;
use crate::ledger::{LedgerError, postgres, sqlite};

/// SQLite also reads parameters of this form.
const FIND: &str = "SELECT value FROM meta WHERE name = $1";
const INSERT: &str = "INSERT INTO meta (name, value) VALUES ($1, $2)";
const REPLACE: &str = "UPDATE meta SET value = $3 WHERE name = $1 AND value = $2";
const REMOVE: &str = "DELETE FROM meta WHERE name = $1 AND value = $2";
const REMOVE_LIKE: &str = "DELETE FROM meta WHERE name LIKE $1";

/// The table in a transaction that writes.
pub(super) enum Meta<'a> {
    Sqlite(&'a mut SqliteConnection),
    Postgres(&'a mut PgConnection),
}

impl Meta<'_> {
    pub(super) async fn find(&mut self, name: &str) -> Result<Option<Vec<u8>>, sqlx::Error> {
        match self {
            Meta::Sqlite(connection) => {
                let query = sqlx::query_scalar(FIND).bind(name);
                query.fetch_optional(&mut **connection).await
            }
            Meta::Postgres(connection) => {
                let query = sqlx::query_scalar(FIND).bind(name).persistent(false);
                query.fetch_optional(&mut **connection).await
            }
        }
    }

    pub(super) async fn insert(&mut self, name: &str, value: &[u8]) -> Result<(), sqlx::Error> {
        self.execute(INSERT, name, &[value]).await.map(drop)
    }

    /// Replaces a row that has the value `old`. Returns whether it had.
    pub(super) async fn replace(
        &mut self,
        name: &str,
        [old, new]: [&[u8]; 2],
    ) -> Result<bool, sqlx::Error> {
        self.execute(REPLACE, name, &[old, new]).await.map(|rows| rows > 0)
    }

    /// Removes a row that has this value. Returns whether it had.
    pub(super) async fn remove(&mut self, name: &str, value: &[u8]) -> Result<bool, sqlx::Error> {
        self.execute(REMOVE, name, &[value]).await.map(|rows| rows > 0)
    }

    /// Removes a row, whatever its value is. Returns the value.
    pub(super) async fn take(&mut self, name: &str) -> Result<Option<Vec<u8>>, sqlx::Error> {
        let value = self.find(name).await?;
        if let Some(value) = &value {
            self.remove(name, value).await?;
        }
        Ok(value)
    }

    /// Changes the ledger as one that may lack its newest steps.
    pub(super) async fn assume_lost_steps(&mut self, now: Timestamp) -> Result<(), sqlx::Error> {
        let passed = match self {
            Meta::Sqlite(connection) => sqlite::assume_lost_steps(connection, now).await,
            Meta::Postgres(connection) => postgres::assume_lost_steps(connection).await,
        };
        passed.map(drop)
    }

    /// Reads how far the ledger is written, which does not change until the end of the transaction.
    pub(super) async fn extent(&mut self) -> Result<Extent, sqlx::Error> {
        match self {
            Meta::Sqlite(connection) => extent_of_file(connection).await,
            Meta::Postgres(connection) => extent_of_chains(connection).await,
        }
    }

    /// Removes the rows whose names begin like this.
    async fn remove_all(&mut self, beginning: &str) -> Result<(), sqlx::Error> {
        self.execute(REMOVE_LIKE, &format!("{beginning}%"), &[]).await.map(drop)
    }

    async fn execute(
        &mut self,
        sql: &'static str,
        name: &str,
        values: &[&[u8]],
    ) -> Result<u64, sqlx::Error> {
        match self {
            Meta::Sqlite(connection) => {
                let query = values
                    .iter()
                    .fold(sqlx::query(sql).bind(name), |query, value| query.bind(*value));
                query.execute(&mut **connection).await.map(|done| done.rows_affected())
            }
            Meta::Postgres(connection) => {
                let query = values
                    .iter()
                    .fold(sqlx::query(sql).bind(name), |query, value| query.bind(*value));
                let query = query.persistent(false);
                query.execute(&mut **connection).await.map(|done| done.rows_affected())
            }
        }
    }
}

impl ExclusiveLedger {
    /// Returns the mark of a copy into this ledger.
    pub(super) async fn mark(&mut self) -> Result<Option<Vec<u8>>, LedgerError> {
        self.find_meta(IN_PROGRESS).await
    }

    /// Returns whether this ledger has a mark of being copied or moved.
    pub(super) async fn has_source_mark(&mut self) -> Result<bool, LedgerError> {
        let is_copied = self.find_meta(BEING_COPIED).await?.is_some();
        Ok(is_copied || self.find_meta(MOVED).await?.is_some())
    }

    /// Returns the value of a row.
    pub(super) async fn find_meta(&mut self, name: &str) -> Result<Option<Vec<u8>>, LedgerError> {
        Ok(self.meta(name).await?.into_iter().next().map(|(_, value)| value))
    }

    /// Returns where this ledger was copied from.
    pub(super) async fn origins(&mut self) -> Result<Vec<(String, Vec<u8>)>, LedgerError> {
        self.meta(&format!("{COPIED_FROM}%")).await
    }

    async fn meta(&mut self, like: &str) -> Result<Vec<(String, Vec<u8>)>, LedgerError> {
        let rows = match self {
            Sqlite(file) => {
                let query = sqlx::query(origin::SQLITE_ROWS).bind(like);
                let rows = query.fetch_all(&mut file.connection).await;
                rows.and_then(|rows| rows.iter().map(origin::named).collect())
            }
            Postgres(database) => {
                let read = async |connection: &mut PgConnection| {
                    let query = sqlx::query(origin::POSTGRES_ROWS).bind(like).persistent(false);
                    let rows = query.fetch_all(connection).await?;
                    rows.iter().map(origin::named).collect()
                };
                database.read(read).await
            }
        };
        rows.map_err(|source| self.failed(source))
    }

    /// Changes `meta` in one transaction, while nothing is pruned.
    pub(super) async fn change_meta<T>(
        &mut self,
        work: impl AsyncFn(&mut Meta<'_>) -> Result<T, sqlx::Error>,
    ) -> Result<T, LedgerError> {
        let changed = match self {
            Sqlite(file) => change_sqlite(&mut file.connection, work).await,
            Postgres(database) => {
                let change = async |connection: &mut PgConnection| {
                    lock_to_mark(connection).await?;
                    work(&mut Meta::Postgres(connection)).await
                };
                database.write(change).await
            }
        };
        changed.map_err(|source| self.failed(source))
    }

    /// Inserts the first mark. From then on no gate opens the ledger. An empty ledger may have been
    /// the source of an earlier copy.
    pub(super) async fn insert_mark(&mut self, mark: &Mark) -> Result<(), LedgerError> {
        self.change_meta(async |meta| {
            meta.insert(IN_PROGRESS, &mark.to_bytes()).await?;
            // It may also have been a copy itself, before it was emptied.
            meta.remove_all(COPIED_FROM).await?;
            meta.take(BEING_COPIED).await?;
            meta.take(MOVED).await.map(drop)
        })
        .await
    }

    /// Removes the mark of a copy that has written nothing, unless another copy has replaced it.
    pub(super) async fn remove_mark(&mut self, mark: &Mark) -> Result<(), LedgerError> {
        let remove =
            self.change_meta(async |meta| meta.remove(IN_PROGRESS, &mark.to_bytes()).await);
        remove.await.map(drop)
    }

    /// Returns the rows of the pauses of lending.
    pub(super) async fn pauses(&mut self) -> Result<Vec<(String, Vec<u8>)>, LedgerError> {
        self.meta(&format!("{PAUSED}%")).await
    }

    /// Replaces the mark by the origins of this ledger: gates may open it. `reconciled` is the row
    /// of that name in the source, and `pauses` are its pauses of lending. Returns false
    /// if another copy has replaced the mark.
    pub(super) async fn complete(
        &mut self,
        mark: &Mark,
        origins: &[Origin],
        reconciled: Option<&[u8]>,
        pauses: &[(String, Vec<u8>)],
    ) -> Result<bool, LedgerError> {
        self.change_meta(async |meta| {
            if !meta.remove(IN_PROGRESS, &mark.to_bytes()).await? {
                return Ok(false);
            }
            meta.take(RECONCILED).await?;
            if let Some(reconciled) = reconciled {
                meta.insert(RECONCILED, reconciled).await?;
            }
            meta.remove_all(PAUSED).await?;
            for (name, pause) in pauses {
                meta.insert(name, pause).await?;
            }
            for (name, origin) in numbered(origins) {
                meta.insert(&name, &origin.to_bytes()).await?;
            }
            Ok(true)
        })
        .await
    }
}

async fn change_sqlite<T>(
    connection: &mut SqliteConnection,
    work: impl AsyncFn(&mut Meta<'_>) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    let mut transaction = connection.begin_with(sqlite::BEGIN).await?;
    let changed = work(&mut Meta::Sqlite(&mut transaction)).await?;
    transaction.commit().await?;
    Ok(changed)
}

fn numbered(origins: &[Origin]) -> impl Iterator<Item = (String, &Origin)> {
    origins.iter().zip(1..).map(|(origin, number)| (format!("{COPIED_FROM}{number}"), origin))
}
