//! Bulletins: short texts in which the processes on one ledger share what operators want to know
//! of all of them. The ledger does not read them.
//!
//! A database that several machines share stores one for each live member. Processes on a SQLite
//! file have none. A bulletin was written by another process, perhaps of another version, so its
//! reader must check it.

use std::time::Duration;

use super::{Ledger, LedgerError};

/// The longest bulletin, in bytes.
pub const MAX_BULLETIN: usize = 32 * 1024;
/// The most bulletins that are read.
pub(super) const MAX_BULLETINS: i64 = 64;

/// What another live process has published.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bulletin {
    /// How long ago it was written, by the clock of the database.
    pub age: Duration,
    /// The text, of at most [`MAX_BULLETIN`] bytes.
    pub content: String,
}

impl Ledger {
    /// Publishes a bulletin in place of the last one of this process, and returns those of the
    /// other live processes, the newest first. It uses the connections of support queries.
    ///
    /// # Errors
    /// [`LedgerError`] if the database does not respond in time, or the bulletin is too long.
    pub async fn exchange_bulletins(&self, own: &str) -> Result<Vec<Bulletin>, LedgerError> {
        match self.moved() {
            Some(moved) => Err(moved),
            None => self.support.exchange_bulletins(&self.membership.name(), own).await,
        }
    }
}
