//! The permit: the only key to a gated file.
//!
//! Only the gate can make one; delivery's door takes nothing else for a title's file, so that "no byte without
//! a loan" is a matter of types. The body keeps it for as long as it runs, and asks it whether the loan goes on.

use std::fmt;
use std::sync::Arc;

use super::access::Access;
use crate::connection::Connection;
use crate::loan::{LoanId, LoanKey};

/// The proof that this reader may have this title's files now: an accepted loan whose end lies ahead.
pub struct Permit {
    loan: LoanId,
    key: LoanKey,
    access: Arc<Access>,
    stream: Option<u64>,
}

impl Permit {
    /// A permit that has been taken.
    pub(super) fn new(loan: LoanId, key: LoanKey, access: Arc<Access>) -> Permit {
        Permit { loan, key, access, stream: None }
    }

    /// Whose loan, and of which title.
    pub fn key(&self) -> &LoanKey {
        &self.key
    }

    /// Notes that a body begins on this connection, which is cut if the loan ends and the body does not. False where
    /// the loan has ended meanwhile.
    pub fn begin_stream(&mut self, connection: &Connection) -> bool {
        if self.stream.is_none() {
            self.stream = Some(self.access.enter(connection.clone()));
        }
        // Looked at after the body is on the list: an end either finds it there, or is seen here.
        !self.is_over()
    }

    /// The loan that it stands for.
    pub fn loan(&self) -> LoanId {
        self.loan
    }

    /// Whether the loan has ended, so that no byte more may leave.
    pub fn is_over(&self) -> bool {
        self.access.is_closed()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(number) = self.stream {
            self.access.leave(number);
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("loan", &self.loan).finish_non_exhaustive()
    }
}
