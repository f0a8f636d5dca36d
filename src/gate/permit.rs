//! The permit: proof that a reader may have a gated file.
//!
//! Only the gate can make a permit, and delivery sends a title's file only with one. So the types
//! guarantee "no byte without a loan". A body holds its permit while it runs, and checks with it
//! whether the loan is over.

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use jiff::Timestamp;

use super::access::Access;
use crate::clock::Clock;
use crate::connection_handle::OutgoingBody;
use crate::loan::{LoanId, LoanKey};

/// Proof that this reader may have this title's files now: the loan is accepted and not yet due.
pub struct Permit {
    loan: LoanId,
    key: LoanKey,
    access: Arc<Access>,
    /// When the loan is due, by Bokbasen's clock, in milliseconds since the epoch.
    until: i64,
    clock: Clock,
    stream: OnceLock<u64>,
}

impl Permit {
    /// Creates a permit under this access.
    pub(super) fn new(
        loan: LoanId,
        key: LoanKey,
        access: Arc<Access>,
        until: Timestamp,
        clock: &Clock,
    ) -> Permit {
        let until = until.as_millisecond();
        Permit { loan, key, access, until, clock: clock.clone(), stream: OnceLock::new() }
    }

    /// Returns the library, the borrower and the title of the loan.
    pub fn key(&self) -> &LoanKey {
        &self.key
    }

    /// Registers a body that starts under the permit, so that it is aborted when the loan ends.
    /// Returns false if the loan has ended.
    pub fn begin_stream(&self, body: Weak<dyn OutgoingBody>) -> bool {
        self.stream.get_or_init(|| self.access.register(body));
        // Checked after the registration: an end either finds the body, or is seen here.
        !self.access.is_closed()
    }

    /// Returns the id of the loan.
    pub fn loan(&self) -> LoanId {
        self.loan
    }

    /// Returns whether the loan has ended or is due, or may have ended at another process, so that
    /// no more bytes may be sent. The due time applies also while the ledger cannot write the end.
    pub fn is_over(&self) -> bool {
        self.access.is_closed() || self.is_due() || self.access.is_unconfirmed()
    }

    /// Returns whether the loan has ended. Cheaper than [`Permit::is_over`], which also reads the
    /// clock.
    pub fn is_closed(&self) -> bool {
        self.access.is_closed()
    }

    /// Returns whether the loan is due. Only this function compares a running stream with the
    /// clock.
    fn is_due(&self) -> bool {
        self.clock.lending_millis() >= self.until
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(number) = self.stream.get() {
            self.access.unregister(*number);
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
    use crate::circulation::FeedStatus;
    use crate::clock;
    use crate::gate::access::{Accesses, ReadTime};
    use crate::loan::Borrower;

    fn key() -> LoanKey {
        LoanKey {
            library: "NO-0301000".parse().unwrap(),
            borrower: Borrower::from_bytes([1; 16]),
            isbn: "9780306406157".parse().unwrap(),
        }
    }

    #[test]
    fn permit_is_over_when_the_loan_is_due() {
        let clock = Clock::movable(Timestamp::UNIX_EPOCH);
        let key = key();
        let loan = LoanId::random();
        let access = Accesses::default().get_or_create(loan);
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
        assert!(permit.is_over() && !permit.is_closed(), "due, though not ended");
    }

    #[test]
    fn permit_is_over_when_nothing_has_confirmed_the_loan_in_time() {
        let feed_status = FeedStatus::default();
        let access = Accesses::new(feed_status.clone()).get_or_create(LoanId::random());
        let clock = Clock::movable(Timestamp::UNIX_EPOCH);
        access.confirm(key(), LoanId::random(), Timestamp::MAX, ReadTime::now(&clock));
        let permit = Permit::new(LoanId::random(), key(), access, Timestamp::MAX, &clock);
        let now = clock::millis_since_boot();
        assert!(!permit.is_over());
        feed_status.confirm_streams_until(now - 1, -1_000_000);
        assert!(permit.is_over() && !permit.is_closed());
        feed_status.confirm_streams_until(now + 1_000_000, -1_000_000);
        assert!(!permit.is_over(), "the feed is read again");
        feed_status.confirm_streams_until(now - 1, 1_000_000);
        assert!(!permit.is_over(), "the ledger has confirmed it");
    }
}
