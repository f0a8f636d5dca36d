//! The licence pools: how many live loans each licence of each library has, and until when.
//!
//! The state queries a pool before it creates a loan and reports the end of loans. A due loan frees
//! its licence even without a return.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;

use super::Licence;
use super::loan::Loan;
use crate::loan::{Isbn, LibraryId};

/// The number shown as free for an unlimited licence.
const UNLIMITED_FREE: u32 = 9_999;

type PoolKey = (LibraryId, Isbn, String);

#[derive(Debug, Default)]
struct Pool {
    /// The live loans, sorted by due time.
    holders: BTreeSet<(Timestamp, String)>,
    /// All loans ever created on the licence.
    used: u32,
}

/// Every licence that was ever lent.
#[derive(Debug, Default)]
pub(super) struct Pools(HashMap<PoolKey, Pool>);

/// The availability of a licence.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct PoolStatus {
    pub(super) free: u32,
    /// When the next licence becomes free, if none is.
    pub(super) next_free: Option<Timestamp>,
    /// The loans left in total; none means without limit.
    pub(super) loans_left: Option<u32>,
}

impl Pools {
    /// Builds the pools of existing loans.
    pub(super) fn of(loans: &[Loan]) -> Pools {
        let mut pools = Pools::default();
        for loan in loans {
            pools.assign(loan);
            if let (Some(licence), None) = (loan.uses(), loan.holds()) {
                pools.pool(loan, licence).used += 1;
            }
        }
        pools
    }

    fn pool(&mut self, loan: &Loan, licence: &str) -> &mut Pool {
        let name = (loan.library, loan.isbn, licence.to_owned());
        self.0.entry(name).or_default()
    }

    /// Assigns a licence to a loan, if its verdict names one.
    pub(super) fn assign(&mut self, loan: &Loan) {
        if let Some((licence, due)) = loan.holds() {
            let pool = self.pool(loan, licence);
            pool.holders.insert((due, loan.id.clone()));
            pool.used += 1;
        }
    }

    /// Frees the licence of a loan. With `uncount`, the loan no longer counts as made.
    pub(super) fn release(&mut self, loan: &Loan, uncount: bool) {
        if let Some((licence, due)) = loan.holds() {
            let pool = self.pool(loan, licence);
            pool.holders.remove(&(due, loan.id.clone()));
            if uncount {
                pool.used = pool.used.saturating_sub(1);
            }
        }
    }

    /// Returns the current availability of a library's licence.
    pub(super) fn status(
        &mut self,
        library: LibraryId,
        isbn: Isbn,
        licence: &Licence,
        now: Timestamp,
    ) -> PoolStatus {
        let name = (library, isbn, licence.licence_id.clone());
        let (live, used, first) = self.0.get_mut(&name).map_or((0, 0, None), |pool| {
            while pool.holders.first().is_some_and(|(due, _)| *due <= now) {
                pool.holders.pop_first();
            }
            let live = u32::try_from(pool.holders.len()).unwrap_or(u32::MAX);
            (live, pool.used, pool.holders.first().map(|(due, _)| *due))
        });
        let loans_left = licence.loans_left.map(|in_all| in_all.saturating_sub(used));
        let expired = licence.expires.is_some_and(|end| end <= now);
        let at_once = licence.limit().map_or(UNLIMITED_FREE, |limit| limit.saturating_sub(live));
        let free = if expired { 0 } else { at_once.min(loans_left.unwrap_or(UNLIMITED_FREE)) };
        let frees_later = free == 0 && !expired && loans_left != Some(0);
        PoolStatus { free, next_free: first.filter(|_| frees_later), loans_left }
    }
}
