//! Sends the begin of an intent, and writes Bokbasen's decision on it.
//!
//! With a policy, the driver first finds the licences to try. Each begin names one of them, and the
//! next is sent only after Bokbasen declined the licence before.

use std::sync::Arc;
use std::time::Duration;

use super::{DriverState, event_of};
use crate::circulation::licences::Candidates;
use crate::circulation::record::NotRecorded;
use crate::circulation::settle::Search;
use crate::circulation::{Circulation, DEFAULT_RETRY_AFTER};
use crate::clock;
use crate::ledger::{Cause, Lease};
use crate::lending::{Begin, CallError};
use crate::loan::{Event, Loan, Refusal};

/// Finds the licences for an intent, and sends its first begin.
pub(super) async fn send_first_begin(
    circulation: &Circulation,
    loan: &Loan,
    driver: &mut DriverState,
    lease: Lease,
) -> Result<Loan, NotRecorded> {
    match candidates(circulation, loan, driver).await {
        Ok(candidates) => {
            driver.candidates = candidates;
            send_begin(circulation, loan, driver, lease).await
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
    let licences = inner.licences.get();
    if !licences.applies_to(key.library) {
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
    licences.choose(key.library, availability, now, longest).map_err(|refusal| {
        let detail = refusal.message.clone();
        (Event::Refused { lending_id: None, refusal }, detail)
    })
}

/// Sends a begin of an intent under the next licence, if this process holds `lease` just before
/// that. Called once, and again only after Bokbasen declined the licence before.
pub(super) async fn send_begin(
    circulation: &Circulation,
    loan: &Loan,
    driver: &mut DriverState,
    lease: Lease,
) -> Result<Loan, NotRecorded> {
    if !driver.candidates.next() {
        return Err(NotRecorded::Obsolete);
    }
    let begin = Begin {
        library: loan.key.library,
        isbn: loan.key.isbn,
        borrower: loan.key.borrower,
        licence_id: driver.candidates.licence_id(),
        reference: loan.reference.clone(),
        begin: loan.begun,
    };
    let answer = circulation.inner.lending.begin(&begin, Arc::new(move || lease.is_held())).await;
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
    let begun = match &event {
        Event::Begun { lending_id } | Event::Accepted { lending_id, .. } => {
            Some(lending_id.clone())
        }
        _ => None,
    };
    let cause = Cause { by: "begin", detail };
    let recorded = record_decision(circulation, loan, driver, event, cause).await;
    if let (Some(lending_id), Err(NotRecorded::Foreign | NotRecorded::Obsolete)) =
        (begun, &recorded)
    {
        // The lease was lost while the begin was in flight.
        circulation.end_late_begin(loan.id, lending_id);
    }
    recorded
}

/// Writes Bokbasen's decision on a begin. If Bokbasen declined the licence and another is left, the
/// next begin may be sent.
pub(super) async fn record_decision(
    circulation: &Circulation,
    loan: &Loan,
    driver: &mut DriverState,
    event: Event,
    cause: Cause,
) -> Result<Loan, NotRecorded> {
    let Event::Refused { refusal, .. } = &event else {
        return circulation.record(loan.id, event, cause).await;
    };
    if !driver.candidates.has_next_after(refusal) {
        return circulation.record(loan.id, event, cause).await;
    }
    let description = driver.candidates.description().unwrap_or_default();
    let detail =
        Some(format!("{description}, and Bokbasen answered {}: {}", refusal.code, refusal.message));
    // Taken first: that the step is written proves that the lease was this process's own then.
    let lease = circulation.inner.ledger.lease();
    let declined = circulation.record(loan.id, Event::Declined, Cause { detail, ..cause }).await;
    driver.declined = declined.is_ok().then(|| Box::new(lease));
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
