//! Which processes use this ledger, which of them are alive, and how they divide their work.
//!
//! A loan belongs to the process that began it. Another process may take it over only when its
//! owner is dead: otherwise both would send its begin. The implementations are `sqlite::process`
//! for a file, and `postgres::membership` for a database that several machines share. The methods
//! of [`Ledger`] below are for circulation.

use std::fmt::{self, Debug};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::Timestamp;

use super::copy_mark::Marks;
use super::{Ledger, LedgerError, Queries};
use crate::loan::{LibraryId, LoanId, Reference};

/// [`super::Cause::by`] of the step that makes an adopted intent an unknown loan.
pub const ADOPTED_INTENT: &str = "restart";

/// The begin of an adopted intent that Bokbasen did not have when its loan was settled.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UnfoundBegin {
    /// The id of the loan, which ended as rejected.
    pub loan: LoanId,
    /// The reference of the begin.
    pub reference: Reference,
    /// When the loan ended.
    pub ended: Timestamp,
}

/// The number of buckets into which loans are divided by their UUID.
pub(super) const BUCKETS: i16 = 1024;

/// All buckets, for a process that does the work of all loans.
static ALL_BUCKETS: LazyLock<Arc<[i16]>> = LazyLock::new(|| (0..BUCKETS).collect());

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

    /// Updates how processes divide the ends that they send, if not by [`Membership::buckets`].
    /// That is I/O.
    fn refresh_end_shares(&self) {}

    /// Returns a number that is another one after each change of that division. None if there is no
    /// such division.
    fn end_shares_version(&self) -> Option<u64> {
        None
    }

    /// Returns whether this process sends the end of this loan, if the loan is in its buckets.
    fn sends_end_of(&self, _loan: LoanId) -> bool {
        true
    }

    /// Returns whether this process still has this name, no other process can have declared it
    /// dead, and begins are not closed.
    fn holds_lease(&self, _name: &str) -> bool {
        true
    }

    /// Returns whether no process may begin a loan, since the database lost steps.
    fn begins_are_closed(&self) -> bool {
        false
    }

    /// Records marks of the ledger: see [`Membership::moved`].
    fn note_marks(&self, _marks: &Marks) {}

    /// Returns why this process must not use the ledger any more: a join, a write or an
    /// acknowledgement was refused, and the ledger was moved or is half copied. That never changes
    /// back.
    fn moved(&self) -> Option<LedgerError> {
        None
    }

    /// Waits until [`Membership::moved`] returns an error.
    fn until_moved(&self) -> futures_util::future::BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// Returns the number of processes that divide the background work, this one included.
    fn sharers(&self) -> usize {
        1
    }

    /// Returns the buckets whose background work this process does.
    fn buckets(&self) -> Arc<[i16]> {
        ALL_BUCKETS.clone()
    }

    /// Returns a number that changes with [`Membership::buckets`].
    fn shares_version(&self) -> u64 {
        0
    }

    /// Returns whether this process does the background work of a loan.
    fn owns(&self, _loan: LoanId) -> bool {
        true
    }

    /// Returns whether this process compares this library with Bokbasen.
    fn owns_library(&self, _library: LibraryId) -> bool {
        true
    }

    /// Returns whether the clock of this machine agrees with that of the database.
    fn clocks_agree(&self) -> bool {
        true
    }

    /// Returns the least time by which the clock of the database is ahead of this machine's.
    fn clock_lag(&self) -> Duration {
        Duration::ZERO
    }

    /// Declares this process dead, since it ends. `_is_silent` says that none of its transactions
    /// runs any more: where nothing else keeps it from writing, it is not dead before.
    fn leave(&self, _is_silent: bool) -> futures_util::future::BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// The right of a process to send the begins of its loans, under the name that it has now. It is
/// lost when the process cannot renew its lease, while begins are closed, and for good when another
/// process declares it dead.
#[derive(Clone)]
pub struct Lease {
    membership: Arc<dyn Membership>,
    name: Arc<str>,
}

impl Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.name).finish()
    }
}

