//! The durable record of loans.
//!
//! Circulation and metering write it, and admin reads it. It depends only on the vocabulary in
//! [`crate::loan`] and on clock, crash and telemetry.
//!
//! The contract:
//! - When [`Ledger::intend`] or [`Ledger::apply`] returns, its result is on disk.
//! - Dropping the future of a write does not cancel the write.
//! - A library, a borrower and a title have at most one live loan, enforced by a unique index.
//!
//! Two layers do that. The upper one knows the rules and no SQL:
//!
//! | module | what it does |
//! |---|---|
//! | `command` | the writes that callers request, each with its response |
//! | `library_queues` | the commands that wait, in a queue for each library |
//! | `lanes` | the executors, which take turns from these queues |
//! | `executor` | a writing task: commits all queued commands of a library together |
//! | `runner`, `batch` | what each command does inside the transaction |
//! | `rules`, `brake` | decisions, as pure functions of rows and counts |
//! | `buckets` | divides background work among processes |
//! | `audit` | the chain of hashes over all steps |
//! | `accesses` | the steps that record who of the staff looked at loans, and why |
//! | `reports` | the books of usage reports to Bokbasen |
//! | `examinations` | the loans that a balance shall examine |
//! | `pauses` | pauses of lending |
//! | `usage` | what a library lends, for support |
//! | `bulletins` | what the processes on one ledger share for operators |
//! | `requests` | requests that were answered, for a limited time |
//! | `queries` | the queries of all stores, and `reads` for callers |
//! | `maintenance` | verification, check and pruning for the command line |
//! | `write_connection` | reopens the connection after a failure |
//!
//! `copy` moves a ledger from one store to the other, while no gate runs.
//!
//! The lower one is a database. `store` has its primitives for writes, `membership` reports which
//! processes are alive, and `change_feed` reports what other processes ended. `sqlite` and
//! `postgres` implement them and all queries. Callers see only [`Ledger`], which `open` creates.

mod access_position;
mod accesses;
mod audit;
mod batch;
mod brake;
mod buckets;
mod bulletins;
mod change_feed;
mod command;
mod copy;
mod copy_mark;
mod damaged_rows;
mod error;
mod examinations;
mod executor;
mod findings;
mod lanes;
mod library_queues;
mod maintenance;
mod membership;
mod open;
mod pauses;
mod postgres;
mod queries;
mod reads;
mod reports;
mod requests;
mod rows_read;
mod rules;
mod runner;
mod sqlite;
mod states;
mod store;
mod stored_row;
mod types;
mod usage;
mod write_check;
mod write_connection;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use crate::loan::{Borrower, Event, LibraryId, Loan, LoanId, Progress};
use crate::reload::Current;
use crate::telemetry::Span;

pub use access_position::AccessPosition;
pub use accesses::{Access, AccessFilter, AccessTarget, RecordedAccess};
pub use audit::{AuditKey, AuditStep, Chains, Head, Verified};
pub use brake::{Brake, BrakeMode};
pub use bulletins::{Bulletin, MAX_BULLETIN};
pub use change_feed::{ClosedLoan, ClosedRead, Feed, FeedBarrier};
use command::{Change, Command, Intent, Reply, Update};
pub use copy::{
    Copied, CopiedTo, CopyError, CopyProgress, Keys, Origin, copied_from, copy, release_source,
};
pub use error::LedgerError;
use lanes::{Deadlines, Lanes};
pub use maintenance::{check, prune, verify};
use membership::Membership;
pub use membership::{ADOPTED_INTENT, Lease, UnfoundBegin};
use pauses::PauseChange;
pub use pauses::{Pause, PauseOrigin};
pub use postgres::{
    ConnectionShares, ContractError, ContractionPlan, DatabaseFinding, DatabaseFindings, Endpoint,
    MIGRATIONS, Migration, Obstacle, PostgresSettings, ReadEndpoint, ReconcileError, Sources,
    check_database, close_restored, contract, longest_call, plan_contraction, reconcile,
};
use queries::{Queries, ToForget};
pub use reports::{
    Attempt, Evidence, LONGEST_BEGIN, Measure, Report, ReportFilter, ReportModel, ReportPosition,
    ReportState, ReportStep, first_loan_id,
};
pub use requests::StoredRequest;
pub use rows_read::RowsRead;
pub use sqlite::{RestoreError, Restored, backup, probe, reconcile_file, restore};
use store::OldLoans;
pub use types::{
    Cause, Delivered, Doubts, EndPosition, Ends, Filter, HistoryRow, Intended, Prunable, Pruned,
    Settings, StoreSettings,
};
pub use usage::{BrakeUse, TitleCost, TitleLoans};
use write_check::WriteTest;

/// A handle of the ledger. Clones share the executors and all connections.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// The SQLite file; none for another store.
    file: Option<Arc<Path>>,
    lanes: Lanes,
    deadlines: Deadlines,
    queries: Queries,
    support: Queries,
    membership: Arc<dyn Membership>,
    write_test: WriteTest,
    /// The last step at the time of opening, where the change feed of SQLite starts.
    opened_at: i64,
    brake: Current<Brake>,
    audit_key: AuditKey,
}

