//! What the statements that read have in common.
//!
//! The planner uses a partial index only if the statement has the index's condition, so states are
//! literals. Who runs a statement decides whether it is prepared (`session`).

use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use uuid::Uuid;

use crate::ledger::states::isbn_column;
use crate::ledger::stored_row::COLUMNS;
use crate::loan::{LoanId, LoanKey};

/// A query with its arguments.
pub(super) type PgQuery<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;

/// The condition on a key, for [`bind_key`].
pub(super) const KEY_IS: &str = "library = $1 AND borrower = $2 AND isbn = $3";

/// Creates a query. It is not prepared, unless who runs it changes that.
pub(super) fn statement(sql: &'static str) -> PgQuery<'static> {
    sqlx::query(sql).persistent(false)
}

/// Collects one value of each row, for a parameter that is an array.
pub(in crate::ledger) fn column<'r, R, T>(rows: &'r [R], value: impl Fn(&'r R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

/// Returns a statement that reads the loans with this condition.
pub(super) fn loans(condition: &str) -> String {
    format!("SELECT {COLUMNS} FROM loans WHERE {condition}")
}

/// Binds the three columns of [`KEY_IS`].
pub(super) fn bind_key<'q>(query: PgQuery<'q>, key: &LoanKey) -> PgQuery<'q> {
    query
        .bind(key.library.as_str().to_owned())
        .bind(key.borrower.as_bytes().to_vec())
        .bind(isbn_column(key.isbn))
}

/// Binds a library and a UUID.
pub(super) fn bind_id(query: PgQuery<'_>, id: LoanId) -> PgQuery<'_> {
    query.bind(id.library().as_str().to_owned()).bind(id.uuid())
}

/// Returns a query for these loans: `of_one` if all are of one library, or else `of_several`.
pub(super) fn for_ids(
    ids: &[LoanId],
    of_one: &'static str,
    of_several: &'static str,
) -> PgQuery<'static> {
    let uuids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
    let mut libraries: Vec<String> =
        ids.iter().map(|id| id.library().as_str().to_owned()).collect();
    let is_one = libraries.windows(2).all(|pair| pair.first() == pair.last());
    match libraries.pop() {
        Some(library) if is_one => statement(of_one).bind(library).bind(uuids),
        last => {
            libraries.extend(last);
            statement(of_several).bind(libraries).bind(uuids)
        }
    }
}
