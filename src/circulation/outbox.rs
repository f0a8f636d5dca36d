//! The outbox of ends: each is sent until Bokbasen has acknowledged it, across restarts.
//!
//! A loan in state `ending` is an end that waits; there is no other list to fall out of step with. What is waiting is
//! taken in from the ledger once, and after that only what the ledger's steps tell of since; each end that fails has a
//! wait of its own, so that one which Bokbasen will never take holds up no other. One loan has one end, so that order
//! within a loan is kept by itself.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use super::{Circulation, log_ledger_failure};
use crate::clock;
use crate::ledger::{Cause, LedgerError};
use crate::lending::{CallError, Told};
use crate::loan::{EndReason, Event, Loan, LoanId, LoanState, OVERDUE_AFTER};

/// How many are on their way at once; the client has a limit of its own for all calls together.
const AT_ONCE: usize = 16;
/// How long an end that failed waits: at first, and the longest that it doubles up to.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often to look when nobody calls: another process of this ledger may have ended a loan.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often to count what is waiting.
const COUNT_AGAIN: Duration = Duration::from_secs(5);

/// What came of sending an end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sent {
    /// It is acknowledged, and the ledger has that.
    Acknowledged,
    /// Bokbasen answered, and does not take it yet; it may name how long to wait.
    NotTaken(Option<Duration>),
    /// Bokbasen did not answer.
    NoAnswer,
}

/// An end that failed.
#[derive(Clone, Copy, Debug)]
struct Failed {
    next: Instant,
    wait: Duration,
    /// Whether Bokbasen did not answer: then any answer is a reason to try again at once.
    unanswered: bool,
}

/// What the task keeps.
#[derive(Default)]
struct Outbox {
    /// The ends that wait, by when they are to be sent.
    waiting: BTreeSet<(Instant, LoanId)>,
    failed: HashMap<LoanId, Failed>,
    /// Tasks of their own: futures that only this task polls would hold the ledger's connections while it asks it itself.
    on_their_way: JoinSet<(LoanId, Sent)>,
    /// The last step of the ledger that was taken in; none before the first look.
    seen: Option<i64>,
}

/// Sends ends until the process stops.
pub(super) async fn send_ends(circulation: Circulation) {
    let mut outbox = Outbox::default();
    let mut look = tokio::time::interval(LOOK_AGAIN);
    let mut count = tokio::time::interval(COUNT_AGAIN);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    count.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        outbox.send_ready(&circulation);
        let wait = outbox.wait(&circulation);
        tokio::select! {
            Some(sent) = outbox.on_their_way.join_next() => outbox.joined(sent),
            () = circulation.inner.ends_waiting.notified() => outbox.take_in(&circulation).await,
            _ = look.tick() => outbox.take_in(&circulation).await,
            _ = count.tick() => count_ends(&circulation).await,
            () = tokio::time::sleep(wait) => {}
            () = circulation.inner.stopping.cancelled() => break,
        }
    }
    while outbox.on_their_way.join_next().await.is_some() {}
}

impl Outbox {
    /// Takes in what has ended since the last look; at the first look, everything that waits.
    async fn take_in(&mut self, circulation: &Circulation) {
        let ledger = &circulation.inner.ledger;
        let ends = match self.seen {
            Some(seen) => ledger.ends_after(seen).await,
            None => ledger.ends_waiting().await,
        };
        match ends {
            Ok(ends) => {
                let now = Instant::now();
                self.waiting.extend(ends.loans.into_iter().map(|id| (now, id)));
                self.seen = Some(ends.step);
            }
            Err(error) => log_ledger_failure("looking for ends to send", &error),
        }
    }

    /// Starts what is to be sent now, as far as there is room and Bokbasen is called at all.
    fn send_ready(&mut self, circulation: &Circulation) {
        let now = Instant::now();
        while self.on_their_way.len() < AT_ONCE && circulation.inner.lending.closed_for().is_none() {
            let Some((at, id)) = self.waiting.pop_first() else { return };
            if at > now {
                self.waiting.insert((at, id));
                return;
            }
            let circulation = circulation.clone();
            self.on_their_way.spawn(async move { (id, send(&circulation, id).await) });
        }
    }

    /// Until when there is nothing to do, but for what comes from elsewhere.
    fn wait(&self, circulation: &Circulation) -> Duration {
        if let Some(closed) = circulation.inner.lending.closed_for() {
            return closed.clamp(Duration::from_millis(10), LOOK_AGAIN);
        }
        match self.waiting.first() {
            Some((at, _)) if self.on_their_way.len() < AT_ONCE => {
                at.saturating_duration_since(Instant::now()).min(LOOK_AGAIN)
            }
            _ => LOOK_AGAIN,
        }
    }

    fn joined(&mut self, sent: Result<(LoanId, Sent), JoinError>) {
        match sent {
            Ok((id, sent)) => self.note(id, sent),
            // Its task died: everything that waits is taken in anew.
            Err(_) => self.seen = None,
        }
    }

