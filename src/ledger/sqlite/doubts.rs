//! The state of the balance between two runs: the loans that were absent at Bokbasen, and the
//! number of loans that it has ended.
//!
//! A doubt is a loan that a run found absent. Doubts are
//! durable, so they survive a restart. Losing one is safe: the balance starts again with that loan.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::queries::Queries;
use crate::ledger::{Doubts, LedgerError};
use crate::loan::{LibraryId, LoanId};

/// A doubt that no run confirms within this time is discarded.
const DISCARDED_AFTER: SignedDuration = SignedDuration::from_hours(24 * 7);
/// The maximum number of doubts of a library: far more than a balance ever acts on.
const MAX_DOUBTS: usize = 1000;

impl Queries {
    pub(in crate::ledger) async fn doubts(
        &self,
        library: LibraryId,
        now: Timestamp,
    ) -> Result<HashMap<LoanId, Timestamp>, LedgerError> {
        const DOUBTS: &str = "SELECT loan, since FROM doubts WHERE library = ? AND run >= ?";
        let query = sqlx::query(DOUBTS).bind(library.as_str()).bind(discarded_before(now));
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

fn discarded_before(now: Timestamp) -> i64 {
    now.checked_sub(DISCARDED_AFTER).unwrap_or(Timestamp::MIN).as_millisecond()
}

/// Writes the doubts of one run and clears those that it did not confirm.
pub(super) async fn replace(
    connection: &mut SqliteConnection,
    doubts: &Doubts,
) -> Result<(), sqlx::Error> {
    let (run, library) = (doubts.run.as_millisecond(), doubts.library.as_str());
    sqlx::query("DELETE FROM doubts WHERE library = ? AND run < ?")
        .bind(library)
        .bind(discarded_before(doubts.run))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;
    use crate::ledger::test_support::{by, loan, open};

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + hours * 3600).unwrap()
    }

    #[tokio::test]
    async fn doubts_survive_restarts_and_lapse_unconfirmed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("loans.db");
        let ledger = open(&file).await;
        let (one, other) = (loan(1), loan(2));
        let library = one.key.library;
        for loan in [&one, &other] {
            ledger.intend(loan.clone(), None, by("reader")).await.unwrap();
        }
        let run = async |ledger: &Ledger, hours: i64, absent: &[LoanId]| {
            let doubts = Doubts { library, absent: absent.to_vec(), run: at(hours) };
            ledger.replace_doubts(doubts).await.unwrap();
            ledger.doubts(library, at(hours)).await.unwrap()
        };
        run(&ledger, 0, &[one.id, other.id]).await;
        ledger.close().await;
        let ledger = open(&file).await;
        let doubts = run(&ledger, 24, &[one.id]).await;
        assert_eq!(
            doubts,
            HashMap::from([(one.id, at(0))]),
            "the first run that found it absent sets the time"
        );
        let doubts = run(&ledger, 48, &[one.id, other.id]).await;
        assert_eq!(
            doubts,
            HashMap::from([(one.id, at(0)), (other.id, at(48))]),
            "the other doubt starts again"
        );
        assert!(ledger.doubts(library, at(48 + 24 * 8)).await.unwrap().is_empty());
        let doubts = run(&ledger, 48 + 24 * 8, &[one.id]).await;
        assert_eq!(
            doubts,
            HashMap::from([(one.id, at(48 + 24 * 8))]),
            "a doubt is discarded after a week"
        );
        assert!(
            run(&ledger, 48 + 24 * 8, &[]).await.is_empty(),
            "also for two runs at the same time"
        );
        ledger.close().await;
    }
}
