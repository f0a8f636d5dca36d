//! The primitives of a transaction in PostgreSQL.
//!
//! A transaction of a library first locks the chain of this process in that library. It then claims
//! the slots of intents, in the order of their keys, and locks loans, in the order of their ids.
//! Every statement names the library, so it runs on one shard.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use sqlx::Postgres;
use uuid::Uuid;

use super::copy_marks::{self, IS_MOVED};
use super::lane::Lane;
use super::{chain, delivered, doubts, examinations, loans, pauses, reports, retention};
use crate::ledger::audit::{Head, NewStep};
use crate::ledger::brake::Count;
use crate::ledger::membership::Membership;
#[cfg(test)]
use crate::ledger::store::DiskFault;
use crate::ledger::store::{
    Forgotten, Locked, OldLoans, StoreTransaction, StoredTallies, WorkError,
};
use crate::ledger::{Delivered, Doubts, PauseChange, Report, ReportStep};
use crate::loan::{LibraryId, Loan, LoanId, LoanKey, Progress};

/// The statement waits for a transaction that writes a mark, and then reads the mark.
static WRITE_PROBE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "INSERT INTO meta (name, value) SELECT $1, $2 WHERE NOT {IS_MOVED} \
         ON CONFLICT (name) DO UPDATE SET value = excluded.value"
    )
});
/// The size of the probe row.
const PROBE_BYTES: usize = 1 << 10;

/// The library of a transaction, and the chain that the transaction extends.
pub(super) struct Scope {
    pub(super) library: LibraryId,
    /// The number of this transaction in the chain.
    pub(super) batch: i64,
    /// The newest link.
    pub(super) head: Head,
}

/// A transaction that can write.
pub(in crate::ledger) struct PostgresTransaction<'a> {
    transaction: sqlx::Transaction<'a, Postgres>,
    lane: Arc<Lane>,
    scope: Option<Scope>,
    /// The loans whose slot is claimed and that are not written yet.
    claimed: HashSet<Uuid>,
    #[cfg(test)]
    fault: Option<DiskFault>,
}

impl<'a> PostgresTransaction<'a> {
    pub(super) fn new(
        transaction: sqlx::Transaction<'a, Postgres>,
        lane: Arc<Lane>,
        scope: Option<Scope>,
    ) -> PostgresTransaction<'a> {
        PostgresTransaction {
            transaction,
            lane,
            scope,
            claimed: HashSet::new(),
            #[cfg(test)]
            fault: None,
        }
    }

    #[cfg(test)]
    pub(super) fn with_fault(self, fault: Option<DiskFault>) -> PostgresTransaction<'a> {
        PostgresTransaction { fault, ..self }
    }

    fn library(&self) -> Result<LibraryId, sqlx::Error> {
        Ok(self.scope()?.library)
    }

    fn scope(&self) -> Result<&Scope, sqlx::Error> {
        let missing = || sqlx::Error::InvalidArgument("the transaction names no library".into());
        self.scope.as_ref().ok_or_else(missing)
    }

    fn unwritten_claims(&self) -> Vec<Uuid> {
        self.claimed.iter().copied().collect()
    }
}

