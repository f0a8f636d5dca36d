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

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use crate::circulation::{Circulation, log_ledger_failure};
use crate::clock;
use crate::ledger::UnfoundBegin;
use crate::lending::{RemoteLoan, Standing};
use crate::loan::LoanId;
use crate::lock::lock;
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
/// Maximum number of loans whose late begins are being ended. Others are found again by their next
/// search.
const MAX_ENDING: usize = 256;

/// Searches for late begins, until the process stops.
pub(in crate::circulation) async fn search_late_begins(circulation: Circulation) {
    let mut searches = Searches::default();
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
        searches.run(&circulation, begins).await;
    }
}

/// The searches of this process.
#[derive(Default)]
pub(super) struct Searches {
    /// When each loan was last searched for.
    searched: HashMap<LoanId, Instant>,
    ending: Ending,
}

/// The loans whose late begins are being ended, in the background: a loan that Bokbasen cannot end
/// must not stop the searches for others.
type Ending = Arc<Mutex<HashSet<LoanId>>>;

impl Searches {
    /// Searches for those of the begins that are due.
    pub(super) async fn run(&mut self, circulation: &Circulation, begins: Vec<UnfoundBegin>) {
        let now = circulation.inner.clock.now();
        let unfound: HashSet<LoanId> = begins.iter().map(|begin| begin.loan).collect();
        self.searched.retain(|id, _| unfound.contains(id));
        let due = begins.into_iter().filter(|begin| {
            let last = self.searched.get(&begin.loan).map(Instant::elapsed);
            let is_ending = lock(&self.ending).contains(&begin.loan);
            !is_ending && is_due(clock::until(begin.ended, now), last)
        });
        let searches: Vec<_> =
            due.map(|begin| search(circulation.clone(), begin, self.ending.clone())).collect();
        let results = stream::iter(searches).buffer_unordered(MAX_SEARCHES);
        let results: Vec<Option<LoanId>> = results.collect().await;
        let at = Instant::now();
        self.searched.extend(results.into_iter().flatten().map(|id| (id, at)));
    }
}

/// Returns whether a reference is searched for now, by the time since its loan ended and since the
/// last search.
fn is_due(age: Duration, last: Option<Duration>) -> bool {
    let interval = if age < OFTEN { SHORT_INTERVAL } else { LONG_INTERVAL };
    age <= PERIOD && last.is_none_or(|last| last >= interval)
}

/// Searches for one reference, and starts to end what Bokbasen has. Returns the loan if Bokbasen
/// answered.
async fn search(circulation: Circulation, begin: UnfoundBegin, ending: Ending) -> Option<LoanId> {
    let inner = &circulation.inner;
    if inner.stopping.is_cancelled() {
        return None;
    }
    match inner.lending.find(&begin.reference).await {
        Ok(found) => {
            let live = found.into_iter().filter(is_live).map(|remote| remote.lending_id);
            let live: Vec<String> = live.collect();
            if !live.is_empty() {
                end_all(&circulation, begin.loan, live, ending);
            }
            Some(begin.loan)
        }
        Err(error) => {
            tracing::debug!(loan = %begin.loan, %error, "cannot search for a late begin");
            None
        }
    }
}

/// Ends the loans that Bokbasen has under one reference, in the background.
fn end_all(circulation: &Circulation, loan: LoanId, lending_ids: Vec<String>, ending: Ending) {
    {
        let mut started = lock(&ending);
        if started.len() >= MAX_ENDING || !started.insert(loan) {
            return;
        }
    }
    let under_way = UnderWay { loan, ending };
    let ends = circulation.clone();
    circulation.spawn(async move {
        let _under_way = under_way;
        let ends = lending_ids.iter().map(|id| ends.end_surplus(loan, id, LateBeginFinder::Search));
        futures_util::future::join_all(ends).await;
    });
}

/// Removes a loan from those that are being ended when dropped, also by a panic.
struct UnderWay {
    loan: LoanId,
    ending: Ending,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        lock(&self.ending).remove(&self.loan);
    }
}

fn is_live(remote: &RemoteLoan) -> bool {
    matches!(remote.standing, Standing::Pending { .. } | Standing::Accepted(_))
}

#[cfg(test)]
mod listing_tests;

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
