//! Settling a begin whose answer was lost, by asking Bokbasen for its reference (bokbasen-api §4).
//!
//! Called by the task that carries the loan. Nothing is begun again before Bokbasen has been asked, and it is
//! asked only `lending.settle` after the last moment at which the begin could have left us. Where Bokbasen
//! has several loans under the one reference, the earliest accepted stays and the others are given back.

use std::time::Duration;

use tokio::time::Instant;

use super::Circulation;
use super::carry::event_of;
use crate::ledger::Cause;
use crate::lending::{CallError, RemoteLoan, Standing, Told};
use crate::loan::{EndReason, Event, Loan};

/// How long to wait before Bokbasen is asked again that did not answer: it must be found soon after an outage.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// The loan after Bokbasen has been asked; none when the process stops first, or the loan went another way.
///
/// `left` is the last moment at which the begin can have left us.
pub(super) async fn settle(circulation: &Circulation, loan: &Loan, left: Instant) -> Option<Loan> {
    let wait = (left + circulation.inner.settings.settle).saturating_duration_since(Instant::now());
    if !circulation.pause(wait).await {
        return None;
    }
    loop {
        match look(circulation, loan).await {
            Ok(Some((event, detail))) => {
                return circulation.record(loan.id, event, Cause { by: "settle", detail }).await;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(loan = %loan.id, %error, "could not settle a loan; asking again"),
        }
        if !circulation.pause(ASK_AGAIN).await {
            return None;
        }
    }
}

/// One question; none where what was found does not yet decide (an unknown status).
async fn look(circulation: &Circulation, loan: &Loan) -> Result<Option<(Event, Option<String>)>, CallError> {
    let mut found = circulation.inner.lending.find(&loan.reference).await?;
    found.retain(|remote| remote.reference.as_ref() == Some(&loan.reference));
    let Some(kept) = pick(&mut found) else {
        return Ok(Some((Event::NotFound, Some("Bokbasen has no loan of this reference".to_owned()))));
    };
    for extra in &found {
        give_back(circulation, extra).await?;
    }
    let detail =
        (!found.is_empty()).then(|| format!("{} more under this reference were given back", found.len()));
    let event = match (&kept.standing, event_of(&kept)) {
        (_, Some(event)) => event,
        (Standing::Pending { .. }, None) => Event::Begun { lending_id: kept.lending_id.clone() },
        (_, None) => return Ok(None),
    };
    Ok(Some((event, detail)))
}

/// Takes the loan that stays out of those found: an accepted one before a pending one, before one of an
/// unknown status, before one that is over; the earliest of each.
fn pick(found: &mut Vec<RemoteLoan>) -> Option<RemoteLoan> {
    let rank = |remote: &RemoteLoan| match remote.standing {
        Standing::Accepted(_) => 0,
        Standing::Pending { .. } => 1,
        Standing::Unrecognised(_) => 2,
        Standing::Refused(_) => 3,
        Standing::Ended(_) => 4,
    };
    found.sort_by(|a, b| (rank(a), a.begin, &a.lending_id).cmp(&(rank(b), b.begin, &b.lending_id)));
    if found.is_empty() { None } else { Some(found.remove(0)) }
}

/// Gives one loan too many back: cancelled, or returned where the time for cancelling is over.
async fn give_back(circulation: &Circulation, extra: &RemoteLoan) -> Result<(), CallError> {
    if matches!(extra.standing, Standing::Refused(_) | Standing::Ended(_)) {
        return Ok(());
    }
    circulation.inner.metrics.loan("duplicate");
    tracing::warn!(lending_id = extra.lending_id, "two loans under one reference; one is given back");
    let (lending, now) = (&circulation.inner.lending, circulation.inner.clock.now());
    let why = "duplicate of one reference";
    match lending.give_back(&extra.lending_id, now, EndReason::Returned, why).await? {
        Told::Done => Ok(()),
        Told::CancelWindowClosed | Told::StillPending => {
            Err(CallError::Unknown("a duplicate could neither be cancelled nor returned".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loan::Terms;

    fn remote(id: &str, standing: Standing) -> RemoteLoan {
        RemoteLoan {
            lending_id: id.to_owned(),
            reference: None,
            library: None,
            isbn: None,
            begin: None,
            standing,
        }
    }

    #[test]
    fn the_earliest_accepted_loan_stays() {
        let terms = || Terms { due: jiff::Timestamp::MAX, licence_id: None, licence_type: None };
        let mut found = vec![
            remote("3", Standing::Pending { retry_after: None }),
            remote("2", Standing::Accepted(terms())),
            remote("1", Standing::Accepted(terms())),
            remote("0", Standing::Ended(EndReason::Cancelled)),
        ];
        assert_eq!(pick(&mut found).unwrap().lending_id, "1");
        assert_eq!(found.len(), 3);
        assert_eq!(pick(&mut Vec::new()), None);
    }
}
