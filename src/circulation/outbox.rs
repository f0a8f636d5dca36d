//! The outbox of ends: each is sent until Bokbasen has acknowledged it, across restarts.
//!
//! A loan in state `ending` is an end that waits; there is no second list that could differ from
//! the ledger. The outbox reads all of them once, and after that only the ledger's newer steps. One
//! loan has one end, which keeps the order within a loan.
//!
//! Each end that fails has a backoff of its own, and a lane of its own beside ends that have not
//! failed: ends that Bokbasen never accepts delay no others. When an outage is over, the ends that
//! failed in it are sent again at once, each of them once; an end that fails after that waits for
//! its own backoff, whatever others do.
//!
//! Which ends fail is known only after they are sent, and Bokbasen may be slow to fail. So half
//! of the calls for fresh ends send the oldest, and the other half the newest: many bad ends hold
//! back neither those that arrive after them nor those that waited before.
//!
//! Many ends arrive together, and must not cost the readers of other loans much: the outbox reads
//! many at a time, and writes acknowledgements together.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use super::{Circulation, log_ledger_failure};
use crate::clock;
use crate::ledger::{Cause, LedgerError};
use crate::lending::{CallError, CallKind, Passage, Told};
use crate::loan::{EndReason, Event, Loan, LoanId, LoanState, OVERDUE_AFTER};

/// How many ends are read from the ledger by one query, and how many acknowledgements are written
/// together at most.
const TOGETHER: usize = 128;
/// The same for the newest ends, since others may arrive after them.
const NEWEST_TOGETHER: usize = 16;
/// How many trials of the breaker each lane may have in flight: the end that succeeds may be an old
/// one or a new one, and where trials hang, one lane must not use up those of the other.
const LANE_TRIALS: usize = 2;
/// How long an acknowledgement waits for others, while any are expected.
const LINGER: Duration = Duration::from_millis(250);
/// The backoff of an end that failed: at first, and the longest that it doubles up to.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// When an end that was held back is tried again; the breaker decides which of them is sent.
const HELD_BACK_WAIT: Duration = Duration::from_millis(200);
/// How often to query the ledger without a notification: another process may have ended a loan.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often to count what is waiting.
const COUNT_AGAIN: Duration = Duration::from_secs(5);

/// What came of sending an end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sent {
    /// Bokbasen acknowledged it; the ledger does not have that yet.
    Acknowledged,
    /// Bokbasen answered, and does not accept it yet; it may name how long to wait.
    NotTaken(Option<Duration>),
    /// Bokbasen did not answer, or with a 5xx, which may be the fault of this end.
    NoAnswer,
    /// The call never left: no connection, no login.
    NotReached,
    /// The call never left, while ends are held back: it waits for that, and has not failed.
    HeldBack,
}

impl Sent {
    fn is_answer(self) -> bool {
        matches!(self, Sent::Acknowledged | Sent::NotTaken(_))
    }
}

/// An end that failed.
#[derive(Clone, Copy, Debug)]
struct Failed {
    next: Instant,
    wait: Duration,
    how: Sent,
    /// Whether it has been sent again at once after an outage.
    was_expedited: bool,
}

/// Calls that go on beside those of the other lanes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Lane {
    /// Fresh ends, the newest first.
    Newest,
    /// Fresh ends, the oldest first.
    Oldest,
    /// Ends that failed.
    Retries,
}

impl Lane {
    /// In the order in which they get free calls: of a few trials, the newest ends have the first.
    const ALL: [Lane; 3] = [Lane::Newest, Lane::Oldest, Lane::Retries];

    fn is_retries(self) -> bool {
        self == Lane::Retries
    }
}

/// What a lane is about to send, and sends.
#[derive(Debug, Default)]
struct Queue {
    /// Ends whose time has come, as the ledger had them a moment ago, with their arrival.
    next: VecDeque<(u64, Loan)>,
    in_flight: usize,
}

/// Ends that have not failed, or failed in an outage that is over.
#[derive(Debug)]
struct Fresh {
    /// By arrival: those of an outage are older than all others.
    waiting: BTreeMap<u64, LoanId>,
    oldest: u64,
    newest: u64,
    /// None of them is sent before, as the breaker holds them back.
    held_until: Option<Instant>,
}

