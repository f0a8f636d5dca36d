//! Which processes use this ledger, and which of them are alive.
//!
//! A loan belongs to the process that began it. Another process may take it over only when its
//! owner is dead: otherwise both would send its begin. The implementation for a file is
//! `sqlite::process`.

use std::fmt::Debug;
use std::sync::Arc;

/// The processes on one ledger. The methods are called within transactions, so they return at once:
/// an implementation with files looks at one directory, and one with a database stores its leases
/// in memory and refreshes them in the background.
pub(super) trait Membership: Debug + Send + Sync {
    /// Returns the name of this process, which no other process ever has. A process that was
    /// declared dead, and is not, gets a new name.
    fn name(&self) -> Arc<str>;

    /// Returns whether the process with this name is dead. A dead process never writes again. If
    /// that is uncertain, returns false.
    fn is_dead(&self, name: &str) -> bool;

    /// Returns the number of other live processes.
    fn count_others(&self) -> usize;
}
