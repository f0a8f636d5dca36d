//! The permit: the only key to a gated file.
//!
//! Only the gate can make one; delivery's door takes nothing else for a title's file, so that "no byte without
//! a loan" is a matter of types.

use jiff::Timestamp;

use crate::loan::{LoanId, LoanKey};

/// The proof that this reader may have this title's files now: an accepted loan whose end lies ahead.
#[derive(Clone, Debug)]
pub struct Permit {
    loan: LoanId,
    key: LoanKey,
    until: Timestamp,
}

impl Permit {
    pub(super) fn new(loan: LoanId, key: LoanKey, until: Timestamp) -> Permit {
        Permit { loan, key, until }
    }

    /// The loan that allows it.
    pub fn loan(&self) -> LoanId {
        self.loan
    }

    /// For whom and what.
    pub fn key(&self) -> &LoanKey {
        &self.key
    }

    /// When the loan is due.
    pub fn until(&self) -> Timestamp {
        self.until
    }
}
