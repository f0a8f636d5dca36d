//! The listing of loans for support.

use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder, Row};
use uuid::Uuid;

use super::queries::Queries;
use super::row::first;
use super::sql::statement;
use crate::ledger::queries::REFILL;
use crate::ledger::states::isbn_column;
use crate::ledger::stored_row::{COLUMNS, loan_of};
use crate::ledger::{Filter, LedgerError};
use crate::loan::{Loan, created_at};

/// A position in the order of the listing: when a loan was begun, and its id.
type ListingPosition = (i64, Uuid);

/// Searches all libraries.
pub(super) const BEGUN: &str = "SELECT begun FROM loans WHERE id = $1";

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
            let mut query = page_query(filter, after, limit);
            let rows: Vec<PgRow> = self.rows(query.build()).await?;
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
        let begun: Option<i64> = first(self.row(statement(BEGUN).bind(id)).await?)?;
        Ok((begun.unwrap_or_else(|| created_at(id).as_millisecond()), id))
    }
}

/// Returns the query of one page. Each filter has an index in the order of the listing. The loans
/// of a borrower are few, so they are read before they are sorted: otherwise the planner may search
/// all loans in the order of the listing for them.
pub(super) fn page_query(
    filter: &Filter,
    after: Option<ListingPosition>,
    limit: u32,
) -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::new("WITH found AS ");
    query.push(if filter.borrower.is_some() { "MATERIALIZED" } else { "NOT MATERIALIZED" });
    query.push(format!(" (SELECT {COLUMNS} FROM loans WHERE true"));
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
        // Not bound: the partial indexes have states as literals.
        query.push(format!(" AND state = '{}'", state.name()));
    }
    if let Some(since) = filter.since {
        query.push(" AND begun >= ").push_bind(since.as_millisecond());
    }
    if let Some((begun, id)) = after {
        query.push(" AND (begun, id) < (").push_bind(begun).push(", ").push_bind(id).push(")");
    }
    query.push(") SELECT * FROM found ORDER BY begun DESC, id DESC LIMIT ");
    query.push_bind(i64::from(limit));
    query
}