impl Lease {
    /// Returns the name of the process when the lease was taken.
    pub(super) fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    /// Returns whether the process holds the lease and begins are open. It reads memory only.
    pub fn is_held(&self) -> bool {
        self.membership.holds_lease(&self.name)
    }
}

impl Ledger {
    /// Returns the lease of this process, for a loan whose intent is written next.
    pub fn lease(&self) -> Lease {
        Lease { membership: self.membership.clone(), name: self.membership.name() }
    }

    /// Returns whether no gate begins a loan, because the database was found to have lost steps.
    pub fn begins_are_closed(&self) -> bool {
        self.membership.begins_are_closed()
    }

    /// Returns why this process must not use the ledger any more, if it was moved. That is known
    /// only after the database has refused this process. It reads memory only.
    pub fn moved(&self) -> Option<LedgerError> {
        self.membership.moved()
    }

    /// Waits until the ledger was moved, and returns the error of [`Ledger::moved`].
    pub async fn until_moved(&self) -> LedgerError {
        self.membership.until_moved().await;
        self.moved().unwrap_or(LedgerError::Closed)
    }

    /// Returns the queries, unless the ledger was moved: its loans may have ended elsewhere.
    pub(super) fn queries_of_ours(&self) -> Result<&Queries, LedgerError> {
        self.moved().map_or(Ok(&self.queries), Err)
    }

    /// Returns the number of processes that divide the background work, this one included. A
    /// process that has just started is not counted yet.
    pub fn sharers(&self) -> usize {
        self.membership.sharers().max(1)
    }

    /// Returns a number that changes when this process gets or loses background work.
    pub fn shares_version(&self) -> u64 {
        self.membership.shares_version()
    }

    /// Returns whether this process does the background work of a loan.
    pub fn owns(&self, loan: LoanId) -> bool {
        self.membership.owns(loan)
    }

    /// Returns whether this process compares this library with Bokbasen.
    pub fn owns_library(&self, library: LibraryId) -> bool {
        self.membership.owns_library(library)
    }

    /// Returns whether this process does what only one process must do. All processes agree, except
    /// for some seconds after one has joined or left.
    pub fn does_work_of_all(&self) -> bool {
        self.membership.buckets().first() == Some(&0)
    }

    /// Returns the begins of adopted intents that ended unfound after this time, of the loans whose
    /// background work this process does. The owner of such an intent may not have been dead but
    /// only suspended, and then sends the begin late. A process on a SQLite file is certainly dead
    /// when others adopt its loans, so there are none.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn unfound_begins(&self, after: Timestamp) -> Result<Vec<UnfoundBegin>, LedgerError> {
        self.queries.unfound_begins(after).await
    }

    /// Returns whether the clock of this machine agrees with that of the database. If not, no loan
    /// may be begun or end by its due time.
    pub fn clocks_agree(&self) -> bool {
        self.membership.clocks_agree()
    }
}

#[cfg(test)]
mod lease_switch {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A membership whose lease a test switches.
    #[derive(Debug)]
    struct Switched {
        membership: Arc<dyn Membership>,
        is_held: Arc<AtomicBool>,
    }

    impl Membership for Switched {
        fn name(&self) -> Arc<str> {
            self.membership.name()
        }

        fn is_dead(&self, name: &str) -> bool {
            self.membership.is_dead(name)
        }

        fn count_others(&self) -> usize {
            self.membership.count_others()
        }

        fn refresh_end_shares(&self) {
            self.membership.refresh_end_shares();
        }

        fn end_shares_version(&self) -> Option<u64> {
            self.membership.end_shares_version()
        }

        fn sends_end_of(&self, loan: LoanId) -> bool {
            self.membership.sends_end_of(loan)
        }

        fn holds_lease(&self, _name: &str) -> bool {
            self.is_held.load(Ordering::SeqCst)
        }
    }

    impl Ledger {
        /// Returns a handle whose lease is held while the switch is true.
        pub(crate) fn with_lease_switch(&self, is_held: Arc<AtomicBool>) -> Ledger {
            let membership = Arc::new(Switched { membership: self.membership.clone(), is_held });
            Ledger { membership, ..self.clone() }
        }
    }
}
