//! Queries of the ledger. A query sees everything that was committed before it started.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, QueryBuilder, Row, Sqlite};

use super::row::{COLUMNS, by_ids, history_of, loan_of};
use crate::ledger::{Ends, Filter, HistoryRow, Ledger, LedgerError};
use crate::loan::{LibraryId, Loan, LoanId, LoanKey, LoanState, Reference};

/// The minimum number of rows that a query reads to replace skipped damaged rows.
const REFILL: u32 = 500;
/// The deadline of [`Ledger::check`].
const CHECK_DEADLINE: Duration = Duration::from_secs(2);

impl Ledger {
    /// Returns the live loan of this reader and title, or the newest one if none is live.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read or the row is damaged.
    pub async fn newest(&self, key: &LoanKey) -> Result<Option<Loan>, LedgerError> {
        // Ids follow the clock, which may have been set back, so the live loan is ordered first.
        let sql = format!(
            "SELECT {COLUMNS} FROM loans WHERE library = ? AND borrower = ? AND isbn = ? \
             ORDER BY state IN ('intended', 'pending', 'accepted', 'unknown', 'ending') DESC, \
             id DESC LIMIT 1"
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(key.library.as_str())
            .bind(key.borrower.as_bytes().as_slice())
            .bind(i64::try_from(key.isbn.number()).unwrap_or_default())
            .fetch_optional(&self.readers)
            .await
            .map_err(|source| self.failed(source))?;
        row.as_ref().map(loan_of).transpose()
    }

    /// Returns when the last accepted loan of this reader and title ended (invariant 7).
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn last_end(&self, key: &LoanKey) -> Result<Option<Timestamp>, LedgerError> {
        const LAST_END: &str = "SELECT max(ended) FROM loans \
             WHERE library = ? AND borrower = ? AND isbn = ? \
             AND accepted IS NOT NULL AND ended IS NOT NULL";
        let millis: Option<i64> = sqlx::query_scalar(LAST_END)
            .bind(key.library.as_str())
            .bind(key.borrower.as_bytes().as_slice())
            .bind(i64::try_from(key.isbn.number()).unwrap_or_default())
            .fetch_one(&self.readers)
            .await
            .map_err(|source| self.failed(source))?;
        Ok(millis.and_then(|millis| Timestamp::from_millisecond(millis).ok()))
    }

    /// Returns the loan with this id.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read or the row is damaged.
    pub async fn loan(&self, id: LoanId) -> Result<Option<Loan>, LedgerError> {
        let sql = format!("SELECT {COLUMNS} FROM loans WHERE id = ?");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(id.to_string());
        let row =
            query.fetch_optional(&self.readers).await.map_err(|source| self.failed(source))?;
        row.as_ref().map(loan_of).transpose()
    }

    /// Returns the loans with these ids, in no particular order. Missing and damaged rows are
    /// skipped.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn loans(&self, ids: &[LoanId]) -> Result<Vec<Loan>, LedgerError> {
        let mut query = by_ids(ids);
        let query = query.build().persistent(false);
        let rows = query.fetch_all(&self.readers).await.map_err(|source| self.failed(source))?;
        Ok(rows.iter().filter_map(|row| self.damaged.loan(row)).collect())
    }

    /// Returns the loan with this reference.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read or the row is damaged.
    pub async fn by_reference(&self, reference: &Reference) -> Result<Option<Loan>, LedgerError> {
        let sql = format!("SELECT {COLUMNS} FROM loans WHERE reference = ?");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(reference.as_str());
        let row =
            query.fetch_optional(&self.readers).await.map_err(|source| self.failed(source))?;
        row.as_ref().map(loan_of).transpose()
    }

