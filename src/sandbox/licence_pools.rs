//! How many loans each licence of each library carries, and until when.
//!
//! The state asks before a loan is made and tells when one ends. It calls nothing of ours but the
//! domain's names. A loan lets its licence go by itself when it is due, told or not.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;

use super::Licence;
use super::loan::Loan;
use crate::loan::{Isbn, LibraryId};

/// What is shown as free where there is no limit.
const PLENTY: u32 = 9_999;

type Name = (LibraryId, Isbn, String);

#[derive(Debug, Default)]
struct Pool {
    /// The live loans, by when they are due.
    holders: BTreeSet<(Timestamp, String)>,
    /// The loans that were made on it in all.
    used: u32,
}

/// Every licence that has ever been lent.
#[derive(Debug, Default)]
pub(super) struct Pools(HashMap<Name, Pool>);

/// How a licence stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Standing {
    pub(super) free: u32,
    /// When one becomes free, where none is.
    pub(super) next_free: Option<Timestamp>,
    /// Loans left in all; none is without limit.
    pub(super) loans_left: Option<u32>,
}

impl Pools {
    /// The pools of these loans.
    pub(super) fn of(loans: &[Loan]) -> Pools {
        let mut pools = Pools::default();
        for loan in loans {
            pools.take(loan);
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

    /// A loan takes its licence up, where it was granted one.
    pub(super) fn take(&mut self, loan: &Loan) {
        if let Some((licence, due)) = loan.holds() {
            let pool = self.pool(loan, licence);
            pool.holders.insert((due, loan.id.clone()));
            pool.used += 1;
        }
    }

    /// A loan lets its licence go; where it is `given_back` it counts as never made.
    pub(super) fn let_go(&mut self, loan: &Loan, given_back: bool) {
        if let Some((licence, due)) = loan.holds() {
            let pool = self.pool(loan, licence);
            pool.holders.remove(&(due, loan.id.clone()));
            if given_back {
                pool.used = pool.used.saturating_sub(1);
            }
        }
    }

    /// How a licence of a library stands now.
    pub(super) fn standing(
        &mut self,
        library: LibraryId,
        isbn: Isbn,
        licence: &Licence,
        now: Timestamp,
    ) -> Standing {
        let name = (library, isbn, licence.licence_id.clone());
        let (live, used, first) = self.0.get_mut(&name).map_or((0, 0, None), |pool| {
            while pool.holders.first().is_some_and(|(due, _)| *due <= now) {
                pool.holders.pop_first();
            }
            let live = u32::try_from(pool.holders.len()).unwrap_or(u32::MAX);
            (live, pool.used, pool.holders.first().map(|(due, _)| *due))
        });
        let loans_left = licence.loans_left.map(|in_all| in_all.saturating_sub(used));
        let lapsed = licence.expires.is_some_and(|end| end <= now);
        let at_once = licence.limit().map_or(PLENTY, |limit| limit.saturating_sub(live));
        let free = if lapsed { 0 } else { at_once.min(loans_left.unwrap_or(PLENTY)) };
        let comes_back = free == 0 && !lapsed && loans_left != Some(0);
        Standing { free, next_free: first.filter(|_| comes_back), loans_left }
    }
}