impl Ledger {
    /// Returns the limits on new loans.
    pub fn brake(&self) -> Brake {
        *self.brake.get()
    }

    /// Sets the limits for loans that are begun later.
    pub fn set_brake(&self, brake: Brake) {
        self.brake.replace(brake);
    }

    /// Writes an intent, unless [`Intended`] names a reason against it. `issued` is the time at
    /// which the reader's credential was issued.
    ///
    /// # Errors
    /// [`LedgerError`]; the begin must not be sent. After [`LedgerError::Commit`] the intent may be
    /// durable, also later; the ledger then ends it as not sent.
    pub async fn intend(
        &self,
        loan: Loan,
        issued: Option<Timestamp>,
        cause: Cause,
    ) -> Result<Intended, LedgerError> {
        let until = self.deadlines.reader_write.map(|deadline| Instant::now() + deadline);
        let intent = Box::new(Intent { loan, issued, cause, until });
        let Some(deadline) = self.deadlines.reader_write else {
            return self.run(|reply| Command::Intend(intent, reply)).await;
        };
        let ledger = self.clone();
        let mut writing =
            Box::pin(async move { ledger.run(|reply| Command::Intend(intent, reply)).await });
        match timeout(deadline, &mut writing).await {
            Ok(intended) => intended,
            Err(_) => {
                tokio::spawn(self.clone().withdraw_late_intent(writing));
                Err(no_response(deadline))
            }
        }
    }

    /// Ends an intent that is written after its caller has received an error, so sends no begin.
    async fn withdraw_late_intent(
        self,
        writing: impl Future<Output = Result<Intended, LedgerError>>,
    ) {
        let Ok(Intended::Written(loan)) = writing.await else { return };
        let detail = "the intent was written too late, and its begin was not sent";
        let cause = Cause { by: "ledger", detail: Some(detail.to_owned()) };
        if let Err(error) = self.apply(loan.id, Event::NotSent, cause).await {
            // The loan is undecided and of this process, so it is settled as one without a driver.
            tracing::warn!(loan = %loan.id, %error, "cannot end an intent that was written late");
        }
    }

    /// Applies an event with [`Loan::apply`] in one transaction, and returns the changed loan.
    ///
    /// # Errors
    /// [`LedgerError`]; the loan is unchanged, but after [`LedgerError::Commit`] and
    /// [`LedgerError::Closed`] that is uncertain.
    pub async fn apply(&self, id: LoanId, event: Event, cause: Cause) -> Result<Loan, LedgerError> {
        let change = Change { id, event, cause };
        self.run(|reply| Command::Apply(change, reply)).await
    }

    /// Takes over a loan of a dead process. Returns whether this process now owns the loan.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be written.
    pub async fn adopt(&self, id: LoanId) -> Result<bool, LedgerError> {
        Ok(self.update(Update::Adopt(id)).await? > 0)
    }

    /// Writes the reading progress of a loan. Returns false if the loan was never accepted.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be written.
    pub async fn note_progress(&self, id: LoanId, progress: Progress) -> Result<bool, LedgerError> {
        Ok(self.update_for_reader(Update::SetProgress(id, progress)).await? > 0)
    }

    /// Adds these counts to the stored ones. All are durable when this returns. Loans that are
    /// unknown in this library are skipped.
    ///
    /// # Errors
    /// [`LedgerError`]; nothing was written, but after [`LedgerError::Closed`], or if the commit
    /// itself failed, that is uncertain.
    pub async fn note_delivered(
        &self,
        library: LibraryId,
        delivered: Arc<[Delivered]>,
    ) -> Result<(), LedgerError> {
        self.update(Update::AddDelivered(library, delivered)).await.map(drop)
    }

    /// Marks an accepted loan as opened. Returns false if the loan is no longer accepted and must
    /// not be opened. A loan that is already marked costs a read and no write.
    ///
    /// The gate writes the mark, through circulation, before it issues the first permit of a loan
    /// in this process. An opened loan is returned, never cancelled: a cancel reads the mark in the
    /// transaction that ends the loan. So if one process marks and another cancels, one of them
    /// sees the other's write.
    ///
    /// # Errors
    /// [`LedgerError`]; the loan must not be opened then.
    pub async fn mark_opened(&self, id: LoanId) -> Result<bool, LedgerError> {
        let is_opened = {
            let _span = self.span("is-opened");
            self.queries_of_ours()?.is_opened(id).await?
        };
        Ok(is_opened || self.update_for_reader(Update::MarkOpened(id)).await? > 0)
    }

    /// Replaces the doubts about a library. They are durable when this returns.
    ///
    /// # Errors
    /// [`LedgerError`]; the earlier doubts remain.
    pub async fn replace_doubts(&self, doubts: Doubts) -> Result<(), LedgerError> {
        self.update(Update::ReplaceDoubts(doubts)).await.map(drop)
    }

