//! Queries for circulation's background work: loans that are due, undecided, ending or old.

use std::sync::LazyLock;

use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::queries::{Queries, id_of, loans};
use super::retention::TO_FORGET;
use crate::ledger::change_feed::{ClosedLoan, ClosedPage};
use crate::ledger::queries::{REFILL, ToForget};
use crate::ledger::states::{CLOSED, LIVE, UNDECIDED};
use crate::ledger::stored_row::key_of;
use crate::ledger::stored_row::loan_of;
use crate::ledger::{EndPosition, Ends, LedgerError, UnfoundBegin};
use crate::loan::{LibraryId, Loan, LoanId, LoanState};

/// The maximum number of ends that one query of the change feed reads.
const FEED_PAGE: u32 = 1000;

/// Both name the index on due times. By the statistics of a large ledger, the planner would take
/// the one on states, and read every accepted loan each second.
pub(super) const COUNT_DUE: &str =
    "SELECT count(*) FROM loans INDEXED BY loans_by_due WHERE state = 'accepted' AND due <= ?";
pub(super) const NEXT_DUE: &str =
    "SELECT min(due) FROM loans INDEXED BY loans_by_due WHERE state = 'accepted' AND due > ?";

static DUE: LazyLock<String> = LazyLock::new(|| {
    loans("state = 'accepted' AND due <= ? AND (due, id) > (?, ?) ORDER BY due, id LIMIT ?")
});
static UNDECIDED_OF: LazyLock<String> = LazyLock::new(|| {
    let undecided = &*UNDECIDED;
    loans(&format!("state IN ({undecided}) AND owner = ? ORDER BY id"))
});
static UNDECIDED_IDS_OF: LazyLock<String> = LazyLock::new(|| {
    let undecided = &*UNDECIDED;
    format!("SELECT id, library FROM loans WHERE state IN ({undecided}) AND owner = ?")
});
static OWNERS: LazyLock<String> = LazyLock::new(|| {
    let undecided = &*UNDECIDED;
    format!("SELECT DISTINCT owner FROM loans WHERE state IN ({undecided})")
});
static OLDEST_LIVE: LazyLock<String> = LazyLock::new(|| {
    let live = &*LIVE;
    format!("SELECT min(begun) FROM loans WHERE library = ? AND state IN ({live})")
});
static ANY_TO_FORGET: LazyLock<String> = LazyLock::new(|| {
    let to_forget = &*TO_FORGET;
    format!("SELECT EXISTS (SELECT 1 FROM loans WHERE {to_forget})")
});
/// The condition on the states must equal the condition of the index.
static CLOSED_AFTER: LazyLock<String> = LazyLock::new(|| {
    let (closed, ending) = (&*CLOSED, LoanState::Ending.name());
    format!(
        "SELECT number, loans.id, library, borrower, isbn, coalesce(ended, at) AS at \
         FROM history CROSS JOIN loans ON loans.id = history.loan \
         WHERE number > ? AND to_state IN ({closed}) AND from_state <> '{ending}' \
         ORDER BY number LIMIT ?"
    )
});

