//! Schedules undecided loans that no process drives. Each is settled; none is begun again.
//!
//! Runs at the start and every few seconds. Another process may die beside this one during an
//! upgrade, and a task of this process may die before it writes the outcome of its loan.

use std::collections::HashSet;
use std::time::Duration;

use super::{Circulation, log_ledger_failure};
use crate::crash::{self, Edge};
use crate::ledger::{ADOPTED_INTENT, Cause, LedgerError};
use crate::loan::{Event, Loan, LoanId, LoanState};

/// Interval of the queries for such loans.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Adopts loans of dead processes and schedules loans of this process without a driver, until the
/// process stops.
pub(super) async fn adopt_orphans(circulation: Circulation) {
    let mut suspects = HashSet::new();
    loop {
        if let Err(error) = adopt_all(&circulation).await {
            log_ledger_failure("reading loans of dead processes", &error);
        }
        suspects = schedule_undriven(&circulation, &suspects).await;
        if !circulation.pause(CHECK_INTERVAL).await {
            return;
        }
    }
}

async fn adopt_all(circulation: &Circulation) -> Result<(), LedgerError> {
    let ledger = &circulation.inner.ledger;
    let mut last = None;
    while !circulation.inner.stopping.is_cancelled() {
        let orphans = ledger.orphans(last).await?;
        let Some(newest) = orphans.last() else { break };
        last = Some(newest.id);
        for orphan in orphans.into_iter().filter(|orphan| ledger.owns(orphan.id)) {
            adopt(circulation, orphan).await;
        }
    }
    Ok(())
}

async fn adopt(circulation: &Circulation, orphan: Loan) {
    match circulation.inner.ledger.adopt(orphan.id).await {
        Ok(true) => {}
        Ok(false) => return, // another process adopted it first
        Err(error) => return log_ledger_failure("adopting a loan", &error),
    }
    crash::point("adopt", "loan", Edge::After);
    if orphan.state == LoanState::Intended {
        let detail = Some("the process that wrote the intent has ended".to_owned());
        // The cause tells later searches that the begin may still be sent.
        let cause = Cause { by: ADOPTED_INTENT, detail };
        let _ = circulation.record(orphan.id, Event::Lost, cause).await;
    }
    circulation.inner.schedule.add(orphan.id);
}

/// Schedules the loans in `suspects` that still have no driver, and returns those that have none
/// now. A loan that was just decided can appear in one query, but not in two.
async fn schedule_undriven(
    circulation: &Circulation,
    suspects: &HashSet<LoanId>,
) -> HashSet<LoanId> {
    let schedule = &circulation.inner.schedule;
    let undecided = match circulation.inner.ledger.undecided().await {
        Ok(undecided) => undecided,
        Err(error) => {
            log_ledger_failure("reading undecided loans", &error);
            return HashSet::new();
        }
    };
    let undriven: HashSet<LoanId> =
        undecided.into_iter().filter(|loan| !schedule.contains(*loan)).collect();
    for loan in undriven.intersection(suspects) {
        tracing::warn!(%loan, "scheduled a loan that had no driver");
        schedule.add(*loan);
    }
    undriven
}