    /// Records that a balance, which began at `at`, has compared the loans of all libraries since
    /// this time. [`reconcile`] requires it. SQLite needs no such record.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be written.
    pub async fn record_balance(&self, since: Timestamp, at: Timestamp) -> Result<(), LedgerError> {
        match &self.queries {
            Queries::Sqlite(_) => Ok(()),
            Queries::Postgres(queries) => queries.record_balance(since, at).await,
        }
    }

    /// Replaces the pseudonym in loans that ended before this time with a random value. Returns the
    /// number of changed loans, at most `limit`; there may be more unless it is 0.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read or written.
    pub async fn forget(&self, before: Timestamp, limit: u32) -> Result<u64, LedgerError> {
        let library = match self.queries.to_forget(before).await? {
            ToForget::Nothing => return Ok(0),
            ToForget::AnyLibrary => None,
            ToForget::Library(library) => Some(library),
        };
        self.update(Update::Forget(OldLoans { library, borrower: None, before, limit })).await
    }

    /// Replaces the pseudonym as [`Ledger::forget`] does, in loans of this borrower only. A loan
    /// that another process changes at that moment is left out.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be written.
    pub async fn forget_borrower(
        &self,
        library: LibraryId,
        borrower: Borrower,
        before: Timestamp,
        limit: u32,
    ) -> Result<u64, LedgerError> {
        let (library, borrower) = (Some(library), Some(borrower));
        self.update(Update::Forget(OldLoans { library, borrower, before, limit })).await
    }

    /// Removes loans as [`prune`] does. If several processes divide the background work, this
    /// process removes those of its own buckets.
    ///
    /// # Errors
    /// [`LedgerError`]; loans that were already removed stay removed.
    pub async fn prune(&self, which: Prunable) -> Result<Pruned, LedgerError> {
        match (&self.file, &self.support) {
            (_, Queries::Postgres(queries)) => {
                Box::pin(queries.prune(&self.audit_key, which)).await
            }
            (Some(file), Queries::Sqlite(_)) => {
                sqlite::prune(file, &self.audit_key, which, &RowsRead::default()).await
            }
            (None, Queries::Sqlite(_)) => Ok(Pruned::default()),
        }
    }

    /// Copies the write-ahead log into the file and empties it, so that deleted data is left in
    /// neither. Returns false if another connection still reads an older state; the caller then
    /// retries later.
    ///
    /// # Errors
    /// [`LedgerError`] if the file cannot be opened or written.
    pub async fn empty_log(&self) -> Result<bool, LedgerError> {
        match &self.file {
            Some(file) => sqlite::empty_log(file).await,
            // PostgreSQL recycles its log itself.
            None => Ok(true),
        }
    }

    /// Returns the number of other processes that have this ledger open.
    pub fn other_processes(&self) -> usize {
        self.membership.count_others()
    }

    /// Commits the queued commands, checkpoints the write-ahead log and closes the ledger.
    pub async fn close(&self) {
        let is_silent = self.lanes.close(self.deadlines.close).await;
        self.membership.leave(is_silent).await;
        self.queries.close().await;
        self.support.close().await;
    }

    /// Returns a handle with a separate connection pool for support queries. A slow support query
    /// then never delays a reader's request.
    pub fn for_support(&self) -> Ledger {
        Ledger { queries: self.support.clone(), ..self.clone() }
    }

    async fn update(&self, update: Update) -> Result<u64, LedgerError> {
        self.run(|reply| Command::Update(update, reply)).await
    }

    /// Writes on a reader's request, who waits for a limited time. The write continues after it.
    async fn update_for_reader(&self, update: Update) -> Result<u64, LedgerError> {
        let deadline = self.deadlines.reader_write;
        let updated = lanes::within(deadline, self.update(update)).await;
        updated.unwrap_or_else(|| Err(no_response(deadline.unwrap_or_default())))
    }

    /// Begins a span of the current trace for a read or a write, until it is dropped.
    fn span(&self, operation: &'static str) -> Option<Box<Span>> {
        let mut span = Span::begin("ledger")?;
        let system = if self.file.is_some() { "sqlite" } else { "postgresql" };
        span.set("db.system.name", system);
        span.set("db.operation.name", operation);
        Some(span)
    }

    /// Sends a command to its executor and waits for the response.
    async fn run<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, LedgerError> {
        let (reply, response) = Reply::new();
        let command = command(reply);
        let _span = self.span(command.name());
        self.lanes.send(command).await?;
        response.await.map_err(|_| LedgerError::Closed)?
    }
}

fn no_response(deadline: Duration) -> LedgerError {
    LedgerError::Commit(format!("no response within {} s", deadline.as_secs()))
}

#[cfg(test)]
mod damaged_rows_tests;
#[cfg(test)]
mod delivered_tests;
#[cfg(test)]
mod doubts_tests;
#[cfg(test)]
mod failing_disk_tests;
#[cfg(test)]
mod opened_mark_tests;
#[cfg(test)]
mod prune_tests;
#[cfg(test)]
mod test_store;
#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;
