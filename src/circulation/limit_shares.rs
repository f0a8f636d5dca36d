//! Divides the limits of calls to Bokbasen among the processes on a ledger.
//!
//! Bokbasen sees all of them as one client, so `lending.concurrency` is the limit of all together.
//! After a process has joined or died, the shares may overlap for the duration of a lease.

use std::time::Duration;

use super::Circulation;

/// Interval of checks for a change.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Follows the number of processes, until this one stops.
pub(super) async fn share_limits(circulation: Circulation) {
    let mut shared_by = None;
    loop {
        let sharers = circulation.inner.ledger.sharers();
        if shared_by != Some(sharers) {
            circulation.inner.lending.share_concurrency(sharers);
            if shared_by.is_some() {
                tracing::info!(sharers, "the limits of calls to Bokbasen have new shares");
            }
            shared_by = Some(sharers);
        }
        if !circulation.pause(CHECK_INTERVAL).await {
            return;
        }
    }
}

impl Circulation {
    /// Returns the maximum number of routine polls in flight of this process.
    pub(super) fn max_polls(&self) -> usize {
        (self.inner.settings.polls / self.inner.ledger.sharers()).max(1)
    }
}
