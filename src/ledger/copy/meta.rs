//! The rows of `meta` that a copy reads and writes: the mark, and the origins.

use sqlx::{Connection, PgConnection, SqliteConnection};

use super::exclusive::ExclusiveLedger;
use super::exclusive::ExclusiveLedger::{Postgres, Sqlite};
use super::mark::Mark;
use super::origin::{self, Origin};
use super::write::POSTGRES_BEGIN;
use crate::ledger::copy_mark::{COPIED_FROM, IN_PROGRESS};
use crate::ledger::{LedgerError, sqlite};

impl ExclusiveLedger {
    /// Returns the mark of a copy into this ledger.
    pub(super) async fn mark(&mut self) -> Result<Option<Vec<u8>>, LedgerError> {
        let rows = self.meta(IN_PROGRESS).await?;
        Ok(rows.into_iter().next().map(|(_, value)| value))
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
                let query = sqlx::query(origin::POSTGRES_ROWS).bind(like).persistent(false);
                let rows = query.fetch_all(&mut database.connection).await;
                rows.and_then(|rows| rows.iter().map(origin::named).collect())
            }
        };
        rows.map_err(|source| self.failed(source))
    }

    /// Inserts the first mark. From then on no gate opens the ledger.
    pub(super) async fn insert_mark(&mut self, mark: &Mark) -> Result<(), LedgerError> {
        let value = mark.to_bytes();
        let inserted = match self {
            Sqlite(file) => insert_sqlite(&mut file.connection, IN_PROGRESS, value).await,
            Postgres(database) => {
                insert_postgres(&mut database.connection, IN_PROGRESS, value).await
            }
        };
        inserted.map_err(|source| self.failed(source))
    }

    /// Removes the mark of a copy that has written nothing.
    pub(super) async fn remove_mark(&mut self) -> Result<(), LedgerError> {
        let removed = match self {
            Sqlite(file) => remove_sqlite(&mut file.connection).await,
            Postgres(database) => remove_postgres(&mut database.connection).await,
        };
        removed.map_err(|source| self.failed(source))
    }

    /// Replaces the mark by the origins of this ledger: gates may open it.
    pub(super) async fn complete(&mut self, origins: &[Origin]) -> Result<(), LedgerError> {
        let completed = match self {
            Sqlite(file) => complete_sqlite(&mut file.connection, origins).await,
            Postgres(database) => complete_postgres(&mut database.connection, origins).await,
        };
        completed.map_err(|source| self.failed(source))
    }
}

async fn insert_sqlite(
    connection: &mut SqliteConnection,
    name: &str,
    value: Vec<u8>,
) -> Result<(), sqlx::Error> {
    let insert = sqlx::query("INSERT INTO meta (name, value) VALUES (?, ?)");
    insert.bind(name).bind(value).execute(connection).await.map(drop)
}

async fn insert_postgres(
    connection: &mut PgConnection,
    name: &str,
    value: Vec<u8>,
) -> Result<(), sqlx::Error> {
    let insert = sqlx::query("INSERT INTO meta (name, value) VALUES ($1, $2)");
    insert.bind(name).bind(value).persistent(false).execute(connection).await.map(drop)
}

async fn complete_sqlite(
    connection: &mut SqliteConnection,
    origins: &[Origin],
) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin_with(sqlite::BEGIN).await?;
    for (name, origin) in numbered(origins) {
        insert_sqlite(&mut transaction, &name, origin.to_bytes()).await?;
    }
    remove_sqlite(&mut transaction).await?;
    transaction.commit().await
}

async fn remove_sqlite(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let delete = sqlx::query("DELETE FROM meta WHERE name = ?").bind(IN_PROGRESS);
    delete.execute(connection).await.map(drop)
}

async fn remove_postgres(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let delete = sqlx::query("DELETE FROM meta WHERE name = $1").bind(IN_PROGRESS);
    delete.persistent(false).execute(connection).await.map(drop)
}

async fn complete_postgres(
    connection: &mut PgConnection,
    origins: &[Origin],
) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin_with(POSTGRES_BEGIN).await?;
    for (name, origin) in numbered(origins) {
        insert_postgres(&mut transaction, &name, origin.to_bytes()).await?;
    }
    remove_postgres(&mut transaction).await?;
    transaction.commit().await
}

fn numbered(origins: &[Origin]) -> impl Iterator<Item = (String, &Origin)> {
    origins.iter().zip(1..).map(|(origin, number)| (format!("{COPIED_FROM}{number}"), origin))
}
