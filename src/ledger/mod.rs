//! The durable record of loans, in SQLite.
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
//! One task performs all writes and commits the queued commands together.

mod audit;
mod batch;
mod brake;
mod change_feed;
mod error;
mod executor;
mod sqlite;
mod write_check;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use sqlx::SqlitePool;
use tokio::sync::{mpsc, oneshot};

use crate::loan::{Borrower, Event, Isbn, LibraryId, Loan, LoanId, LoanState, Progress};

pub use audit::{AuditKey, Head, Verified, check_loans, verify};
pub use brake::{Brake, BrakeMode};
pub use change_feed::{ClosedLoan, Feed};
pub use error::LedgerError;
use executor::Command;
use sqlite::damaged_rows::DamagedRows;
use sqlite::process::Process;
pub use sqlite::{Delivered, Doubts, Prunable, Pruned, backup, check, probe, prune};
use write_check::WriteTest;

/// The keys of `[ledger]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The SQLite file. A missing directory is created.
    pub file: PathBuf,
    /// `[brake]`: the limits on new loans.
    pub brake: Brake,
}

/// The result of writing an intent.
#[derive(Clone, Debug)]
pub enum Intended {
    /// The intent is durable, and the begin may be sent.
    Written(Loan),
    /// Nothing was written because this reader already has a live loan of the title.
    Live(Loan),
    /// Nothing was written because an accepted loan ended at or after the time at which the
    /// credential was issued (invariant 7).
    EndedSince(Timestamp),
    /// Nothing was written because a brake limit is reached until this time.
    Braked(Timestamp),
}

/// Why a loan changed, for its history.
#[derive(Clone, Debug)]
pub struct Cause {
    /// A short slug: `reader`, `expiry`, `settle`, `admin`, `poll`.
    pub by: &'static str,
    /// A text for support, such as Bokbasen's message. It never has a borrower, a token or a
    /// secret.
    pub detail: Option<String>,
}

/// One transition of a loan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HistoryRow {
    /// When the step was written.
    pub at: Timestamp,
    /// The state before the step; none for the intent.
    pub from: Option<LoanState>,
    /// The state after the step.
    pub to: LoanState,
    /// The slug of [`Cause::by`].
    pub cause: String,
    /// The text of [`Cause::detail`].
    pub detail: Option<String>,
}

/// Ended loans whose end Bokbasen has not acknowledged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ends {
    /// The ids of the loans.
    pub loans: Vec<LoanId>,
    /// The number of the last step that was read, for [`Ledger::ends_after`].
    pub step: i64,
}

/// The filters of a listing. A field that is none does not filter.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only loans of this library.
    pub library: Option<LibraryId>,
    /// Only loans of this title.
    pub isbn: Option<Isbn>,
    /// Only loans in this state.
    pub state: Option<LoanState>,
    /// Only loans of this borrower.
    pub borrower: Option<Borrower>,
    /// Only loans that were begun at this time or later.
    pub since: Option<Timestamp>,
    /// Only loans after this one in the order of the listing, newest first.
    pub after: Option<LoanId>,
    /// The maximum number of loans returned.
    pub limit: u32,
}

/// A handle of the ledger. Clones share the writing task and all connections.
#[derive(Clone, Debug)]
pub struct Ledger {
    file: Arc<PathBuf>,
    commands: mpsc::Sender<Command>,
    readers: SqlitePool,
    support: SqlitePool,
    process: Arc<Process>,
    write_test: WriteTest,
    damaged: DamagedRows,
    /// The last step at the time of opening, where the change feed starts.
    opened_at: i64,
    audit_key: AuditKey,
}

impl Ledger {
    /// Writes an intent, unless [`Intended`] names a reason against it. `issued` is the time at
    /// which the reader's credential was issued.
    ///
    /// # Errors
    /// [`LedgerError`]; the begin must not be sent. After [`LedgerError::Commit`] the intent may be
    /// durable; the writing task then ends it as not sent before it runs another command.
    pub async fn intend(
        &self,
        loan: Loan,
        issued: Option<Timestamp>,
        cause: Cause,
    ) -> Result<Intended, LedgerError> {
        let (responder, response) = oneshot::channel();
        self.send(Command::Intend { loan: Box::new(loan), issued, cause, responder }).await?;
        response.await.map_err(|_| LedgerError::Closed)?
    }

    /// Applies an event with [`Loan::apply`] in one transaction, and returns the changed loan.
    ///
    /// # Errors
    /// [`LedgerError`]; the loan is unchanged, but after [`LedgerError::Commit`] and
    /// [`LedgerError::Closed`] that is uncertain.
    pub async fn apply(&self, id: LoanId, event: Event, cause: Cause) -> Result<Loan, LedgerError> {
        let (responder, response) = oneshot::channel();
        self.send(Command::Apply { id, event, cause, responder }).await?;
        response.await.map_err(|_| LedgerError::Closed)?
    }

    /// Takes over a loan of a dead process. Returns whether this process now owns the loan.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be written.
    pub async fn adopt(&self, id: LoanId) -> Result<bool, LedgerError> {
        let (responder, response) = oneshot::channel();
        self.send(Command::Adopt { id, responder }).await?;
        response.await.map_err(|_| LedgerError::Closed)?
    }

    /// Writes the reading progress of a loan. Returns false if the loan was never accepted.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be written.
    pub async fn note_progress(&self, id: LoanId, progress: Progress) -> Result<bool, LedgerError> {
        let (responder, response) = oneshot::channel();
        self.send(Command::Progress { id, progress, responder }).await?;
        response.await.map_err(|_| LedgerError::Closed)?
    }

    /// Adds these counts to the stored ones. All are durable when this returns. Unknown loans are
    /// skipped.
    ///
    /// # Errors
    /// [`LedgerError`]; nothing was written, but after [`LedgerError::Closed`], or if the commit
    /// itself failed, that is uncertain.
    pub async fn note_delivered(&self, delivered: Arc<[Delivered]>) -> Result<(), LedgerError> {
        let (responder, response) = oneshot::channel();
        self.send(Command::Delivered { delivered, responder }).await?;
        response.await.map_err(|_| LedgerError::Closed)?.map(drop)
    }

    /// Replaces the pseudonym in loans that ended before this time with a random value. Returns the
    /// number of changed loans, at most `limit`.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be written.
    pub async fn forget(&self, before: Timestamp, limit: u32) -> Result<u64, LedgerError> {
        let (responder, response) = oneshot::channel();
        self.send(Command::Forget { before, limit, responder }).await?;
        response.await.map_err(|_| LedgerError::Closed)?
    }

    /// Returns the number of other processes that have this ledger open.
    pub fn other_processes(&self) -> usize {
        self.process.count_others()
    }

    /// Commits the queued commands, checkpoints the write-ahead log and closes the ledger.
    pub async fn close(&self) {
        let (responder, response) = oneshot::channel();
        if self.commands.send(Command::Close { responder }).await.is_ok() {
            let _ = response.await;
        }
        self.readers.close().await;
        self.support.close().await;
    }

    /// Returns a handle with a separate connection pool for support queries. A slow support query
    /// then never delays a reader's request.
    pub fn for_support(&self) -> Ledger {
        Ledger { readers: self.support.clone(), ..self.clone() }
    }

    async fn send(&self, command: Command) -> Result<(), LedgerError> {
        self.commands.send(command).await.map_err(|_| LedgerError::Closed)
    }
}

#[cfg(test)]
mod damaged_rows_tests;
#[cfg(test)]
mod failing_disk_tests;
#[cfg(test)]
mod prune_tests;
#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;