impl Queries {
    pub(in crate::ledger) async fn due(
        &self,
        at: Timestamp,
        limit: u32,
    ) -> Result<Vec<Loan>, LedgerError> {
        let wanted = limit as usize;
        let (mut limit, mut after) = (limit, (i64::MIN, String::new()));
        let mut loans = Vec::new();
        loop {
            let query = sqlx::query(DUE.as_str()).bind(at.as_millisecond());
            let query = query.bind(after.0).bind(after.1.clone()).bind(i64::from(limit));
            let rows = self.rows(query).await?;
            loans.extend(rows.iter().filter_map(|row| self.damaged.loan(loan_of(row))));
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

    pub(in crate::ledger) async fn count_due(&self, at: Timestamp) -> Result<u64, LedgerError> {
        self.count(sqlx::query(COUNT_DUE).bind(at.as_millisecond())).await
    }

    pub(in crate::ledger) async fn next_due(
        &self,
        after: Timestamp,
    ) -> Result<Option<Timestamp>, LedgerError> {
        self.time(sqlx::query(NEXT_DUE).bind(after.as_millisecond())).await
    }

    pub(in crate::ledger) async fn count_accepted(&self) -> Result<u64, LedgerError> {
        self.count(sqlx::query("SELECT count(*) FROM loans WHERE state = 'accepted'")).await
    }

    pub(in crate::ledger) async fn ends_waiting(&self) -> Result<Ends, LedgerError> {
        // Read the step first: an end written between the two queries is then returned twice, and
        // never missed.
        let step = self.first(sqlx::query("SELECT max(number) FROM history")).await?;
        let ending =
            sqlx::query("SELECT id, library FROM loans WHERE state = 'ending' ORDER BY ended");
        let loans = self.ids(ending, "id").await?;
        let next = EndPosition { at: step.unwrap_or_default(), buckets: None, shares: None };
        Ok(Ends { loans, is_complete: true, next })
    }

    pub(in crate::ledger) async fn ends_after(
        &self,
        position: &EndPosition,
    ) -> Result<Ends, LedgerError> {
        const ENDS: &str = "SELECT number, loan, library \
             FROM history CROSS JOIN loans ON loans.id = history.loan \
             WHERE number > ? AND to_state = 'ending' ORDER BY number";
        let rows = self.rows(sqlx::query(ENDS).bind(position.at)).await?;
        let last = rows.last().map(|row| row.try_get("number")).transpose();
        let at = last.map_err(|source| self.failed(source))?.unwrap_or(position.at);
        let loans = rows.iter().filter_map(|row| self.damaged.skip(id_of(row, "loan"))).collect();
        Ok(Ends {
            loans,
            is_complete: false,
            next: EndPosition { at, buckets: None, shares: None },
        })
    }

    pub(in crate::ledger) async fn count_ends(
        &self,
        before: Timestamp,
    ) -> Result<(u64, u64), LedgerError> {
        const COUNTS: &str = "SELECT count(*) AS waiting, \
             count(*) FILTER (WHERE ended < ?) AS overdue FROM loans WHERE state = 'ending'";
        let row = self.row(sqlx::query(COUNTS).bind(before.as_millisecond())).await?;
        let count = |column: &str| -> Result<u64, LedgerError> {
            let count = row.as_ref().map(|row| row.try_get::<i64, _>(column)).transpose();
            Ok(count.map_err(|source| self.failed(source))?.map_or(0, i64::unsigned_abs))
        };
        Ok((count("waiting")?, count("overdue")?))
    }

    /// Returns when the loan whose end has waited the longest ended.
    pub(in crate::ledger) async fn oldest_end(&self) -> Result<Option<Timestamp>, LedgerError> {
        const OLDEST: &str =
            "SELECT ended FROM loans WHERE state = 'ending' ORDER BY ended LIMIT 1";
        self.time(sqlx::query(OLDEST)).await
    }

    /// Returns the undecided loans of this process.
    pub(in crate::ledger) async fn undecided(
        &self,
        owner: &str,
    ) -> Result<Vec<LoanId>, LedgerError> {
        self.ids(sqlx::query(UNDECIDED_IDS_OF.as_str()).bind(owner), "id").await
    }

    /// Returns the undecided loans of all processes that are dead.
    pub(in crate::ledger) async fn orphans(
        &self,
        is_dead: impl Fn(&str) -> bool,
    ) -> Result<Vec<Loan>, LedgerError> {
        let rows = self.rows(sqlx::query(OWNERS.as_str())).await?;
        let owners: Result<Vec<String>, sqlx::Error> =
            rows.iter().map(|row| row.try_get("owner")).collect();
        let owners = owners.map_err(|source| self.failed(source))?;
        let mut orphans = Vec::new();
        for dead in owners.into_iter().filter(|owner| is_dead(owner)) {
            let query = sqlx::query(UNDECIDED_OF.as_str()).bind(dead);
            orphans.extend(self.readable_loans(query).await?);
        }
        Ok(orphans)
    }

    pub(in crate::ledger) async fn oldest_live(
        &self,
        library: LibraryId,
    ) -> Result<Option<Timestamp>, LedgerError> {
        self.time(sqlx::query(OLDEST_LIVE.as_str()).bind(library.as_str())).await
    }

    /// Returns none: a process whose loans are adopted is certainly dead.
    pub(in crate::ledger) async fn unfound_begins(
        &self,
        _after: Timestamp,
    ) -> Result<Vec<UnfoundBegin>, LedgerError> {
        Ok(Vec::new())
    }

    /// Returns whether a loan that ended before this time still has its borrower.
    pub(in crate::ledger) async fn to_forget(
        &self,
        before: Timestamp,
    ) -> Result<ToForget, LedgerError> {
        let any = sqlx::query(ANY_TO_FORGET.as_str()).bind(before.as_millisecond());
        let is_any = self.first(any).await?.unwrap_or_default();
        Ok(if is_any { ToForget::AnyLibrary } else { ToForget::Nothing })
    }

    /// Returns the next page of the change feed: ends that were committed after this step.
    pub(in crate::ledger) async fn closed_after(
        &self,
        step: i64,
    ) -> Result<ClosedPage, LedgerError> {
        let query = sqlx::query(CLOSED_AFTER.as_str()).bind(step).bind(FEED_PAGE);
        let mut page = ClosedPage { loans: Vec::new(), step };
        for row in &self.rows(query).await? {
            match closed_of(row) {
                Some(loan) => page.loans.push(loan),
                None => tracing::error!(
                    "a row of the change feed cannot be read; run `loangate ledger check`"
                ),
            }
            let number = row.try_get("number").map_err(|source| self.failed(source))?;
            page.step = page.step.max(number);
        }
        Ok(page)
    }
}

fn closed_of(row: &SqliteRow) -> Option<ClosedLoan> {
    let (id, at): (String, i64) = (row.try_get("id").ok()?, row.try_get("at").ok()?);
    let key = key_of(row, &id).ok()?;
    Some(ClosedLoan {
        loan: LoanId::new(key.library, id.parse().ok()?),
        key,
        at: Timestamp::from_millisecond(at).ok()?,
    })
}
