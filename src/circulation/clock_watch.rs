//! Keeps the comparison with Bokbasen's clock current if no other call does.
//!
//! Loans end by Bokbasen's clock, also in a gate that begins none. While the clocks differ too
//! much, no begin is sent, so no other call would notice that they agree again.

use std::time::Duration;

use super::Circulation;

/// Interval of checks whether the comparison is current.
const CHECK: Duration = Duration::from_secs(1);
/// Interval until the first comparison, because due loans wait for it.
const FIRST_CHECKS: Duration = Duration::from_millis(200);

/// Compares the clocks, until the process stops.
pub(super) async fn compare_clocks(circulation: Circulation) {
    let lending = &circulation.inner.lending;
    while circulation.pause(if lending.clock_is_known() { CHECK } else { FIRST_CHECKS }).await {
        lending.compare_clocks().await;
    }
}
