//! Queries for circulation's background work: loans that are due, undecided, ending or old.
//!
//! They read the buckets that this process owns, of all libraries.

use std::sync::LazyLock;

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::closed::OVERLAP_MS;
use super::queries::Queries;
use super::row::{count_of, id_of, library_of, time_of};
use super::sql::{loans, statement};
use crate::ledger::queries::{REFILL, ToForget};
use crate::ledger::states::{LIVE, OVER, UNDECIDED};
use crate::ledger::stored_row::loan_of;
use crate::ledger::{EndPosition, Ends, LedgerError};
use crate::loan::{LibraryId, Loan, LoanId};

pub(super) static DUE: LazyLock<String> = LazyLock::new(|| {
    loans(
        "state = 'accepted' AND due <= $1 AND (due, library, id) > ($2, $3, $4) \
         AND bucket = ANY($5) ORDER BY due, library, id LIMIT $6",
    )
});
pub(super) const COUNT_DUE: &str = "SELECT count(*) FROM loans \
     WHERE state = 'accepted' AND due <= $1 AND bucket = ANY($2)";
pub(super) const NEXT_DUE: &str = "SELECT due FROM loans \
     WHERE state = 'accepted' AND due > $1 AND bucket = ANY($2) ORDER BY due LIMIT 1";
pub(super) const COUNT_ACCEPTED: &str = "SELECT count(*) FROM loans WHERE state = 'accepted'";
pub(super) const ENDS: &str = "SELECT id, library, closed FROM loans \
     WHERE state = 'ending' AND (closed, library, id) > ($1, $2, $3) AND bucket = ANY($4) \
     ORDER BY closed, library, id LIMIT $5";
pub(super) const COUNT_ENDS: &str = "SELECT count(*) AS waiting, \
     count(*) FILTER (WHERE ended < $1) AS overdue FROM loans \
     WHERE state = 'ending' AND bucket = ANY($2)";
/// Of all processes, by the index.
pub(super) const OLDEST_END: &str =
    "SELECT closed FROM loans WHERE state = 'ending' ORDER BY closed LIMIT 1";
pub(super) static UNDECIDED_IDS_OF: LazyLock<String> = LazyLock::new(|| {
    let undecided = &*UNDECIDED;
    format!("SELECT id, library FROM loans WHERE state IN ({undecided}) AND owner = $1")
});
/// One statement, and so one snapshot: a process joins before it writes, so a snapshot with its
/// loan also has its row.
pub(super) static ORPHANS: LazyLock<String> = LazyLock::new(|| {
    let undecided = &*UNDECIDED;
    loans(&format!(
        "state IN ({undecided}) AND bucket = ANY($1) AND NOT EXISTS \
         (SELECT 1 FROM members WHERE member = loans.owner AND fenced IS NULL) \
         AND id > $2 ORDER BY id LIMIT $3"
    ))
});
/// OFFSET lets the planner read the few live loans, and not all loans of the library from the first
/// until one is live.
pub(super) static OLDEST_LIVE: LazyLock<String> = LazyLock::new(|| {
    let live = &*LIVE;
    format!(
        "SELECT min(begun) FROM (SELECT begun FROM loans \
         WHERE library = $1 AND state IN ({live}) OFFSET 0) AS live"
    )
});
pub(super) static TO_FORGET: LazyLock<String> = LazyLock::new(|| {
    let over = &*OVER;
    format!(
        "SELECT library FROM loans WHERE state IN ({over}) AND forgotten IS NULL \
         AND coalesce(ended, changed) < $1 AND bucket = ANY($2) \
         ORDER BY coalesce(ended, changed) LIMIT $3"
    )
});

/// The maximum number of ends in one query.
#[cfg(not(test))]
const ENDS_PAGE: i64 = 5000;
#[cfg(test)]
const ENDS_PAGE: i64 = 2;

impl Queries {
    pub(in crate::ledger) async fn due(
        &self,
        at: Timestamp,
        limit: u32,
    ) -> Result<Vec<Loan>, LedgerError> {
        let wanted = limit as usize;
        let buckets = self.owned.get();
        let (mut limit, mut after) = (limit, (i64::MIN, String::new(), Uuid::nil()));
        let mut loans = Vec::new();
        loop {
            let query = statement(&DUE).bind(at.as_millisecond());
            let query = query.bind(after.0).bind(after.1.clone()).bind(after.2);
            let query = query.bind(buckets.to_vec()).bind(i64::from(limit));
            let rows = self.background_rows(query).await?;
            loans.extend(rows.iter().filter_map(|row| self.damaged.loan(loan_of(row))));
            let last = rows.last().and_then(|row| {
                let due = row.try_get("due").ok()?;
                Some((due, row.try_get("library").ok()?, row.try_get("id").ok()?))
            });
            match last {
                Some(last) if loans.len() < wanted && rows.len() == limit as usize => after = last,
                _ => break,
            }
            limit = limit.max(REFILL);
        }
        loans.truncate(wanted);
        Ok(loans)
    }

    pub(in crate::ledger) async fn count_due(&self, at: Timestamp) -> Result<u64, LedgerError> {
        let query = statement(COUNT_DUE).bind(at.as_millisecond());
        count_of(self.background_row(query.bind(self.owned.get().to_vec())).await?)
    }

    pub(in crate::ledger) async fn next_due(
        &self,
        after: Timestamp,
    ) -> Result<Option<Timestamp>, LedgerError> {
        let query = statement(NEXT_DUE).bind(after.as_millisecond());
        time_of(self.background_row(query.bind(self.owned.get().to_vec())).await?)
    }

