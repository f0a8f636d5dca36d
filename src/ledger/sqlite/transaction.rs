//! The primitives of a transaction in SQLite.
//!
//! A transaction holds SQLite's only write lock from its beginning, so a read is also a lock.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::connection::write_probe;
use super::row::{by_ids, push_loans, push_steps};
use super::sql::{KeyColumns, MAX_PREPARED_ROWS};
use super::{brake_counts, chain, delivered, doubts, examinations, pauses, reports, retention};
use crate::ledger::audit::{Head, NewStep};
use crate::ledger::brake::Count;
use crate::ledger::membership::Membership;
use crate::ledger::rules::KeyStanding;
use crate::ledger::states::OVER;
#[cfg(test)]
use crate::ledger::store::DiskFault;
use crate::ledger::store::{
    Forgotten, Locked, OldLoans, StoreTransaction, StoredTallies, WorkError,
};
use crate::ledger::stored_row::{COLUMNS, loan_of};
use crate::ledger::{Delivered, Doubts, PauseChange, Report, ReportStep};
use crate::loan::{LibraryId, Loan, LoanId, LoanKey, Progress};

/// A transaction that can write.
pub(in crate::ledger) struct SqliteTransaction<'a> {
    transaction: sqlx::Transaction<'a, Sqlite>,
    #[cfg(test)]
    fault: Option<DiskFault>,
}

impl<'a> SqliteTransaction<'a> {
    pub(super) fn new(transaction: sqlx::Transaction<'a, Sqlite>) -> SqliteTransaction<'a> {
        SqliteTransaction {
            transaction,
            #[cfg(test)]
            fault: None,
        }
    }

    #[cfg(test)]
    pub(super) fn with_fault(self, fault: Option<DiskFault>) -> SqliteTransaction<'a> {
        SqliteTransaction { fault, ..self }
    }
}

impl StoreTransaction for SqliteTransaction<'_> {
    const LOCKS_ROWS: bool = false;

    /// Claims nothing: the transaction locks the ledger.
    async fn claim(
        &mut self,
        intents: &[&Loan],
        _owner: &str,
    ) -> Result<HashSet<LoanId>, sqlx::Error> {
        Ok(intents.iter().map(|intent| intent.id).collect())
    }

    async fn release(&mut self, _intents: &[LoanId]) -> Result<(), sqlx::Error> {
        Ok(())
    }

    async fn lock(
        &mut self,
        ids: &[LoanId],
        keys: &[LoanKey],
        owner: &str,
    ) -> Result<Locked, WorkError> {
        let (loans, foreign) = read_loans(&mut self.transaction, ids, owner).await?;
        let standings = read_standings(&mut self.transaction, keys).await?;
        Ok(Locked { loans, foreign, standings })
    }

    async fn audit_head(&mut self) -> Result<Head, sqlx::Error> {
        chain::read_head(&mut self.transaction).await
    }

    /// Inserts or updates the loans and inserts the steps with one query.
    async fn write(
        &mut self,
        loans: &[&Loan],
        steps: &[NewStep],
        owner: &str,
    ) -> Result<(), sqlx::Error> {
        let mut query = QueryBuilder::<Sqlite>::default();
        if !loans.is_empty() {
            push_loans(&mut query, loans, owner);
            query.push("; ");
        }
        push_steps(&mut query, steps);
        let query = query.build().persistent(steps.len() <= MAX_PREPARED_ROWS);
        query.execute(&mut *self.transaction).await.map(drop)
    }

    async fn begun_at_limits(
        &mut self,
        key: &LoanKey,
        counts: &[Count],
        _unrecorded: &[LoanId],
    ) -> Result<Vec<Option<Timestamp>>, sqlx::Error> {
        let mut all = Vec::with_capacity(counts.len());
        for count in counts {
            all.push(brake_counts::begun_at_limit(&mut self.transaction, key, count).await?);
        }
        Ok(all)
    }

    async fn adopt(
        &mut self,
        id: LoanId,
        membership: &dyn Membership,
    ) -> Result<bool, sqlx::Error> {
        let owner = sqlx::query_scalar("SELECT owner FROM loans WHERE id = ?").bind(id.to_string());
        let former: Option<String> = owner.fetch_optional(&mut *self.transaction).await?;
        if !former.is_some_and(|former| membership.is_dead(&former)) {
            return Ok(false);
        }
        let update = sqlx::query("UPDATE loans SET owner = ? WHERE id = ?");
        let update = update.bind(membership.name().as_ref()).bind(id.to_string());
        Ok(update.execute(&mut *self.transaction).await?.rows_affected() == 1)
    }

    async fn set_progress(&mut self, id: LoanId, progress: Progress) -> Result<bool, sqlx::Error> {
        const UPDATE: &str = "UPDATE loans SET progress = ? WHERE id = ? AND accepted IS NOT NULL";
        let update = sqlx::query(UPDATE).bind(progress.hundredths()).bind(id.to_string());
        Ok(update.execute(&mut *self.transaction).await?.rows_affected() == 1)
    }

    async fn is_opened(&mut self, id: LoanId) -> Result<bool, sqlx::Error> {
        const OPENED: &str = "SELECT 1 FROM loans WHERE id = ? AND opened IS NOT NULL";
        let opened = sqlx::query(OPENED).bind(id.to_string());
        Ok(opened.fetch_optional(&mut *self.transaction).await?.is_some())
    }

    async fn mark_opened(&mut self, id: LoanId, at: Timestamp) -> Result<bool, sqlx::Error> {
        const UPDATE: &str =
            "UPDATE loans SET opened = coalesce(opened, ?) WHERE id = ? AND state = 'accepted'";
        let update = sqlx::query(UPDATE).bind(at.as_millisecond()).bind(id.to_string());
        Ok(update.execute(&mut *self.transaction).await?.rows_affected() == 1)
    }

    async fn tallies(&mut self, files: &[Delivered]) -> Result<StoredTallies, sqlx::Error> {
        delivered::read(&mut self.transaction, files).await
    }

    async fn write_tallies(&mut self, tallies: &StoredTallies) -> Result<(), sqlx::Error> {
        delivered::write(&mut self.transaction, tallies).await
    }

    async fn replace_doubts(&mut self, doubts: &Doubts) -> Result<(), sqlx::Error> {
        doubts::replace(&mut self.transaction, doubts).await
    }

    async fn set_examination(
        &mut self,
        id: LoanId,
        requested: Option<Timestamp>,
    ) -> Result<bool, sqlx::Error> {
        examinations::set(&mut self.transaction, id, requested).await
    }

    async fn forget(&mut self, loans: &OldLoans, now: Timestamp) -> Result<Forgotten, sqlx::Error> {
        retention::forget(&mut self.transaction, loans, now).await
    }

    async fn is_package_known(
        &mut self,
        report: &Report,
        since: Timestamp,
    ) -> Result<bool, sqlx::Error> {
        reports::is_package_known(&mut self.transaction, report, since).await
    }

    async fn add_report(&mut self, report: &Report, now: Timestamp) -> Result<bool, sqlx::Error> {
        reports::add(&mut self.transaction, report, now).await
    }

    async fn step_report(
        &mut self,
        step: &ReportStep,
        now: Timestamp,
    ) -> Result<Option<Report>, WorkError> {
        reports::step(&mut self.transaction, step, now).await
    }

    async fn assess(&mut self, loans: &[LoanId], now: Timestamp) -> Result<(), sqlx::Error> {
        reports::assess(&mut self.transaction, loans, now).await
    }

    async fn is_paused(&mut self, library: LibraryId) -> Result<bool, sqlx::Error> {
        pauses::is_paused(&mut self.transaction, library).await
    }

    async fn set_pause(&mut self, change: &PauseChange) -> Result<bool, sqlx::Error> {
        pauses::set(&mut self.transaction, change).await
    }

    async fn probe(&mut self, now: Timestamp) -> Result<(), sqlx::Error> {
        write_probe(&mut self.transaction, now).await
    }

    #[cfg(not(test))]
    async fn commit(self) -> Result<(), sqlx::Error> {
        self.transaction.commit().await
    }

    #[cfg(test)]
    async fn commit(mut self) -> Result<(), sqlx::Error> {
        if matches!(self.fault, Some(DiskFault::RolledBack)) {
            sqlx::raw_sql("ROLLBACK").execute(&mut *self.transaction).await?;
        }
        self.transaction.commit().await?;
        match self.fault {
            Some(DiskFault::CommitUnreported) => {
                Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))
            }
            _ => Ok(()),
        }
    }
}

