//! Searches Bokbasen for late begins whose process cannot end them itself.
//!
//! When a process is declared dead, others settle its intents: a loan that Bokbasen does not list
//! `lending.settle` later ends as rejected. If the process was only suspended, for example by its
//! hypervisor, it may still send the begin of such an intent when it continues, before it notices
//! that it has lost its lease. And it may be killed before it reads the response.
//!
//! So the references of these intents are searched for again: every 30 seconds for 15 minutes, and
//! then hourly for a day. After that the nightly balance finds them. The loans to search for are
//! read from the ledger, so a restart forgets none.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use crate::circulation::{Circulation, log_ledger_failure};
use crate::clock;
use crate::ledger::UnfoundBegin;
use crate::lending::{RemoteLoan, Standing};
use crate::loan::LoanId;
use crate::telemetry::LateBeginFinder;

/// How long after its end a reference is searched for often, and at all.
const OFTEN: Duration = Duration::from_secs(15 * 60);
const PERIOD: Duration = Duration::from_secs(24 * 3600);
/// The intervals of searches.
const SHORT_INTERVAL: Duration = Duration::from_secs(30);
const LONG_INTERVAL: Duration = Duration::from_secs(3600);
/// The interval of queries for such loans.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum number of searches in flight. A process that died may have left thousands of intents.
const MAX_SEARCHES: usize = 4;

/// Searches for late begins, until the process stops.
pub(in crate::circulation) async fn search_late_begins(circulation: Circulation) {
    let mut searched: HashMap<LoanId, Instant> = HashMap::new();
    while circulation.pause(CHECK_INTERVAL).await {
        let now = circulation.inner.clock.now();
        let begins = match circulation.inner.ledger.unfound_begins(clock::before(now, PERIOD)).await
        {
            Ok(begins) => begins,
            Err(error) => {
                log_ledger_failure("reading begins that were not found", &error);
                continue;
            }
        };
        searched.retain(|id, _| begins.iter().any(|begin| begin.loan == *id));
        let due = begins.into_iter().filter(|begin| {
            let last = searched.get(&begin.loan).map(Instant::elapsed);
            is_due(clock::until(begin.ended, now), last)
        });
        let searches: Vec<_> = due.map(|begin| search(circulation.clone(), begin)).collect();
        let results = stream::iter(searches).buffer_unordered(MAX_SEARCHES);
        let results: Vec<Option<LoanId>> = results.collect().await;
        let at = Instant::now();
        searched.extend(results.into_iter().flatten().map(|id| (id, at)));
    }
}

/// Returns whether a reference is searched for now, by the time since its loan ended and since the
/// last search.
fn is_due(age: Duration, last: Option<Duration>) -> bool {
    let interval = if age < OFTEN { SHORT_INTERVAL } else { LONG_INTERVAL };
    age <= PERIOD && last.is_none_or(|last| last >= interval)
}

/// Searches for one reference, and ends what Bokbasen has. Returns the loan if Bokbasen answered.
async fn search(circulation: Circulation, begin: UnfoundBegin) -> Option<LoanId> {
    let inner = &circulation.inner;
    if inner.stopping.is_cancelled() {
        return None;
    }
    match inner.lending.find(&begin.reference).await {
        Ok(found) => {
            for remote in found.iter().filter(|remote| is_live(remote)) {
                let id = &remote.lending_id;
                circulation.end_surplus(begin.loan, id, LateBeginFinder::Search).await;
            }
            Some(begin.loan)
        }
        Err(error) => {
            tracing::debug!(loan = %begin.loan, %error, "cannot search for a late begin");
            None
        }
    }
}

fn is_live(remote: &RemoteLoan) -> bool {
    matches!(remote.standing, Standing::Pending { .. } | Standing::Accepted(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_searched_for_often_and_then_hourly() {
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        assert!(is_due(Duration::ZERO, None), "after a restart");
        for (age, last, due) in [
            (minute, SHORT_INTERVAL, true),
            (minute, SHORT_INTERVAL / 2, false),
            (14 * minute, SHORT_INTERVAL, true),
            (15 * minute, SHORT_INTERVAL, false),
            (15 * minute, hour, true),
            (24 * hour, hour, true),
            (25 * hour, 2 * hour, false),
        ] {
            assert_eq!(is_due(age, Some(last)), due, "{age:?} after {last:?}");
        }
    }
}
