//! Copies a ledger from SQLite to PostgreSQL or back, for `loangate ledger copy`.
//!
//! No gate may run during a copy. The source is opened as by a gate and verified, and its loans and
//! steps are not changed. It gets a mark in `meta`, and no gate opens it after the copy. The
//! destination has a mark until the copy is complete, and no gate opens it before. Each transaction
//! writes a batch and replaces the mark, so a killed copy continues where it ended. At the end, all
//! rows of both sides are compared, and both audit trails are verified.
//!
//! A hash covers the hash of the previous step, and PostgreSQL has a chain for each library, so the
//! copy computes new hashes of all steps with the same key. Everything else of a step stays as it
//! is, also its salt and the hash of the loan's row. Anchors of pruned steps are not copied: their
//! steps belong to no library. The [`Origin`] says how many there were.
//!
//! | module | what it does |
//! |---|---|
//! | `run`, `start` | the steps of a copy |
//! | `source` | the mark of the source, which no gate opens after the copy |
//! | `exclusive` | a ledger of either store while no gate runs |
//! | `rows`, `convert` | the rows of the tables |
//! | `read_sqlite`, `read_postgres` | streams of rows |
//! | `order` | the order of a loan's steps in several chains |
//! | `write` | the transactions |
//! | `write_sqlite`, `write_postgres` | the statements that insert rows |
//! | `mark`, `origin`, `meta` | the rows of `meta` during and after a copy |
//! | `summary`, `progress` | the comparison, and what operators see |

mod convert;
mod exclusive;
mod mark;
mod meta;
mod order;
mod origin;
mod progress;
mod read_postgres;
mod read_sqlite;
mod release;
mod rows;
mod run;
mod source;
mod start;
mod summary;
mod write;
mod write_postgres;
mod write_sqlite;

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::audit::AuditKey;
use super::postgres::Deadlines;
use super::{LedgerError, StoreSettings};
pub use origin::{Origin, copied_from};
pub use progress::CopyProgress;
pub use release::{CopiedTo, release_source};
use run::Copy;

/// The number of rows that one transaction writes.
const BATCH: usize = 4000;

/// The keys of a ledger, which are those of both sides.
#[derive(Clone, Debug)]
pub struct Keys {
    /// The fingerprint of the pseudonym key.
    pub fingerprint: [u8; 32],
    /// The key of the audit trail.
    pub audit: AuditKey,
}

/// A copy that is complete and verified.
#[derive(Clone, Debug)]
pub struct Copied {
    /// The number of rows of each table, and of loans in each state.
    pub counts: BTreeMap<String, u64>,
    /// The number of loans whose row had no hash in the source, and whose last step now has one.
    pub covered: u64,
    /// What the destination says of the source.
    pub origin: Origin,
}

/// Why a ledger was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// One of the ledgers failed.
    #[error(transparent)]
    Ledger(LedgerError),
    /// The server of PostgreSQL failed or did not respond in time. The copy can be continued.
    #[error("{0}. Then run the same command again: it continues the copy")]
    Interrupted(LedgerError),
    /// Something must be changed before the ledger can be copied.
    #[error("{0}")]
    Refused(String),
    /// What is wrong with one of the ledgers, as sentences.
    #[error("{}", .0.join("\n"))]
    Findings(Vec<String>),
}

impl From<LedgerError> for CopyError {
    fn from(error: LedgerError) -> CopyError {
        match error {
            LedgerError::Server(_) => CopyError::Interrupted(error),
            other => CopyError::Ledger(other),
        }
    }
}

/// Copies the ledger in `from` to `to`, or continues an interrupted copy. Calls `report` after each
/// batch. `now` is the time that the destination stores.
///
/// # Errors
/// [`CopyError`]. Loans and steps of the source are unchanged, and no gate opens the destination.
/// Gates may open the source, unless only the destination was left to be completed.
pub async fn copy(
    from: &StoreSettings,
    to: &StoreSettings,
    keys: &Keys,
    now: Timestamp,
    report: &mut (dyn FnMut(CopyProgress) + Send),
) -> Result<Copied, CopyError> {
    // Boxed: it holds the state of both stores.
    let deadlines = Deadlines::default();
    Box::pin(Copy { keys, batch: BATCH, deadlines, now, report }.run(from, to)).await
}

#[cfg(test)]
mod tests;
