//! Taking up loans that are half-way and that nobody drives: each is settled, none is begun again.
//!
//! Runs at the start and every few seconds. A second process may die beside this one (an upgrade),
//! and a task of this process may die before it could say what became of its loan.

use std::collections::HashSet;
use std::time::Duration;

use super::{Circulation, log_ledger_failure};
use crate::crash::{self, Edge};
use crate::ledger::Cause;
use crate::loan::{Event, Loan, LoanId, LoanState};

/// How often to look for such loans.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Takes up loans of dead processes, and loans of this one that have no driver, until the process
/// stops.
pub(super) async fn adopt_orphans(circulation: Circulation) {
    let mut suspects = HashSet::new();
    loop {
        match circulation.inner.ledger.orphans().await {
            Ok(orphans) => {
                for orphan in orphans {
                    adopt(&circulation, orphan).await;
                }
            }
            Err(error) => {
                log_ledger_failure("looking for loans that a former process left", &error)
            }
        }
        suspects = take_up_undriven(&circulation, &suspects).await;
        if !circulation.pause(LOOK_AGAIN).await {
            return;
        }
    }
}

async fn adopt(circulation: &Circulation, orphan: Loan) {
    match circulation.inner.ledger.adopt(orphan.id).await {
        Ok(true) => {}
        Ok(false) => return, // another process was quicker
        Err(error) => return log_ledger_failure("taking over a loan", &error),
    }
    crash::point("adopt", "loan", Edge::After);
    if orphan.state == LoanState::Intended {
        let detail = Some("the process that wrote the intent has ended".to_owned());
        circulation.record(orphan.id, Event::Lost, Cause { by: "restart", detail }).await;
    }
    circulation.inner.schedule.take_up(orphan.id);
}

/// Takes up those of `suspects` that still have no driver, and returns the loans that have none
/// now. A loan that was just decided is in neither list twice, so that two looks make sure.
async fn take_up_undriven(
    circulation: &Circulation,
    suspects: &HashSet<LoanId>,
) -> HashSet<LoanId> {
    let schedule = &circulation.inner.schedule;
    let undecided = match circulation.inner.ledger.undecided().await {
        Ok(undecided) => undecided,
        Err(error) => {
            log_ledger_failure("looking for loans without a driver", &error);
            return HashSet::new();
        }
    };
    let undriven: HashSet<LoanId> =
        undecided.into_iter().filter(|loan| !schedule.has(*loan)).collect();
    for loan in undriven.intersection(suspects) {
        tracing::warn!(%loan, "a loan without a driver is taken up");
        schedule.take_up(*loan);
    }
    undriven
}
