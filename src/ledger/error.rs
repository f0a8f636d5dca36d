//! Why the ledger did not answer, in sentences for the operator. No error carries a value of a row.

use std::path::PathBuf;

use crate::loan::{IllegalTransition, LoanId};

/// Why the ledger did not answer.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It was written under another pseudonym key: every reader would be a stranger (invariant 5).
    #[error(
        "the ledger was written under another pseudonym key, so that every reader would be a stranger to it; \
         put the old key back in [privacy] pseudonym_key, or name a new ledger file"
    )]
    OtherPseudonymKey,
    /// A newer program has written it.
    #[error(
        "the ledger has a schema that this program does not know; use the newer program that wrote it"
    )]
    NewerSchema,
    /// The newest link of the audit trail that was kept apart is not in the ledger.
    #[error(
        "the ledger {file} does not have the step that {apart} names: its end was cut off, or an older copy was put in its \
         place; put the newest copy back, or, if this one is wanted, remove {apart}"
    )]
    CutOff {
        /// The ledger's file.
        file: PathBuf,
        /// Where the newest link was kept apart.
        apart: PathBuf,
    },
    /// The file cannot be made or locked.
    #[error("the ledger file {file} cannot be used: {source}; check its directory and its owner")]
    File {
        /// The file.
        file: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// The database failed.
    #[error(
        "the ledger {file} failed: {source}; check the disk, and the file with `sqlite3 FILE 'PRAGMA integrity_check'`"
    )]
    Database {
        /// The file.
        file: PathBuf,
        /// SQLite's word.
        source: sqlx::Error,
    },
    /// The transaction of this command failed, or the ledger cannot be written at the moment.
    /// Usually nothing was written; but where the commit itself failed, that is not certain until
    /// the ledger is read again.
    #[error(
        "the ledger cannot be written: {0}; check the disk. The gate tries again until it succeeds"
    )]
    Commit(String),
    /// A row does not bear out its own state.
    #[error("loan {id} in the ledger is damaged: {why}; restore a backup")]
    Damaged {
        /// The row's id.
        id: String,
        /// What is wrong with it.
        why: String,
    },
    /// The state machine has no such way.
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    /// There is no such loan.
    #[error("there is no loan {0} in the ledger")]
    NoSuchLoan(LoanId),
    /// The ledger is closed.
    #[error("the ledger is closed, since the gate is stopping")]
    Closed,
}