    /// Returns every library with a loan. Damaged names are skipped.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn libraries(&self) -> Result<Vec<LibraryId>, LedgerError> {
        let names: Vec<String> =
            sqlx::query_scalar("SELECT DISTINCT library FROM loans ORDER BY library")
                .fetch_all(&self.readers)
                .await
                .map_err(|source| self.failed(source))?;
        let read = |name: String| {
            name.parse().map_err(|_| LedgerError::Damaged {
                id: name,
                why: "its library is not valid".to_owned(),
            })
        };
        Ok(names.into_iter().filter_map(|name| self.damaged.skip(read(name))).collect())
    }

    /// Returns when the oldest live loan of a library was begun.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn oldest_live(&self, library: LibraryId) -> Result<Option<Timestamp>, LedgerError> {
        const OLDEST: &str = "SELECT min(begun) FROM loans WHERE library = ? \
             AND state IN ('intended', 'pending', 'accepted', 'unknown', 'ending')";
        let millis: Option<i64> = sqlx::query_scalar(OLDEST)
            .bind(library.as_str())
            .fetch_one(&self.readers)
            .await
            .map_err(|source| self.failed(source))?;
        Ok(millis.and_then(|millis| Timestamp::from_millisecond(millis).ok()))
    }

    /// Returns whether this process began the loan or took it over.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn is_ours(&self, id: LoanId) -> Result<bool, LedgerError> {
        let owner: Option<String> = sqlx::query_scalar("SELECT owner FROM loans WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(&self.readers)
            .await
            .map_err(|source| self.failed(source))?;
        Ok(owner.as_deref() == Some(self.process.name()))
    }

    /// Returns the loans of this process that are intended, pending or unknown.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn undecided(&self) -> Result<Vec<LoanId>, LedgerError> {
        const UNDECIDED: &str =
            "SELECT id FROM loans WHERE state IN ('intended', 'pending', 'unknown') AND owner = ?";
        let ids: Vec<String> = sqlx::query_scalar(UNDECIDED)
            .bind(self.process.name())
            .fetch_all(&self.readers)
            .await
            .map_err(|source| self.failed(source))?;
        Ok(ids.iter().filter_map(|id| self.damaged.skip(read_id(id))).collect())
    }

    /// Returns the transitions of a loan, the oldest first. Damaged rows are skipped.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn history(&self, id: LoanId) -> Result<Vec<HistoryRow>, LedgerError> {
        let rows = sqlx::query("SELECT * FROM history WHERE loan = ? ORDER BY number")
            .bind(id.to_string())
            .fetch_all(&self.readers)
            .await
            .map_err(|source| self.failed(source))?;
        Ok(rows.iter().filter_map(|row| self.damaged.skip(history_of(id, row))).collect())
    }

    /// Returns a page of loans, the newest first. Damaged rows are skipped, and the rows after them
    /// fill the page.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn page(&self, filter: &Filter) -> Result<Vec<Loan>, LedgerError> {
        let wanted = filter.limit as usize;
        let mut limit = filter.limit;
        let mut after = match filter.after {
            Some(id) => Some(self.listing_position(id).await?),
            None => None,
        };
        let mut loans = Vec::new();
        loop {
            let rows = self.page_rows(filter, after.as_ref(), limit).await?;
            loans.extend(rows.iter().filter_map(|row| self.damaged.loan(row)));
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
    async fn listing_position(&self, id: LoanId) -> Result<(i64, String), LedgerError> {
        let begun = sqlx::query_scalar("SELECT begun FROM loans WHERE id = ?").bind(id.to_string());
        let begun =
            begun.fetch_optional(&self.readers).await.map_err(|source| self.failed(source))?;
        Ok((begun.unwrap_or_else(|| id.created_at().as_millisecond()), id.to_string()))
    }

    /// Reads one page. Each filter has an index in the order of the listing, and the inner query
    /// usually reads only that index. The outer query reads only the rows of the page.
    async fn page_rows(
        &self,
        filter: &Filter,
        after: Option<&(i64, String)>,
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
            query.push(" AND isbn = ").push_bind(i64::try_from(isbn.number()).unwrap_or_default());
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
        query.build().fetch_all(&self.readers).await.map_err(|source| self.failed(source))
    }

    /// Returns the undecided loans (intended, pending or unknown) of dead processes.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn orphans(&self) -> Result<Vec<Loan>, LedgerError> {
        const OWNERS: &str =
            "SELECT DISTINCT owner FROM loans WHERE state IN ('intended', 'pending', 'unknown')";
        let owners: Vec<String> = sqlx::query_scalar(OWNERS)
            .fetch_all(&self.readers)
            .await
            .map_err(|source| self.failed(source))?;
        let sql = format!(
            "SELECT {COLUMNS} FROM loans \
             WHERE state IN ('intended', 'pending', 'unknown') AND owner = ? ORDER BY id"
        );
        let mut orphans = Vec::new();
        for dead in owners.into_iter().filter(|owner| self.process.is_dead(owner)) {
            let query = sqlx::query(AssertSqlSafe(sql.clone())).bind(dead);
            let rows =
                query.fetch_all(&self.readers).await.map_err(|source| self.failed(source))?;
            orphans.extend(rows.iter().filter_map(|row| self.damaged.loan(row)));
        }
        Ok(orphans)
    }

    /// Returns the accepted loans that are due at this time, the earliest first. Damaged rows do
    /// not count towards `limit`, so they cannot prevent the other loans from being ended.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn due(&self, at: Timestamp, limit: u32) -> Result<Vec<Loan>, LedgerError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM loans \
             WHERE state = 'accepted' AND due <= ? AND (due, id) > (?, ?) \
             ORDER BY due, id LIMIT ?"
        );
        let wanted = limit as usize;
        let (mut limit, mut after) = (limit, (i64::MIN, String::new()));
        let mut loans = Vec::new();
        loop {
            let query = sqlx::query(AssertSqlSafe(sql.clone())).bind(at.as_millisecond());
            let query = query.bind(after.0).bind(after.1.clone()).bind(i64::from(limit));
            let rows =
                query.fetch_all(&self.readers).await.map_err(|source| self.failed(source))?;
            loans.extend(rows.iter().filter_map(|row| self.damaged.loan(row)));
            let last = rows
                .last()
                .and_then(|row| Some((row.try_get("due").ok()?, row.try_get("id").ok()?)));
            match last {
                Some(last) if loans.len() < wanted && rows.len() == limit as usize => after = last,
                _ => break,
            }
            limit = limit.max(REFILL);
        }
        loans.truncate(wanted);
        Ok(loans)
    }

    /// Returns the number of accepted loans that are due at this time.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn count_due(&self, at: Timestamp) -> Result<u64, LedgerError> {
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM loans WHERE state = 'accepted' AND due <= ?")
                .bind(at.as_millisecond())
                .fetch_one(&self.readers)
                .await
                .map_err(|source| self.failed(source))?;
        Ok(count.unsigned_abs())
    }

    /// Returns the earliest due time of an accepted loan after this time.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn next_due(&self, after: Timestamp) -> Result<Option<Timestamp>, LedgerError> {
        let due =
            sqlx::query_scalar("SELECT min(due) FROM loans WHERE state = 'accepted' AND due > ?");
        let due: Option<i64> = due
            .bind(after.as_millisecond())
            .fetch_one(&self.readers)
            .await
            .map_err(|source| self.failed(source))?;
        Ok(due.and_then(|due| Timestamp::from_millisecond(due).ok()))
    }

    /// Returns every loan whose end has not been acknowledged, and the step from which
    /// [`Ledger::ends_after`] continues.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn ends_waiting(&self) -> Result<Ends, LedgerError> {
        // Read the step first: an end written between the two queries is then returned twice, and
        // never missed.
        let step: Option<i64> = sqlx::query_scalar("SELECT max(number) FROM history")
            .fetch_one(&self.readers)
            .await
            .map_err(|source| self.failed(source))?;
        let ids: Vec<String> =
            sqlx::query_scalar("SELECT id FROM loans WHERE state = 'ending' ORDER BY ended")
                .fetch_all(&self.readers)
                .await
                .map_err(|source| self.failed(source))?;
        let loans = ids.iter().filter_map(|id| self.damaged.skip(read_id(id))).collect();
        Ok(Ends { loans, step: step.unwrap_or_default() })
    }

    /// Returns the loans that ended after this step, in the order of their ends.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn ends_after(&self, step: i64) -> Result<Ends, LedgerError> {
        let rows: Vec<(i64, String)> = sqlx::query_as(
            "SELECT number, loan FROM history \
             WHERE number > ? AND to_state = 'ending' ORDER BY number",
        )
        .bind(step)
        .fetch_all(&self.readers)
        .await
        .map_err(|source| self.failed(source))?;
        let step = rows.last().map_or(step, |(number, _)| *number);
        let loans = rows.iter().filter_map(|(_, id)| self.damaged.skip(read_id(id))).collect();
        Ok(Ends { loans, step })
    }

    /// Returns the number of ends that have not been acknowledged, and the number of those that
    /// ended before this time.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn count_ends(&self, before: Timestamp) -> Result<(u64, u64), LedgerError> {
        let (waiting, overdue): (i64, i64) = sqlx::query_as(
            "SELECT count(*), count(*) FILTER (WHERE ended < ?) FROM loans WHERE state = 'ending'",
        )
        .bind(before.as_millisecond())
        .fetch_one(&self.readers)
        .await
        .map_err(|source| self.failed(source))?;
        Ok((waiting.unsigned_abs(), overdue.unsigned_abs()))
    }

    /// Returns whether a loan that ended before this time still has its borrower.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn has_to_forget(&self, before: Timestamp) -> Result<bool, LedgerError> {
        const ANY: &str = "SELECT EXISTS (SELECT 1 FROM loans WHERE state IN ('refused', 'ended') \
             AND forgotten IS NULL AND coalesce(ended, changed) < ?)";
        let any =
            sqlx::query_scalar(ANY).bind(before.as_millisecond()).fetch_one(&self.readers).await;
        any.map_err(|source| self.failed(source))
    }

    /// Tests that the ledger can be read, within two seconds.
    ///
    /// # Errors
    /// [`LedgerError`] if it cannot.
    pub async fn check(&self) -> Result<(), LedgerError> {
        let one = sqlx::query("SELECT value FROM meta LIMIT 1").fetch_one(&self.readers);
        let one = tokio::time::timeout(CHECK_DEADLINE, one)
            .await
            .unwrap_or(Err(sqlx::Error::PoolTimedOut));
        one.map(drop).map_err(|source| self.failed(source))
    }

    pub(in crate::ledger) fn failed(&self, source: sqlx::Error) -> LedgerError {
        LedgerError::Database { file: self.file.as_ref().clone(), source }
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

fn read_id(id: &str) -> Result<LoanId, LedgerError> {
    id.parse().map_err(|_| LedgerError::Damaged {
        id: id.to_owned(),
        why: "its id is not valid".to_owned(),
    })
}
