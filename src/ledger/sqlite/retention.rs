//! Replaces the borrowers of loans that ended long ago.

use std::sync::LazyLock;

use jiff::Timestamp;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use crate::ledger::states::OVER;
use crate::ledger::store::{Forgotten, OldLoans};
use crate::ledger::stored_row::{COLUMNS, loan_of};

/// The condition on loans whose borrower is to be forgotten. It binds a time.
pub(super) static TO_FORGET: LazyLock<String> = LazyLock::new(|| {
    let over = &*OVER;
    format!("state IN ({over}) AND forgotten IS NULL AND coalesce(ended, changed) < ?")
});

/// Each loan gets a different value, so the loans of one borrower cannot be linked either.
static FORGET: LazyLock<String> = LazyLock::new(|| {
    let to_forget = &*TO_FORGET;
    format!(
        "UPDATE loans SET borrower = randomblob(16), forgotten = ? WHERE id IN \
         (SELECT id FROM loans WHERE {to_forget} LIMIT ?) RETURNING {COLUMNS}"
    )
});
static FORGET_OF_BORROWER: LazyLock<String> = LazyLock::new(|| {
    let to_forget = &*TO_FORGET;
    format!(
        "UPDATE loans SET borrower = randomblob(16), forgotten = ? WHERE id IN \
         (SELECT id FROM loans INDEXED BY loans_of_borrower WHERE borrower = ? AND library = ? \
         AND {to_forget} LIMIT ?) \
         RETURNING {COLUMNS}"
    )
});

/// Replaces the borrower of these loans, and erases the salts of their steps.
pub(super) async fn forget(
    connection: &mut SqliteConnection,
    loans: &OldLoans,
    now: Timestamp,
) -> Result<Forgotten, sqlx::Error> {
    let query = match loans.borrower.zip(loans.library) {
        Some((borrower, library)) => sqlx::query(FORGET_OF_BORROWER.as_str())
            .bind(now.as_millisecond())
            .bind(borrower.as_bytes().to_vec())
            .bind(library.to_string())
            .persistent(false),
        None => sqlx::query(FORGET.as_str()).bind(now.as_millisecond()),
    };
    let query = query.bind(loans.before.as_millisecond()).bind(loans.limit);
    let rows = query.fetch_all(&mut *connection).await?;
    if rows.is_empty() {
        return Ok(Forgotten::default());
    }
    let mut erase = QueryBuilder::<Sqlite>::new("UPDATE history SET salt = NULL WHERE loan IN (");
    let mut list = erase.separated(", ");
    for row in &rows {
        list.push_bind(row.try_get::<String, _>("id")?);
    }
    erase.push(")").build().persistent(false).execute(connection).await?;
    let loans = rows.iter().filter_map(|row| loan_of(row).ok()).collect();
    Ok(Forgotten { count: rows.len() as u64, loans })
}
