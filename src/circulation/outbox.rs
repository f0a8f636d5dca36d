//! The outbox of ends: each is sent until Bokbasen has acknowledged it, across restarts.
//!
//! A loan in state `ending` is an end that waits; there is no other list to fall out of step with. One loan
//! has one end, so that order within a loan is kept by itself.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use super::{Circulation, log_ledger_failure};
use crate::ledger::Cause;
use crate::lending::{CallError, Told};
use crate::loan::{EndReason, Event, Loan, LoanId};

/// How many ends are looked at in one go.
const BATCH: u32 = 256;
/// How many are on their way at once; the client has a limit of its own for all calls together.
const AT_ONCE: usize = 16;
/// How long an end that failed waits: at first, and the longest that it doubles up to.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often to look when nobody calls.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// When an end that failed is tried again.
#[derive(Clone, Copy)]
struct Attempt {
    next: Instant,
    wait: Duration,
}

/// Sends ends until the process stops.
pub(super) async fn send_ends(circulation: Circulation) {
    let mut failed: HashMap<LoanId, Attempt> = HashMap::new();
    loop {
        let more = send_waiting(&circulation, &mut failed).await;
        if more {
            continue;
        }
        tokio::select! {
            () = circulation.inner.ends_waiting.notified() => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = circulation.inner.stopping.cancelled() => return,
        }
    }
}

/// One round; true where a full batch went through, so that more is probably waiting.
async fn send_waiting(circulation: &Circulation, failed: &mut HashMap<LoanId, Attempt>) -> bool {
    let waiting = match circulation.inner.ledger.ending(BATCH).await {
        Ok(waiting) => waiting,
        Err(error) => {
            log_ledger_failure("looking for ends to send", &error);
            return false;
        }
    };
    failed.retain(|id, _| waiting.iter().any(|loan| loan.id == *id));
    let now = Instant::now();
    let ready =
        waiting.into_iter().filter(|loan| failed.get(&loan.id).is_none_or(|attempt| attempt.next <= now));
    let sent: Vec<(LoanId, bool)> = stream::iter(ready)
        .map(|loan| async move { (loan.id, send(circulation, &loan).await) })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    for (id, done) in &sent {
        if *done {
            failed.remove(id);
        } else {
            let wait = failed.get(id).map_or(FIRST_WAIT, |attempt| (attempt.wait * 2).min(LONGEST_WAIT));
            failed.insert(*id, Attempt { next: Instant::now() + wait, wait });
        }
    }
    sent.len() == BATCH as usize && sent.iter().any(|(_, done)| *done)
}

/// Sends one end; true where it is acknowledged and the ledger has that.
async fn send(circulation: &Circulation, loan: &Loan) -> bool {
    match tell(circulation, loan).await {
        Ok(Told::Done) => {
            let cause = Cause { by: "outbox", detail: None };
            circulation.record(loan.id, Event::EndAcknowledged, cause).await.is_some()
        }
        Ok(told) => {
            tracing::warn!(loan = %loan.id, ?told, "Bokbasen does not take this end yet; it is sent again");
            false
        }
        Err(error) => {
            tracing::warn!(loan = %loan.id, %error, "an end could not be sent; it is sent again");
            false
        }
    }
}

async fn tell(circulation: &Circulation, loan: &Loan) -> Result<Told, CallError> {
    let lending = &circulation.inner.lending;
    let (Some(lending_id), Some(ended), Some(reason)) = (&loan.lending_id, loan.ended, loan.end_reason)
    else {
        return Ok(Told::Done); // it never was there
    };
    match reason {
        EndReason::Cancelled => match lending.cancel(lending_id, "cancelled by the reader").await? {
            Told::CancelWindowClosed => lending.return_loan(lending_id, ended, EndReason::Returned).await,
            told @ (Told::Done | Told::StillPending) => Ok(told),
        },
        EndReason::Returned | EndReason::Expired | EndReason::Rejected => {
            match lending.return_loan(lending_id, ended, reason).await? {
                // A loan ended here while it was pending there can only be cancelled.
                Told::StillPending => lending.cancel(lending_id, "ended before it was accepted").await,
                told @ (Told::Done | Told::CancelWindowClosed) => Ok(told),
            }
        }
    }
}
