//! The transactions of a copy: a batch of rows, and the mark after it.

use sqlx::{Connection, PgConnection};
use tokio::time::sleep;
use uuid::Uuid;

use super::exclusive::ExclusiveLedger;
use super::exclusive::ExclusiveLedger::{Postgres, Sqlite};
use super::mark::Mark;
use super::meta::Meta;
use super::rows::Row;
use super::{CopyError, write_postgres, write_sqlite};
use crate::ledger::audit::AuditKey;
use crate::ledger::copy_mark::IN_PROGRESS;
use crate::ledger::postgres::{ATTEMPTS, RETRY_PAUSE, is_of_connection};
use crate::ledger::sqlite::{self, read_head};
use crate::ledger::store::{is_of_value, reason};

/// The mark of the destination is not the one that this copy has written.
pub(super) const OTHER_COPY: &str =
    "another copy writes into the same destination; wait until it has ended";

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
        match self.write_once_or_again(rows, (before, after), key).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(CopyError::Refused(OTHER_COPY.to_owned())),
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

    /// Returns false if another copy has replaced the mark. If the connection fails, the mark tells
    /// whether the transaction was committed.
    async fn write_once_or_again(
        &mut self,
        rows: &[Row],
        (before, after): (&Mark, &Mark),
        key: &AuditKey,
    ) -> Result<bool, sqlx::Error> {
        let is_postgres = matches!(self, Postgres(_));
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.write_once(rows, (before, after), key).await {
                Ok(Written::Mark) => return Ok(true),
                Ok(Written::Found(mark)) => return Ok(attempts > 1 && mark == after.to_bytes()),
                Err(error) if is_postgres && is_of_connection(&error) && attempts < ATTEMPTS => {
                    sleep(RETRY_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn write_once(
        &mut self,
        rows: &[Row],
        (before, after): (&Mark, &Mark),
        key: &AuditKey,
    ) -> Result<Written, sqlx::Error> {
        let marks = [before.to_bytes(), after.to_bytes()];
        match self {
            Sqlite(file) => {
                let mut transaction = file.connection.begin_with(sqlite::BEGIN).await?;
                let found = replace_mark(&mut Meta::Sqlite(&mut transaction), &marks).await?;
                if let Written::Found(_) = found {
                    return Ok(found);
                }
                let mut head = read_head(&mut transaction).await?;
                write_sqlite::insert(&mut transaction, rows, &mut head, key).await?;
                transaction.commit().await?;
                Ok(found)
            }
            Postgres(database) => {
                let write = async |connection: &mut PgConnection| {
                    let found = replace_mark(&mut Meta::Postgres(connection), &marks).await?;
                    if let Written::Mark = found {
                        write_postgres::insert(connection, rows, before.chain(), key).await?;
                    }
                    Ok(found)
                };
                database.write(write).await
            }
        }
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
                let find = async |connection: &mut PgConnection| {
                    for row in rows {
                        let alone = std::slice::from_ref(row);
                        let inserted = write_postgres::insert(connection, alone, chain, key).await;
                        if let Err(error) = inserted {
                            return Ok(Some((row.loan(), error)));
                        }
                    }
                    sqlx::raw_sql("ROLLBACK").execute(connection).await.map(|_| None)
                };
                return database.write(find).await;
            }
        }
        Ok(None)
    }
}

/// What a transaction has done with the mark.
enum Written {
    Mark,
    /// Nothing: it has found this mark, or none.
    Found(Vec<u8>),
}

async fn replace_mark(
    meta: &mut Meta<'_>,
    [before, after]: &[Vec<u8>; 2],
) -> Result<Written, sqlx::Error> {
    match meta.replace(IN_PROGRESS, [before, after]).await? {
        true => Ok(Written::Mark),
        false => Ok(Written::Found(meta.find(IN_PROGRESS).await?.unwrap_or_default())),
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