impl Default for Fresh {
    fn default() -> Fresh {
        let middle = u64::MAX / 2;
        Fresh { waiting: BTreeMap::new(), oldest: middle, newest: middle, held_until: None }
    }
}

/// What the task keeps.
#[derive(Default)]
struct Outbox {
    fresh: Fresh,
    /// Ends that failed, by when they are to be sent again.
    retries: BTreeSet<(Instant, LoanId)>,
    queues: [Queue; 3],
    failed: HashMap<LoanId, Failed>,
    /// Tasks of their own: futures that only this task polls would hold the ledger's connections
    /// while this task waits for the ledger itself.
    sending: JoinSet<Sent>,
    /// Which end each of those tasks sends, its arrival, and the lane.
    senders: HashMap<task::Id, (LoanId, u64, Lane)>,
    /// Bokbasen acknowledged these, and the ledger does not have that yet.
    acknowledged: Vec<LoanId>,
    /// Since when the first of them waits.
    since: Option<Instant>,
    /// The last step of the ledger that was read; none before the first query.
    seen: Option<i64>,
    /// Whether ends have been held back since the last answer.
    was_held_back: bool,
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
            Some(sent) = outbox.sending.join_next_with_id() => outbox.joined(&circulation, sent),
            () = circulation.inner.ends_waiting.notified() => outbox.take_in(&circulation).await,
            _ = look.tick() => outbox.take_in(&circulation).await,
            _ = count.tick() => count_ends(&circulation).await,
            () = tokio::time::sleep(wait) => {}
            () = circulation.inner.stopping.cancelled() => break,
        }
    }
    while let Some(sent) = outbox.sending.join_next_with_id().await {
        outbox.joined(&circulation, sent);
    }
    outbox.write_acknowledged(&circulation).await;
}

impl Outbox {
    /// Reads what has ended since the last query; at the first query, everything that waits.
    async fn take_in(&mut self, circulation: &Circulation) {
        let ledger = &circulation.inner.ledger;
        let ends = match self.seen {
            Some(seen) => ledger.ends_after(seen).await,
            None => ledger.ends_waiting().await,
        };
        match ends {
            Ok(ends) => {
                if !ends.loans.is_empty() {
                    // What was read as the newest is not any more.
                    self.unread(Lane::Newest);
                }
                ends.loans.into_iter().for_each(|id| self.fresh.arrive(id));
                self.seen = Some(ends.step);
            }
            Err(error) => log_ledger_failure("looking for ends to send", &error),
        }
    }

    fn queue(&mut self, lane: Lane) -> &mut Queue {
        let [newest, oldest, retries] = &mut self.queues;
        match lane {
            Lane::Newest => newest,
            Lane::Oldest => oldest,
            Lane::Retries => retries,
        }
    }

    /// Starts what is to be sent now, as far as there is room in its lane.
    async fn send_ready(&mut self, circulation: &Circulation) {
        for lane in Lane::ALL {
            loop {
                let room = room(circulation, lane);
                self.was_held_back |= !matches!(room, Room::Open(_));
                if !room.has_place(self.queue(lane).in_flight) {
                    break;
                }
                self.take_over(circulation, lane);
                if self.queue(lane).next.is_empty() && !self.read_next(circulation, lane).await {
                    break;
                }
                let Some((arrival, loan)) = self.queue(lane).next.pop_front() else { continue };
                self.queue(lane).in_flight += 1;
                let (id, circulation) = (loan.id, circulation.clone());
                let sender = self.sending.spawn(async move { send(&circulation, &loan).await });
                self.senders.insert(sender.id(), (id, arrival, lane));
            }
        }
    }

    /// Makes what the other lane of fresh ends has read available to this one, where this one has
    /// nothing to send and the calls of the other are all taken: they may hang.
    fn take_over(&mut self, circulation: &Circulation, lane: Lane) {
        let other = match lane {
            Lane::Newest => Lane::Oldest,
            Lane::Oldest => Lane::Newest,
            Lane::Retries => return,
        };
        let is_needed = self.queue(lane).next.is_empty() && self.fresh.waiting.is_empty();
        if is_needed && !room(circulation, other).has_place(self.queue(other).in_flight) {
            self.unread(other);
        }
    }

