//! The outbox of ends: each is sent until Bokbasen has acknowledged it, across restarts.
//!
//! A loan in state `ending` is an end that waits; there is no other list to fall out of step with. What is waiting is
//! taken in from the ledger once, and after that only what the ledger's steps tell of since; each end that fails has a
//! wait of its own, so that one which Bokbasen will never take holds up no other. One loan has one end, so that order
//! within a loan is kept by itself.
//!
//! Many ends come together, and must not cost the readers of other loans much: they are read many at a time, and
//! acknowledgements that come soon after one another are written together.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use super::{Circulation, log_ledger_failure};
use crate::clock;
use crate::ledger::{Cause, LedgerError};
use crate::lending::{CallError, Told};
use crate::loan::{EndReason, Event, Loan, LoanId, LoanState, OVERDUE_AFTER};

/// How many are on their way at once; the client has a limit of its own for all calls together.
const AT_ONCE: usize = 16;
/// How many ends are read from the ledger by one question, and how many acknowledgements are written together at most.
const TOGETHER: usize = 128;
/// How long an acknowledgement waits for others, while any are to be expected.
const LINGER: Duration = Duration::from_millis(250);
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
    /// It is acknowledged, which the ledger is still to be told.
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
    /// Ends whose time has come, as they were in the ledger a moment ago.
    next: VecDeque<Loan>,
    failed: HashMap<LoanId, Failed>,
    /// Tasks of their own: futures that only this task polls would hold the ledger's connections while it asks it itself.
    on_their_way: JoinSet<(LoanId, Sent)>,
    /// What Bokbasen has acknowledged and the ledger does not know yet.
    acknowledged: Vec<LoanId>,
    /// Since when the first of them waits.
    since: Option<Instant>,
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
        outbox.send_ready(&circulation).await;
        outbox.write_acknowledged(&circulation).await;
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
    while let Some(sent) = outbox.on_their_way.join_next().await {
        outbox.joined(sent);
    }
    outbox.write_acknowledged(&circulation).await;
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
    async fn send_ready(&mut self, circulation: &Circulation) {
        while self.on_their_way.len() < AT_ONCE && circulation.inner.lending.closed_for().is_none() {
            if self.next.is_empty() && !self.read_next(circulation).await {
                return;
            }
            let Some(loan) = self.next.pop_front() else { continue };
            let circulation = circulation.clone();
            self.on_their_way.spawn(async move { (loan.id, send(&circulation, &loan).await) });
        }
    }

    /// Reads the ends whose time has come, as the ledger has them now; whether there were any.
    async fn read_next(&mut self, circulation: &Circulation) -> bool {
        let now = Instant::now();
        let mut ready = Vec::new();
        while ready.len() < TOGETHER
            && let Some((at, id)) = self.waiting.pop_first()
        {
            if at > now {
                self.waiting.insert((at, id));
                break;
            }
            ready.push(id);
        }
        if ready.is_empty() {
            return false;
        }
        match circulation.inner.ledger.loans(&ready).await {
            // Of those that are over already, another process was the quicker sender.
            Ok(loans) => {
                // A row that cannot be read is tried again later: somebody may mend it.
                let read: HashSet<LoanId> = loans.iter().map(|loan| loan.id).collect();
                ready.iter().filter(|id| !read.contains(id)).for_each(|id| self.note(*id, Sent::NotTaken(None)));
                self.next.extend(loans.into_iter().filter(|loan| loan.state == LoanState::Ending));
            }
            Err(error) => self.not_read(&ready, &error),
        }
        true
    }

    fn not_read(&mut self, ids: &[LoanId], error: &LedgerError) {
        log_ledger_failure("reading an end to send", error);
        ids.iter().for_each(|id| self.note(*id, Sent::NotTaken(None)));
    }

    /// Writes what is acknowledged, unless more of it is to be expected within a moment. Where the ledger does not take
    /// it, the end is sent again, which Bokbasen allows.
    async fn write_acknowledged(&mut self, circulation: &Circulation) {
        let more = !self.on_their_way.is_empty() && self.acknowledged.len() < TOGETHER;
        if self.acknowledged.is_empty() || more && self.since.is_some_and(|since| since.elapsed() < LINGER) {
            return;
        }
        self.since = None;
        let acknowledged = std::mem::take(&mut self.acknowledged);
        let written = acknowledged.iter().map(|id| {
            let cause = Cause { by: "outbox", detail: None };
            circulation.inner.ledger.apply(*id, Event::EndAcknowledged, cause)
        });
        for (id, written) in acknowledged.iter().zip(join_all(written).await) {
            match written {
                // Illegal: another process, which sent it too, has written it.
                Ok(_) | Err(LedgerError::Illegal(_)) => drop(self.failed.remove(id)),
                Err(error) => {
                    log_ledger_failure("writing that an end was acknowledged", &error);
                    self.note(*id, Sent::NotTaken(None));
                }
            }
        }
    }

    /// Until when there is nothing to do, but for what comes from elsewhere.
    fn wait(&self, circulation: &Circulation) -> Duration {
        let send = match (circulation.inner.lending.closed_for(), self.waiting.first()) {
            (Some(closed), _) => closed.max(Duration::from_millis(10)),
            (None, Some((at, _))) if self.on_their_way.len() < AT_ONCE => {
                at.saturating_duration_since(Instant::now())
            }
            (None, _) => LOOK_AGAIN,
        };
        let write = self.since.map_or(LOOK_AGAIN, |since| LINGER.saturating_sub(since.elapsed()));
        send.min(write).min(LOOK_AGAIN)
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
            self.acknowledged.push(id);
            self.since.get_or_insert_with(Instant::now);
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

/// Sends one end.
async fn send(circulation: &Circulation, loan: &Loan) -> Sent {
    let id = loan.id;
    match tell(circulation, loan).await {
        Ok(Told::Done) => Sent::Acknowledged,
        Ok(Told::NoSuchLoan) if circulation.believes_absence(loan) => Sent::Acknowledged,
        Ok(told) => {
            tracing::warn!(loan = %id, ?told, "Bokbasen does not take this end yet; it is sent again");
            Sent::NotTaken(None)
        }
        Err(error @ CallError::Rejected { retry_after, .. }) => {
            tracing::error!(loan = %id, %error, "Bokbasen rejects this end; it is sent again");
            Sent::NotTaken(retry_after)
        }
        Err(error) => {
            // The client of Bokbasen logs the reason, once a minute for all loans.
            tracing::debug!(loan = %id, %error, "cannot send an end; it is retried");
            Sent::NoAnswer
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
                told @ (Told::Done | Told::CancelWindowClosed | Told::NoSuchLoan) => Ok(told),
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
