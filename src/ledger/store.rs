//! The interface between the executor and a database: connections, transactions and their
//! primitives. [`super::sqlite`] and [`super::postgres`] implement it.
//!
//! A primitive states what a command needs, and not how one database provides it. Several processes
//! may write one ledger, so a store guarantees:
//!
//! - What [`StoreTransaction::lock`] and [`StoreTransaction::audit_head`] return does not change
//!   until the end of the transaction. That includes the absence of a live loan: no other
//!   transaction inserts one for a locked key, or the insertion here fails the transaction.
//!   SQLite holds its only write lock from the beginning. A store with row locks locks all rows of
//!   one call in the order of their keys, so that transactions do not deadlock.
//! - A row that another process committed before the lock is seen.
//! - When [`StoreTransaction::commit`] returns, the changes are durable. If it fails, they may be,
//!   also later. After the next [`LedgerStore::connect`], or after [`StoreConnection::last_commit`]
//!   where the store records commits, that is certain.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::audit::{Head, NewStep};
use super::brake::Count;
use super::membership::Membership;
use super::rules::KeyStanding;
use super::{Delivered, Doubts, LedgerError, PauseChange, Report, ReportStep};
use crate::loan::{Borrower, LibraryId, Loan, LoanId, LoanKey, Progress, Tally};

/// Opens write connections.
pub(super) trait LedgerStore: Send {
    /// The connections that this store opens.
    type Connection: StoreConnection;

    /// Whether one transaction may change loans of several libraries. If not, the executor writes
    /// the commands of each library in a transaction of their own.
    const SPANS_LIBRARIES: bool;

    /// Whether [`StoreConnection::last_commit`] can tell.
    const RECORDS_COMMITS: bool;

    /// The deadline of the work of one transaction, and again of its commit.
    const TRANSACTION_DEADLINE: Duration;

    /// The maximum number of commands in one transaction.
    const MAX_COMMANDS: usize;

    /// How long a transaction starts commands. The others run in the next one, so that round trips
    /// to a slow database cannot make every transaction miss its deadline.
    const WORK_LIMIT: Duration;

    /// Returns whether a new connection may succeed where this error failed. Nothing is durable.
    fn is_of_connection(error: &sqlx::Error) -> bool;

    /// Returns whether the store itself refused the transaction. The connection can be used again.
    fn is_refusal(_error: &sqlx::Error) -> bool {
        false
    }

    /// Opens a connection and commits a probe row through it. When it returns, no transaction of
    /// an earlier connection of this process can commit any more, unless the store records commits:
    /// then [`StoreConnection::last_commit`] waits for such a transaction.
    fn connect(
        &self,
        now: Timestamp,
    ) -> impl Future<Output = Result<Self::Connection, sqlx::Error>> + Send;
}

/// A write connection. After a failed transaction it is closed and not used again.
pub(super) trait StoreConnection: Send {
    /// The transactions of this connection.
    type Transaction<'a>: StoreTransaction
    where
        Self: 'a;

    /// Begins a transaction. Dropping the transaction rolls it back. `library` is the one whose
    /// loans it changes; none if it may change all, or none at all.
    fn begin(
        &mut self,
        library: Option<LibraryId>,
    ) -> impl Future<Output = Result<Self::Transaction<'_>, sqlx::Error>> + Send;

    /// Returns whether the last transaction of this library whose commit was requested, over any
    /// connection of this process, is durable. Waits until that cannot change any more.
    fn last_commit(
        &mut self,
        library: Option<LibraryId>,
    ) -> impl Future<Output = Result<LastCommit, sqlx::Error>> + Send;

    /// Prepares the ledger for the end of this process, for example by a checkpoint.
    fn finish(&mut self) -> impl Future<Output = ()> + Send;

    /// Closes the connection and releases its locks.
    fn close(self) -> impl Future<Output = ()> + Send;

    /// Simulates a fault of the disk.
    #[cfg(test)]
    fn inject(&mut self, fault: DiskFault) -> impl Future<Output = ()> + Send;
}

/// The primitives of a transaction.
pub(super) trait StoreTransaction: Send {
    /// Whether a transaction locks single rows. If so, the executor locks the loans of all commands
    /// in advance, in one order, so that transactions do not deadlock.
    const LOCKS_ROWS: bool;

