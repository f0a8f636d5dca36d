//! Replaces the borrowers of loans that ended long ago.

use std::sync::LazyLock;

use jiff::Timestamp;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::ledger::states::OVER;
use crate::ledger::store::{Forgotten, OldLoans};
use crate::ledger::stored_row::{COLUMNS, loan_of};
use crate::loan::LibraryId;

/// Each loan gets a different value, so the loans of one borrower cannot be linked either. Rows
/// that another process has locked are left to it.
pub(super) static FORGET: LazyLock<String> = LazyLock::new(|| {
    let over = &*OVER;
    format!(
        "UPDATE loans SET borrower = uuid_send(gen_random_uuid()), forgotten = $2 \
         WHERE library = $1 AND id = ANY(ARRAY(SELECT id FROM loans WHERE library = $1 \
         AND state IN ({over}) AND forgotten IS NULL AND coalesce(ended, changed) < $3 \
         LIMIT $4 FOR UPDATE SKIP LOCKED)) RETURNING {COLUMNS}"
    )
});

pub(super) const ERASE: &str =
    "UPDATE history SET salt = NULL WHERE library = $1 AND loan = ANY($2)";

static FORGET_OF_BORROWER: LazyLock<String> = LazyLock::new(|| {
    FORGET.replace("WHERE library = $1 AND state", "WHERE library = $1 AND borrower = $5 AND state")
});

/// Replaces the borrower of these loans of a library, and erases the salts of their steps.
pub(super) async fn forget(
    connection: &mut PgConnection,
    library: LibraryId,
    loans: &OldLoans,
    now: Timestamp,
) -> Result<Forgotten, sqlx::Error> {
    let statement = if loans.borrower.is_some() { &*FORGET_OF_BORROWER } else { &*FORGET };
    let query = sqlx::query(statement.as_str()).bind(library.as_str()).bind(now.as_millisecond());
    let query = query.bind(loans.before.as_millisecond()).bind(i64::from(loans.limit));
    let query = match loans.borrower {
        Some(borrower) => query.bind(borrower.as_bytes().to_vec()),
        None => query,
    };
    let query = query.persistent(false);
    let rows = query.fetch_all(&mut *connection).await?;
    if rows.is_empty() {
        return Ok(Forgotten::default());
    }
    let ids = rows.iter().map(|row| row.try_get("id")).collect::<Result<Vec<Uuid>, _>>()?;
    let erase = sqlx::query(ERASE).bind(library.as_str()).bind(ids).persistent(false);
    erase.execute(connection).await?;
    let loans = rows.iter().filter_map(|row| loan_of(row).ok()).collect();
    Ok(Forgotten { count: rows.len() as u64, loans })
}