    /// Returns the fresh ends that a lane has read, but not sent, to those that wait.
    fn unread(&mut self, lane: Lane) {
        let unsent = std::mem::take(&mut self.queue(lane).next);
        self.fresh.waiting.extend(unsent.into_iter().map(|(arrival, loan)| (arrival, loan.id)));
    }

    /// Reads the ends whose time has come, as the ledger has them now; returns whether there were
    /// any.
    async fn read_next(&mut self, circulation: &Circulation, lane: Lane) -> bool {
        let ready = self.take_due(lane, Instant::now());
        if ready.is_empty() {
            return false;
        }
        let is_open = matches!(room(circulation, lane), Room::Open(_));
        let ids: Vec<LoanId> = ready.iter().map(|(_, id)| *id).collect();
        match circulation.inner.ledger.loans(&ids).await {
            Ok(loans) => {
                let mut read: HashMap<LoanId, Loan> =
                    loans.into_iter().map(|loan| (loan.id, loan)).collect();
                let mut ordered = Vec::with_capacity(ready.len());
                for (arrival, id) in ready {
                    match read.remove(&id) {
                        Some(loan) => ordered.push((arrival, loan)),
                        // A row that cannot be read is tried again later: somebody may repair it.
                        None => self.put_off(id, Sent::NotTaken(None)),
                    }
                }
                if !is_open && lane != Lane::Newest {
                    // Trials by chance: the oldest ends may all be bad ones.
                    fastrand::shuffle(&mut ordered);
                }
                ordered.into_iter().for_each(|(arrival, loan)| self.read(arrival, loan, lane));
            }
            Err(error) => self.not_read(&ids, &error),
        }
        true
    }

    /// Takes the ends of a lane out that are due, as many as are read together.
    fn take_due(&mut self, lane: Lane, now: Instant) -> Vec<(u64, LoanId)> {
        let most = match lane {
            Lane::Newest => NEWEST_TOGETHER,
            // The newer half stays for the lane of the newest: an end that is read waits for those
            // read before it.
            Lane::Oldest => self.fresh.waiting.len().div_ceil(2).min(TOGETHER),
            Lane::Retries => TOGETHER,
        };
        let mut due = Vec::new();
        while due.len() < most
            && let Some(next) = match lane {
                Lane::Newest => self.fresh.take(now, BTreeMap::pop_last),
                Lane::Oldest => self.fresh.take(now, BTreeMap::pop_first),
                Lane::Retries => self.take_retry(now),
            }
        {
            due.push(next);
        }
        due
    }

    fn take_retry(&mut self, now: Instant) -> Option<(u64, LoanId)> {
        self.retries.first().filter(|(at, _)| *at <= now)?;
        self.retries.pop_first().map(|(_, id)| (0, id))
    }

    fn read(&mut self, arrival: u64, loan: Loan, lane: Lane) {
        if loan.state == LoanState::Ending {
            self.queue(lane).next.push_back((arrival, loan));
        } else {
            // Another process has sent it.
            self.failed.remove(&loan.id);
        }
    }

    fn not_read(&mut self, ids: &[LoanId], error: &LedgerError) {
        log_ledger_failure("reading an end to send", error);
        ids.iter().for_each(|id| self.put_off(*id, Sent::NotTaken(None)));
    }

