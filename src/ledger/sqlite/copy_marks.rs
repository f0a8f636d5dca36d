//! The marks of a copy, as a gate and pruning read them.

use sqlx::{Row, SqliteConnection};

use crate::ledger::copy_mark::{BEING_COPIED, MARKS, Marks};

/// Reads the marks of this ledger.
pub(super) async fn read(connection: &mut SqliteConnection) -> Result<Marks, sqlx::Error> {
    let rows = sqlx::query(MARKS).fetch_all(connection).await?;
    let rows = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    Ok(Marks::new(rows.collect::<Result<Vec<_>, sqlx::Error>>()?))
}

/// Ends an unfinished copy of this ledger, since a gate opens it.
pub(super) async fn give_up_copy(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let remove = sqlx::query("DELETE FROM meta WHERE name = ?").bind(BEING_COPIED);
    remove.execute(connection).await.map(drop)
}