async fn read_loans(
    connection: &mut SqliteConnection,
    ids: &[LoanId],
    owner: &str,
) -> Result<(Vec<Loan>, HashSet<LoanId>), WorkError> {
    let (mut loans, mut foreign) = (Vec::new(), HashSet::new());
    if ids.is_empty() {
        return Ok((loans, foreign));
    }
    let mut query = by_ids(ids);
    let query = query.build().persistent(ids.len() <= MAX_PREPARED_ROWS);
    for row in query.fetch_all(connection).await? {
        let loan = loan_of(&row)?;
        if row.try_get::<String, _>("owner")? != owner {
            foreign.insert(loan.id);
        }
        loans.push(loan);
    }
    Ok((loans, foreign))
}

async fn read_standings(
    connection: &mut SqliteConnection,
    keys: &[LoanKey],
) -> Result<HashMap<LoanKey, KeyStanding>, WorkError> {
    let keys: HashSet<LoanKey> = keys.iter().copied().collect();
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let mut query = QueryBuilder::<Sqlite>::new("WITH wanted (library, borrower, isbn) AS (");
    query.push_values(&keys, |mut row, key| {
        let KeyColumns { library, borrower, isbn } = key.into();
        row.push_bind(library).push_bind(borrower).push_bind(isbn);
    });
    // CROSS JOIN fixes the join order: each wanted borrower and title is looked up by index.
    query.push(format!(
        ") SELECT {COLUMNS} FROM wanted CROSS JOIN loans USING (library, borrower, isbn) \
         WHERE state NOT IN ({over}) OR (accepted IS NOT NULL AND ended IS NOT NULL)",
        over = *OVER
    ));
    let query = query.build().persistent(keys.len() <= MAX_PREPARED_ROWS);
    let rows = query.fetch_all(connection).await?;
    let mut standings: HashMap<LoanKey, KeyStanding> =
        keys.into_iter().map(|key| (key, KeyStanding::default())).collect();
    for row in rows {
        let loan = loan_of(&row)?;
        standings.entry(loan.key).or_default().include(&loan);
    }
    Ok(standings)
}