impl StoreTransaction for PostgresTransaction<'_> {
    const LOCKS_ROWS: bool = true;

    async fn claim(
        &mut self,
        intents: &[&Loan],
        owner: &str,
    ) -> Result<HashSet<LoanId>, sqlx::Error> {
        let (library, owner) = (self.library()?, owner_column(owner)?);
        let claimed = loans::claim(&mut self.transaction, library, intents, owner).await?;
        self.claimed.extend(&claimed);
        Ok(claimed.into_iter().map(|id| LoanId::new(library, id)).collect())
    }

    async fn release(&mut self, intents: &[LoanId]) -> Result<(), sqlx::Error> {
        let library = self.library()?;
        let ids: Vec<Uuid> = intents.iter().map(|id| id.uuid()).collect();
        loans::remove(&mut self.transaction, library, &ids).await?;
        self.claimed.retain(|id| !ids.contains(id));
        Ok(())
    }

    async fn lock(
        &mut self,
        ids: &[LoanId],
        keys: &[LoanKey],
        owner: &str,
    ) -> Result<Locked, WorkError> {
        let (library, owner) = (self.library()?, owner_column(owner)?);
        let (loans, foreign) = loans::lock(&mut self.transaction, library, ids, owner).await?;
        let unwritten = self.unwritten_claims();
        let standings =
            loans::read_standings(&mut self.transaction, library, keys, &unwritten).await?;
        Ok(Locked { loans, foreign, standings })
    }

    async fn audit_head(&mut self) -> Result<Head, sqlx::Error> {
        // A transaction without a library writes no step.
        Ok(self.scope.as_ref().map(|scope| scope.head.clone()).unwrap_or_default())
    }

    /// Inserts no loan, since [`StoreTransaction::claim`] has inserted the new ones.
    async fn write(
        &mut self,
        loans: &[&Loan],
        steps: &[NewStep],
        _owner: &str,
    ) -> Result<(), sqlx::Error> {
        let library = self.library()?;
        let mut changed = Vec::with_capacity(loans.len());
        for loan in loans {
            // The claim has written every column of an intent.
            if !(self.claimed.remove(&loan.id.uuid()) && loans::is_as_claimed(loan)) {
                changed.push(*loan);
            }
        }
        loans::update(&mut self.transaction, library, &changed).await?;
        chain::extend(&mut self.transaction, library, self.lane.chain, steps).await?;
        if let (Some(scope), Some(last)) = (&mut self.scope, steps.last()) {
            scope.head = last.link.clone();
        }
        Ok(())
    }

    async fn begun_at_limits(
        &mut self,
        key: &LoanKey,
        counts: &[Count],
        unrecorded: &[LoanId],
    ) -> Result<Vec<Option<Timestamp>>, sqlx::Error> {
        let unrecorded: Vec<Uuid> = unrecorded.iter().map(|id| id.uuid()).collect();
        loans::begun_at_limits(&mut self.transaction, key, counts, &unrecorded).await
    }

    async fn adopt(
        &mut self,
        id: LoanId,
        membership: &dyn Membership,
    ) -> Result<bool, sqlx::Error> {
        let owner = owner_column(&membership.name())?;
        loans::adopt(&mut self.transaction, id, owner).await
    }

    async fn set_progress(&mut self, id: LoanId, progress: Progress) -> Result<bool, sqlx::Error> {
        loans::set_progress(&mut self.transaction, id, progress).await
    }

    async fn is_opened(&mut self, id: LoanId) -> Result<bool, sqlx::Error> {
        loans::is_opened(&mut self.transaction, id).await
    }

    async fn mark_opened(&mut self, id: LoanId, at: Timestamp) -> Result<bool, sqlx::Error> {
        loans::mark_opened(&mut self.transaction, id, at).await
    }

    async fn tallies(&mut self, files: &[Delivered]) -> Result<StoredTallies, sqlx::Error> {
        let library = self.library()?;
        delivered::lock(&mut self.transaction, library, files).await
    }

    async fn write_tallies(&mut self, tallies: &StoredTallies) -> Result<(), sqlx::Error> {
        let library = self.library()?;
        delivered::write(&mut self.transaction, library, tallies).await
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
        let library = self.library()?;
        retention::forget(&mut self.transaction, library, loans, now).await
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
        let library = self.library()?;
        reports::assess(&mut self.transaction, library, loans, now).await
    }

    async fn is_paused(&mut self, library: LibraryId) -> Result<bool, sqlx::Error> {
        pauses::is_paused(&mut self.transaction, library).await
    }

    async fn set_pause(&mut self, change: &PauseChange) -> Result<bool, sqlx::Error> {
        match pauses::set(&mut self.transaction, change).await? {
            Some(is_changed) => Ok(is_changed),
            None => Err(copy_marks::refuse(&mut self.transaction, &self.lane.standing).await),
        }
    }

    /// Each process has a row of its own, so that processes do not wait for each other.
    async fn probe(&mut self, now: Timestamp) -> Result<(), sqlx::Error> {
        let Lane { probe, standing, .. } = &*self.lane;
        match write_probe(&mut self.transaction, probe, now).await? {
            true => Ok(()),
            false => Err(copy_marks::refuse(&mut self.transaction, standing).await),
        }
    }

    #[cfg(not(test))]
    async fn commit(self) -> Result<(), sqlx::Error> {
        self.commit_and_remember().await
    }

    #[cfg(test)]
    async fn commit(mut self) -> Result<(), sqlx::Error> {
        let lost = || Err(sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()));
        match self.fault.take() {
            Some(DiskFault::RolledBack) => {
                self.remember();
                self.transaction.rollback().await?;
                lost()
            }
            Some(DiskFault::CommitUnreported) => {
                self.commit_and_remember().await?;
                lost()
            }
            Some(DiskFault::PausedCommit(pause)) => {
                // Once to report that the commit is next, and once to continue.
                pause.wait().await;
                pause.wait().await;
                self.commit_and_remember().await
            }
            _ => self.commit_and_remember().await,
        }
    }
}

impl PostgresTransaction<'_> {
    async fn commit_and_remember(self) -> Result<(), sqlx::Error> {
        self.remember();
        self.transaction.commit().await
    }

    /// Records that this transaction may be durable from now on.
    fn remember(&self) {
        if let Some(scope) = &self.scope {
            self.lane.remember(scope.library, scope.batch);
        }
    }
}

/// Converts the name of a process to the column `owner`.
fn owner_column(name: &str) -> Result<Uuid, sqlx::Error> {
    name.parse().map_err(|error| sqlx::Error::Encode(Box::new(error)))
}

/// Writes the probe row of a lane, to test that the ledger can be written. Returns false if it was
/// moved.
async fn write_probe(
    connection: &mut sqlx::PgConnection,
    name: &str,
    now: Timestamp,
) -> Result<bool, sqlx::Error> {
    let mut value = vec![0; PROBE_BYTES];
    value.extend_from_slice(&now.as_millisecond().to_be_bytes());
    let upsert = sqlx::query(WRITE_PROBE.as_str()).bind(name).bind(value).persistent(false);
    Ok(upsert.execute(connection).await?.rows_affected() > 0)
}

/// The name of a lane's probe row begins with this.
pub(super) const PROBE_NAME: &str = "write test ";
