//! Reads single columns of a row: counts, times and ids.
//!
//! Only the queries call it.

use std::fmt;

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::ledger::LedgerError;
use crate::loan::{LibraryId, LoanId};

/// Reads the first column of a row; none if there is no row.
pub(super) fn first<T>(row: Option<PgRow>) -> Result<Option<T>, LedgerError>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.map(|row| row.try_get(0)).transpose().map_err(LedgerError::Server)
}

/// Reads the count in the first column.
pub(super) fn count_of(row: Option<PgRow>) -> Result<u64, LedgerError> {
    Ok(first(row)?.map_or(0, i64::unsigned_abs))
}

/// Reads the time in the first column, in milliseconds. It may be null.
pub(super) fn time_of(row: Option<PgRow>) -> Result<Option<Timestamp>, LedgerError> {
    let millis = first::<Option<i64>>(row)?.flatten();
    Ok(millis.and_then(|millis| Timestamp::from_millisecond(millis).ok()))
}

/// Parses the name of a library in a row.
pub(super) fn library_of(name: &str) -> Result<LibraryId, LedgerError> {
    name.parse().map_err(|_| LedgerError::damaged(name, &"its library is not valid"))
}

/// Reads the id of a loan from a row: its UUID from this column, and its library.
pub(super) fn id_of(row: &PgRow, column: &str) -> Result<LoanId, LedgerError> {
    let uuid: Uuid = row.try_get(column).map_err(|error| LedgerError::damaged("?", &error))?;
    let wrong = |error: &dyn fmt::Display| LedgerError::damaged(&uuid.to_string(), error);
    let library: String = row.try_get("library").map_err(|error| wrong(&error))?;
    Ok(LoanId::new(library.parse().map_err(|error| wrong(&error))?, uuid))
}