    /// Writes what is acknowledged, unless more of it is expected within a moment. Where the ledger
    /// fails, the end is sent again, which Bokbasen allows.
    async fn write_acknowledged(&mut self, circulation: &Circulation) {
        let more = !self.sending.is_empty() && self.acknowledged.len() < TOGETHER;
        if self.acknowledged.is_empty()
            || more && self.since.is_some_and(|since| since.elapsed() < LINGER)
        {
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
                    self.put_off(*id, Sent::NotTaken(None));
                }
            }
        }
    }

    /// How long there is nothing to do, unless something else happens.
    fn wait(&mut self, circulation: &Circulation) -> Duration {
        let now = Instant::now();
        let write = self.since.map_or(LOOK_AGAIN, |since| LINGER.saturating_sub(since.elapsed()));
        let sends = Lane::ALL.map(|lane| match (room(circulation, lane), self.next_due(lane)) {
            (Room::Closed(wait), Some(_)) => wait.max(Duration::from_millis(10)),
            (room, Some(at)) if room.has_place(self.queue(lane).in_flight) => {
                at.saturating_duration_since(now)
            }
            _ => LOOK_AGAIN,
        });
        sends.into_iter().fold(write.min(LOOK_AGAIN), Duration::min)
    }

    /// When the next end of a lane that waits may be sent.
    fn next_due(&self, lane: Lane) -> Option<Instant> {
        if lane.is_retries() {
            return self.retries.first().map(|(at, _)| *at);
        }
        let now = Instant::now();
        (!self.fresh.waiting.is_empty()).then(|| self.fresh.held_until.unwrap_or(now))
    }

    fn joined(&mut self, circulation: &Circulation, sent: Result<(task::Id, Sent), JoinError>) {
        // A task that panicked counts as unanswered: what it did is not known.
        let (task, sent) = sent.unwrap_or_else(|error| (error.id(), Sent::NoAnswer));
        let Some((id, arrival, lane)) = self.senders.remove(&task) else { return };
        let queue = self.queue(lane);
        queue.in_flight = queue.in_flight.saturating_sub(1);
        if sent.is_answer() {
            let is_open = matches!(room(circulation, Lane::Oldest), Room::Open(_));
            let is_over = is_open && std::mem::take(&mut self.was_held_back);
            self.fresh.held_until = self.fresh.held_until.filter(|_| !is_open);
            self.expedite(is_over);
        }
        match sent {
            Sent::HeldBack => self.hold_back(id, arrival, lane),
            sent => self.note(id, sent),
        }
    }

    /// Has an end wait that the breaker held back, in its old place.
    fn hold_back(&mut self, id: LoanId, arrival: u64, lane: Lane) {
        let again = Instant::now() + HELD_BACK_WAIT;
        if lane.is_retries() {
            if let Some(failed) = self.failed.get_mut(&id) {
                failed.next = again;
            }
            self.retries.insert((again, id));
        } else {
            self.fresh.waiting.insert(arrival, id);
            self.fresh.held_until = Some(again);
        }
    }

    fn note(&mut self, id: LoanId, sent: Sent) {
        if sent == Sent::Acknowledged {
            self.acknowledged.push(id);
            self.since.get_or_insert_with(Instant::now);
        } else {
            self.put_off(id, sent);
        }
    }

    /// Puts an end off that failed, for as long as its own backoff says.
    fn put_off(&mut self, id: LoanId, how: Sent) {
        let before = self.failed.get(&id);
        let wait = before.map_or(FIRST_WAIT, |failed| (failed.wait * 2).min(LONGEST_WAIT));
        let was_expedited = before.is_some_and(|failed| failed.was_expedited);
        let named = if let Sent::NotTaken(named) = how {
            named.unwrap_or_default()
        } else {
            Duration::ZERO
        };
        // Ends that failed together must not all be sent together again.
        let jittered = wait.mul_f64(0.75 + 0.25 * fastrand::f64());
        let next = Instant::now() + jittered.max(named).min(LONGEST_WAIT);
        self.failed.insert(id, Failed { next, wait, how, was_expedited });
        self.retries.insert((next, id));
    }

    /// Bokbasen answers: sends at once what only waits because it could not be reached, and after
    /// an outage what was not answered. The latter once for each end, since the fault may be its
    /// own.
    fn expedite(&mut self, outage_is_over: bool) {
        let now = Instant::now();
        for (id, failed) in &mut self.failed {
            let expedited = match failed.how {
                Sent::NotReached => true,
                Sent::NoAnswer => outage_is_over && !failed.was_expedited,
                Sent::Acknowledged | Sent::NotTaken(_) | Sent::HeldBack => false,
            };
            if expedited && self.retries.remove(&(failed.next, *id)) {
                failed.was_expedited |= failed.how == Sent::NoAnswer;
                failed.next = now;
                self.fresh.return_to_front(*id);
            }
        }
    }
}

impl Fresh {
    /// An end arrives, the newest of all.
    fn arrive(&mut self, id: LoanId) {
        self.newest += 1;
        self.waiting.insert(self.newest, id);
    }

    /// An end is to be sent again before all others.
    fn return_to_front(&mut self, id: LoanId) {
        self.waiting.insert(self.oldest, id);
        self.oldest -= 1;
    }

