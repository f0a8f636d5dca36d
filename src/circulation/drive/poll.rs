//! Polls a pending loan by its id, and reads events from loans as Bokbasen shows them.

use std::time::Duration;

use super::DriverState;
use crate::circulation::Circulation;
use crate::circulation::settle::checked;
use crate::lending::{RemoteLoan, Standing};
use crate::loan::{Event, Loan};

/// Result of a poll.
pub(super) enum Polled {
    Decided(Event),
    /// A read by id did not return the loan.
    Missing,
    /// Bokbasen has not decided, or its response is unusable. It may send a Retry-After.
    Undecided(Option<Duration>),
}

/// Polls a pending loan once.
pub(super) async fn poll(
    circulation: &Circulation,
    loan: &Loan,
    driver: &mut DriverState,
) -> Polled {
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
pub(in crate::circulation) fn event_of(remote: &RemoteLoan) -> Option<Event> {
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
