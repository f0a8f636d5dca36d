//! What a library lends, for support. See `ledger::usage`.

use std::sync::LazyLock;

use jiff::Timestamp;
use jiff::civil::Date;

use super::queries::Queries;
use crate::ledger::LedgerError;
use crate::ledger::brake::Counted;
use crate::ledger::usage::{
    MAX_TITLES, TitleCost, TitleLoans, costs_statement, count_statement, loans_statement,
    title_cost_of, title_loans_of,
};
use crate::loan::LibraryId;

/// The planner has no statistics, so each statement names its index.
const OF_LIBRARY: &str = "INDEXED BY loans_of_library";

static LOANS: LazyLock<String> = LazyLock::new(|| loans_statement(OF_LIBRARY, ["?"; 4]));
static COSTS: LazyLock<String> =
    LazyLock::new(|| costs_statement("INDEXED BY reports_by_date", ["?"; 3]));
static LENT: LazyLock<String> =
    LazyLock::new(|| count_statement(OF_LIBRARY, Counted::Lent, ["?"; 3]));
static DECIDED: LazyLock<String> =
    LazyLock::new(|| count_statement(OF_LIBRARY, Counted::Decided, ["?"; 3]));
static FAILED: LazyLock<String> =
    LazyLock::new(|| count_statement(OF_LIBRARY, Counted::Failed, ["?"; 3]));

impl Queries {
    pub(in crate::ledger) async fn loans_by_title(
        &self,
        library: LibraryId,
        from: Timestamp,
        before: Timestamp,
    ) -> Result<Vec<TitleLoans>, LedgerError> {
        let query = sqlx::query(LOANS.as_str()).bind(library.as_str().to_owned());
        let query = query.bind(from.as_millisecond()).bind(before.as_millisecond());
        let rows = self.rows(query.bind(MAX_TITLES)).await?;
        Ok(rows.iter().filter_map(|row| self.damaged.skip(title_loans_of(row))).collect())
    }

    pub(in crate::ledger) async fn costs_by_title(
        &self,
        library: LibraryId,
        date: Date,
    ) -> Result<Vec<TitleCost>, LedgerError> {
        let query = sqlx::query(COSTS.as_str()).bind(library.as_str().to_owned());
        let rows = self.rows(query.bind(date.to_string()).bind(MAX_TITLES)).await?;
        Ok(rows.iter().filter_map(|row| self.damaged.skip(title_cost_of(row))).collect())
    }

    /// Counts the loans that were begun after this time, up to a maximum.
    pub(in crate::ledger) async fn count_begun(
        &self,
        library: LibraryId,
        since: Timestamp,
        counted: Counted,
        maximum: u32,
    ) -> Result<u64, LedgerError> {
        let sql = match counted {
            Counted::Lent => &LENT,
            Counted::Decided => &DECIDED,
            Counted::Failed => &FAILED,
        };
        let query = sqlx::query(sql.as_str()).bind(library.as_str().to_owned());
        self.count(query.bind(since.as_millisecond()).bind(maximum)).await
    }
}
