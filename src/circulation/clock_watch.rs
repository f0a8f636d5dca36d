//! Keeps the comparison with Bokbasen's clock current while no other call does.
//!
//! Loans end by Bokbasen's clock, also in a gate that serves live loans only. While the clocks
//! differ too much, nothing is begun, so that no other call would notice that they agree again.

use std::time::Duration;

use super::Circulation;

/// How often to check whether the comparison is current.
const CHECK: Duration = Duration::from_secs(1);

/// Compares the clocks, until the process stops.
pub(super) async fn compare_clocks(circulation: Circulation) {
    while circulation.pause(CHECK).await {
        circulation.inner.lending.compare_clocks().await;
    }
}
