//! Reads the rows of a table of SQLite, as a stream from a position. Steps are in the order of the
//! chain.

use std::sync::LazyLock;

use futures_util::StreamExt;
use futures_util::stream::LocalBoxStream;
use sqlx::SqliteConnection;

use super::rows::{Position, Row, Table};
use crate::ledger::accesses::{ACCESS, NO_LIBRARY};
use crate::ledger::audit::AuditKey;
use crate::ledger::stored_row::COLUMNS;
use crate::ledger::{LedgerError, reports};

/// Rows of a table, or the first error.
pub(super) type Rows<'a> = LocalBoxStream<'a, Result<Row, LedgerError>>;

static LOANS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS}, opened, assessed, examine, owner FROM loans WHERE id > ? ORDER BY id"
    )
});
/// With the columns of the loan, for the hash of its row. A step without a loan is an error.
static STEPS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS}, number, loan, at, from_state, to_state, cause, detail, version, salt, \
         loan_mac, \
         version = 1 AND number = (SELECT max(later.number) FROM history AS later \
         WHERE later.loan = history.loan) AS is_uncovered \
         FROM history LEFT JOIN loans ON loans.id = history.loan \
         WHERE number > ? AND loan <> '{ACCESS}' ORDER BY number"
    )
});
static ACCESSES: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT coalesce((SELECT library FROM loans \
         WHERE loans.library = json_extract(detail, '$.library') LIMIT 1), '{NO_LIBRARY}') \
         AS library, '' AS chain, number, loan, at, from_state, to_state, cause, detail, version, \
         salt, loan_mac \
         FROM history WHERE loan = '{ACCESS}' AND number > ? ORDER BY number"
    )
});
const DELIVERED: &str = "SELECT library, loan, file, bytes, ranges \
     FROM delivered LEFT JOIN loans ON loans.id = delivered.loan \
     WHERE (loan, file) > (?, ?) ORDER BY loan, file";
const DOUBTS: &str = "SELECT library, loan, since, run FROM doubts WHERE loan > ? ORDER BY loan";
static REPORTS: LazyLock<String> = LazyLock::new(|| {
    let columns = reports::COLUMNS;
    format!("SELECT {columns} FROM reports WHERE loan > ? ORDER BY loan")
});

/// Reads the rows of a SQLite table after a position.
pub(super) fn sqlite_rows<'a>(
    connection: &'a mut SqliteConnection,
    failed: impl Fn(sqlx::Error) -> LedgerError + Send + 'a,
    table: Table,
    after: &Position,
    key: &'a AuditKey,
) -> Rows<'a> {
    let sql = match table {
        Table::Loans => LOANS.as_str(),
        Table::Steps => STEPS.as_str(),
        Table::Delivered => DELIVERED,
        Table::Doubts => DOUBTS,
        Table::Accesses => ACCESSES.as_str(),
        Table::Reports => REPORTS.as_str(),
    };
    let query = sqlx::query(sql).persistent(false);
    let query = match table {
        Table::Loans | Table::Doubts | Table::Reports => query.bind(after.id.clone()),
        Table::Steps | Table::Accesses => query.bind(after.number),
        Table::Delivered => query.bind(after.id.clone()).bind(after.file.clone()),
    };
    let rows = query.fetch(connection);
    rows.map(move |row| Row::read(table, &row.map_err(&failed)?, key)).boxed_local()
}
