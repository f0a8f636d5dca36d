//! The state of the balance between two runs: the loans that were absent at Bokbasen, and the
//! number of loans that it has ended.
//!
//! A doubt is a loan that a run found absent. Doubts are
//! durable, so they survive a restart. Losing one is safe: the balance starts again with that loan.

use std::collections::HashMap;

use jiff::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::queries::Queries;
use crate::ledger::states::{MAX_DOUBTS, doubts_discarded_before};
use crate::ledger::{Doubts, LedgerError};
use crate::loan::{LibraryId, LoanId};

impl Queries {
    pub(in crate::ledger) async fn doubts(
        &self,
        library: LibraryId,
        now: Timestamp,
    ) -> Result<HashMap<LoanId, Timestamp>, LedgerError> {
        const DOUBTS: &str = "SELECT loan, since FROM doubts WHERE library = ? AND run >= ?";
        let query = sqlx::query(DOUBTS).bind(library.as_str()).bind(doubts_discarded_before(now));
        let read = |row: &SqliteRow| {
            let (id, since): (String, i64) =
                (row.try_get("loan").ok()?, row.try_get("since").ok()?);
            let id = LoanId::new(library, id.parse().ok()?);
            Some((id, Timestamp::from_millisecond(since).ok()?))
        };
        // Damaged doubts are skipped: the balance starts again with those loans.
        Ok(self.rows(query).await?.iter().filter_map(read).collect())
    }

    pub(in crate::ledger) async fn ended_by_balance(
        &self,
        library: Option<LibraryId>,
        after: Timestamp,
    ) -> Result<u64, LedgerError> {
        const ENDED: &str = "SELECT count(*) FROM history \
             CROSS JOIN loans ON loans.id = history.loan \
             WHERE cause = 'balance' AND to_state = 'ended' AND at > ? \
             AND (?2 IS NULL OR library = ?2)";
        let query = sqlx::query(ENDED).bind(after.as_millisecond());
        self.count(query.bind(library.map(|library| library.as_str().to_owned()))).await
    }
}

/// Writes the doubts of one run and clears those that it did not confirm.
pub(super) async fn replace(
    connection: &mut SqliteConnection,
    doubts: &Doubts,
) -> Result<(), sqlx::Error> {
    let (run, library) = (doubts.run.as_millisecond(), doubts.library.as_str());
    sqlx::query("DELETE FROM doubts WHERE library = ? AND run < ?")
        .bind(library)
        .bind(doubts_discarded_before(doubts.run))
        .execute(&mut *connection)
        .await?;
    let absent = doubts.absent.get(..MAX_DOUBTS).unwrap_or(&doubts.absent);
    if !absent.is_empty() {
        let mut query =
            QueryBuilder::<Sqlite>::new("INSERT INTO doubts (loan, library, since, run) ");
        query.push_values(absent, |mut row, id| {
            row.push_bind(id.to_string()).push_bind(library).push_bind(run).push_bind(run);
        });
        query.push(" ON CONFLICT (loan) DO UPDATE SET run = excluded.run");
        query.build().persistent(false).execute(&mut *connection).await?;
    }
    let mut query = QueryBuilder::<Sqlite>::new("DELETE FROM doubts WHERE library = ");
    query.push_bind(library).push(" AND loan NOT IN (");
    let mut list = query.separated(", ");
    for id in absent {
        list.push_bind(id.to_string());
    }
    query.push(")");
    query.build().persistent(false).execute(connection).await.map(drop)
}