    /// Takes one out by `pop`, unless all are held back.
    fn take(
        &mut self,
        now: Instant,
        pop: impl Fn(&mut BTreeMap<u64, LoanId>) -> Option<(u64, LoanId)>,
    ) -> Option<(u64, LoanId)> {
        if self.held_until.is_some_and(|until| until > now) {
            return None;
        }
        self.held_until = None;
        pop(&mut self.waiting)
    }
}

/// How many ends of a lane may be in flight.
#[derive(Clone, Copy, Debug)]
enum Room {
    Open(usize),
    /// A few, which show whether Bokbasen answers again; the breaker holds the others back.
    Trial(usize),
    Closed(Duration),
}

impl Room {
    fn has_place(self, in_flight: usize) -> bool {
        match self {
            Room::Open(most) => in_flight < most,
            Room::Trial(most) => in_flight < most,
            Room::Closed(_) => false,
        }
    }
}

fn room(circulation: &Circulation, lane: Lane) -> Room {
    let lending = &circulation.inner.lending;
    room_of(
        lane,
        lending.most_at_once(CallKind::End),
        lending.passage(CallKind::End, lane.is_retries()),
    )
}

/// The room of a lane, where so many ends may be in flight in all.
fn room_of(lane: Lane, most: usize, passage: Passage) -> Room {
    let most = match lane {
        Lane::Oldest => most.div_ceil(2),
        Lane::Newest => most / 2,
        Lane::Retries => (most / 2).max(1),
    };
    match passage {
        Passage::Open => Room::Open(most),
        Passage::Trial => Room::Trial(most.min(LANE_TRIALS)),
        Passage::Closed(wait) => Room::Closed(wait),
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
        Err(CallError::NotSent(_))
            if circulation.inner.lending.passage(CallKind::End, false) != Passage::Open =>
        {
            Sent::HeldBack
        }
        Err(error @ CallError::NotSent(_)) => {
            // The client of Bokbasen logs the reason, once a minute for all loans.
            tracing::debug!(loan = %id, %error, "cannot send an end; it is retried");
            Sent::NotReached
        }
        Err(error @ CallError::Unknown(_)) => {
            tracing::debug!(loan = %id, %error, "an end was not answered; it is retried");
            Sent::NoAnswer
        }
    }
}

