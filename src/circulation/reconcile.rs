//! Taking up what a dead process left half-way: every intent without an outcome is settled, none begun again.
//!
//! Runs at the start and every few seconds, since a second process may die beside this one (an upgrade).

use std::time::Duration;

use super::{Circulation, log_ledger_failure};
use crate::ledger::Cause;
use crate::loan::{Event, Loan, LoanState};

/// How often to look for loans of processes that have died.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Carries every orphan, until the process stops.
pub(super) async fn adopt_orphans(circulation: Circulation) {
    loop {
        match circulation.inner.ledger.orphans().await {
            Ok(orphans) => {
                for orphan in orphans {
                    adopt(&circulation, orphan).await;
                }
            }
            Err(error) => log_ledger_failure("looking for loans that a former process left", &error),
        }
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
    let loan = if orphan.state == LoanState::Intended {
        let detail = Some("the process that wrote the intent has ended".to_owned());
        circulation.record(orphan.id, Event::Lost, Cause { by: "restart", detail }).await
    } else {
        Some(orphan)
    };
    if let Some(loan) = loan {
        // The task carries on by itself; nobody here waits for it.
        let _ = circulation.resume(loan);
    }
}
