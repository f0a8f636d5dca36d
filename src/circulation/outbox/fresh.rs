//! Ends that have not failed, in the order of their arrival.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::loan::LoanId;

/// Ends that have not failed, or that are to be retried after an outage.
#[derive(Debug)]
pub(super) struct Fresh {
    /// By arrival number; ends that failed in an outage get the lowest numbers.
    pub(super) waiting: BTreeMap<u64, LoanId>,
    oldest: u64,
    newest: u64,
    /// The breaker holds all of them back until then.
    pub(super) held_until: Option<Instant>,
}

impl Default for Fresh {
    fn default() -> Fresh {
        let middle = u64::MAX / 2;
        Fresh { waiting: BTreeMap::new(), oldest: middle, newest: middle, held_until: None }
    }
}

impl Fresh {
    /// Adds the newest end.
    pub(super) fn arrive(&mut self, id: LoanId) {
        self.newest += 1;
        self.waiting.insert(self.newest, id);
    }

    /// Puts an end before all others.
    pub(super) fn return_to_front(&mut self, id: LoanId) {
        self.waiting.insert(self.oldest, id);
        self.oldest -= 1;
    }

    /// Puts an end that the breaker held back into its old place, and holds all of them back until
    /// then.
    pub(super) fn hold_back(&mut self, id: LoanId, arrival: u64, until: Instant) {
        self.waiting.insert(arrival, id);
        self.held_until = Some(until);
    }

    /// Returns when the next end may be sent.
    pub(super) fn next_due(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then(|| self.held_until.unwrap_or_else(Instant::now))
    }

    /// Removes one end with `pop`, unless all are held back.
    pub(super) fn take(
        &mut self,
        now: Instant,
        pop: impl Fn(&mut BTreeMap<u64, LoanId>) -> Option<(u64, LoanId)>,
    ) -> Option<(u64, LoanId)> {
        if self.held_until.is_some_and(|until| until > now) {
            return None;
        }
        self.held_until = None;
        pop(&mut self.waiting)
    }
}