async fn tell(circulation: &Circulation, loan: &Loan) -> Result<Told, CallError> {
    let lending = &circulation.inner.lending;
    let (Some(lending_id), Some(ended), Some(reason)) =
        (&loan.lending_id, loan.ended, loan.end_reason)
    else {
        return Ok(Told::Done); // it never was there
    };
    match reason {
        EndReason::Cancelled => {
            lending
                .give_back(lending_id, ended, EndReason::Returned, "cancelled by the reader")
                .await
        }
        EndReason::Returned | EndReason::Expired | EndReason::Rejected => {
            match lending.return_loan(lending_id, ended, reason).await? {
                // A loan ended here while it was pending there can only be cancelled.
                Told::StillPending => {
                    lending.cancel(lending_id, "ended before it was accepted").await
                }
                told @ (Told::Done | Told::CancelWindowClosed | Told::NoSuchLoan) => Ok(told),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(outbox: &Outbox) -> Vec<LoanId> {
        let retries = outbox.retries.iter().filter(|(at, _)| *at <= Instant::now());
        outbox.fresh.waiting.values().copied().chain(retries.map(|(_, id)| *id)).collect()
    }

    /// All that a lane takes, by as many reads as that needs.
    fn taken(outbox: &mut Outbox, lane: Lane) -> Vec<LoanId> {
        let mut taken = Vec::new();
        loop {
            match outbox.take_due(lane, Instant::now()) {
                due if due.is_empty() => return taken,
                due => taken.extend(due.into_iter().map(|(_, id)| id)),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_is_expedited_once_and_only_after_an_outage() {
        let mut outbox = Outbox::default();
        let [unanswered, rejected] = [(); 2].map(|()| LoanId::fresh());
        outbox.note(unanswered, Sent::NoAnswer);
        outbox.note(rejected, Sent::NotTaken(Some(Duration::from_secs(5))));
        outbox.expedite(false);
        assert_eq!(due(&outbox), [], "another end's answer is no reason");
        outbox.expedite(true);
        assert_eq!(due(&outbox), [unanswered]);
        assert_eq!(taken(&mut outbox, Lane::Oldest), [unanswered]);
        outbox.note(unanswered, Sent::NoAnswer);
        outbox.expedite(true);
        assert_eq!(due(&outbox), [], "the fault may be its own");
        let waits = outbox.failed[&rejected].next - Instant::now();
        assert!(waits > Duration::from_secs(4), "as Bokbasen says");
    }

    #[tokio::test(start_paused = true)]
    async fn one_lane_takes_the_oldest_and_one_the_newest() {
        let mut outbox = Outbox::default();
        let ends: Vec<LoanId> = (0..5).map(|_| LoanId::fresh()).collect();
        ends.iter().for_each(|id| outbox.fresh.arrive(*id));
        let newest = outbox.take_due(Lane::Newest, Instant::now());
        assert_eq!(newest[0].1, ends[4]);
        outbox.fresh.waiting.extend(newest.into_iter().skip(1));
        let oldest = outbox.take_due(Lane::Oldest, Instant::now());
        let (arrival, first) = oldest[0];
        assert_eq!(first, ends[0]);
        outbox.fresh.waiting.extend(oldest.into_iter().skip(1));
        // What the breaker holds back keeps its place, and holds back the others for a moment.
        outbox.hold_back(first, arrival, Lane::Oldest);
        assert_eq!(taken(&mut outbox, Lane::Newest), []);
        tokio::time::advance(HELD_BACK_WAIT).await;
        assert_eq!(taken(&mut outbox, Lane::Oldest), ends[..4]);
        // An end of an outage is older than all others.
        outbox.fresh.arrive(ends[1]);
        outbox.note(ends[0], Sent::NotReached);
        outbox.expedite(false);
        assert_eq!(taken(&mut outbox, Lane::Oldest), ends[..2]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_lane_leaves_the_newer_half_to_the_newest() {
        for waiting in [1, 2, 50, 4 * TOGETHER] {
            let mut outbox = Outbox::default();
            let ends: Vec<LoanId> = (0..waiting).map(|_| LoanId::fresh()).collect();
            ends.iter().for_each(|id| outbox.fresh.arrive(*id));
            let oldest = outbox.take_due(Lane::Oldest, Instant::now());
            assert_eq!(oldest.len(), waiting.div_ceil(2).min(TOGETHER), "of {waiting}");
            assert_eq!(oldest[0].1, ends[0]);
            if waiting > 1 {
                assert_eq!(outbox.take_due(Lane::Newest, Instant::now())[0].1, ends[waiting - 1]);
            }
        }
    }

    #[test]
    fn each_lane_may_have_half_of_the_trials() {
        let room = |lane, passage| room_of(lane, 8, passage);
        for lane in Lane::ALL {
            assert!(room(lane, Passage::Open).has_place(3), "{lane:?}");
            assert!(!room(lane, Passage::Open).has_place(4), "{lane:?}");
            assert!(room(lane, Passage::Trial).has_place(1), "{lane:?}");
            assert!(
                !room(lane, Passage::Trial).has_place(2),
                "{lane:?}: the other lane needs trials"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_never_sent_is_sent_with_the_first_answer() {
        let mut outbox = Outbox::default();
        let unreached = LoanId::fresh();
        for _ in 0..5 {
            outbox.note(unreached, Sent::NotReached);
            assert_eq!(due(&outbox), []);
            outbox.expedite(false);
            assert_eq!(taken(&mut outbox, Lane::Newest), [unreached]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_end_keeps_its_own_backoff() {
        let mut outbox = Outbox::default();
        let (bad, good) = (LoanId::fresh(), LoanId::fresh());
        let mut waits = Vec::new();
        for _ in 0..10 {
            outbox.note(bad, Sent::NoAnswer);
            waits.push(outbox.failed[&bad].next - Instant::now());
            outbox.note(good, Sent::Acknowledged);
            outbox.expedite(false);
            tokio::time::advance(LONGEST_WAIT).await;
            assert_eq!(taken(&mut outbox, Lane::Retries), [bad]);
        }
        assert!(waits[0] <= FIRST_WAIT && waits[9] >= LONGEST_WAIT.mul_f64(0.7), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= LONGEST_WAIT));
    }
}
