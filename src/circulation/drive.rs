//! Driving an undecided loan to its decision, one step at a time.
//!
//! `begin` sends the first begin of an intent, and the scheduler starts every later step: a poll of
//! a pending loan, or a check of the search for an unknown one. The ledger has each step before the
//! next is taken. Only loans of this process are driven, and only the task that wrote an intent
//! sends its begin: once, and again only after Bokbasen has refused the licence that the one before
//! named and another may be used.

use std::time::Duration;

use tokio::time::Instant;

use super::licences::Tries;
use super::schedule::{FIRST_WAIT, LONGEST_WAIT, Next, Work};
use super::settle::{Search, checked};
use super::{Circulation, Outcome, SOON, log_ledger_failure};
use crate::clock;
use crate::ledger::{Cause, LedgerError};
use crate::lending::{Begin, CallError, RemoteLoan, Standing};
use crate::loan::{Event, Loan, LoanId, LoanState, Refusal};

/// The longest Retry-After of a pending loan that is honoured.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

impl Circulation {
    /// Writes what happened, until the ledger takes it. Returns none when the process stops before
    /// that, or when the loan went another way meanwhile and the event no longer fits.
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
                    tracing::warn!(loan = %id, event = event.name(), %error, "an event cannot be written");
                    return None;
                }
                Err(error) => log_ledger_failure("writing what Bokbasen said", &error),
            }
            if !self.pause(wait).await {
                return None;
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}

/// What the driver of a loan knows beyond the ledger. It is stored in the schedule between two
/// steps.
#[derive(Debug, Default)]
pub(super) struct Going {
    /// The licences that it may be begun under.
    tries: Tries,
    /// The ledger has that Bokbasen declined one licence, and the next begin may be sent.
    declined: bool,
    search: Search,
    /// Bokbasen cannot be queried: when to come back.
    unavailable: Option<Duration>,
}

#[cfg(test)]
impl Going {
    /// The memory that it takes besides the value itself, in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        self.tries.heap_bytes()
    }
}

/// Sends the begin of an intent that the caller has just written. Nowhere else is a first begin
/// sent.
pub(super) async fn begin(circulation: &Circulation, mut work: Work, loan: Loan) {
    let sent = start(circulation, &loan, &mut work.going).await;
    let next = follow_up(circulation, sent, &mut work.going, true).await;
    work.finish(next);
}

/// Takes the next step of a loan that is due.
pub(super) async fn advance(circulation: Circulation, mut work: Work) {
    let next = step(&circulation, work.loan, &mut work.going).await;
    work.finish(next);
}

async fn step(circulation: &Circulation, id: LoanId, going: &mut Going) -> Next {
    going.unavailable = None;
    let loan = match circulation.inner.ledger.loan(id).await {
        Ok(Some(loan)) => loan,
        Ok(None) => return Next::Over(Outcome::Unsure),
        Err(error) => {
            log_ledger_failure("reading a loan that is driven", &error);
            return again();
        }
    };
    if let Some(outcome) = circulation.outcome_of(&loan) {
        return Next::Over(outcome);
    }
    let written = match loan.state {
        LoanState::Pending => match poll(circulation, &loan, going).await {
            Polled::Decided(event) => {
                decided(circulation, &loan, going, event, Cause { by: "poll", detail: None }).await
            }
            Polled::Missing => {
                let detail =
                    Some("a read by id does not show the loan that Bokbasen has named".to_owned());
                circulation.record(id, Event::Missing, Cause { by: "poll", detail }).await
            }
            Polled::Undecided(named) => {
                let named = named.unwrap_or_default().min(LONGEST_RETRY_AFTER);
                return Next::Again { not_before: Instant::now() + named };
            }
        },
        LoanState::Unknown => match going.search.check(circulation, &loan).await {
            Ok(Some((event, detail))) => {
                circulation.record(id, event, Cause { by: "settle", detail }).await
            }
            Ok(None) => return again_to_settle(circulation, &loan, going),
            Err(error) => {
                // The client of Bokbasen logs the reason, once a minute for all loans.
                tracing::debug!(loan = %id, %error, "cannot settle a loan; it is retried");
                return again_to_settle(circulation, &loan, going);
            }
        },
        LoanState::Intended if going.declined => send_begin(circulation, &loan, going).await,
        // Its driver died before it wrote what became of the begin. The begin may have left.
        LoanState::Intended => {
            let detail = Some("the task that drove the loan has died".to_owned());
            circulation.record(id, Event::Lost, Cause { by: "driver", detail }).await
        }
        LoanState::Accepted | LoanState::Refused | LoanState::Ending | LoanState::Ended => None,
    };
    follow_up(circulation, written, going, false).await
}

