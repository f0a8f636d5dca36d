//! The transactions of a copy: a batch of rows, and the mark after it.

use sqlx::Connection;
use uuid::Uuid;

use super::exclusive::ExclusiveLedger;
use super::exclusive::ExclusiveLedger::{Postgres, Sqlite};
use super::mark::Mark;
use super::rows::Row;
use super::{CopyError, write_postgres, write_sqlite};
use crate::ledger::audit::AuditKey;
use crate::ledger::copy_mark::IN_PROGRESS;
use crate::ledger::sqlite::{self, read_head};
use crate::ledger::store::{is_of_value, reason};

/// A transaction of a copy. Statements take as long as the batch is large.
pub(super) const POSTGRES_BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
     SET LOCAL statement_timeout = 0";

impl ExclusiveLedger {
    /// Inserts rows of one table, and replaces the mark, in one transaction.
    ///
    /// # Errors
    /// [`CopyError::Refused`] with the id of the loan if the database rejects a value, or if
    /// another copy has replaced the mark.
    pub(super) async fn write(
        &mut self,
        rows: &[Row],
        (before, after): (&Mark, &Mark),
        key: &AuditKey,
    ) -> Result<(), CopyError> {
        match self.write_once(rows, (before, after), key).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(CopyError::Refused(
                "another copy writes into the same destination; wait until it has ended".to_owned(),
            )),
            Err(error) if is_rejected(&error) => {
                let rejected = self.find_rejected(rows, before.chain(), key).await;
                let (id, why) = match rejected.map_err(|source| self.failed(source))? {
                    Some((id, error)) => (id.to_string(), reason(&error)),
                    None => ("?".to_owned(), reason(&error)),
                };
                Err(CopyError::Refused(format!(
                    "the destination rejects a value of loan {id}: {why}; report this as an error \
                     of loangate"
                )))
            }
            Err(error) => Err(self.failed(error).into()),
        }
    }

    async fn write_once(
        &mut self,
        rows: &[Row],
        (before, after): (&Mark, &Mark),
        key: &AuditKey,
    ) -> Result<bool, sqlx::Error> {
        let (old, new) = (before.to_bytes(), after.to_bytes());
        match self {
            Sqlite(file) => {
                let mut transaction = file.connection.begin_with(sqlite::BEGIN).await?;
                let replace = "UPDATE meta SET value = ? WHERE name = ? AND value = ?";
                let replace = sqlx::query(replace).bind(new).bind(IN_PROGRESS).bind(old);
                if replace.execute(&mut *transaction).await?.rows_affected() == 0 {
                    return Ok(false);
                }
                let mut head = read_head(&mut transaction).await?;
                write_sqlite::insert(&mut transaction, rows, &mut head, key).await?;
                transaction.commit().await?;
            }
            Postgres(database) => {
                let mut transaction = database.connection.begin_with(POSTGRES_BEGIN).await?;
                let replace = "UPDATE meta SET value = $1 WHERE name = $2 AND value = $3";
                let replace = sqlx::query(replace).bind(new).bind(IN_PROGRESS).bind(old);
                let replaced = replace.persistent(false).execute(&mut *transaction).await?;
                if replaced.rows_affected() == 0 {
                    return Ok(false);
                }
                write_postgres::insert(&mut transaction, rows, before.chain(), key).await?;
                transaction.commit().await?;
            }
        }
        Ok(true)
    }

    /// Returns the loan of the first row that the database rejects. Writes nothing.
    async fn find_rejected(
        &mut self,
        rows: &[Row],
        chain: Uuid,
        key: &AuditKey,
    ) -> Result<Option<(Uuid, sqlx::Error)>, sqlx::Error> {
        match self {
            Sqlite(file) => {
                let mut transaction = file.connection.begin_with(sqlite::BEGIN).await?;
                let mut head = read_head(&mut transaction).await?;
                for row in rows {
                    let alone = std::slice::from_ref(row);
                    let inserted =
                        write_sqlite::insert(&mut transaction, alone, &mut head, key).await;
                    if let Err(error) = inserted {
                        return Ok(Some((row.loan(), error)));
                    }
                }
            }
            Postgres(database) => {
                let mut transaction = database.connection.begin_with(POSTGRES_BEGIN).await?;
                for row in rows {
                    let alone = std::slice::from_ref(row);
                    let inserted =
                        write_postgres::insert(&mut transaction, alone, chain, key).await;
                    if let Err(error) = inserted {
                        return Ok(Some((row.loan(), error)));
                    }
                }
            }
        }
        Ok(None)
    }
}

/// Returns whether a value of a row failed the transaction.
fn is_rejected(error: &sqlx::Error) -> bool {
    use sqlx::error::ErrorKind::{CheckViolation, ForeignKeyViolation, NotNullViolation};
    let kind = error.as_database_error().map(|error| error.kind());
    is_of_value(error)
        || matches!(
            kind,
            Some(
                CheckViolation
                    | ForeignKeyViolation
                    | NotNullViolation
                    | sqlx::error::ErrorKind::UniqueViolation
            )
        )
}