    /// Occupies the live slot of the key of each of these intents, at most one for a key. Returns
    /// the intents that have it: no other live loan of their key can be inserted until the end of
    /// this transaction. A store with a lock of the whole ledger returns all and writes nothing.
    /// Another store inserts the loans, so [`StoreTransaction::write`] finds every loan there.
    ///
    /// A claim is not part of a standing until [`StoreTransaction::write`] has written its loan.
    /// [`StoreTransaction::begun_at_limits`] counts its row, unless the caller excludes it.
    fn claim(
        &mut self,
        intents: &[&Loan],
        owner: &str,
    ) -> impl Future<Output = Result<HashSet<LoanId>, sqlx::Error>> + Send;

    /// Releases the slots of claimed intents that are not written.
    fn release(
        &mut self,
        intents: &[LoanId],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Locks these loans, and all loans of these keys. Returns the loans that exist, and the
    /// standing of every key. One call locks everything that a batch needs. `owner` is this
    /// process, for [`Locked::foreign`].
    ///
    /// # Errors
    /// Rejects the call if one of the rows is damaged. The transaction can continue.
    fn lock(
        &mut self,
        ids: &[LoanId],
        keys: &[LoanKey],
        owner: &str,
    ) -> impl Future<Output = Result<Locked, WorkError>> + Send;

    /// Returns the newest link of the chain that this transaction extends, and locks the chain.
    fn audit_head(&mut self) -> impl Future<Output = Result<Head, sqlx::Error>> + Send;

    /// Inserts or updates these loans in this order, and inserts the steps. The process `owner`
    /// becomes the owner of new loans.
    fn write(
        &mut self,
        loans: &[&Loan],
        steps: &[NewStep],
        owner: &str,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Returns, for each of these counts, when the oldest of the newest `count.maximum` counted
    /// loans was begun; none if there are fewer. `unrecorded` are claims that do not count.
    ///
    /// A store with a lock of the whole ledger counts exactly. Another one does not see the intents
    /// that other processes are writing, so a limit may be exceeded by one batch of
    /// each of them: a lock of the library would make all its readers wait for each other.
    fn begun_at_limits(
        &mut self,
        key: &LoanKey,
        counts: &[Count],
        unrecorded: &[LoanId],
    ) -> impl Future<Output = Result<Vec<Option<Timestamp>>, sqlx::Error>> + Send;

    /// Makes this process the owner of a loan whose owner is dead. Returns false if the owner is
    /// alive, or another process has adopted the loan.
    fn adopt(
        &mut self,
        id: LoanId,
        membership: &dyn Membership,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Writes the reading progress. Returns false if the loan was never accepted.
    fn set_progress(
        &mut self,
        id: LoanId,
        progress: Progress,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Returns whether a byte may have been sent under this loan.
    fn is_opened(&mut self, id: LoanId) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Marks a loan as opened. Returns false if it is not accepted.
    fn mark_opened(
        &mut self,
        id: LoanId,
        at: Timestamp,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Locks and returns the stored tally of each of these files, zero if none is stored. Unknown
    /// loans are left out. All loans are of the library of the transaction.
    fn tallies(
        &mut self,
        files: &[Delivered],
    ) -> impl Future<Output = Result<StoredTallies, sqlx::Error>> + Send;

    /// Replaces the stored tallies.
    fn write_tallies(
        &mut self,
        tallies: &StoredTallies,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Adds the doubts of one run and clears those that it did not confirm.
    fn replace_doubts(
        &mut self,
        doubts: &Doubts,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Stores when an examination of a loan was first requested, or removes the request. Returns
    /// false if there is none to remove, or no such loan.
    fn set_examination(
        &mut self,
        id: LoanId,
        requested: Option<Timestamp>,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Replaces the borrower of these loans with a random value, a different one for each loan,
    /// and erases the salts of their steps.
    fn forget(
        &mut self,
        loans: &OldLoans,
        now: Timestamp,
    ) -> impl Future<Output = Result<Forgotten, sqlx::Error>> + Send;

    /// Returns whether a report is that of a new package, although a loan under its licence was
    /// accepted before `since` and is not assessed yet, so that its row is missing.
    fn is_package_known(
        &mut self,
        report: &Report,
        since: Timestamp,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Inserts a report. Returns false if what it reports, or its loan, is in the books.
    fn add_report(
        &mut self,
        report: &Report,
        now: Timestamp,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Changes the state of a report, if its state, its owner and its number of claims are those of
    /// the step. Returns the changed report.
    ///
    /// # Errors
    /// Rejects the call if the row is damaged.
    fn step_report(
        &mut self,
        step: &ReportStep,
        now: Timestamp,
    ) -> impl Future<Output = Result<Option<Report>, WorkError>> + Send;

    /// Marks loans as assessed: it was decided whether they are reported.
    fn assess(
        &mut self,
        loans: &[LoanId],
        now: Timestamp,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Returns whether lending of a library is paused.
    fn is_paused(
        &mut self,
        library: LibraryId,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Inserts or removes a pause. Returns false if that changes nothing.
    fn set_pause(
        &mut self,
        change: &PauseChange,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Writes a probe row, to test that the ledger can be written.
    fn probe(&mut self, now: Timestamp) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Makes the changes durable.
    ///
    /// # Errors
    /// The error of the database. Whether the changes are durable is then unknown.
    fn commit(self) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// The rows that [`StoreTransaction::lock`] has locked.
#[derive(Debug, Default)]
pub(super) struct Locked {
    pub(super) loans: Vec<Loan>,
    /// Those of the loans that belong to another process, or to none.
    pub(super) foreign: HashSet<LoanId>,
    pub(super) standings: HashMap<LoanKey, KeyStanding>,
}

/// The state of the last transaction whose commit was requested.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum LastCommit {
    /// Its changes are durable.
    Durable,
    /// None of its changes is durable, or will be.
    RolledBack,
    /// The store does not record that.
    Unknown,
}

/// Loans that are over, and whose borrower one transaction replaces.
#[derive(Clone, Copy, Debug)]
pub(super) struct OldLoans {
    /// Their library. A store that spans libraries needs none.
    pub(super) library: Option<LibraryId>,
    /// Only those of this borrower of the library.
    pub(super) borrower: Option<Borrower>,
    /// Only those that ended before this time.
    pub(super) before: Timestamp,
    /// The most loans.
    pub(super) limit: u32,
}

/// The loans whose borrower [`StoreTransaction::forget`] has replaced.
#[derive(Debug, Default)]
pub(super) struct Forgotten {
    /// The number of loans, damaged ones included.
    pub(super) count: u64,
    /// The loans that can be read.
    pub(super) loans: Vec<Loan>,
}

/// The tally of each file under each loan.
pub(super) type StoredTallies = HashMap<(LoanId, Arc<str>), Tally>;

/// Why a command failed inside a transaction.
#[derive(Debug)]
pub(super) enum WorkError {
    /// The database failed, and with it the transaction.
    Database(sqlx::Error),
    /// A rule or a damaged row rejects this command. The transaction continues.
    Rejected(LedgerError),
}

impl From<sqlx::Error> for WorkError {
    fn from(error: sqlx::Error) -> WorkError {
        WorkError::Database(error)
    }
}

impl From<LedgerError> for WorkError {
    fn from(error: LedgerError) -> WorkError {
        match error {
            LedgerError::Database { source, .. } | LedgerError::Server(source) => {
                WorkError::Database(source)
            }
            rejected => WorkError::Rejected(rejected),
        }
    }
}

impl WorkError {
    /// Separates what fails one command from what fails the whole transaction.
    ///
    /// # Errors
    /// The error of the database.
    pub(super) fn split<T>(
        result: Result<T, WorkError>,
    ) -> Result<Result<T, LedgerError>, sqlx::Error> {
        match result {
            Ok(value) => Ok(Ok(value)),
            Err(WorkError::Rejected(error)) => Ok(Err(error)),
            Err(WorkError::Database(error)) => Err(error),
        }
    }
}

/// Returns whether the transaction failed only because of concurrent ones, so that the same
/// commands may succeed now: a serialization failure, a deadlock, or a wait for a lock that took
/// too long (PostgreSQL's SQLSTATEs). The connection can be used again.
pub(super) fn is_contention(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("40001" | "40P01" | "55P03"))
}

/// Returns whether a value of one command failed the transaction, so that the command fails each
/// time: data exceptions, constraints and limits of the program (classes of SQLSTATE, which has
/// five characters; codes of SQLite are shorter). The connection can be used again.
pub(super) fn is_of_value(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default();
    code.len() == 5 && ["22", "23", "54"].iter().any(|class| code.starts_with(class))
}

/// Returns the cause as a phrase for operators. Messages of a database contain no value of a row.
pub(super) fn reason(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        other => other.to_string(),
    }
}

/// A fault of the database or of the network.
#[cfg(test)]
#[derive(Clone, Debug)]
pub(super) enum DiskFault {
    /// The database cannot grow: SQLite rolls the transaction back with SQLITE_FULL.
    Full,
    /// The next transaction is rolled back before its commit, and sqlx does not notice.
    RolledBack,
    /// The next commit succeeds, and its success is not reported.
    CommitUnreported,
    /// The next commit waits here twice: when it is about to be requested, and until it may be.
    PausedCommit(Arc<tokio::sync::Barrier>),
    /// The lane panics, as by a bug.
    Panic,
}
