//! Pauses of lending. See `ledger::pauses`.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::queries::Queries;
use super::session::prepares;
use super::sql::statement;
use crate::ledger::LedgerError;
use crate::ledger::pauses::{
    IS_PAUSED, LIST, PAUSE, PAUSED, Pause, PauseChange, RESUME, name_of, pause_of,
};
use crate::loan::LibraryId;

impl Queries {
    pub(in crate::ledger) async fn pauses(&self) -> Result<Vec<Pause>, LedgerError> {
        let rows = self.background_rows(statement(LIST)).await?;
        let pause = |row: &PgRow| {
            let (name, value): (String, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
            Ok::<_, sqlx::Error>(pause_of(&name, &value))
        };
        rows.iter().map(pause).collect::<Result<_, _>>().map_err(LedgerError::Server)
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

pub(super) async fn set(
    connection: &mut PgConnection,
    change: &PauseChange,
) -> Result<bool, sqlx::Error> {
    let change = match &change.value {
        Some(value) => sqlx::query(PAUSE).bind(change.name.clone()).bind(value.clone()),
        None => sqlx::query(RESUME).bind(change.name.clone()),
    };
    Ok(change.persistent(false).execute(connection).await?.rows_affected() > 0)
}
