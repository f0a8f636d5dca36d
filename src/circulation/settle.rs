//! Settles a begin whose outcome is unknown, by querying Bokbasen for its reference (bokbasen-api
//! §4).
//!
//! The driver of the loan calls this module, for two kinds of loan. Either the begin got no
//! response, or Bokbasen named the loan but a read by id does not return it. Reads may lag behind a
//! begin, so a missing loan proves nothing.
//!
//! If Bokbasen returns the loan, that is final. Absence counts only `lending.settle` after the last
//! moment at which the begin can have been sent. A loan that Bokbasen has named must be absent by
//! reference and by id twice, `lending.settle` apart, because an empty listing contradicts the
//! earlier response. Until then no other begin is sent. If Bokbasen has several loans under one
//! reference, the earliest accepted one stays and the others are returned, by a process that holds
//! its lease.

use std::time::Duration;

use tokio::time::Instant;

use super::Circulation;
use super::drive::event_of;
use crate::crash;
use crate::lending::{CallError, EndAck, RemoteLoan, Standing};
use crate::loan::{EndReason, Event, Loan};
use crate::telemetry::LoanEvent;

/// Result of a check of an unknown loan: the event, and details for its history.
pub(super) type Verdict = (Event, Option<String>);

/// The search for a loan whose state at Bokbasen is unknown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    /// The last moment at which the begin can have been sent.
    sent_by: Instant,
    /// When the loan was first absent by reference and by id.
    absent: Option<Instant>,
}

impl Default for Search {
    /// A search for the loan of a begin that was sent before now. If another process has sent it,
    /// that process was declared dead before this one adopted the loan. It may only have been
    /// suspended and send the begin later: `late_begin` ends what that creates.
    fn default() -> Search {
        Search::new(Instant::now())
    }
}

impl Search {
    fn new(sent_by: Instant) -> Search {
        Search { sent_by, absent: None }
    }

    /// Records that Bokbasen returned the loan.
    pub(super) fn found(&mut self) {
        self.absent = None;
    }

    /// Queries Bokbasen once. Returns none if the responses decide nothing yet.
    ///
    /// # Errors
    /// [`CallError`]; the check can be repeated.
    pub(super) async fn check(
        &mut self,
        circulation: &Circulation,
        loan: &Loan,
    ) -> Result<Option<Verdict>, CallError> {
        let inner = &circulation.inner;
        if let Some(lending_id) = &loan.lending_id
            && let Some(remote) = inner.lending.loan(lending_id).await?
        {
            self.found();
            return Ok(Some(verdict_of(&checked(remote, loan)?, None)));
        }
        let now = Instant::now();
        if now < self.sent_by + inner.settings.settle {
            return Ok(None);
        }
        match by_reference(circulation, loan).await? {
            Found::Loan(verdict) => {
                self.found();
                Ok(Some(verdict))
            }
            Found::Nothing
                if self.is_absent(loan.lending_id.is_some(), now, inner.settings.settle) =>
            {
                Ok(Some((
                    Event::NotFound,
                    Some("Bokbasen has no loan of this reference".to_owned()),
                )))
            }
            Found::Nothing => {
                tracing::warn!(
                    loan = %loan.id,
                    "Bokbasen named a loan but does not return it; checking again"
                );
                Ok(None)
            }
        }
    }

    /// Returns whether the loan counts as absent, now that Bokbasen returns it neither by reference
    /// nor by id.
    fn is_absent(&mut self, is_named: bool, now: Instant, settle: Duration) -> bool {
        let first = *self.absent.get_or_insert(now);
        !is_named || now >= first + settle
    }

    /// Returns when the next check can give a new result. Only a named loan can be read by id
    /// before `lending.settle` is over.
    pub(super) fn next(&self, is_named: bool, soonest: Instant, settle: Duration) -> Instant {
        if is_named { soonest } else { soonest.max(self.sent_by + settle) }
    }
}

/// Loans that Bokbasen has under a reference.
enum Found {
    Nothing,
    Loan(Verdict),
}

async fn by_reference(circulation: &Circulation, loan: &Loan) -> Result<Found, CallError> {
    let mut found = circulation.inner.lending.find(&loan.reference).await?;
    found.retain(|remote| remote.reference.as_ref() == Some(&loan.reference));
    let Some(kept) = pick(&mut found) else { return Ok(Found::Nothing) };
    if crash::has_defect("keeps-duplicates") {
        found.clear();
    }
    if !found.is_empty() && !circulation.inner.ledger.lease().is_held() {
        // Another process may have adopted the loan, and then decides which one stays.
        let why = "this process has lost its lease, and ends no duplicate";
        return Err(CallError::NotSent(why.to_owned()));
    }
    for extra in &found {
        end_duplicate(circulation, extra).await?;
    }
    let extra = (!found.is_empty())
        .then(|| format!("{} more under this reference were returned", found.len()));
    Ok(Found::Loan(verdict_of(&kept, extra)))
}

