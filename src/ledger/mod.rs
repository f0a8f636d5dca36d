//! The durable record of loans.
//!
//! Circulation and metering write it, and admin reads it. It depends only on the vocabulary in
//! [`crate::loan`] and on clock, crash and telemetry.
//!
//! The contract:
//! - When [`Ledger::intend`] or [`Ledger::apply`] returns, its result is on disk (WAL,
//!   `synchronous = FULL`).
//! - Dropping the future of a write does not cancel the write.
//! - A library, a borrower and a title have at most one live loan, enforced by a unique index.
//!
//! Two layers do that. The upper one knows the rules and no SQL:
//!
//! | module | what it does |
//! |---|---|
//! | `command` | the writes that callers request, each with its response |
//! | `executor` | the writing task: commits all queued commands together |
//! | `runner`, `batch` | what each command does inside the transaction |
//! | `rules`, `brake` | decisions, as pure functions of rows and counts |
//! | `audit` | the chain of hashes over all steps |
//! | `write_connection` | reopens the connection after a failure |
//!
//! The lower one is a database. `store` has its primitives for writes, `membership` reports which
//! processes are alive, and `change_feed` reports what other processes ended. `sqlite` implements
//! them and all queries. Callers see only [`Ledger`], so another database changes nothing for them.

mod audit;
mod batch;
mod brake;
mod change_feed;
mod command;
mod damaged_rows;
mod error;
mod executor;
mod membership;
mod postgres;
mod reads;
mod rules;
mod runner;
mod sqlite;
mod states;
mod store;
mod types;
mod write_check;
mod write_connection;

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::loan::{Event, LibraryId, Loan, LoanId, Progress};
use crate::telemetry::Metrics;

use audit::HeadWriter;
pub use audit::{AuditKey, AuditStep, Head, Verified};
pub use brake::{Brake, BrakeMode};
pub use change_feed::{ClosedLoan, Feed};
use command::{Change, Command, Intent, Message, Reply, Update};
pub use error::LedgerError;
use executor::{Executor, ExecutorContext};
use membership::Membership;
pub use postgres::{
    ConnectionShares, DatabaseFinding, DatabaseFindings, Endpoint, Listen, PostgresSettings,
    ReadEndpoint, Sources, check_database, longest_call,
};
use sqlite::{Opened, Queries};
pub use sqlite::{backup, check, check_loans, probe, prune, verify};
pub use types::{
    Cause, Delivered, Doubts, Ends, Filter, HistoryRow, Intended, Prunable, Pruned, Settings,
    StoreSettings,
};
use write_check::WriteTest;
use write_connection::WriteConnection;

/// The maximum number of commands that wait for the executor.
const QUEUE_CAPACITY: usize = 4096;

/// A handle of the ledger. Clones share the executor and all connections.
#[derive(Clone, Debug)]
pub struct Ledger {
    file: Arc<Path>,
    commands: mpsc::Sender<Message>,
    queries: Queries,
    support: Queries,
    membership: Arc<dyn Membership>,
    write_test: WriteTest,
    /// The last step at the time of opening, where the change feed starts.
    opened_at: i64,
    audit_key: AuditKey,
}

