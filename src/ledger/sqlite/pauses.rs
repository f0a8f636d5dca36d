//! Pauses of lending. See `ledger::pauses`.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::queries::Queries;
use crate::ledger::LedgerError;
use crate::ledger::pauses::{IS_PAUSED, LIST, PAUSED, Pause, PauseChange, name_of, pause_of};
use crate::loan::LibraryId;

const PAUSE: &str = "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING";
const RESUME: &str = "DELETE FROM meta WHERE name = ?";

impl Queries {
    pub(in crate::ledger) async fn pauses(&self) -> Result<Vec<Pause>, LedgerError> {
        let rows = self.rows(sqlx::query(LIST)).await?;
        let pause = |row: &SqliteRow| {
            let (name, value): (String, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
            Ok(pause_of(&name, &value))
        };
        let pauses: Result<Vec<_>, sqlx::Error> = rows.iter().map(pause).collect();
        Ok(pauses.map_err(|source| self.failed(source))?.into_iter().flatten().collect())
    }
}

pub(super) async fn is_paused(
    connection: &mut SqliteConnection,
    library: LibraryId,
) -> Result<bool, sqlx::Error> {
    let query = sqlx::query(IS_PAUSED).bind(PAUSED).bind(name_of(Some(library)));
    Ok(query.fetch_optional(connection).await?.is_some())
}

pub(super) async fn set(
    connection: &mut SqliteConnection,
    change: &PauseChange,
) -> Result<bool, sqlx::Error> {
    let change = match &change.value {
        Some(value) => sqlx::query(PAUSE).bind(change.name.clone()).bind(value.clone()),
        None => sqlx::query(RESUME).bind(change.name.clone()),
    };
    Ok(change.execute(connection).await?.rows_affected() > 0)
}
