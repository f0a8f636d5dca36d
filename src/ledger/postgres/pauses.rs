//! Pauses of lending. See `ledger::pauses`.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::copy_marks::IS_MOVED;
use super::queries::Queries;
use super::session::prepares;
use super::sql::statement;
use crate::ledger::LedgerError;
use crate::ledger::pauses::{IS_PAUSED, LIST, PAUSED, Pause, PauseChange, name_of, pause_of};
use crate::loan::LibraryId;

impl Queries {
    pub(in crate::ledger) async fn pauses(&self) -> Result<Vec<Pause>, LedgerError> {
        let rows = self.background_rows(statement(LIST)).await?;
        let pause = |row: &PgRow| {
            let (name, value): (String, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
            Ok::<_, sqlx::Error>(pause_of(&name, &value))
        };
        let pauses = rows.iter().map(pause).collect::<Result<Vec<_>, _>>();
        Ok(pauses.map_err(LedgerError::Server)?.into_iter().flatten().collect())
    }
}

pub(super) async fn is_paused(
    connection: &mut PgConnection,
    library: LibraryId,
) -> Result<bool, sqlx::Error> {
    let query = sqlx::query(IS_PAUSED).bind(PAUSED).bind(name_of(Some(library)));
    let query = query.persistent(prepares(connection));
    Ok(query.fetch_optional(connection).await?.is_some())
}

/// Each transaction of intents has written a row of `chains` before it reads the pauses.
/// So the change waits for those that run, and later ones see it.
const LOCK: &str = "LOCK TABLE chains IN SHARE MODE";

/// Changes a pause. Returns none in a ledger that was moved: no gate writes to it.
pub(super) async fn set(
    connection: &mut PgConnection,
    change: &PauseChange,
) -> Result<Option<bool>, sqlx::Error> {
    sqlx::query(LOCK).persistent(false).execute(&mut *connection).await?;
    let query = match &change.value {
        Some(value) => {
            let insert = format!(
                "INSERT INTO meta (name, value) SELECT $1, $2 WHERE NOT {IS_MOVED} \
                 ON CONFLICT (name) DO NOTHING"
            );
            sqlx::query(AssertSqlSafe(insert)).bind(change.name.clone()).bind(value.clone())
        }
        None => {
            let delete = format!("DELETE FROM meta WHERE name = $1 AND NOT {IS_MOVED}");
            sqlx::query(AssertSqlSafe(delete)).bind(change.name.clone())
        }
    };
    if query.persistent(false).execute(&mut *connection).await?.rows_affected() > 0 {
        return Ok(Some(true));
    }
    let is_moved = sqlx::query_scalar(AssertSqlSafe(format!("SELECT {IS_MOVED}")));
    let is_moved: bool = is_moved.persistent(false).fetch_one(connection).await?;
    Ok((!is_moved).then_some(false))
}