/// What follows on a loan as it was just written. `is_new` says that its first begin was just sent.
async fn follow_up(
    circulation: &Circulation,
    mut written: Option<Loan>,
    going: &mut Going,
    is_new: bool,
) -> Next {
    let mut is_begun = is_new;
    loop {
        let Some(loan) = written else { return again() };
        if let Some(outcome) = circulation.outcome_of(&loan) {
            let unavailable = going.unavailable.take();
            return Next::Over(
                unavailable.map_or(outcome, |retry_after| Outcome::Unavailable { retry_after }),
            );
        }
        if !going.declined {
            going.tries.trim();
            return match again_to_settle(circulation, &loan, going) {
                Next::Again { not_before } if is_begun => Next::Begun { not_before },
                next => next,
            };
        }
        is_begun = true;
        written = send_begin(circulation, &loan, going).await;
    }
}

fn again() -> Next {
    Next::Again { not_before: Instant::now() }
}

/// The next step of a loan that is pending or unknown.
fn again_to_settle(circulation: &Circulation, loan: &Loan, going: &Going) -> Next {
    let now = Instant::now();
    match loan.state {
        LoanState::Unknown => {
            let settle = circulation.inner.settings.settle;
            Next::Again { not_before: going.search.next(loan.lending_id.is_some(), now, settle) }
        }
        _ => Next::Again { not_before: now },
    }
}

/// Finds the licences that an intent may be begun under, and sends its first begin.
async fn start(circulation: &Circulation, loan: &Loan, going: &mut Going) -> Option<Loan> {
    match tries(circulation, loan, going).await {
        Ok(tries) => {
            going.tries = tries;
            send_begin(circulation, loan, going).await
        }
        Err((event, detail)) => {
            circulation.record(loan.id, event, Cause { by: "licences", detail: Some(detail) }).await
        }
    }
}

/// The licences to try, or what becomes of the loan where there are none.
async fn tries(
    circulation: &Circulation,
    loan: &Loan,
    going: &mut Going,
) -> Result<Tries, (Event, String)> {
    let (inner, key) = (&circulation.inner, &loan.key);
    if !inner.settings.licences.concerns(key.library) {
        return Ok(Tries::bokbasens());
    }
    let there = match inner.lending.availability_to_begin(key.library, key.isbn).await {
        Ok(there) => there,
        Err(error) => {
            let detail = format!("which licences are free could not be asked: {error}");
            let CallError::Rejected { .. } = error else {
                going.unavailable = Some(SOON);
                return Err((Event::NotSent, detail));
            };
            return Err((rejected(error, &mut going.unavailable).0, detail));
        }
    };
    let now = inner.clock.now();
    let longest = clock::after(now, inner.settings.refusal_ttl);
    inner.settings.licences.choose(key.library, there, now, longest).map_err(|refusal| {
        let detail = refusal.message.clone();
        (Event::Refused { lending_id: None, refusal }, detail)
    })
}

/// Sends a begin of an intent under the next licence: once, and another only after Bokbasen has
/// declined this one.
async fn send_begin(circulation: &Circulation, loan: &Loan, going: &mut Going) -> Option<Loan> {
    going.declined = false;
    if !going.tries.next() {
        return None;
    }
    let begin = Begin {
        library: loan.key.library,
        isbn: loan.key.isbn,
        borrower: loan.key.borrower,
        licence_id: going.tries.licence_id(),
        reference: loan.reference.clone(),
        begin: loan.begun,
    };
    let answer = circulation.inner.lending.begin(&begin).await;
    going.search = Search::default();
    let (event, detail) = match answer {
        Ok(remote) => {
            let event = event_of(&remote).unwrap_or(Event::Begun { lending_id: remote.lending_id });
            (event, going.tries.words())
        }
        Err(CallError::NotSent(why)) => {
            going.unavailable = Some(SOON);
            (Event::NotSent, Some(why))
        }
        Err(CallError::Unknown(why)) => (Event::Lost, Some(why)),
        Err(error @ CallError::Rejected { .. }) => rejected(error, &mut going.unavailable),
    };
    decided(circulation, loan, going, event, Cause { by: "begin", detail }).await
}

