//! The marks of a copy, as a gate and pruning read them.
//!
//! A transaction that prunes or seals and one that writes a mark lock the same row of `meta`. So a
//! mark is written either before a transaction that prunes, which reads it, or after it.

use std::fmt;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::standing::Standing;
use crate::ledger::copy_mark::{BEING_COPIED, MARKS, Marks};
use crate::ledger::membership::Membership;

/// Locks the row as a transaction that prunes or seals.
const LOCK_TO_WRITE: &str = "SELECT 1 FROM meta WHERE name = 'pseudonym key' FOR SHARE";
/// Locks the row as a transaction that writes a mark.
const LOCK_TO_MARK: &str = "SELECT 1 FROM meta WHERE name = 'pseudonym key' FOR UPDATE";

/// The condition that the ledger was moved, or that a copy into it is unfinished. No gate writes to
/// it then.
pub(super) const IS_MOVED: &str =
    "EXISTS (SELECT FROM meta WHERE name IN ('copy in progress', 'moved'))";

/// Reads the marks of this ledger.
pub(super) async fn read(connection: &mut PgConnection) -> Result<Marks, sqlx::Error> {
    of_rows(&sqlx::query(MARKS).persistent(false).fetch_all(connection).await?)
}

/// Converts the rows that [`MARKS`] selects.
pub(super) fn of_rows(rows: &[PgRow]) -> Result<Marks, sqlx::Error> {
    let rows = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    Ok(Marks::new(rows.collect::<Result<Vec<_>, sqlx::Error>>()?))
}

/// Reads the marks in a transaction that prunes or seals. None is written before its end.
pub(super) async fn read_to_write(connection: &mut PgConnection) -> Result<Marks, sqlx::Error> {
    sqlx::query(LOCK_TO_WRITE).persistent(false).execute(&mut *connection).await?;
    read(connection).await
}

/// The ledger has, or had a moment ago, a mark with which no gate uses it.
#[derive(Debug)]
pub(super) struct MarkedLedger(Marks);

impl fmt::Display for MarkedLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.allow_gate() {
            Err(refused) => refused.fmt(f),
            Ok(()) => f.write_str("the mark of a copy was just removed from the ledger; retry"),
        }
    }
}

impl std::error::Error for MarkedLedger {}

impl MarkedLedger {
    /// Returns the error of a statement that marks have refused. They may be removed since.
    pub(super) fn error(marks: Marks) -> sqlx::Error {
        sqlx::Error::Io(std::io::Error::other(MarkedLedger(marks)))
    }

    /// Returns the marks in an error of [`MarkedLedger::error`].
    pub(super) fn marks_in(error: &sqlx::Error) -> Option<&Marks> {
        let source = if let sqlx::Error::Io(error) = error { error.get_ref() } else { None };
        source.and_then(|source| source.downcast_ref()).map(|MarkedLedger(marks)| marks)
    }

    /// Records the marks in an error of [`MarkedLedger::error`].
    pub(super) fn note_in(error: &sqlx::Error, standing: &Standing) {
        if let Some(marks) = MarkedLedger::marks_in(error) {
            standing.note_marks(marks);
        }
    }
}

/// Returns the error of a statement with the condition [`IS_MOVED`], and records in the standing of
/// this process that the ledger was moved. Releases the locks of the transaction, which has written
/// nothing.
pub(super) async fn refuse(connection: &mut PgConnection, standing: &Standing) -> sqlx::Error {
    let marks = async {
        sqlx::raw_sql("ROLLBACK AND CHAIN").execute(&mut *connection).await?;
        read(connection).await
    };
    match marks.await {
        Ok(marks) => {
            standing.note_marks(&marks);
            MarkedLedger::error(marks)
        }
        Err(error) => error,
    }
}

/// Waits for each transaction that writes loans, steps or `meta`. A later one waits for the mark,
/// and then reads it in the statement that writes.
const LOCK_TABLES: &str = "LOCK TABLE chains, meta IN SHARE MODE";

/// Waits in a transaction that writes a mark, until no other one prunes, seals, writes loans or
/// writes a mark.
pub(in crate::ledger) async fn lock_to_mark(
    connection: &mut PgConnection,
) -> Result<(), sqlx::Error> {
    sqlx::query(LOCK_TO_MARK).persistent(false).execute(&mut *connection).await?;
    sqlx::query(LOCK_TABLES).persistent(false).execute(connection).await.map(drop)
}

/// Ends an unfinished copy of this ledger, since a gate has joined. The copy removes the same row
/// before it marks the ledger as moved, so either the copy fails, or the gate then reads that mark.
pub(super) async fn give_up_copy(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let remove = sqlx::query("DELETE FROM meta WHERE name = $1").bind(BEING_COPIED);
    remove.persistent(false).execute(connection).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::copy_mark::{IN_PROGRESS, MOVED};

    #[test]
    fn condition_names_the_marks_that_keep_gates_out() {
        assert_eq!([IN_PROGRESS, MOVED].map(|name| IS_MOVED.matches(name).count()), [1; 2]);
    }
}
