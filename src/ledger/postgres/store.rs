//! Write connections of PostgreSQL. Each belongs to a lane of the executor.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::{PgConnection, Postgres, Transaction};
use tokio::time::{Instant, timeout};

use super::chain::{self, Locked};
use super::chain_seals;
use super::closed_begins::{self, REMEDY};
use super::connect::{Connector, Purpose};
use super::copy_marks::{self, MarkedLedger};
use super::lane::Lane;
use super::pool::{BEGIN, TRANSACTION};
use super::server_error::is_of_connection;
use super::session::Session;
use super::transaction::{PostgresTransaction, Scope};
use crate::ledger::membership::Membership;
#[cfg(test)]
use crate::ledger::store::DiskFault;
use crate::ledger::store::{LastCommit, LedgerStore, StoreConnection, StoreTransaction};
use crate::loan::LibraryId;

/// How long a connection may be unused until its next `BEGIN` tests whether it is still open.
const MAX_IDLE: Duration = Duration::from_secs(3);
/// The deadline of that `BEGIN`, which needs no lock and no disk.
const REUSE: Duration = Duration::from_millis(700);

/// A database, as the source of the connections of one lane.
pub(in crate::ledger) struct PostgresStore {
    connector: Connector,
    lane: Arc<Lane>,
}

impl PostgresStore {
    pub(super) fn new(connector: Connector, lane: Lane) -> PostgresStore {
        PostgresStore { connector, lane: Arc::new(lane) }
    }
}

impl LedgerStore for PostgresStore {
    type Connection = PostgresConnection;

    const SPANS_LIBRARIES: bool = false;
    const RECORDS_COMMITS: bool = true;
    const TRANSACTION_DEADLINE: Duration = TRANSACTION;
    // Rows stay locked during the round trips of all commands of a transaction.
    const MAX_COMMANDS: usize = 128;
    const WORK_LIMIT: Duration = Duration::from_millis(500);

    fn is_of_connection(error: &sqlx::Error) -> bool {
        is_of_connection(error) && !Self::is_refusal(error)
    }

    fn is_refusal(error: &sqlx::Error) -> bool {
        let source = if let sqlx::Error::Io(error) = error { error.get_ref() } else { None };
        source.is_some_and(|source| source.is::<LostWrites>() || source.is::<MarkedLedger>())
    }

    async fn connect(&self, now: Timestamp) -> Result<PostgresConnection, sqlx::Error> {
        let prepares = self.connector.prepares();
        match self.open(now).await {
            // The first transactions of the lanes have found a pooler.
            Err(_) if prepares && !self.connector.prepares() => self.open(now).await,
            opened => opened,
        }
    }
}

impl PostgresStore {
    /// Opens a connection, and tests that it can write.
    async fn open(&self, now: Timestamp) -> Result<PostgresConnection, sqlx::Error> {
        let mut connection = PostgresConnection {
            connection: self.connector.session(Purpose::Writes).await?,
            lane: self.lane.clone(),
            used: Instant::now(),
            #[cfg(test)]
            fault: None,
        };
        let mut transaction = connection.begin(None).await?;
        transaction.probe(now).await?;
        transaction.commit().await?;
        Ok(connection)
    }
}

/// A connection that writes.
pub(in crate::ledger) struct PostgresConnection {
    connection: Session,
    lane: Arc<Lane>,
    /// When the last transaction began.
    used: Instant,
    /// The fault to simulate in the next transaction.
    #[cfg(test)]
    fault: Option<DiskFault>,
}

impl StoreConnection for PostgresConnection {
    type Transaction<'a> = PostgresTransaction<'a>;