    fn note(&mut self, id: LoanId, sent: Sent) {
        if sent != Sent::NoAnswer {
            self.hurry();
        }
        if sent == Sent::Acknowledged {
            self.failed.remove(&id);
            return;
        }
        let wait = self.failed.get(&id).map_or(FIRST_WAIT, |failed| (failed.wait * 2).min(LONGEST_WAIT));
        let named = if let Sent::NotTaken(named) = sent { named.unwrap_or_default() } else { Duration::ZERO };
        let next = Instant::now() + wait.max(named).min(LONGEST_WAIT);
        let failed = Failed { next, wait, unanswered: sent == Sent::NoAnswer };
        self.failed.insert(id, failed);
        self.waiting.insert((failed.next, id));
    }

    /// Bokbasen answers: what waits only because it did not is sent at once.
    fn hurry(&mut self) {
        let now = Instant::now();
        for (id, failed) in self.failed.iter_mut().filter(|(_, failed)| failed.unanswered) {
            failed.unanswered = false;
            if self.waiting.remove(&(failed.next, *id)) {
                failed.next = now;
                self.waiting.insert((now, *id));
            }
        }
    }
}

/// Counts what waits, and what has waited for longer than anybody should have to.
async fn count_ends(circulation: &Circulation) {
    let inner = &circulation.inner;
    let counted = inner.ledger.count_ends(clock::before(inner.clock.now(), OVERDUE_AFTER)).await;
    match counted {
        Ok((waiting, overdue)) => {
            inner.metrics.ends_waiting(waiting, overdue);
            if overdue > 0 {
                tracing::error!(
                    overdue,
                    "Bokbasen has not acknowledged ends of loans for a day; `loangate loans list --state ending` lists them"
                );
            }
        }
        Err(error) => log_ledger_failure("counting the ends that wait", &error),
    }
}

/// Sends one end, as the ledger has it now.
async fn send(circulation: &Circulation, id: LoanId) -> Sent {
    let loan = match circulation.inner.ledger.loan(id).await {
        Ok(Some(loan)) if loan.state == LoanState::Ending => loan,
        // Another process was quicker.
        Ok(_) => return Sent::Acknowledged,
        Err(error) => {
            log_ledger_failure("reading an end to send", &error);
            return Sent::NotTaken(None);
        }
    };
    match tell(circulation, &loan).await {
        Ok(Told::Done) => acknowledged(circulation, id).await,
        Ok(told) => {
            tracing::warn!(loan = %id, ?told, "Bokbasen does not take this end yet; it is sent again");
            Sent::NotTaken(None)
        }
        Err(error @ CallError::Rejected { retry_after, .. }) => {
            tracing::error!(loan = %id, %error, "Bokbasen rejects this end; it is sent again");
            Sent::NotTaken(retry_after)
        }
        Err(error) => {
            tracing::warn!(loan = %id, %error, "an end could not be sent; it is sent again");
            Sent::NoAnswer
        }
    }
}

/// Writes the acknowledgement; where the ledger does not take it, the end is sent again, which Bokbasen allows.
async fn acknowledged(circulation: &Circulation, id: LoanId) -> Sent {
    let cause = Cause { by: "outbox", detail: None };
    match circulation.inner.ledger.apply(id, Event::EndAcknowledged, cause).await {
        // Illegal: another process, which sent it too, has written it.
        Ok(_) | Err(LedgerError::Illegal(_)) => Sent::Acknowledged,
        Err(error) => {
            log_ledger_failure("writing that an end was acknowledged", &error);
            Sent::NotTaken(None)
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
        EndReason::Cancelled => {
            lending.give_back(lending_id, ended, EndReason::Returned, "cancelled by the reader").await
        }
        EndReason::Returned | EndReason::Expired | EndReason::Rejected => {
            match lending.return_loan(lending_id, ended, reason).await? {
                // A loan ended here while it was pending there can only be cancelled.
                Told::StillPending => lending.cancel(lending_id, "ended before it was accepted").await,
                told @ (Told::Done | Told::CancelWindowClosed) => Ok(told),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_hurries_what_only_waited_for_one_and_nothing_else() {
        let mut outbox = Outbox::default();
        let [unanswered, rejected, well] = [(); 3].map(|()| LoanId::fresh());
        for _ in 0..3 {
            outbox.waiting.clear();
            outbox.note(unanswered, Sent::NoAnswer);
        }
        assert!(outbox.failed[&unanswered].wait > FIRST_WAIT, "it waits longer each time");
        outbox.note(rejected, Sent::NotTaken(Some(Duration::from_secs(5))));
        let later = outbox.failed[&rejected].next;
        assert!(later > Instant::now() + Duration::from_secs(4), "as Bokbasen says");
        outbox.note(well, Sent::Acknowledged);
        let waits: Vec<(bool, LoanId)> =
            outbox.waiting.iter().map(|(at, id)| (*at <= Instant::now(), *id)).collect();
        assert_eq!(waits, [(true, unanswered), (false, rejected)]);
        assert_eq!(outbox.failed[&rejected].next, later);
    }
}