    pub(in crate::ledger) async fn count_accepted(&self) -> Result<u64, LedgerError> {
        count_of(self.background_row(statement(COUNT_ACCEPTED)).await?)
    }

    pub(in crate::ledger) async fn ends_waiting(&self) -> Result<Ends, LedgerError> {
        let start = EndPosition { at: 0, buckets: Some(self.owned.get()), shares: None };
        self.ends(i64::MIN, true, start).await
    }

    /// Reads again from before the position: a transaction may have closed loans before the last
    /// ones that were read, and committed after. If a new primary has an earlier time, the next
    /// [`Queries::ends_waiting`] has the ends of which this knows nothing.
    pub(in crate::ledger) async fn ends_after(
        &self,
        position: &EndPosition,
    ) -> Result<Ends, LedgerError> {
        let buckets = self.owned.get();
        if position.buckets.as_ref() != Some(&buckets) {
            return self.ends_waiting().await;
        }
        let from = position.at.saturating_sub(OVERLAP_MS);
        self.ends(from, false, position.clone()).await
    }

    /// Returns the ends of the position's buckets from this time on, page by page: a query of all
    /// ends of a long outage would exceed its deadline.
    async fn ends(
        &self,
        from: i64,
        is_complete: bool,
        mut next: EndPosition,
    ) -> Result<Ends, LedgerError> {
        let buckets = next.buckets.as_deref().unwrap_or_default().to_vec();
        let (mut loans, mut after) = (Vec::new(), (from, String::new(), Uuid::nil()));
        loop {
            let query = statement(ENDS).bind(after.0).bind(&after.1).bind(after.2);
            let rows = self.background_rows(query.bind(&buckets).bind(ENDS_PAGE)).await?;
            loans.extend(rows.iter().filter_map(|row| self.damaged.skip(id_of(row, "id"))));
            if let Some(last) = rows.last() {
                after = position_of(last).map_err(LedgerError::Server)?;
                next.at = next.at.max(after.0);
            }
            if (rows.len() as i64) < ENDS_PAGE {
                return Ok(Ends { loans, is_complete, next });
            }
        }
    }

    pub(in crate::ledger) async fn count_ends(
        &self,
        before: Timestamp,
    ) -> Result<(u64, u64), LedgerError> {
        let query = statement(COUNT_ENDS).bind(before.as_millisecond());
        let query = query.bind(self.owned.get().to_vec());
        let Some(row) = self.background_row(query).await? else { return Ok((0, 0)) };
        let count =
            |column: &str| row.try_get(column).map(i64::unsigned_abs).map_err(LedgerError::Server);
        Ok((count("waiting")?, count("overdue")?))
    }

    /// Returns when the loan whose end has waited the longest ended.
    pub(in crate::ledger) async fn oldest_end(&self) -> Result<Option<Timestamp>, LedgerError> {
        time_of(self.background_row(statement(OLDEST_END)).await?)
    }

    /// Returns the undecided loans of this process.
    pub(in crate::ledger) async fn undecided(
        &self,
        owner: &str,
    ) -> Result<Vec<LoanId>, LedgerError> {
        let Ok(owner) = owner.parse::<Uuid>() else { return Ok(Vec::new()) };
        let rows = self.background_rows(statement(&UNDECIDED_IDS_OF).bind(owner)).await?;
        Ok(rows.iter().filter_map(|row| self.damaged.skip(id_of(row, "id"))).collect())
    }

    /// Returns the next undecided loans of all processes that are no members, in the order of their
    /// ids. None are left if it returns none.
    pub(in crate::ledger) async fn orphans(
        &self,
        after: Option<LoanId>,
    ) -> Result<Vec<Loan>, LedgerError> {
        let buckets = self.owned.get();
        let mut after = after.map_or(Uuid::nil(), LoanId::uuid);
        loop {
            let query = statement(&ORPHANS).bind(buckets.to_vec()).bind(after);
            let rows = self.background_rows(query.bind(i64::from(REFILL))).await?;
            let loans: Vec<Loan> =
                rows.iter().filter_map(|row| self.damaged.loan(loan_of(row))).collect();
            // A page of damaged rows does not hide the loans after them.
            match rows.last() {
                Some(last) if loans.is_empty() => {
                    after = last.try_get("id").map_err(LedgerError::Server)?;
                }
                _ => return Ok(loans),
            }
        }
    }

    pub(in crate::ledger) async fn oldest_live(
        &self,
        library: LibraryId,
    ) -> Result<Option<Timestamp>, LedgerError> {
        let query = statement(&OLDEST_LIVE).bind(library.as_str().to_owned());
        time_of(self.background_row(query).await?)
    }

    /// Returns the library of the loan that ended first, before this time, and still has its
    /// borrower.
    pub(in crate::ledger) async fn to_forget(
        &self,
        before: Timestamp,
    ) -> Result<ToForget, LedgerError> {
        let query = statement(&TO_FORGET).bind(before.as_millisecond());
        let query = query.bind(self.owned.get().to_vec()).bind(i64::from(REFILL));
        for row in self.background_rows(query).await? {
            let name: String = row.try_get(0).map_err(LedgerError::Server)?;
            if let Some(library) = self.damaged.skip(library_of(&name)) {
                return Ok(ToForget::Library(library));
            }
        }
        Ok(ToForget::Nothing)
    }
}

/// Returns the position of an end in the order of [`ENDS`].
fn position_of(row: &PgRow) -> Result<(i64, String, Uuid), sqlx::Error> {
    Ok((row.try_get("closed")?, row.try_get("library")?, row.try_get("id")?))
}
