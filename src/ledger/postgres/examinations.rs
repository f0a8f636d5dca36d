//! Loans that wait for an examination. See `ledger::examinations`.

use std::sync::LazyLock;

use jiff::Timestamp;
use sqlx::PgConnection;

use super::queries::Queries;
use super::session::prepares;
use super::sql::{bind_id, loans, statement};
use crate::ledger::LedgerError;
use crate::ledger::stored_row::loan_of;
use crate::loan::{LibraryId, Loan, LoanId};

/// The condition is that of the index.
pub(super) static TO_EXAMINE: LazyLock<String> =
    LazyLock::new(|| loans("library = $1 AND examine IS NOT NULL ORDER BY id LIMIT $2"));
pub(super) const WAITS: &str =
    "SELECT 1 FROM loans WHERE library = $1 AND id = $2 AND examine IS NOT NULL";
pub(super) const SET: &str = "UPDATE loans SET examine = CASE WHEN $3::bigint IS NOT NULL \
     THEN coalesce(examine, $3::bigint) END \
     WHERE library = $1 AND id = $2 AND ($3::bigint IS NOT NULL OR examine IS NOT NULL)";

impl Queries {
    pub(in crate::ledger) async fn loans_to_examine(
        &self,
        library: LibraryId,
        limit: u32,
    ) -> Result<Vec<Loan>, LedgerError> {
        let query = statement(&TO_EXAMINE).bind(library.as_str().to_owned());
        let rows = self.background_rows(query.bind(i64::from(limit))).await?;
        Ok(rows.iter().filter_map(|row| self.damaged.loan(loan_of(row))).collect())
    }

    pub(in crate::ledger) async fn waits_for_examination(
        &self,
        id: LoanId,
    ) -> Result<bool, LedgerError> {
        Ok(self.row(bind_id(statement(WAITS), id)).await?.is_some())
    }
}

/// Stores when an examination was first requested, or removes the request. Returns whether a row
/// was changed.
pub(super) async fn set(
    connection: &mut PgConnection,
    id: LoanId,
    requested: Option<Timestamp>,
) -> Result<bool, sqlx::Error> {
    let update = sqlx::query(SET).bind(id.library().as_str().to_owned()).bind(id.uuid());
    let update = update.bind(requested.map(Timestamp::as_millisecond));
    let updated = update.persistent(prepares(connection)).execute(connection).await?;
    Ok(updated.rows_affected() == 1)
}
