//! The listing of loans for support.

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};
use uuid::Uuid;

use super::queries::Queries;
use super::sql::isbn_column;
use crate::ledger::queries::REFILL;
use crate::ledger::stored_row::{COLUMNS, loan_of};
use crate::ledger::{Filter, LedgerError};
use crate::loan::{Loan, LoanState, created_at};

/// A position in the order of the listing: when a loan was begun, and its id.
type ListingPosition = (i64, String);

impl Queries {
    pub(in crate::ledger) async fn page(&self, filter: &Filter) -> Result<Vec<Loan>, LedgerError> {
        let wanted = filter.limit as usize;
        let mut limit = filter.limit;
        let mut after = match filter.after {
            Some(id) => Some(self.listing_position(id).await?),
            None => None,
        };
        let mut loans = Vec::new();
        loop {
            let rows = self.page_rows(filter, after.as_ref(), limit).await?;
            loans.extend(rows.iter().filter_map(|row| self.damaged.loan(loan_of(row))));
            after = rows
                .last()
                .and_then(|row| Some((row.try_get("begun").ok()?, row.try_get("id").ok()?)));
            if loans.len() >= wanted || rows.len() < limit as usize || after.is_none() {
                loans.truncate(wanted);
                return Ok(loans);
            }
            limit = limit.max(REFILL);
        }
    }

    /// Returns the position of a loan in the order of the listing. The position of a pruned loan is
    /// derived from its id.
    async fn listing_position(&self, id: Uuid) -> Result<ListingPosition, LedgerError> {
        let begun = sqlx::query("SELECT begun FROM loans WHERE id = ?").bind(id.to_string());
        let begun: Option<i64> = self.first(begun).await?;
        Ok((begun.unwrap_or_else(|| created_at(id).as_millisecond()), id.to_string()))
    }

    /// Reads one page. Each filter has an index in the order of the listing, and the inner query
    /// usually reads only that index. The outer query reads only the rows of the page.
    async fn page_rows(
        &self,
        filter: &Filter,
        after: Option<&ListingPosition>,
        limit: u32,
    ) -> Result<Vec<SqliteRow>, LedgerError> {
        let index = index_of(filter);
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(format!(
            "SELECT {COLUMNS} FROM loans \
             WHERE id IN (SELECT id FROM loans INDEXED BY {index} WHERE 1"
        ));
        if let Some(library) = &filter.library {
            query.push(" AND library = ").push_bind(library.as_str().to_owned());
        }
        if let Some(borrower) = &filter.borrower {
            query.push(" AND borrower = ").push_bind(borrower.as_bytes().to_vec());
        }
        if let Some(isbn) = filter.isbn {
            query.push(" AND isbn = ").push_bind(isbn_column(isbn));
        }
        if let Some(state) = filter.state {
            query.push(" AND state = ").push_bind(state.name());
        }
        if let Some(since) = filter.since {
            query.push(" AND begun >= ").push_bind(since.as_millisecond());
        }
        if let Some((begun, id)) = after {
            query
                .push(" AND (begun, id) < (")
                .push_bind(*begun)
                .push(", ")
                .push_bind(id.clone())
                .push(")");
        }
        query.push(" ORDER BY begun DESC, id DESC LIMIT ").push_bind(i64::from(limit));
        query.push(") ORDER BY begun DESC, id DESC");
        self.rows(query.build()).await
    }
}

/// Returns the most selective index for a filter. The query names it because the planner has no
/// statistics and might sort a million rows instead.
fn index_of(filter: &Filter) -> &'static str {
    let is_rare = |state| !matches!(state, LoanState::Accepted | LoanState::Ended);
    match filter {
        Filter { borrower: Some(_), .. } => "loans_of_borrower",
        Filter { isbn: Some(_), .. } => "loans_of_title",
        Filter { state: Some(state), .. } if is_rare(*state) => "loans_in_state",
        Filter { library: Some(_), .. } => "loans_of_library",
        Filter { state: Some(_), .. } => "loans_in_state",
        _ => "loans_by_begun",
    }
}
