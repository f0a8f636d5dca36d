//! The errors of the ledger, as sentences for the operator. No error contains a value of a row.

use std::path::PathBuf;

use super::postgres;
use crate::loan::{IllegalTransition, LoanId};

/// A failure of the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The ledger was written under another pseudonym key, so it would recognize no reader
    /// (invariant 5).
    #[error(
        "the ledger was written under another pseudonym key, so it would recognize no reader; \
         restore the old key in [privacy] pseudonym_key, or name a new ledger file"
    )]
    OtherPseudonymKey,
    /// A newer version of loangate has written the ledger.
    #[error(
        "the ledger has a schema that this program does not know; \
         use the newer program that wrote it"
    )]
    NewerSchema,
    /// The ledger does not have the step in the head file of the audit trail.
    #[error(
        "the ledger {file} does not have the step that {head_file} names: its last steps were \
         removed, or an older copy replaced it; restore the newest copy. If it is lost, run \
         `loangate ledger reconcile` to use this one"
    )]
    HeadMissing {
        /// The path of the ledger's file.
        file: PathBuf,
        /// The head file, which stores the newest link of the audit trail.
        head_file: PathBuf,
    },
    /// A restore was interrupted while the files changed their names.
    #[error(
        "a restore of the ledger {file} was interrupted, so its files may not belong together; run \
         `loangate ledger restore` again"
    )]
    HalfRestored {
        /// The path of the ledger's file.
        file: PathBuf,
    },
    /// An operator reconciles a ledger that shows no loss.
    #[error(
        "the ledger has the step that its head file names, so it shows no loss; if it was restored \
         from a backup together with its head file, write --restored"
    )]
    NothingLost,
    /// The database does not have what an earlier process on this machine has seen.
    #[error(
        "the database of the ledger does not have what {head_file} names: it was restored from a \
         backup, or a failover lost its last transactions. No gate begins a loan. Restore the \
         newest state. If it is lost, start again, and follow \"At night\" in docs/cluster.md"
    )]
    DatabaseOlder {
        /// The file with the newest links of the audit trail, or with the renewals of the gates.
        head_file: PathBuf,
    },
    /// A copy into this ledger is unfinished, so loans are missing.
    #[error(
        "the ledger is only half copied; run `loangate ledger copy` again with the same --from and \
         --to until it succeeds, or name the ledger that it was copied from"
    )]
    HalfCopied,
    /// A complete copy has taken the place of this ledger, and may have newer loans.
    #[error(
        "the ledger was moved to {to}, which may have newer loans; set [ledger] url to that one. \
         To go back, copy it with `loangate ledger copy` to a new file or an empty database. If no \
         gate has run on it, `loangate ledger copy --release-source` with the same --from and --to \
         lets gates use this one again"
    )]
    Moved {
        /// The ledger that took its place.
        to: String,
    },
    /// A copy of this ledger is unfinished, so its loans must not be removed.
    #[error(
        "the ledger is being copied to {to}, so nothing is pruned; run `loangate ledger copy` \
         again until it succeeds. To give up an interrupted copy, start a gate on this ledger, \
         or run `loangate ledger copy --release-source`"
    )]
    BeingCopied {
        /// The destination of the copy.
        to: String,
    },
    /// The file cannot be created or locked.
    #[error("the ledger file {file} cannot be used: {source}; check its directory and its owner")]
    File {
        /// The file that failed.
        file: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// SQLite reported an error.
    #[error("the ledger {file} failed: {source}; {}", sqlite_advice(source))]
    Database {
        /// The path of the ledger's file.
        file: PathBuf,
        /// The error that SQLite reported.
        source: sqlx::Error,
    },
    /// The database server failed, did not respond in time, or cannot be reached.
    #[error("the ledger's database failed: {0}; check the PostgreSQL server and the network")]
    Server(#[source] sqlx::Error),
    /// The transaction of this command failed, or the ledger cannot be written at the moment.
    ///
    /// Usually nothing was written. If the commit itself failed, that is uncertain until the ledger
    /// is read again.
    #[error(
        "the ledger cannot be written: {0}; check the disk. The gate tries again until it succeeds"
    )]
    Commit(String),
    /// The database rejects a value of this command, each time. Nothing was written.
    #[error("the ledger's database rejects a value: {0}; report this as an error of loangate")]
    Unwritable(String),
    /// A row cannot be read, or its columns contradict its state.
    #[error("loan {id} in the ledger is damaged: {why}; restore a backup")]
    Damaged {
        /// The id of the row.
        id: String,
        /// The cause, as a phrase.
        why: String,
    },
    /// The state machine does not allow this event in the loan's state.
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    /// The loan is undecided, and another process has taken it over.
    #[error("loan {0} belongs to another process, which decides it")]
    NotOwner(LoanId),
    /// This process is not a member of the ledger at the moment.
    #[error(
        "other processes have declared this one dead, because it did not renew its lease in time; \
         it joins again"
    )]
    NoMember,
    /// No loan has this id.
    #[error("there is no loan {0} in the ledger")]
    NoSuchLoan(LoanId),
    /// The writing task has ended.
    #[error("the ledger is closed, since the gate is stopping")]
    Closed,
}

impl LedgerError {
    /// Returns whether the database of the ledger did not respond or refused connections, which
    /// may pass.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, LedgerError::Server(source) if postgres::is_of_server(source))
    }

    /// Creates the error of a row that cannot be read.
    pub(super) fn damaged(id: &str, why: &dyn std::fmt::Display) -> LedgerError {
        LedgerError::Damaged { id: id.to_owned(), why: why.to_string() }
    }
}

/// Returns what an operator does about an error of SQLite, by its result code
/// (<https://www.sqlite.org/rescode.html>).
fn sqlite_advice(error: &sqlx::Error) -> &'static str {
    let code = error.as_database_error().and_then(|error| error.code());
    // The lowest byte of an extended result code is the primary one.
    let code = code.and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff);
    match code {
        Some(1) => "check that a gate of this version has opened this file as its ledger",
        Some(5 | 6) => "try again later: another process is writing, or has locked it",
        Some(14) => "check that the file exists, and its owner and rights",
        Some(8) => {
            "check the owner and the rights of the file and of its directory, and that nothing has \
             replaced it while a gate runs"
        }
        Some(11 | 26) => {
            "check the path. If the file is damaged, which `loangate ledger check` finds, restore \
             a backup with `loangate ledger restore`"
        }
        _ => "check the disk, and the file with `sqlite3 FILE 'PRAGMA integrity_check'`",
    }
}
