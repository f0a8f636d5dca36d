//! The query for begins that a process may still send after others have settled their loans.

use std::sync::LazyLock;

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::queries::Queries;
use super::row::id_of;
use super::sql::statement;
use crate::ledger::membership::ADOPTED_INTENT;
use crate::ledger::{LedgerError, UnfoundBegin};
use crate::loan::Reference;

/// The maximum number of loans that are searched for; the nightly balance finds the others.
const MAX_UNFOUND: i64 = 10_000;

/// A loan that was adopted as an intent has a step of that cause. If it ended as rejected without
/// an id of Bokbasen, it was not found.
pub(super) static UNFOUND_BEGINS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT id, library, reference, changed FROM loans \
         WHERE end_reason = 'rejected' AND lending_id IS NULL AND changed > $1 \
         AND bucket = ANY($2) AND EXISTS (SELECT 1 FROM history \
         WHERE history.library = loans.library AND loan = loans.id AND cause = '{ADOPTED_INTENT}') \
         ORDER BY changed DESC LIMIT {MAX_UNFOUND}"
    )
});

impl Queries {
    pub(in crate::ledger) async fn unfound_begins(
        &self,
        after: Timestamp,
    ) -> Result<Vec<UnfoundBegin>, LedgerError> {
        let query = statement(&UNFOUND_BEGINS).bind(after.as_millisecond());
        let rows = self.background_rows(query.bind(self.owned.get().to_vec())).await?;
        Ok(rows.iter().filter_map(|row| self.damaged.skip(unfound_of(row))).collect())
    }
}

fn unfound_of(row: &PgRow) -> Result<UnfoundBegin, LedgerError> {
    let loan = id_of(row, "id")?;
    let wrong =
        |error: &dyn std::fmt::Display| LedgerError::damaged(&loan.uuid().to_string(), error);
    let reference: String = row.try_get("reference").map_err(|error| wrong(&error))?;
    let changed = row.try_get("changed").map_err(|error| wrong(&error))?;
    let ended = Timestamp::from_millisecond(changed).map_err(|error| wrong(&error))?;
    Ok(UnfoundBegin { loan, reference: Reference::from_text(reference), ended })
}
