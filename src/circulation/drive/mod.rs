//! Drives an undecided loan to its decision, one step at a time.
//!
//! [`begin`] sends the first begin of an intent, by `send_begin`. The scheduler starts every later
//! step: a `poll` of a pending loan, or a check of the search for an unknown one. Each step is in
//! the ledger before the next starts.
//!
//! A process drives only its own loans. Only the task that wrote an intent sends its begin. It
//! sends one begin, and another only after Bokbasen declined the licence and the policy allows a
//! further one.

mod poll;
mod send_begin;

use std::time::Duration;

use tokio::time::Instant;

use super::licences::Candidates;
use super::record::NotRecorded;
use super::schedule::{Next, Work};
use super::settle::Search;
use super::{Circulation, LoanOutcome, log_ledger_failure};
use crate::ledger::{Cause, Lease};
use crate::loan::{Event, Loan, LoanId, LoanState};
pub(super) use poll::event_of;
use poll::{Polled, poll};
use send_begin::{record_decision, send_begin, send_first_begin};

/// Longest Retry-After of a pending loan that is honoured.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// What the driver of a loan knows beyond the ledger. The schedule stores it between two steps.
#[derive(Debug, Default)]
pub(super) struct DriverState {
    /// Licences to try.
    candidates: Candidates,
    /// Set while the next begin may be sent, under this lease: the ledger records that Bokbasen
    /// declined a licence. Boxed, since it is rare.
    declined: Option<Box<Lease>>,
    search: Search,
    /// Set while Bokbasen is unavailable: when the caller should retry.
    unavailable: Option<Duration>,
}

#[cfg(test)]
impl DriverState {
    /// Returns its heap memory in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        self.candidates.heap_bytes()
    }
}

/// Sends the begin of an intent that the caller has just written under this lease. No other
/// function sends a first begin.
pub(super) async fn begin(circulation: &Circulation, mut work: Work, loan: Loan, lease: Lease) {
    let sent = send_first_begin(circulation, &loan, &mut work.driver, lease).await;
    let next = follow_up(circulation, sent, &mut work.driver, true).await;
    work.finish(next);
}

/// Runs the next step of a due loan.
pub(super) async fn advance(circulation: Circulation, mut work: Work) {
    let step = Box::pin(step(&circulation, work.loan, &mut work.driver));
    let next = circulation.traced("poll of a loan", step).await;
    work.finish(next);
}

async fn step(circulation: &Circulation, id: LoanId, driver: &mut DriverState) -> Next {
    driver.unavailable = None;
    let loan = match circulation.inner.ledger.loan(id).await {
        Ok(Some(loan)) => loan,
        Ok(None) => return Next::Done(LoanOutcome::Undetermined),
        Err(error) => {
            log_ledger_failure("reading a loan to drive", &error);
            return poll_again();
        }
    };
    if let Some(outcome) = circulation.outcome_of(&loan) {
        return Next::Done(outcome);
    }
    let written = match loan.state {
        LoanState::Pending => match poll(circulation, &loan, driver).await {
            Polled::Decided(event) => {
                record_decision(
                    circulation,
                    &loan,
                    driver,
                    event,
                    Cause { by: "poll", detail: None },
                )
                .await
            }
            Polled::Missing => {
                let detail =
                    Some("a read by id does not show the loan that Bokbasen has named".to_owned());
                circulation.record(id, Event::Missing, Cause { by: "poll", detail }).await
            }
            Polled::Undecided(retry_after) => {
                let retry_after = retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
                return Next::PollAgain { not_before: Instant::now() + retry_after };
            }
        },
        LoanState::Unknown => match driver.search.check(circulation, &loan).await {
            Ok(Some((event, detail))) => {
                circulation.record(id, event, Cause { by: "settle", detail }).await
            }
            Ok(None) => return next_check(circulation, &loan, driver),
            Err(error) => {
                // The Bokbasen client logs the reason, once a minute for all loans.
                tracing::debug!(loan = %id, %error, "cannot settle a loan; retrying");
                return next_check(circulation, &loan, driver);
            }
        },
        LoanState::Intended => match driver.declined.take() {
            Some(lease) => send_begin(circulation, &loan, driver, *lease).await,
            // Its driver died before it wrote the outcome of the begin, which may have been sent.
            None => {
                let detail = Some("the task that drove the loan died".to_owned());
                circulation.record(id, Event::Lost, Cause { by: "driver", detail }).await
            }
        },
        LoanState::Accepted | LoanState::Refused | LoanState::Ending | LoanState::Ended => {
            Err(NotRecorded::Obsolete)
        }
    };
    follow_up(circulation, written, driver, false).await
}

/// Returns what to do after `written`. With `is_new`, the first begin was just sent.
async fn follow_up(
    circulation: &Circulation,
    mut written: Result<Loan, NotRecorded>,
    driver: &mut DriverState,
    is_new: bool,
) -> Next {
    let mut is_begun = is_new;
    loop {
        let loan = match written {
            Ok(loan) => loan,
            Err(NotRecorded::Foreign) => return Next::Released,
            Err(NotRecorded::Obsolete | NotRecorded::Stopping) => return poll_again(),
        };
        if let Some(outcome) = circulation.outcome_of(&loan) {
            let unavailable = driver.unavailable.take();
            return Next::Done(
                unavailable.map_or(outcome, |retry_after| LoanOutcome::Unavailable { retry_after }),
            );
        }
        let Some(lease) = driver.declined.take() else {
            driver.candidates.trim();
            return match next_check(circulation, &loan, driver) {
                Next::PollAgain { not_before } if is_begun => Next::Begun { not_before },
                next => next,
            };
        };
        is_begun = true;
        written = send_begin(circulation, &loan, driver, *lease).await;
    }
}

fn poll_again() -> Next {
    Next::PollAgain { not_before: Instant::now() }
}

/// Returns the next step of a pending or unknown loan.
fn next_check(circulation: &Circulation, loan: &Loan, driver: &DriverState) -> Next {
    let now = Instant::now();
    match loan.state {
        LoanState::Unknown => {
            let settle = circulation.inner.settings.settle;
            Next::PollAgain {
                not_before: driver.search.next(loan.lending_id.is_some(), now, settle),
            }
        }
        _ => Next::PollAgain { not_before: now },
    }
}
