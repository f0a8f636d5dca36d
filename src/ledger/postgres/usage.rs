//! What a library lends, for support. See `ledger::usage`.

use std::sync::LazyLock;

use jiff::Timestamp;
use jiff::civil::Date;

use super::queries::Queries;
use super::row::count_of;
use super::sql::statement;
use crate::ledger::LedgerError;
use crate::ledger::brake::Counted;
use crate::ledger::usage::{
    MAX_TITLES, TitleCost, TitleLoans, costs_statement, count_statement, loans_statement,
    title_cost_of, title_loans_of,
};
use crate::loan::LibraryId;

pub(super) static LOANS: LazyLock<String> =
    LazyLock::new(|| loans_statement("", ["$1", "$2", "$3", "$4"]));
pub(super) static COSTS: LazyLock<String> =
    LazyLock::new(|| costs_statement("", ["$1", "$2", "$3"]));
pub(super) static LENT: LazyLock<String> = LazyLock::new(|| count(Counted::Lent));
pub(super) static DECIDED: LazyLock<String> = LazyLock::new(|| count(Counted::Decided));
pub(super) static FAILED: LazyLock<String> = LazyLock::new(|| count(Counted::Failed));

fn count(counted: Counted) -> String {
    count_statement("", counted, ["$1", "$2", "$3"])
}

impl Queries {
    pub(in crate::ledger) async fn loans_by_title(
        &self,
        library: LibraryId,
        from: Timestamp,
        before: Timestamp,
    ) -> Result<Vec<TitleLoans>, LedgerError> {
        let query = statement(&LOANS).bind(library.as_str().to_owned());
        let query = query.bind(from.as_millisecond()).bind(before.as_millisecond());
        let rows = self.rows(query.bind(i64::from(MAX_TITLES))).await?;
        Ok(rows.iter().filter_map(|row| self.damaged.skip(title_loans_of(row))).collect())
    }

    pub(in crate::ledger) async fn costs_by_title(
        &self,
        library: LibraryId,
        date: Date,
    ) -> Result<Vec<TitleCost>, LedgerError> {
        let query = statement(&COSTS).bind(library.as_str().to_owned());
        let rows = self.rows(query.bind(date.to_string()).bind(i64::from(MAX_TITLES))).await?;
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
        let query = statement(sql).bind(library.as_str().to_owned());
        let query = query.bind(since.as_millisecond()).bind(i64::from(maximum));
        count_of(self.row(query).await?)
    }
}
