//! What a library lends: the loans and the costs of a day by title, and the loans that count
//! towards the limits of the brake.
//!
//! Support queries. Each reads one day of one library, or a bounded number of its newest loans, so
//! that a caller adds up a month in small steps.

use jiff::Timestamp;
use jiff::civil::Date;

use super::brake::Counted;
use super::stored_row::StoredRow;
use super::{Ledger, LedgerError};
use crate::clock;
use crate::loan::{Isbn, LibraryId};
use crate::telemetry::BrakeLimit;

/// The most titles of a day. Further ones are left out.
pub(super) const MAX_TITLES: u32 = 20_000;
/// The most loans that count in one window of the brake, unless its limit is higher.
const MAX_USE: u32 = 20_000;
/// The most loans that count in any window.
const MAX_COUNT: u32 = 200_000;
/// The refusal code of Bokbasen for a budget that is used up.
pub(super) const BUDGET_EXCEEDED: &str = "BUDGET_EXCEEDED";

/// The loans of a title under a licence type.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TitleLoans {
    /// The title.
    pub isbn: Isbn,
    /// The licence type; none if Bokbasen named none.
    pub licence_type: Option<String>,
    /// The number of accepted loans, whether or not they have ended.
    pub lent: u64,
    /// The number of begins that Bokbasen refused.
    pub refused: u64,
    /// How many of the refused ones exceeded a budget.
    pub over_budget: u64,
}

/// The usage reports of a title under a licence type.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TitleCost {
    /// The title.
    pub isbn: Isbn,
    /// The licence type.
    pub licence_type: String,
    /// The number of reports that Bokbasen has recorded.
    pub reported: u64,
    /// The sum of their prices, in øre.
    pub price: u64,
    /// The number of reports that are not settled.
    pub open: u64,
}

/// The loans of a library that count towards a limit of the brake.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BrakeUse {
    /// The limit.
    pub limit: BrakeLimit,
    /// The number of loans with which it is reached; 0 for no limit.
    pub maximum: u32,
    /// The number of loans that count.
    pub used: u64,
    /// Whether there may be more: they are not all counted.
    pub is_capped: bool,
}

impl Ledger {
    /// Returns the loans of a library that were begun between these times, by title and licence
    /// type. Damaged rows are skipped. The caller bounds the time between them.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn loans_by_title(
        &self,
        library: LibraryId,
        from: Timestamp,
        before: Timestamp,
    ) -> Result<Vec<TitleLoans>, LedgerError> {
        self.queries.loans_by_title(library, from, before).await
    }

    /// Returns the usage reports of a library that became due on this day, by title and licence
    /// type. Damaged rows are skipped.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn costs_by_title(
        &self,
        library: LibraryId,
        date: Date,
    ) -> Result<Vec<TitleCost>, LedgerError> {
        self.queries.costs_by_title(library, date).await
    }

    /// Returns how many loans of a library count now towards each limit that the
    /// brake has for a library.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn brake_use(
        &self,
        library: LibraryId,
        now: Timestamp,
    ) -> Result<Vec<BrakeUse>, LedgerError> {
        let mut uses = Vec::new();
        for (limit, maximum, window, counted) in self.brake().of_library() {
            let since = clock::before(now, window);
            let most = maximum.clamp(MAX_USE, MAX_COUNT);
            let used = self.queries.count_begun(library, since, counted, most).await?;
            let is_capped = used >= u64::from(most);
            uses.push(BrakeUse { limit, maximum, used, is_capped });
        }
        Ok(uses)
    }
}

/// Returns the statement of [`Ledger::loans_by_title`]: it binds the library, both times, and
/// [`MAX_TITLES`]. `hint` names an index where the planner needs it.
pub(super) fn loans_statement(hint: &str, [library, from, before, limit]: [&str; 4]) -> String {
    format!(
        "SELECT isbn, licence_type, count(accepted) AS lent, \
         count(CASE WHEN state = 'refused' THEN 1 END) AS refused, \
         count(CASE WHEN state = 'refused' AND refusal_code = '{BUDGET_EXCEEDED}' THEN 1 END) \
         AS over_budget \
         FROM loans {hint} WHERE library = {library} AND begun >= {from} AND begun < {before} \
         GROUP BY isbn, licence_type LIMIT {limit}"
    )
}

/// Returns the statement of [`Ledger::costs_by_title`]: it binds the library, the day, and
/// [`MAX_TITLES`].
pub(super) fn costs_statement(hint: &str, [library, date, limit]: [&str; 3]) -> String {
    format!(
        "SELECT isbn, licence_type, count(CASE WHEN state = 'reported' THEN 1 END) AS reported, \
         CAST(coalesce(sum(CASE WHEN state = 'reported' THEN price END), 0) AS bigint) AS price, \
         count(CASE WHEN state NOT IN ('reported', 'not-reported') THEN 1 END) AS open_reports \
         FROM reports {hint} WHERE library = {library} AND date = {date} \
         GROUP BY isbn, licence_type LIMIT {limit}"
    )
}

/// Returns the statement that counts loans for the brake: it binds the library, the time after
/// which they were begun, and the most that count.
pub(super) fn count_statement(
    hint: &str,
    counted: Counted,
    [library, since, limit]: [&str; 3],
) -> String {
    format!(
        "SELECT count(*) FROM (SELECT 1 FROM loans {hint} WHERE library = {library} \
         AND begun > {since} AND {condition} LIMIT {limit}) AS found",
        condition = super::states::counted(counted)
    )
}

pub(super) fn title_loans_of(row: &impl StoredRow) -> Result<TitleLoans, LedgerError> {
    Ok(TitleLoans {
        isbn: isbn(row)?,
        licence_type: row.optional_text("licence_type").map_err(wrong)?,
        lent: number(row, "lent")?,
        refused: number(row, "refused")?,
        over_budget: number(row, "over_budget")?,
    })
}

pub(super) fn title_cost_of(row: &impl StoredRow) -> Result<TitleCost, LedgerError> {
    Ok(TitleCost {
        isbn: isbn(row)?,
        licence_type: row.text("licence_type").map_err(wrong)?,
        reported: number(row, "reported")?,
        price: number(row, "price")?,
        open: number(row, "open_reports")?,
    })
}

fn isbn(row: &impl StoredRow) -> Result<Isbn, LedgerError> {
    let number = row.number("isbn").map_err(wrong)?;
    number.to_string().parse().map_err(|error| LedgerError::damaged("?", &error))
}

fn number(row: &impl StoredRow, column: &str) -> Result<u64, LedgerError> {
    Ok(row.number(column).map_err(wrong)?.unsigned_abs())
}

fn wrong(error: sqlx::Error) -> LedgerError {
    LedgerError::damaged("?", &error)
}

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;
