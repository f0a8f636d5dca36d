//! Carrying an undecided loan to its decision: one task for each, which outlives whoever asked.
//!
//! `follow` starts the task. It sends the begin, asks while the loan is pending, and settles what is unknown; the
//! ledger has each step before the next is taken. Only the loans of this process are carried, and only the task that
//! starts at an intent sends a begin: once, and again only after Bokbasen has refused the licence that the one before
//! asked for and another may be used.

use std::time::Duration;

use tokio::time::Instant;

use super::licences::Tries;
use super::settle::{Search, checked};
use super::{Circulation, Outcome, SOON, log_ledger_failure};
use crate::clock;
use crate::ledger::{Cause, LedgerError};
use crate::lending::{Begin, CallError, RemoteLoan, Standing};
use crate::loan::{Event, Loan, LoanId, LoanState, Refusal};

/// How long to wait between two questions about a pending loan, where Bokbasen names no time: the first, and
/// the longest that it doubles up to. A loan is mostly decided within a second or two.
const FIRST_POLL: Duration = Duration::from_millis(100);
const LAST_POLL: Duration = Duration::from_secs(2);

impl Circulation {
    /// Writes what happened, until the ledger takes it. Gives nothing when the process stops before that, or
    /// when the loan went another way meanwhile and the event no longer fits.
    pub(super) async fn record(&self, id: LoanId, event: Event, cause: Cause) -> Option<Loan> {
        let mut wait = FIRST_POLL;
        loop {
            match self.inner.ledger.apply(id, event.clone(), cause.clone()).await {
                Ok(loan) => return Some(loan),
                Err(error @ (LedgerError::Illegal(_) | LedgerError::NoSuchLoan(_) | LedgerError::Closed)) => {
                    tracing::warn!(loan = %id, event = event.name(), %error, "an event came too late");
                    return None;
                }
                Err(error) => log_ledger_failure("writing what Bokbasen said", &error),
            }
            if !self.pause(wait).await {
                return None;
            }
            wait = (wait * 2).min(LAST_POLL);
        }
    }

    /// The loan as the ledger has it now.
    async fn reread(&self, id: LoanId) -> Option<Loan> {
        self.inner.ledger.loan(id).await.ok().flatten()
    }
}

/// Where a task takes a loan up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum From {
    /// At its intent, which this process has just written: the begin is sent.
    Intent,
    /// Half-way: no begin is ever sent.
    HalfWay,
}

/// Carries a loan of this process to its decision.
pub(super) async fn carry(circulation: &Circulation, mut loan: Loan, from: From) -> Outcome {
    let mut going = Going::default();
    let mut next = match from {
        From::Intent => start(circulation, &loan, &mut going).await,
        // What the caller knows may be old by now.
        From::HalfWay => circulation.reread(loan.id).await,
    };
    // Where another sent the begin, it was dead before this process took the loan over (bokbasen-api §4).
    let mut left = Instant::now();
    loop {
        loan = match next {
            Some(loan) => loan,
            None if circulation.inner.stopping.is_cancelled() => return Outcome::Unsure,
            None => match circulation.reread(loan.id).await {
                Some(loan) => loan,
                None => return Outcome::Unsure,
            },
        };
        if let Some(outcome) = circulation.outcome_of(&loan) {
            return going.unavailable.map_or(outcome, |retry_after| Outcome::Unavailable { retry_after });
        }
        next = match loan.state {
            LoanState::Pending => poll(circulation, &loan, &mut going).await,
            LoanState::Unknown => settle(circulation, &loan, left).await,
            LoanState::Intended if going.declined => {
                let sent = send_begin(circulation, &loan, &mut going).await;
                left = Instant::now();
                sent
            }
            // An intent that is not ours to send, or whose outcome the ledger did not take.
            LoanState::Intended => return Outcome::Unsure,
            LoanState::Accepted | LoanState::Refused | LoanState::Ending | LoanState::Ended => None,
        };
    }
}

