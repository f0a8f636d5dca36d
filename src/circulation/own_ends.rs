//! The ends that this process notes in the ledger, for the outbox: it leaves those of other
//! processes to them.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::loan::LoanId;
use crate::lock::lock;

/// The ends of this process that the outbox has not read yet, each with the time when it was noted.
#[derive(Debug, Default)]
pub(super) struct OwnEnds(Mutex<HashMap<LoanId, Instant>>);

impl OwnEnds {
    /// Notes an end that is written, before the outbox is notified.
    pub(super) fn note(&self, id: LoanId) {
        lock(&self.0).insert(id, Instant::now());
    }

    /// Forgets an end, and returns whether it was noted.
    pub(super) fn forget(&self, id: LoanId) -> bool {
        lock(&self.0).remove(&id).is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    /// Forgets the ends that were noted before this time. They were never read, since another
    /// process has sent them.
    pub(super) fn forget_older_than(&self, age: Duration) {
        lock(&self.0).retain(|_, noted| noted.elapsed() < age);
    }
}
