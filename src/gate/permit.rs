//! The permit: the only key to a gated file.
//!
//! Only the gate can make one; delivery's door takes nothing else for a title's file, so that "no
//! byte without a loan" is a matter of types. The body keeps it for as long as it runs, and asks it
//! whether the loan goes on.

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use jiff::Timestamp;

use super::access::Access;
use crate::clock::Clock;
use crate::connection_handle::OutgoingBody;
use crate::loan::{LoanId, LoanKey};

/// The proof that this reader may have this title's files now: an accepted loan whose end lies
/// ahead.
pub struct Permit {
    loan: LoanId,
    key: LoanKey,
    access: Arc<Access>,
    /// When the loan is due, by Bokbasen's clock.
    until: Timestamp,
    clock: Clock,
    stream: OnceLock<u64>,
}

impl Permit {
    /// A permit that has been taken.
    pub(super) fn new(
        loan: LoanId,
        key: LoanKey,
        access: Arc<Access>,
        until: Timestamp,
        clock: &Clock,
    ) -> Permit {
        Permit { loan, key, access, until, clock: clock.clone(), stream: OnceLock::new() }
    }

    /// Whose loan, and of which title.
    pub fn key(&self) -> &LoanKey {
        &self.key
    }

    /// Lists a body that begins under the permit and is aborted when the loan ends. False where the
    /// loan has ended meanwhile.
    pub fn begin_stream(&self, body: Weak<dyn OutgoingBody>) -> bool {
        self.stream.get_or_init(|| self.access.enter(body));
        // Checked after the body is listed: an end either finds it there, or is seen here.
        !self.access.is_closed()
    }

    /// The loan that it stands for.
    pub fn loan(&self) -> LoanId {
        self.loan
    }

    /// Whether the loan has ended or is due, so that no more bytes may leave. The due time holds
    /// also while the ledger cannot write the end.
    pub fn is_over(&self) -> bool {
        self.access.is_closed() || self.is_due()
    }

    /// Whether the loan has ended. Cheaper than [`Permit::is_over`], which also reads the clock.
    pub fn is_closed(&self) -> bool {
        self.access.is_closed()
    }

    /// Whether the loan's time is over. The only place that judges a running stream by the clock.
    fn is_due(&self) -> bool {
        self.clock.lending_now() >= self.until
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(number) = self.stream.get() {
            self.access.leave(*number);
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("loan", &self.loan).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock;
    use crate::gate::access::Accesses;
    use crate::loan::Borrower;

    #[test]
    fn permit_is_over_when_the_loan_is_due() {
        let clock = Clock::movable(Timestamp::UNIX_EPOCH);
        let key = LoanKey {
            library: "NO-0301000".parse().unwrap(),
            borrower: Borrower::from_bytes([1; 16]),
            isbn: "9780306406157".parse().unwrap(),
        };
        let loan = LoanId::fresh();
        let access = Accesses::default().of(loan);
        let permit = Permit::new(
            loan,
            key,
            access,
            clock::after(clock.now(), Duration::from_secs(9)),
            &clock,
        );
        clock.advance(Duration::from_secs(8));
        assert!(!permit.is_over());
        clock.advance(Duration::from_secs(1));
        assert!(permit.is_over() && !permit.is_closed(), "though nobody has ended it");
    }
}
