//! What a copy does at the moment, as a line for operators.

use std::fmt;

/// A stage of a copy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CopyProgress {
    /// Waits for this number of gates that did not leave the ledger: they run or were killed.
    Waiting(usize),
    /// Waits until this number of gates that did not leave deliver nothing more.
    Silencing(usize),
    /// Verifies the audit trail of the source or the destination.
    Verifying(&'static str),
    /// Copies the rows of a table.
    Copying {
        /// What the rows are.
        rows: &'static str,
        /// The number of rows that are copied.
        done: u64,
        /// The number of rows in the source.
        total: u64,
        /// The number of rows copied in a second.
        per_second: u64,
    },
    /// Compares all rows of the source and the destination.
    Comparing,
}

impl fmt::Display for CopyProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CopyProgress::Waiting(gates) => {
                write!(f, "waiting for the leases of {gates} gates that did not leave")
            }
            CopyProgress::Silencing(gates) => {
                write!(f, "waiting until {gates} gates that did not leave deliver nothing more")
            }
            CopyProgress::Verifying(side) => write!(f, "verifying the audit trail of the {side}"),
            CopyProgress::Copying { rows, done, total, per_second } => {
                write!(f, "copied {done} of {total} {rows}, {per_second} per second")
            }
            CopyProgress::Comparing => f.write_str("comparing all rows"),
        }
    }
}
