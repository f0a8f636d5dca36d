//! Reads the rows of a table in both stores, as a stream from a position.
//!
//! Steps of SQLite are in the order of its chain. PostgreSQL has many chains, so its steps are in
//! the order of their times.

use std::sync::LazyLock;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use sqlx::{PgConnection, SqliteConnection};

use super::rows::{Position, Row, Table};
use crate::ledger::LedgerError;
use crate::ledger::audit::AuditKey;
use crate::ledger::stored_row::{COLUMNS, StoredRow};

/// Rows of a table, or the first error.
pub(super) type Rows<'a> = BoxStream<'a, Result<Row, LedgerError>>;

static SQLITE_LOANS: LazyLock<String> = LazyLock::new(|| {
    format!("SELECT {COLUMNS}, opened, owner FROM loans WHERE id > ? ORDER BY id")
});
/// With the columns of the loan, for the hash of its row. A step without a loan is an error.
static SQLITE_STEPS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS}, number, loan, '00000000-0000-0000-0000-000000000000' AS chain, at, \
         from_state, to_state, cause, detail, version, salt, loan_mac, \
         version = 1 AND number = (SELECT max(later.number) FROM history AS later \
         WHERE later.loan = history.loan) AS is_uncovered \
         FROM history LEFT JOIN loans ON loans.id = history.loan \
         WHERE number > ? ORDER BY number"
    )
});
const SQLITE_DELIVERED: &str = "SELECT library, loan, file, bytes, ranges \
     FROM delivered LEFT JOIN loans ON loans.id = delivered.loan \
     WHERE (loan, file) > (?, ?) ORDER BY loan, file";
const SQLITE_DOUBTS: &str =
    "SELECT library, loan, since, run FROM doubts WHERE loan > ? ORDER BY loan";

static POSTGRES_LOANS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS}, opened, owner FROM loans WHERE (library, id) > ($1, $2) \
         ORDER BY library, id"
    )
});
/// Without head records, which name links of the source.
const POSTGRES_STEPS: &str = "SELECT library, loan, at, chain, number, from_state, to_state, \
     cause, detail, version, salt, loan_mac, 0::bigint AS is_uncovered FROM history \
     WHERE (at, library, chain, number) > ($1, $2, $3, $4) \
     AND loan <> '00000000-0000-0000-0000-000000000000' ORDER BY at, library, chain, number";
const POSTGRES_DELIVERED: &str = "SELECT library, loan, file, bytes, ranges FROM delivered \
     WHERE (library, loan, file) > ($1, $2, $3) ORDER BY library, loan, file";
const POSTGRES_DOUBTS: &str = "SELECT library, loan, since, run FROM doubts \
     WHERE (library, loan) > ($1, $2) ORDER BY library, loan";

/// Reads the rows of a SQLite table after a position.
pub(super) fn sqlite_rows<'a>(
    connection: &'a mut SqliteConnection,
    failed: impl Fn(sqlx::Error) -> LedgerError + Send + 'a,
    table: Table,
    after: &Position,
    key: &'a AuditKey,
) -> Rows<'a> {
    let sql = match table {
        Table::Loans => SQLITE_LOANS.as_str(),
        Table::Steps => SQLITE_STEPS.as_str(),
        Table::Delivered => SQLITE_DELIVERED,
        Table::Doubts => SQLITE_DOUBTS,
    };
    let query = sqlx::query(sql).persistent(false);
    let query = match table {
        Table::Loans | Table::Doubts => query.bind(after.id.clone()),
        Table::Steps => query.bind(after.number),
        Table::Delivered => query.bind(after.id.clone()).bind(after.file.clone()),
    };
    let rows = query.fetch(connection);
    rows.map(move |row| converted(row.map_err(&failed), table, key)).boxed()
}

/// Reads the rows of a table of PostgreSQL after a position.
pub(super) fn postgres_rows<'a>(
    connection: &'a mut PgConnection,
    table: Table,
    after: &Position,
    key: &'a AuditKey,
) -> Rows<'a> {
    let sql = match table {
        Table::Loans => POSTGRES_LOANS.as_str(),
        Table::Steps => POSTGRES_STEPS,
        Table::Delivered => POSTGRES_DELIVERED,
        Table::Doubts => POSTGRES_DOUBTS,
    };
    let query = sqlx::query(sql).persistent(false);
    let query = match table {
        Table::Steps => query.bind(after.at),
        Table::Loans | Table::Delivered | Table::Doubts => query,
    };
    let query = query.bind(after.library.clone()).bind(after.uuid());
    let query = match table {
        Table::Steps => query.bind(after.number),
        Table::Delivered => query.bind(after.file.clone()),
        Table::Loans | Table::Doubts => query,
    };
    let rows = query.fetch(connection);
    rows.map(move |row| converted(row.map_err(LedgerError::Server), table, key)).boxed()
}

fn converted(
    row: Result<impl StoredRow, LedgerError>,
    table: Table,
    key: &AuditKey,
) -> Result<Row, LedgerError> {
    Row::read(table, &row?, key)
}
