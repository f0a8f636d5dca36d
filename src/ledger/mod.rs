//! The durable record of loans, in SQLite.
//!
//! Circulation and metering write it, admin reads it; it calls nothing of ours but the vocabulary.
//! The contract: when [`Ledger::intend`] or [`Ledger::apply`] returns, what it says is on disk
//! (WAL, `synchronous = FULL`); a caller who hangs up undoes nothing; and at most one live loan
//! stands for a library, a borrower and a title, by a unique index. All writes go through one task
//! that commits whatever is waiting in one transaction.

mod audit;
mod balance_memory;
mod batch;
mod brake;
mod change_feed;
mod connection;
mod damaged_rows;
mod delivered;
mod error;
mod maintenance;
mod open;
mod open_check;
mod opened_mark;
mod process;
mod prune;
mod read;
mod row;
mod write;
mod write_check;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use sqlx::SqlitePool;
use tokio::sync::{mpsc, oneshot};

use crate::loan::{Borrower, Event, Isbn, LibraryId, Loan, LoanId, LoanState, Progress};

pub use audit::{AuditKey, Head, Verified, check_loans, verify};
pub use balance_memory::Doubts;
pub use brake::{Brake, BrakeMode};
pub use change_feed::{ClosedLoan, Feed};
use damaged_rows::DamagedRows;
pub use delivered::Delivered;
pub use error::LedgerError;
pub use maintenance::{backup, check};
pub use open_check::probe;
use process::Process;
pub use prune::{Prunable, Pruned, prune};
use write::Command;
use write_check::WriteTest;

/// The keys of `[ledger]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The SQLite file; its directory is made where it is missing.
    pub file: PathBuf,
    /// `[brake]`: what may be spent.
    pub brake: Brake,
}

/// What came of writing an intent.
#[derive(Clone, Debug)]
pub enum Intended {
    /// It is durable; the begin may be sent.
    Written(Loan),
    /// A live loan of this reader and title stands already; nothing was written.
    Live(Loan),
    /// An accepted loan ended at or after the credential was issued (invariant 7); nothing was
    /// written.
    EndedSince(Timestamp),
    /// The spending brake holds until then; nothing was written.
    Braked(Timestamp),
}

/// Why a loan changed, for its history: what did it, and Bokbasen's own words where there are any.
#[derive(Clone, Debug)]
pub struct Cause {
    /// A short slug: `reader`, `expiry`, `settle`, `admin`, `poll`.
    pub by: &'static str,
    /// Words for support; never a borrower, a token or a secret.
    pub detail: Option<String>,
}

/// One transition of a loan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HistoryRow {
    /// When.
    pub at: Timestamp,
    /// The state before; none for the intent.
    pub from: Option<LoanState>,
    /// The state after.
    pub to: LoanState,
    /// What did it.
    pub cause: String,
    /// Words for support.
    pub detail: Option<String>,
}

/// Loans that have ended and whose end waits to be acknowledged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ends {
    /// The loans.
    pub loans: Vec<LoanId>,
    /// The last step that this knows of.
    pub step: i64,
}

/// Which loans a listing gives.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this library.
    pub library: Option<LibraryId>,
    /// Of this title.
    pub isbn: Option<Isbn>,
    /// In this state.
    pub state: Option<LoanState>,
    /// Of this borrower.
    pub borrower: Option<Borrower>,
    /// Begun at this moment or later.
    pub since: Option<Timestamp>,
    /// Only loans after this one in the order of the listing, newest first.
    pub after: Option<LoanId>,
    /// At most so many.
    pub limit: u32,
}

/// The record of loans. Clones share everything.
#[derive(Clone, Debug)]
pub struct Ledger {
    file: Arc<PathBuf>,
    commands: mpsc::Sender<Command>,
    readers: SqlitePool,
    support: SqlitePool,
    process: Arc<Process>,
    write_test: WriteTest,
    damaged: DamagedRows,
    /// The last step when it was opened: the change feed starts there.
    opened_at: i64,
    audit_key: AuditKey,
}

impl Ledger {
    /// Writes an intent, unless a live loan of its reader and title stands, or an accepted one
    /// ended no earlier than the credential was `issued`.
    ///
    /// # Errors
    /// [`LedgerError`]; the begin must not be sent. After [`LedgerError::Commit`] the intent may be
    /// durable all the same; the writing task then ends it as never sent, before it takes another
    /// command.
    pub async fn intend(
        &self,
        loan: Loan,
        issued: Option<Timestamp>,
        cause: Cause,
    ) -> Result<Intended, LedgerError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Intend { loan: Box::new(loan), issued, cause, answer }).await?;
        answered.await.map_err(|_| LedgerError::Closed)?
    }

    /// Applies an event by the pure machine, within the transaction that reads and writes the loan.
    ///
    /// # Errors
    /// [`LedgerError`]; the loan is then as it was, except that after [`LedgerError::Commit`] and
    /// [`LedgerError::Closed`] that is not certain.
    pub async fn apply(&self, id: LoanId, event: Event, cause: Cause) -> Result<Loan, LedgerError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Apply { id, event, cause, answer }).await?;
        answered.await.map_err(|_| LedgerError::Closed)?
    }

    /// Takes over a loan of a process that has died: true where this process now owns it.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn adopt(&self, id: LoanId) -> Result<bool, LedgerError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Adopt { id, answer }).await?;
        answered.await.map_err(|_| LedgerError::Closed)?
    }

    /// Writes how far a loan has been read: false where it never was accepted.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn note_progress(&self, id: LoanId, progress: Progress) -> Result<bool, LedgerError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Progress { id, progress, answer }).await?;
        answered.await.map_err(|_| LedgerError::Closed)?
    }

    /// Adds to what was delivered before: durable, all of it, when this returns. A loan that is not
    /// there is passed over.
    ///
    /// # Errors
    /// [`LedgerError`]; nothing was written, except that after [`LedgerError::Closed`], and where a
    /// commit failed in the last step, that is not certain.
    pub async fn note_delivered(&self, delivered: Arc<[Delivered]>) -> Result<(), LedgerError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Delivered { delivered, answer }).await?;
        answered.await.map_err(|_| LedgerError::Closed)?.map(drop)
    }

    /// Replaces the pseudonym of loans that ended before this moment by a random value, `limit` of
    /// them at most, and says how many those were.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn forget(&self, before: Timestamp, limit: u32) -> Result<u64, LedgerError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Forget { before, limit, answer }).await?;
        answered.await.map_err(|_| LedgerError::Closed)?
    }

    /// Counts the other processes that have this ledger open now: other gates.
    pub fn other_processes(&self) -> usize {
        self.process.count_others()
    }

    /// Writes what is waiting, folds the log into the file, and closes.
    pub async fn close(&self) {
        let (answer, answered) = oneshot::channel();
        if self.commands.send(Command::Close { answer }).await.is_ok() {
            let _ = answered.await;
        }
        self.readers.close().await;
        self.support.close().await;
    }

    /// The same ledger, read through connections of its own: a support query over many loans must
    /// not keep a reader's first request waiting for a connection.
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