/// Returns the verdict for a loan as Bokbasen shows it. An unknown status leads to `pending`: the
/// loan opens nothing, its history has the status, polls continue, and support can end it.
fn verdict_of(remote: &RemoteLoan, extra: Option<String>) -> Verdict {
    let status = match &remote.standing {
        Standing::Unrecognised(status) => {
            Some(format!("Bokbasen shows the unknown status {status:?}"))
        }
        _ => None,
    };
    let detail: Vec<String> = status.into_iter().chain(extra).collect();
    let event = event_of(remote).unwrap_or(Event::Begun { lending_id: remote.lending_id.clone() });
    (event, (!detail.is_empty()).then(|| detail.join("; ")))
}

/// Returns the response to a read by id, if it is about this loan.
///
/// # Errors
/// [`CallError::Unknown`] for a response about another loan, which must never decide this one.
pub(super) fn checked(remote: RemoteLoan, loan: &Loan) -> Result<RemoteLoan, CallError> {
    let is_about = remote.reference.as_ref().is_none_or(|reference| *reference == loan.reference)
        && remote.library.is_none_or(|library| library == loan.key.library)
        && remote.isbn.is_none_or(|isbn| isbn == loan.key.isbn);
    if is_about {
        return Ok(remote);
    }
    Err(CallError::Unknown("Bokbasen returned another loan than the one requested".to_owned()))
}

/// Removes and returns the loan to keep: an accepted one before a pending one, before one of
/// unknown status, before one that is over; of several, the earliest.
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

/// Cancels a surplus loan, or returns it if the time for cancelling is over.
async fn end_duplicate(circulation: &Circulation, extra: &RemoteLoan) -> Result<(), CallError> {
    if matches!(extra.standing, Standing::Refused(_) | Standing::Ended(_)) {
        return Ok(());
    }
    circulation.inner.metrics.loan(LoanEvent::Duplicate);
    tracing::warn!(lending_id = extra.lending_id, "two loans under one reference; returning one");
    let (lending, now) = (&circulation.inner.lending, circulation.inner.clock.now());
    let why = "duplicate of one reference";
    match lending.cancel_or_return(&extra.lending_id, now, EndReason::Returned, why).await? {
        EndAck::Done => Ok(()),
        // It was listed a moment ago, so a 404 is a lagging read.
        EndAck::CancelWindowClosed | EndAck::StillPending | EndAck::NoSuchLoan => Err(
            CallError::Unknown("a duplicate could neither be cancelled nor returned".to_owned()),
        ),
    }
}

impl Circulation {
    /// Returns whether 404 `LOAN_NOT_FOUND` for an end means that the loan is over. Within
    /// `lending.settle` of the time when Bokbasen last showed the loan, it may be a lagging read.
    pub(super) fn trusts_absence(&self, loan: &Loan) -> bool {
        let shown = loan.accepted.or(loan.ended).unwrap_or(loan.begun);
        crate::clock::after(shown, self.inner.settings.settle) <= self.inner.clock.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loan::{Borrower, LoanKey, Reference, Terms};

    const SETTLE: Duration = Duration::from_secs(30);

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
    fn earliest_accepted_loan_stays() {
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

    #[test]
    fn named_loan_is_absent_after_two_checks_settle_apart() {
        let now = Instant::now();
        let mut search = Search::new(now);
        assert!(!search.is_absent(true, now + SETTLE, SETTLE));
        assert!(!search.is_absent(true, now + SETTLE * 2 - Duration::from_millis(1), SETTLE));
        assert!(search.is_absent(true, now + SETTLE * 2, SETTLE));
        assert!(
            Search::new(now).is_absent(false, now + SETTLE, SETTLE),
            "no response had named it"
        );
    }

    #[test]
    fn unnamed_loan_is_first_searched_for_after_settle() {
        let now = Instant::now();
        let search = Search::new(now);
        assert_eq!(search.next(false, now, SETTLE), now + SETTLE);
        assert_eq!(search.next(true, now, SETTLE), now);
    }

    #[test]
    fn response_about_another_loan_decides_nothing() {
        let key = LoanKey {
            library: "NO-0301000".parse().unwrap(),
            borrower: Borrower::from_bytes([1; 16]),
            isbn: "9780306406157".parse().unwrap(),
        };
        let loan = Loan::intend(key, jiff::Timestamp::UNIX_EPOCH);
        let right = RemoteLoan {
            reference: Some(loan.reference.clone()),
            library: Some(key.library),
            isbn: Some(key.isbn),
            ..remote("1", Standing::Pending { retry_after: None })
        };
        assert!(checked(right.clone(), &loan).is_ok());
        for wrong in [
            RemoteLoan { reference: Some(Reference::generate()), ..right.clone() },
            RemoteLoan { library: Some("NO-0301001".parse().unwrap()), ..right.clone() },
            RemoteLoan { isbn: Some("9788299999014".parse().unwrap()), ..right },
        ] {
            assert!(matches!(checked(wrong, &loan), Err(CallError::Unknown(_))));
        }
    }
}