impl Ledger {
    /// Opens the ledger. Creates a missing file and migrates an older schema.
    ///
    /// The first opening stores `key_fingerprint`, and each later one compares it. `audit_key` is
    /// the key of the audit trail.
    ///
    /// # Errors
    /// [`LedgerError`], a sentence that names the file. The gate must not start then.
    pub async fn open(
        settings: &Settings,
        key_fingerprint: &[u8; 32],
        audit_key: AuditKey,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Ledger, LedgerError> {
        let file: Arc<Path> =
            settings.sqlite_file().ok_or(LedgerError::PostgresUnsupported)?.into();
        let Opened { store, connection, queries, support, membership, head } =
            sqlite::open(&file, key_fingerprint, &audit_key, &metrics).await?;
        metrics.ledger_writable(true);
        let (commands, waiting) = mpsc::channel(QUEUE_CAPACITY);
        let (opened_at, write_test) = (head.number, WriteTest::new(metrics.clone()));
        let context = ExecutorContext {
            clock,
            metrics,
            membership: membership.clone(),
            brake: settings.brake,
            audit_key: audit_key.clone(),
            file: file.to_path_buf(),
        };
        let head = HeadWriter::new(&file, &membership.name(), head);
        let executor = Executor::new(context, WriteConnection::new(store, connection), head);
        tokio::spawn(executor.run(waiting));
        Ok(Ledger {
            file,
            commands,
            queries,
            support,
            membership,
            write_test,
            opened_at,
            audit_key,
        })
    }

    /// Writes an intent, unless [`Intended`] names a reason against it. `issued` is the time at
    /// which the reader's credential was issued.
    ///
    /// # Errors
    /// [`LedgerError`]; the begin must not be sent. After [`LedgerError::Commit`] the intent may be
    /// durable; the executor then ends it as not sent before it runs another command.
    pub async fn intend(
        &self,
        loan: Loan,
        issued: Option<Timestamp>,
        cause: Cause,
    ) -> Result<Intended, LedgerError> {
        let intent = Box::new(Intent { loan, issued, cause });
        self.run(|reply| Command::Intend(intent, reply)).await
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
        Ok(self.update(Update::SetProgress(id, progress)).await? > 0)
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
        Ok(self.queries.is_opened(id).await? || self.update(Update::MarkOpened(id)).await? > 0)
    }

    /// Replaces the doubts about a library. They are durable when this returns.
    ///
    /// # Errors
    /// [`LedgerError`]; the earlier doubts remain.
    pub async fn replace_doubts(&self, doubts: Doubts) -> Result<(), LedgerError> {
        self.update(Update::ReplaceDoubts(doubts)).await.map(drop)
    }

    /// Replaces the pseudonym in loans that ended before this time with a random value. Returns the
    /// number of changed loans, at most `limit`; there may be more unless it is 0.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read or written.
    pub async fn forget(&self, before: Timestamp, limit: u32) -> Result<u64, LedgerError> {
        if !self.queries.has_to_forget(before).await? {
            return Ok(0);
        }
        self.update(Update::Forget { library: None, before, limit }).await
    }

    /// Removes loans with [`prune`].
    ///
    /// # Errors
    /// [`LedgerError`]; loans that were already removed stay removed.
    pub async fn prune(&self, which: Prunable) -> Result<Pruned, LedgerError> {
        prune(&self.file, &self.audit_key, which).await
    }

    /// Copies the write-ahead log into the file and empties it, so that deleted data is left in
    /// neither. Returns false if another connection still reads an older state; the caller then
    /// retries later.
    ///
    /// # Errors
    /// [`LedgerError`] if the file cannot be opened or written.
    pub async fn empty_log(&self) -> Result<bool, LedgerError> {
        sqlite::empty_log(&self.file).await
    }

    /// Returns the number of other processes that have this ledger open.
    pub fn other_processes(&self) -> usize {
        self.membership.count_others()
    }

    /// Commits the queued commands, checkpoints the write-ahead log and closes the ledger.
    pub async fn close(&self) {
        let (responder, response) = oneshot::channel();
        if self.commands.send(Message::Close(responder)).await.is_ok() {
            let _ = response.await;
        }
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

    /// Sends a command to the executor and waits for its response.
    async fn run<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, LedgerError> {
        let (reply, response) = Reply::new();
        let message = Message::Run(Box::new(command(reply)));
        self.commands.send(message).await.map_err(|_| LedgerError::Closed)?;
        response.await.map_err(|_| LedgerError::Closed)?
    }
}

#[cfg(test)]
mod damaged_rows_tests;
#[cfg(test)]
mod failing_disk_tests;
#[cfg(test)]
mod opened_mark_tests;
#[cfg(test)]
mod prune_tests;
#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;