    /// Numbers the transaction in the chain of its library, so that
    /// [`StoreConnection::last_commit`] finds it.
    ///
    /// # Errors
    /// The error of the database, or that the database lacks a step or a renewal which this process
    /// has committed. Then the begins of all gates are closed.
    async fn begin(
        &mut self,
        library: Option<LibraryId>,
    ) -> Result<PostgresTransaction<'_>, sqlx::Error> {
        #[cfg(test)]
        let fault = self.fault.take();
        let deadline = if self.used.elapsed() > MAX_IDLE { REUSE } else { TRANSACTION };
        let began = timeout(deadline, self.connection.begin_with(BEGIN)).await;
        let transaction =
            began.unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))?;
        self.used = Instant::now();
        let (transaction, scope) = match library {
            None => (transaction, None),
            Some(library) => {
                let (transaction, scope) = lock_chain(transaction, &self.lane, library).await?;
                (transaction, Some(scope))
            }
        };
        let transaction = PostgresTransaction::new(transaction, self.lane.clone(), scope);
        #[cfg(test)]
        let transaction = transaction.with_fault(fault);
        Ok(transaction)
    }

    async fn last_commit(&mut self, library: Option<LibraryId>) -> Result<LastCommit, sqlx::Error> {
        // Without a library, the probe row or a pause is written, and both may be written twice.
        let Some(library) = library else { return Ok(LastCommit::RolledBack) };
        let Some(batch) = self.lane.last_requested(library) else {
            return Ok(LastCommit::RolledBack);
        };
        let Lane { chain, audit_key, .. } = &*self.lane;
        let mut transaction = self.connection.begin_with(BEGIN).await?;
        let last = chain::last_commit(&mut transaction, library, *chain, audit_key, batch).await?;
        transaction.rollback().await?;
        Ok(last)
    }

    /// Closes the chains of this lane, and removes its probe row, unless the ledger was moved.
    async fn finish(&mut self) {
        let lane = self.lane.clone();
        let finished = async {
            let mut transaction = self.connection.begin_with(BEGIN).await?;
            let marks = copy_marks::read_to_write(&mut transaction).await?;
            if marks.allow_gate().is_err() {
                // It is logged once.
                lane.standing.note_marks(&marks);
                return transaction.rollback().await;
            }
            seal_chains(&mut transaction, &lane).await?;
            let probe = sqlx::query("DELETE FROM meta WHERE name = $1");
            let probe = probe.bind(&lane.probe).persistent(false);
            probe.execute(&mut *transaction).await?;
            transaction.commit().await
        };
        let error = match timeout(TRANSACTION, finished).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no response within {} s", TRANSACTION.as_secs()),
        };
        tracing::warn!(%error, "cannot close the audit trail of this process");
    }

    async fn close(self) {
        let _ = self.connection.close().await;
    }

    #[cfg(test)]
    async fn inject(&mut self, fault: DiskFault) {
        self.fault = Some(fault);
    }
}

/// Seals the chains of this process. If one lacks a step that this process has committed, closes
/// the begins of all gates.
async fn seal_chains(connection: &mut PgConnection, lane: &Lane) -> Result<(), sqlx::Error> {
    let Lane { chain, audit_key, heads, standing, .. } = lane;
    // Read before the database is, whose links are then as new or newer.
    let (epoch, newest) = heads.all();
    let libraries = lane.libraries();
    let lacking = chain_seals::seal_own(connection, &libraries, &newest, *chain, audit_key).await?;
    if lacking.is_empty() {
        return Ok(());
    }
    for library in lacking {
        tracing::error!(%library, "{}", LostWrites("step"));
    }
    standing.note_loss(epoch);
    closed_begins::close(connection, *chain, epoch).await
}

/// Locks the chain of a library, and compares the database with what this process has committed.
async fn lock_chain<'a>(
    mut transaction: Transaction<'a, Postgres>,
    lane: &Lane,
    library: LibraryId,
) -> Result<(Transaction<'a, Postgres>, Scope), sqlx::Error> {
    let Lane { chain, audit_key, heads, standing, .. } = lane;
    // Read before the database is, whose values are then as new or newer.
    let epoch = heads.epoch();
    let (holds_lease, last) = (standing.renewed().is_some(), standing.last_renewal());
    let locked = chain::lock(&mut transaction, library, *chain, audit_key, last.id).await?;
    let Locked { scope, renewals, is_moved } = locked;
    if is_moved {
        let refused = copy_marks::refuse(&mut transaction, standing).await;
        // Another lane may serve this library next, and must not wait for the lock of this one.
        let _ = transaction.rollback().await;
        return Err(refused);
    }
    let lacks_step = heads.newest(library).is_some_and(|newest| !scope.head.follows(&newest));
    // The row of a member that was fenced may have been deleted, but it never counts back.
    let lacks_renewal = renewals.map_or(holds_lease, |found| found < last.renewals);
    if !lacks_step && !lacks_renewal {
        return Ok((transaction, scope));
    }
    // At once, and also if the row cannot be written.
    standing.note_loss(epoch);
    closed_begins::close_instead(transaction, *chain, epoch).await;
    Err(lost(if lacks_step { "step" } else { "renewal" }))
}

/// The database lacks what this process has committed.
#[derive(Debug, thiserror::Error)]
#[error(
    "the database lacks a {0} that this process has committed: it was restored from a backup, or a \
     failover lost its last transactions. No gate begins a loan; {REMEDY}"
)]
struct LostWrites(&'static str);

fn lost(what: &'static str) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::other(LostWrites(what)))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
