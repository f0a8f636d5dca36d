//! The ends that this process has noted in the ledger, for the outbox: it leaves those of other
//! processes to them for some seconds.

use std::collections::HashSet;
use std::sync::Mutex;

use crate::loan::LoanId;
use crate::lock::lock;

/// The ends of this process since the outbox has last read. Few: it reads at each of them.
#[derive(Debug, Default)]
pub(super) struct OwnEnds(Mutex<HashSet<LoanId>>);

impl OwnEnds {
    /// Notes an end before it is written, so that whoever reads it knows whose it is.
    pub(super) fn note(&self, id: LoanId) {
        lock(&self.0).insert(id);
    }

    /// Returns the ends since the last call.
    pub(super) fn take(&self) -> HashSet<LoanId> {
        std::mem::take(&mut lock(&self.0))
    }
}