/// What a task knows of the loan that it carries, beyond what the ledger has.
#[derive(Debug, Default)]
struct Going {
    /// The licences that it may be begun under.
    tries: Tries,
    /// The ledger has that Bokbasen declined one licence, and the next begin may be sent.
    declined: bool,
    /// Bokbasen cannot be asked: when to come back.
    unavailable: Option<Duration>,
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
async fn tries(circulation: &Circulation, loan: &Loan, going: &mut Going) -> Result<Tries, (Event, String)> {
    let (inner, key) = (&circulation.inner, &loan.key);
    if !inner.settings.licences.concerns(key.library) {
        return Ok(Tries::bokbasens());
    }
    let there = match inner.lending.availability(key.library, key.isbn).await {
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

/// Sends a begin of an intent under the next licence: once, and another only after Bokbasen has declined this one.
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

/// Writes Bokbasen's word on a begin: a refusal of its licence leads to the next, where there is one.
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
    let detail = Some(format!("{words}, and Bokbasen answered {}: {}", refusal.code, refusal.message));
    let declined = circulation.record(loan.id, Event::Declined, Cause { detail, ..cause }).await;
    going.declined = declined.is_some();
    declined
}

/// What a begin means that Bokbasen answered with an error: nothing was made, and either this loan is
/// refused (no contract, no such title) or the call itself was at fault (our credentials, too many calls).
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

/// Asks about a pending loan until Bokbasen has decided.
async fn poll(circulation: &Circulation, loan: &Loan, going: &mut Going) -> Option<Loan> {
    let lending_id = loan.lending_id.as_deref()?;
    let mut wait = FIRST_POLL;
    loop {
        let read = circulation.inner.lending.loan(lending_id).await;
        let named = match read.and_then(|remote| remote.map(|remote| checked(remote, loan)).transpose()) {
            Ok(Some(remote)) => match event_of(&remote) {
                Some(event) => {
                    return decided(circulation, loan, going, event, Cause { by: "poll", detail: None })
                        .await;
                }
                None => wait_named(&remote),
            },
            Ok(None) => {
                let detail = Some("a read by id does not show the loan that Bokbasen has named".to_owned());
                return circulation.record(loan.id, Event::Missing, Cause { by: "poll", detail }).await;
            }
            Err(error) => {
                // The client of Bokbasen logs the reason, once a minute for all loans.
                tracing::debug!(loan = %loan.id, %error, "cannot poll a pending loan; it is retried");
                None
            }
        };
        if !circulation.pause(named.unwrap_or(wait).min(Duration::from_secs(30))).await {
            return None;
        }
        wait = (wait * 2).min(LAST_POLL);
        // Somebody may have cancelled it here meanwhile.
        if circulation.reread(loan.id).await.is_some_and(|now| now.state != LoanState::Pending) {
            return None;
        }
    }
}

/// Settles an unknown loan. `left` is the last moment at which its begin can have left.
async fn settle(circulation: &Circulation, loan: &Loan, left: Instant) -> Option<Loan> {
    let (mut search, mut wait) = (Search::new(left), FIRST_POLL);
    let is_named = loan.lending_id.is_some();
    loop {
        let next = search.next(is_named, Instant::now() + wait, circulation.inner.settings.settle);
        if !circulation.pause(next.saturating_duration_since(Instant::now())).await {
            return None;
        }
        match search.check(circulation, loan).await {
            Ok(Some((event, detail))) => {
                return circulation.record(loan.id, event, Cause { by: "settle", detail }).await;
            }
            Ok(None) => {}
            // The client of Bokbasen logs the reason, once a minute for all loans.
            Err(error) => tracing::debug!(loan = %loan.id, %error, "cannot settle a loan; it is retried"),
        }
        wait = (wait * 2).min(LAST_POLL);
    }
}

fn wait_named(remote: &RemoteLoan) -> Option<Duration> {
    match remote.standing {
        Standing::Pending { retry_after } => retry_after,
        Standing::Accepted(_) | Standing::Refused(_) | Standing::Ended(_) | Standing::Unrecognised(_) => None,
    }
}

/// What Bokbasen's word about a loan means to the machine; none while it has not decided, and for a status
/// that we do not know, which counts as not accepted (bokbasen-api §4).
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

/// As long as it takes for `clock` to reach the moment, for waits that must follow a clock moved by hand.
pub(super) fn wait_until(circulation: &Circulation, at: jiff::Timestamp, longest: Duration) -> Duration {
    clock::until(circulation.inner.clock.now(), at).min(longest)
}