/// Writes Bokbasen's word on a begin: a refusal of its licence leads to the next, where there is
/// one.
async fn decided(
    circulation: &Circulation,
    loan: &Loan,
    going: &mut Going,
    event: Event,
    cause: Cause,
) -> Option<Loan> {
    let Event::Refused { refusal, .. } = &event else {
        return circulation.record(loan.id, event, cause).await;
    };
    if !going.tries.go_on_after(refusal) {
        return circulation.record(loan.id, event, cause).await;
    }
    let words = going.tries.words().unwrap_or_default();
    let detail =
        Some(format!("{words}, and Bokbasen answered {}: {}", refusal.code, refusal.message));
    let declined = circulation.record(loan.id, Event::Declined, Cause { detail, ..cause }).await;
    going.declined = declined.is_some();
    declined
}

/// What a begin means that Bokbasen answered with an error: nothing was made, and either this loan
/// is refused (no contract, no such title) or the call itself was at fault (our credentials, too
/// many calls).
fn rejected(error: CallError, unavailable: &mut Option<Duration>) -> (Event, Option<String>) {
    let detail = Some(error.to_string());
    match error {
        // Without a code of Bokbasen's it comes from whatever stands at a wrong address.
        CallError::Rejected { status: 403 | 404 | 409, code, message, .. } if !code.is_empty() => {
            let refusal = Refusal { code, message, retry_at: None };
            (Event::Refused { lending_id: None, refusal }, detail)
        }
        CallError::Rejected { retry_after, .. } => {
            *unavailable = Some(retry_after.unwrap_or(SOON));
            (Event::NotSent, detail)
        }
        CallError::NotSent(_) | CallError::Unknown(_) => (Event::Lost, detail),
    }
}

/// What a poll says.
enum Polled {
    Decided(Event),
    /// A read by id does not show the loan.
    Missing,
    /// Bokbasen has not decided, or gave no answer that can be used; it may name when to poll
    /// again.
    Undecided(Option<Duration>),
}

/// Polls a pending loan once.
async fn poll(circulation: &Circulation, loan: &Loan, going: &mut Going) -> Polled {
    let Some(lending_id) = loan.lending_id.as_deref() else { return Polled::Missing };
    let read = circulation.inner.lending.loan(lending_id).await;
    match read.and_then(|remote| remote.map(|remote| checked(remote, loan)).transpose()) {
        Ok(Some(remote)) => {
            going.search.found();
            event_of(&remote)
                .map_or_else(|| Polled::Undecided(wait_named(&remote)), Polled::Decided)
        }
        Ok(None) => Polled::Missing,
        Err(error) => {
            // The client of Bokbasen logs the reason, once a minute for all loans.
            tracing::debug!(loan = %loan.id, %error, "cannot poll a pending loan; it is retried");
            Polled::Undecided(None)
        }
    }
}

fn wait_named(remote: &RemoteLoan) -> Option<Duration> {
    match remote.standing {
        Standing::Pending { retry_after } => retry_after,
        Standing::Accepted(_)
        | Standing::Refused(_)
        | Standing::Ended(_)
        | Standing::Unrecognised(_) => None,
    }
}

/// What Bokbasen's word about a loan means to the machine; none while it has not decided, and for a
/// status that we do not know, which counts as not accepted (bokbasen-api §4).
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

/// As long as it takes for `clock` to reach the moment, for waits that must follow a clock moved by
/// hand.
pub(super) fn wait_until(
    circulation: &Circulation,
    at: jiff::Timestamp,
    longest: Duration,
) -> Duration {
    clock::until(circulation.inner.clock.now(), at).min(longest)
}
