//! The state of the balance between two runs: the loans that were absent at Bokbasen, and the
//! number of loans that it has ended.
//!
//! Only circulation's balance calls it. A doubt is a loan that a run found absent. Doubts are
//! durable, so they survive a restart. Losing one is safe: the balance starts again with that loan.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use sqlx::{AssertSqlSafe, QueryBuilder, Sqlite};
use tokio::sync::oneshot;

use super::row::{COLUMNS, loan_of};
use crate::ledger::batch::{WriteBatch, database};
use crate::ledger::executor::Command;
use crate::ledger::{Ledger, LedgerError};
use crate::loan::{LibraryId, Loan, LoanId};

/// A doubt that no run confirms within this time is discarded.
const DISCARDED_AFTER: SignedDuration = SignedDuration::from_hours(24 * 7);
/// The maximum number of doubts of a library: far more than a balance ever acts on.
const MAX_DOUBTS: usize = 1000;

/// The loans of a library that a run found absent at Bokbasen.
#[derive(Clone, Debug)]
pub struct Doubts {
    /// The library that was compared.
    pub library: LibraryId,
    /// Every absent loan; doubts about any other loan of the library are cleared.
    pub absent: Vec<LoanId>,
    /// When the run began.
    pub run: Timestamp,
}

impl Ledger {
    /// Returns the doubts about a library, each with the time of the first run that found the loan
    /// absent.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn doubts(
        &self,
        library: LibraryId,
        now: Timestamp,
    ) -> Result<HashMap<LoanId, Timestamp>, LedgerError> {
        const DOUBTS: &str = "SELECT loan, since FROM doubts WHERE library = ? AND run >= ?";
        let rows: Vec<(String, i64)> = sqlx::query_as(DOUBTS)
            .bind(library.as_str())
            .bind(discarded_before(now))
            .fetch_all(&self.readers)
            .await
            .map_err(|source| self.failed(source))?;
        let read = |(id, since): (String, i64)| {
            Some((id.parse().ok()?, Timestamp::from_millisecond(since).ok()?))
        };
        // Damaged doubts are skipped: the balance starts again with those loans.
        Ok(rows.into_iter().filter_map(read).collect())
    }

    /// Replaces the doubts about a library. They are durable when this returns.
    ///
    /// # Errors
    /// [`LedgerError`]; the earlier doubts remain.
    pub async fn replace_doubts(&self, doubts: Doubts) -> Result<(), LedgerError> {
        let (responder, response) = oneshot::channel();
        self.send(Command::Doubts { doubts, responder }).await?;
        response.await.map_err(|_| LedgerError::Closed)?.map(drop)
    }

    /// Returns the number of loans that a balance has ended after this time, of one library or of
    /// all.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn ended_by_balance(
        &self,
        library: Option<LibraryId>,
        after: Timestamp,
    ) -> Result<usize, LedgerError> {
        const ENDED: &str = "SELECT count(*) FROM history \
             CROSS JOIN loans ON loans.id = history.loan \
             WHERE cause = 'balance' AND to_state = 'ended' AND at > ? \
             AND (?2 IS NULL OR library = ?2)";
        let count: i64 = sqlx::query_scalar(ENDED)
            .bind(after.as_millisecond())
            .bind(library.map(|library| library.as_str().to_owned()))
            .fetch_one(&self.readers)
            .await
            .map_err(|source| self.failed(source))?;
        Ok(usize::try_from(count).unwrap_or_default())
    }

    /// Returns the number of accepted loans of all libraries.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn count_accepted(&self) -> Result<usize, LedgerError> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM loans WHERE state = 'accepted'")
            .fetch_one(&self.readers)
            .await
            .map_err(|source| self.failed(source))?;
        Ok(usize::try_from(count).unwrap_or_default())
    }

    /// Returns a loan with this id of Bokbasen, other than `except`.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read or the row is damaged.
    pub async fn by_lending_id(
        &self,
        lending_id: &str,
        except: Option<LoanId>,
    ) -> Result<Option<Loan>, LedgerError> {
        let sql = format!("SELECT {COLUMNS} FROM loans WHERE lending_id = ? AND id <> ? LIMIT 1");
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(lending_id)
            .bind(except.map(|id| id.to_string()).unwrap_or_default())
            .fetch_optional(&self.readers)
            .await
            .map_err(|source| self.failed(source))?;
        row.as_ref().map(loan_of).transpose()
    }
}

fn discarded_before(now: Timestamp) -> i64 {
    now.checked_sub(DISCARDED_AFTER).unwrap_or(Timestamp::MIN).as_millisecond()
}

/// Writes the doubts of one run and clears those that it did not confirm.
pub(in crate::ledger) async fn replace(
    batch: &mut WriteBatch<'_>,
    doubts: &Doubts,
) -> Result<bool, LedgerError> {
    let connection = batch.connection().await.map_err(database)?;
    let (run, library) = (doubts.run.as_millisecond(), doubts.library.as_str());
    sqlx::query("DELETE FROM doubts WHERE library = ? AND run < ?")
        .bind(library)
        .bind(discarded_before(doubts.run))
        .execute(&mut *connection)
        .await
        .map_err(database)?;
    let absent = doubts.absent.get(..MAX_DOUBTS).unwrap_or(&doubts.absent);
    if !absent.is_empty() {
        let mut query =
            QueryBuilder::<Sqlite>::new("INSERT INTO doubts (loan, library, since, run) ");
        query.push_values(absent, |mut row, id| {
            row.push_bind(id.to_string()).push_bind(library).push_bind(run).push_bind(run);
        });
        query.push(" ON CONFLICT (loan) DO UPDATE SET run = excluded.run");
        query.build().persistent(false).execute(&mut *connection).await.map_err(database)?;
    }
    let mut query = QueryBuilder::<Sqlite>::new("DELETE FROM doubts WHERE library = ");
    query.push_bind(library).push(" AND loan NOT IN (");
    let mut list = query.separated(", ");
    for id in absent {
        list.push_bind(id.to_string());
    }
    query.push(")");
    query.build().persistent(false).execute(connection).await.map_err(database)?;
    Ok(!absent.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
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
