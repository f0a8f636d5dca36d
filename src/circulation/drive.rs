//! Drives an undecided loan to its decision, one step at a time.
//!
//! `begin` sends the first begin of an intent. The scheduler starts every later step: a poll of a
//! pending loan, or a check of the search for an unknown one. Each step is in the ledger before the
//! next starts.
//!
//! A process drives only its own loans. Only the task that wrote an intent sends its begin. It
//! sends one begin, and another only after Bokbasen declined the licence and the policy allows a
//! further one.

use std::time::Duration;

use tokio::time::Instant;

use super::licences::Candidates;
use super::schedule::{FIRST_WAIT, LONGEST_WAIT, Next, Work};
use super::settle::{Search, checked};
use super::{Circulation, DEFAULT_RETRY_AFTER, LoanOutcome, log_ledger_failure};
use crate::clock;
use crate::ledger::{Cause, LedgerError};
use crate::lending::{Begin, CallError, RemoteLoan, Standing};
use crate::loan::{Event, Loan, LoanId, LoanState, Refusal};

/// Longest Retry-After of a pending loan that is honoured.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

impl Circulation {
    /// Writes an event, and retries until the ledger accepts it. Returns none if the process stops
    /// first, or if the loan changed and the event no longer fits.
    pub(super) async fn record(&self, id: LoanId, event: Event, cause: Cause) -> Option<Loan> {
        let mut wait = FIRST_WAIT;
        loop {
            match self.inner.ledger.apply(id, event.clone(), cause.clone()).await {
                Ok(loan) => return Some(loan),
                Err(
                    error @ (LedgerError::Illegal(_)
                    | LedgerError::NoSuchLoan(_)
                    | LedgerError::Damaged { .. }
                    | LedgerError::Closed),
                ) => {
                    let event = event.name();
                    tracing::warn!(loan = %id, event, %error, "cannot write an event of a loan");
                    return None;
                }
                Err(error) => log_ledger_failure("writing a response of Bokbasen", &error),
            }
            if !self.pause(wait).await {
                return None;
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}

/// What the driver of a loan knows beyond the ledger. The schedule stores it between two steps.
#[derive(Debug, Default)]
pub(super) struct DriverState {
    /// Licences to try.
    candidates: Candidates,
    /// The ledger records that Bokbasen declined a licence, so the next begin may be sent.
    declined: bool,
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

/// Sends the begin of an intent that the caller has just written. No other function sends a first
/// begin.
pub(super) async fn begin(circulation: &Circulation, mut work: Work, loan: Loan) {
    let sent = start(circulation, &loan, &mut work.driver).await;
    let next = follow_up(circulation, sent, &mut work.driver, true).await;
    work.finish(next);
}

/// Runs the next step of a due loan.
pub(super) async fn advance(circulation: Circulation, mut work: Work) {
    let next = step(&circulation, work.loan, &mut work.driver).await;
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
        LoanState::Intended if driver.declined => send_begin(circulation, &loan, driver).await,
        // Its driver died before it wrote the outcome of the begin, which may have been sent.
        LoanState::Intended => {
            let detail = Some("the task that drove the loan died".to_owned());
            circulation.record(id, Event::Lost, Cause { by: "driver", detail }).await
        }
        LoanState::Accepted | LoanState::Refused | LoanState::Ending | LoanState::Ended => None,
    };
    follow_up(circulation, written, driver, false).await
}

/// Returns what to do after `written`. With `is_new`, the first begin was just sent.
async fn follow_up(
    circulation: &Circulation,
    mut written: Option<Loan>,
    driver: &mut DriverState,
    is_new: bool,
) -> Next {
    let mut is_begun = is_new;
    loop {
        let Some(loan) = written else { return poll_again() };
        if let Some(outcome) = circulation.outcome_of(&loan) {
            let unavailable = driver.unavailable.take();
            return Next::Done(
                unavailable.map_or(outcome, |retry_after| LoanOutcome::Unavailable { retry_after }),
            );
        }
        if !driver.declined {
            driver.candidates.trim();
            return match next_check(circulation, &loan, driver) {
                Next::PollAgain { not_before } if is_begun => Next::Begun { not_before },
                next => next,
            };
        }
        is_begun = true;
        written = send_begin(circulation, &loan, driver).await;
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

/// Finds the licences for an intent, and sends its first begin.
async fn start(circulation: &Circulation, loan: &Loan, driver: &mut DriverState) -> Option<Loan> {
    match candidates(circulation, loan, driver).await {
        Ok(candidates) => {
            driver.candidates = candidates;
            send_begin(circulation, loan, driver).await
        }
        Err((event, detail)) => {
            circulation.record(loan.id, event, Cause { by: "licences", detail: Some(detail) }).await
        }
    }
}

/// Returns the licences to try, or the event that decides the loan if there are none.
async fn candidates(
    circulation: &Circulation,
    loan: &Loan,
    driver: &mut DriverState,
) -> Result<Candidates, (Event, String)> {
    let (inner, key) = (&circulation.inner, &loan.key);
    if !inner.settings.licences.applies_to(key.library) {
        return Ok(Candidates::chosen_by_bokbasen());
    }
    let availability = match inner.lending.availability_to_begin(key.library, key.isbn).await {
        Ok(availability) => availability,
        Err(error) => {
            let detail = format!("cannot query which licences are free: {error}");
            let CallError::Rejected { .. } = error else {
                driver.unavailable = Some(DEFAULT_RETRY_AFTER);
                return Err((Event::NotSent, detail));
            };
            return Err((rejected(error, &mut driver.unavailable).0, detail));
        }
    };
    let now = inner.clock.now();
    let longest = clock::after(now, inner.settings.refusal_ttl);
    inner.settings.licences.choose(key.library, availability, now, longest).map_err(|refusal| {
        let detail = refusal.message.clone();
        (Event::Refused { lending_id: None, refusal }, detail)
    })
}

/// Sends a begin of an intent under the next licence. Called once, and again only after Bokbasen
/// declined the licence before.
async fn send_begin(
    circulation: &Circulation,
    loan: &Loan,
    driver: &mut DriverState,
) -> Option<Loan> {
    driver.declined = false;
    if !driver.candidates.next() {
        return None;
    }
    let begin = Begin {
        library: loan.key.library,
        isbn: loan.key.isbn,
        borrower: loan.key.borrower,
        licence_id: driver.candidates.licence_id(),
        reference: loan.reference.clone(),
        begin: loan.begun,
    };
    let answer = circulation.inner.lending.begin(&begin).await;
    driver.search = Search::default();
    let (event, detail) = match answer {
        Ok(remote) => {
            let event = event_of(&remote).unwrap_or(Event::Begun { lending_id: remote.lending_id });
            (event, driver.candidates.description())
        }
        Err(CallError::NotSent(why)) => {
            driver.unavailable = Some(DEFAULT_RETRY_AFTER);
            (Event::NotSent, Some(why))
        }
        Err(CallError::Unknown(why)) => (Event::Lost, Some(why)),
        Err(error @ CallError::Rejected { .. }) => rejected(error, &mut driver.unavailable),
    };
    record_decision(circulation, loan, driver, event, Cause { by: "begin", detail }).await
}

/// Writes Bokbasen's decision on a begin. If Bokbasen declined the licence and another is left, the
/// next begin may be sent.
async fn record_decision(
    circulation: &Circulation,
    loan: &Loan,
    driver: &mut DriverState,
    event: Event,
    cause: Cause,
) -> Option<Loan> {
    let Event::Refused { refusal, .. } = &event else {
        return circulation.record(loan.id, event, cause).await;
    };
    if !driver.candidates.has_next_after(refusal) {
        return circulation.record(loan.id, event, cause).await;
    }
    let description = driver.candidates.description().unwrap_or_default();
    let detail =
        Some(format!("{description}, and Bokbasen answered {}: {}", refusal.code, refusal.message));
    let declined = circulation.record(loan.id, Event::Declined, Cause { detail, ..cause }).await;
    driver.declined = declined.is_some();
    declined
}

/// Returns the event for an error response to a begin. No loan was created. Either this loan is
/// refused (no contract, unknown title), or the call was at fault (our credentials, too many
/// calls).
fn rejected(error: CallError, unavailable: &mut Option<Duration>) -> (Event, Option<String>) {
    let detail = Some(error.to_string());
    match error {
        // Without a code, the response is not from Bokbasen: `lending.url` may be wrong.
        CallError::Rejected { status: 403 | 404 | 409, code, message, .. } if !code.is_empty() => {
            let refusal = Refusal { code, message, retry_at: None };
            (Event::Refused { lending_id: None, refusal }, detail)
        }
        CallError::Rejected { retry_after, .. } => {
            *unavailable = Some(retry_after.unwrap_or(DEFAULT_RETRY_AFTER));
            (Event::NotSent, detail)
        }
        CallError::NotSent(_) | CallError::Unknown(_) => (Event::Lost, detail),
    }
}

/// Result of a poll.
enum Polled {
    Decided(Event),
    /// A read by id did not return the loan.
    Missing,
    /// Bokbasen has not decided, or its response is unusable. It may send a Retry-After.
    Undecided(Option<Duration>),
}

/// Polls a pending loan once.
async fn poll(circulation: &Circulation, loan: &Loan, driver: &mut DriverState) -> Polled {
    let Some(lending_id) = loan.lending_id.as_deref() else { return Polled::Missing };
    let read = circulation.inner.lending.loan(lending_id).await;
    match read.and_then(|remote| remote.map(|remote| checked(remote, loan)).transpose()) {
        Ok(Some(remote)) => {
            driver.search.found();
            event_of(&remote)
                .map_or_else(|| Polled::Undecided(retry_after_of(&remote)), Polled::Decided)
        }
        Ok(None) => Polled::Missing,
        Err(error) => {
            // The Bokbasen client logs the reason, once a minute for all loans.
            tracing::debug!(loan = %loan.id, %error, "cannot poll a pending loan; retrying");
            Polled::Undecided(None)
        }
    }
}

fn retry_after_of(remote: &RemoteLoan) -> Option<Duration> {
    match remote.standing {
        Standing::Pending { retry_after } => retry_after,
        Standing::Accepted(_)
        | Standing::Refused(_)
        | Standing::Ended(_)
        | Standing::Unrecognised(_) => None,
    }
}

/// Returns the event for a loan as Bokbasen shows it. Returns none if it is undecided, and for an
/// unknown status, which counts as not accepted (bokbasen-api §4).
pub(super) fn event_of(remote: &RemoteLoan) -> Option<Event> {
    let lending_id = remote.lending_id.clone();
    match &remote.standing {
        Standing::Pending { .. } | Standing::Unrecognised(_) => None,
        Standing::Accepted(terms) => Some(Event::Accepted { lending_id, terms: terms.clone() }),
        Standing::Refused(refusal) => {
            Some(Event::Refused { lending_id: Some(lending_id), refusal: refusal.clone() })
        }
        Standing::Ended(reason) => Some(Event::EndedThere { reason: *reason }),
    }
}

/// Returns how long to wait until `clock` reaches the time, at most `longest`. The limit lets waits
/// follow a clock that was set.
pub(super) fn wait_until(
    circulation: &Circulation,
    at: jiff::Timestamp,
    longest: Duration,
) -> Duration {
    clock::until(circulation.inner.clock.now(), at).min(longest)
}
