//! Loans that wait for an examination. See `ledger::examinations`.

use std::sync::LazyLock;

use jiff::Timestamp;
use sqlx::SqliteConnection;

use super::queries::{Queries, loans};
use crate::ledger::LedgerError;
use crate::loan::{LibraryId, Loan, LoanId};

/// The condition is that of the index.
static TO_EXAMINE: LazyLock<String> =
    LazyLock::new(|| loans("library = ? AND examine IS NOT NULL ORDER BY id LIMIT ?"));
const WAITS: &str = "SELECT 1 FROM loans WHERE id = ? AND examine IS NOT NULL";
const SET: &str = "UPDATE loans SET examine = CASE WHEN ?1 IS NULL THEN NULL \
     ELSE coalesce(examine, ?1) END \
     WHERE id = ?2 AND (?1 IS NOT NULL OR examine IS NOT NULL)";

impl Queries {
    pub(in crate::ledger) async fn loans_to_examine(
        &self,
        library: LibraryId,
        limit: u32,
    ) -> Result<Vec<Loan>, LedgerError> {
        let query = sqlx::query(TO_EXAMINE.as_str()).bind(library.as_str().to_owned());
        self.readable_loans(query.bind(limit)).await
    }

    pub(in crate::ledger) async fn waits_for_examination(
        &self,
        id: LoanId,
    ) -> Result<bool, LedgerError> {
        Ok(self.row(sqlx::query(WAITS).bind(id.to_string())).await?.is_some())
    }
}

/// Stores when an examination was first requested, or removes the request. Returns whether a row
/// was changed.
pub(super) async fn set(
    connection: &mut SqliteConnection,
    id: LoanId,
    requested: Option<Timestamp>,
) -> Result<bool, sqlx::Error> {
    let update = sqlx::query(SET).bind(requested.map(Timestamp::as_millisecond));
    Ok(update.bind(id.to_string()).execute(connection).await?.rows_affected() == 1)
}
