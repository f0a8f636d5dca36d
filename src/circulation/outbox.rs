//! The outbox of ends: each is sent until Bokbasen has acknowledged it, across restarts.
//!
//! A loan in state `ending` is an end to send. There is no second list that could differ from the
//! ledger. The outbox reads all of them once, and then only the newer steps of the ledger. A loan
//! has one end, so the order within a loan is preserved.
//!
//! Each failed end has its own backoff, and failed ends have their own lane. So ends that Bokbasen
//! never accepts do not delay others. After an outage, each end that failed in it is retried once
//! at once. If that retry fails, the end waits for its own backoff.
//!
//! The outbox cannot know in advance which ends fail, and Bokbasen may be slow to fail. So half of
//! the calls for fresh ends send the oldest, and the other half the newest. A backlog of bad ends
//! then delays neither newer nor older ends.
//!
//! Many ends can arrive at once and must not slow the readers of other loans. The outbox therefore
//! reads ends in batches and writes acknowledgements in batches.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use super::{Circulation, log_ledger_failure};
use crate::clock;
use crate::ledger::{Cause, LedgerError};
use crate::lending::{CallError, CallKind, EndAck, Passage};
use crate::loan::{EndReason, Event, Loan, LoanId, LoanState, OVERDUE_AFTER};

/// Maximum number of ends in one ledger query, and of acknowledgements in one batch of writes.
const MAX_BATCH: usize = 128;
/// Maximum number of newest ends in one ledger query. It is small because newer ends may arrive.
const MAX_NEWEST_BATCH: usize = 16;
/// Maximum number of the breaker's trial calls in flight per lane. Either an old or a new end may
/// succeed, so hanging trials of one lane must not use up those of the other.
const LANE_TRIALS: usize = 2;
/// How long an acknowledgement waits for others in flight, so that they are written together.
const ACKNOWLEDGEMENT_DELAY: Duration = Duration::from_millis(250);
/// Backoff of a failed end: the first wait, and the limit up to which it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Wait before an end that the breaker held back is tried again.
const HELD_BACK_WAIT: Duration = Duration::from_millis(200);
/// Interval of ledger queries without a notification: another process may have ended a loan.
const LEDGER_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which waiting ends are counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// Result of sending an end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum SendResult {
    /// Bokbasen acknowledged it; the acknowledgement is not written yet.
    Acknowledged,
    /// Bokbasen responded but does not accept the end yet; it may send a Retry-After.
    NotAccepted(Option<Duration>),
    /// Bokbasen did not respond, or responded with a 5xx, which this end itself may cause.
    NoResponse,
    /// The request was never sent: no connection or no access token.
    NotSent,
    /// The breaker blocked the request. The end waits for the breaker and has not failed.
    HeldBack,
}

impl SendResult {
    fn is_response(self) -> bool {
        matches!(self, SendResult::Acknowledged | SendResult::NotAccepted(_))
    }
}

/// Retry state of a failed end.
#[derive(Clone, Copy, Debug)]
struct Failed {
    next: Instant,
    wait: Duration,
    how: SendResult,
    /// Whether it has been retried at once after an outage.
    was_expedited: bool,
}

/// A group of calls that is limited separately from the other lanes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Lane {
    /// Fresh ends, the newest first.
    Newest,
    /// Fresh ends, the oldest first.
    Oldest,
    /// Failed ends.
    Retries,
}

impl Lane {
    /// Order in which the lanes get free calls: of a few trials, the newest ends get the first.
    const ALL: [Lane; 3] = [Lane::Newest, Lane::Oldest, Lane::Retries];

    fn is_retries(self) -> bool {
        self == Lane::Retries
    }
}

/// Ends that a lane has read, and the number of its calls in flight.
#[derive(Debug, Default)]
struct Queue {
    /// Due ends as last read from the ledger, each with its arrival number.
    next: VecDeque<(u64, Loan)>,
    in_flight: usize,
}

/// Ends that have not failed, or that are to be retried after an outage.
#[derive(Debug)]
struct Fresh {
    /// By arrival number; ends that failed in an outage get the lowest numbers.
    waiting: BTreeMap<u64, LoanId>,
    oldest: u64,
    newest: u64,
    /// The breaker holds all of them back until then.
    held_until: Option<Instant>,
}

impl Default for Fresh {
    fn default() -> Fresh {
        let middle = u64::MAX / 2;
        Fresh { waiting: BTreeMap::new(), oldest: middle, newest: middle, held_until: None }
    }
}

/// State of the outbox task.
#[derive(Default)]
struct Outbox {
    fresh: Fresh,
    /// Failed ends, by the time of their next retry.
    retries: BTreeSet<(Instant, LoanId)>,
    queues: [Queue; 3],
    failed: HashMap<LoanId, Failed>,
    /// Calls in flight. They are tasks because futures that only this task polls would hold ledger
    /// connections while this task waits for the ledger.
    sending: JoinSet<SendResult>,
    /// End, arrival number and lane of each of these tasks.
    senders: HashMap<task::Id, (LoanId, u64, Lane)>,
    /// Ends that Bokbasen acknowledged and whose acknowledgement is not written yet.
    acknowledged: Vec<LoanId>,
    /// When the first of them was acknowledged.
    first_acknowledged: Option<Instant>,
    /// Last ledger step that was read; none before the first query.
    last_step: Option<i64>,
    /// Whether the breaker has held ends back since the last response.
    was_held_back: bool,
}

/// Sends ends until the process stops.
pub(super) async fn send_ends(circulation: Circulation) {
    let mut outbox = Outbox::default();
    let mut poll = tokio::time::interval(LEDGER_POLL_INTERVAL);
    let mut count = tokio::time::interval(COUNT_INTERVAL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    count.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        outbox.send_ready(&circulation).await;
        outbox.write_acknowledged(&circulation).await;
        let wait = outbox.wait(&circulation);
        tokio::select! {
            Some(sent) = outbox.sending.join_next_with_id() => {
                outbox.record_task(&circulation, sent);
            }
            () = circulation.inner.ends_waiting.notified() => {
                outbox.read_new_ends(&circulation).await;
            }
            _ = poll.tick() => outbox.read_new_ends(&circulation).await,
            _ = count.tick() => count_ends(&circulation).await,
            () = tokio::time::sleep(wait) => {}
            () = circulation.inner.stopping.cancelled() => break,
        }
    }
    while let Some(sent) = outbox.sending.join_next_with_id().await {
        outbox.record_task(&circulation, sent);
    }
    outbox.write_acknowledged(&circulation).await;
}

impl Outbox {
    /// Reads the ends since the last query; the first query reads all waiting ends.
    async fn read_new_ends(&mut self, circulation: &Circulation) {
        let ledger = &circulation.inner.ledger;
        let ends = match self.last_step {
            Some(step) => ledger.ends_after(step).await,
            None => ledger.ends_waiting().await,
        };
        match ends {
            Ok(ends) => {
                if !ends.loans.is_empty() {
                    // The ends read as the newest no longer are.
                    self.return_unsent(Lane::Newest);
                }
                ends.loans.into_iter().for_each(|id| self.fresh.arrive(id));
                self.last_step = Some(ends.step);
            }
            Err(error) => log_ledger_failure("reading the ends to send", &error),
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

    /// Sends due ends, within the limit of each lane.
    async fn send_ready(&mut self, circulation: &Circulation) {
        for lane in Lane::ALL {
            loop {
                let capacity = capacity(circulation, lane);
                self.was_held_back |= !matches!(capacity, Capacity::Open(_));
                if !capacity.has_room(self.queue(lane).in_flight) {
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

    /// Moves the ends that the other fresh lane has read back to the waiting ends, so that this
    /// lane can send them. It does so only if this lane has nothing to send and all calls of the
    /// other are in use, since those may hang.
    fn take_over(&mut self, circulation: &Circulation, lane: Lane) {
        let other = match lane {
            Lane::Newest => Lane::Oldest,
            Lane::Oldest => Lane::Newest,
            Lane::Retries => return,
        };
        let is_needed = self.queue(lane).next.is_empty() && self.fresh.waiting.is_empty();
        if is_needed && !capacity(circulation, other).has_room(self.queue(other).in_flight) {
            self.return_unsent(other);
        }
    }

    /// Moves the fresh ends that a lane has read but not sent back to the waiting ends.
    fn return_unsent(&mut self, lane: Lane) {
        let unsent = std::mem::take(&mut self.queue(lane).next);
        self.fresh.waiting.extend(unsent.into_iter().map(|(arrival, loan)| (arrival, loan.id)));
    }

    /// Reads the due ends of a lane from the ledger. Returns whether there were any.
    async fn read_next(&mut self, circulation: &Circulation, lane: Lane) -> bool {
        let ready = self.take_due(lane, Instant::now());
        if ready.is_empty() {
            return false;
        }
        let is_open = matches!(capacity(circulation, lane), Capacity::Open(_));
        let ids: Vec<LoanId> = ready.iter().map(|(_, id)| *id).collect();
        match circulation.inner.ledger.loans(&ids).await {
            Ok(loans) => {
                let mut read: HashMap<LoanId, Loan> =
                    loans.into_iter().map(|loan| (loan.id, loan)).collect();
                let mut ordered = Vec::with_capacity(ready.len());
                for (arrival, id) in ready {
                    match read.remove(&id) {
                        Some(loan) => ordered.push((arrival, loan)),
                        // A row that cannot be read is retried later: support may repair it.
                        None => self.schedule_retry(id, SendResult::NotAccepted(None)),
                    }
                }
                if !is_open && lane != Lane::Newest {
                    // Trials in random order: the oldest ends may all be bad ones.
                    fastrand::shuffle(&mut ordered);
                }
                ordered.into_iter().for_each(|(arrival, loan)| self.enqueue(arrival, loan, lane));
            }
            Err(error) => self.retry_unread(&ids, &error),
        }
        true
    }

    /// Removes and returns the due ends of a lane, at most one batch.
    fn take_due(&mut self, lane: Lane, now: Instant) -> Vec<(u64, LoanId)> {
        let limit = match lane {
            Lane::Newest => MAX_NEWEST_BATCH,
            // The newer half stays for the lane of the newest: an end that is read waits for those
            // read before it.
            Lane::Oldest => self.fresh.waiting.len().div_ceil(2).min(MAX_BATCH),
            Lane::Retries => MAX_BATCH,
        };
        let mut due = Vec::new();
        while due.len() < limit
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

    fn enqueue(&mut self, arrival: u64, loan: Loan, lane: Lane) {
        if loan.state == LoanState::Ending {
            self.queue(lane).next.push_back((arrival, loan));
        } else {
            // Another process sent it.
            self.failed.remove(&loan.id);
        }
    }

    fn retry_unread(&mut self, ids: &[LoanId], error: &LedgerError) {
        log_ledger_failure("reading an end to send", error);
        ids.iter().for_each(|id| self.schedule_retry(*id, SendResult::NotAccepted(None)));
    }

    /// Writes the acknowledgements, unless more are expected soon. If the ledger fails, the end is
    /// sent again, which Bokbasen allows.
    async fn write_acknowledged(&mut self, circulation: &Circulation) {
        let more = !self.sending.is_empty() && self.acknowledged.len() < MAX_BATCH;
        if self.acknowledged.is_empty()
            || more
                && self
                    .first_acknowledged
                    .is_some_and(|since| since.elapsed() < ACKNOWLEDGEMENT_DELAY)
        {
            return;
        }
        self.first_acknowledged = None;
        let acknowledged = std::mem::take(&mut self.acknowledged);
        let written = acknowledged.iter().map(|id| {
            let cause = Cause { by: "outbox", detail: None };
            circulation.inner.ledger.apply(*id, Event::EndAcknowledged, cause)
        });
        for (id, written) in acknowledged.iter().zip(join_all(written).await) {
            match written {
                // Illegal: another process sent it too, and has written the acknowledgement.
                Ok(_) | Err(LedgerError::Illegal(_)) => drop(self.failed.remove(id)),
                Err(error) => {
                    log_ledger_failure("writing that an end was acknowledged", &error);
                    self.schedule_retry(*id, SendResult::NotAccepted(None));
                }
            }
        }
    }

    /// Returns how long the task can sleep if no event wakes it.
    fn wait(&mut self, circulation: &Circulation) -> Duration {
        let now = Instant::now();
        let write = self.first_acknowledged.map_or(LEDGER_POLL_INTERVAL, |since| {
            ACKNOWLEDGEMENT_DELAY.saturating_sub(since.elapsed())
        });
        let sends =
            Lane::ALL.map(|lane| match (capacity(circulation, lane), self.next_due(lane)) {
                (Capacity::Closed(wait), Some(_)) => wait.max(Duration::from_millis(10)),
                (capacity, Some(at)) if capacity.has_room(self.queue(lane).in_flight) => {
                    at.saturating_duration_since(now)
                }
                _ => LEDGER_POLL_INTERVAL,
            });
        sends.into_iter().fold(write.min(LEDGER_POLL_INTERVAL), Duration::min)
    }

    /// Returns when the next waiting end of a lane may be sent.
    fn next_due(&self, lane: Lane) -> Option<Instant> {
        if lane.is_retries() {
            return self.retries.first().map(|(at, _)| *at);
        }
        let now = Instant::now();
        (!self.fresh.waiting.is_empty()).then(|| self.fresh.held_until.unwrap_or(now))
    }

    fn record_task(
        &mut self,
        circulation: &Circulation,
        sent: Result<(task::Id, SendResult), JoinError>,
    ) {
        // A task that panicked counts as unanswered, because its outcome is unknown.
        let (task, sent) = sent.unwrap_or_else(|error| (error.id(), SendResult::NoResponse));
        let Some((id, arrival, lane)) = self.senders.remove(&task) else { return };
        let queue = self.queue(lane);
        queue.in_flight = queue.in_flight.saturating_sub(1);
        if sent.is_response() {
            let is_open = matches!(capacity(circulation, Lane::Oldest), Capacity::Open(_));
            let is_over = is_open && std::mem::take(&mut self.was_held_back);
            self.fresh.held_until = self.fresh.held_until.filter(|_| !is_open);
            self.expedite(is_over);
        }
        match sent {
            SendResult::HeldBack => self.hold_back(id, arrival, lane),
            sent => self.record_result(id, sent),
        }
    }

    /// Puts an end that the breaker held back into its old place.
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

    fn record_result(&mut self, id: LoanId, sent: SendResult) {
        if sent == SendResult::Acknowledged {
            self.acknowledged.push(id);
            self.first_acknowledged.get_or_insert_with(Instant::now);
        } else {
            self.schedule_retry(id, sent);
        }
    }

    /// Schedules the retry of a failed end by its own backoff.
    fn schedule_retry(&mut self, id: LoanId, how: SendResult) {
        let before = self.failed.get(&id);
        let wait = before.map_or(FIRST_WAIT, |failed| (failed.wait * 2).min(LONGEST_WAIT));
        let was_expedited = before.is_some_and(|failed| failed.was_expedited);
        let named = if let SendResult::NotAccepted(named) = how {
            named.unwrap_or_default()
        } else {
            Duration::ZERO
        };
        // Jitter, so that ends that failed together are not retried together.
        let jittered = wait.mul_f64(0.75 + 0.25 * fastrand::f64());
        let next = Instant::now() + jittered.max(named).min(LONGEST_WAIT);
        self.failed.insert(id, Failed { next, wait, how, was_expedited });
        self.retries.insert((next, id));
    }

    /// Retries at once the ends that could not be sent, now that Bokbasen responds. After an outage
    /// it also retries unanswered ends, each only once, since the end itself may be at fault.
    fn expedite(&mut self, outage_is_over: bool) {
        let now = Instant::now();
        for (id, failed) in &mut self.failed {
            let expedited = match failed.how {
                SendResult::NotSent => true,
                SendResult::NoResponse => outage_is_over && !failed.was_expedited,
                SendResult::Acknowledged | SendResult::NotAccepted(_) | SendResult::HeldBack => {
                    false
                }
            };
            if expedited && self.retries.remove(&(failed.next, *id)) {
                failed.was_expedited |= failed.how == SendResult::NoResponse;
                failed.next = now;
                self.fresh.return_to_front(*id);
            }
        }
    }
}

impl Fresh {
    /// Adds the newest end.
    fn arrive(&mut self, id: LoanId) {
        self.newest += 1;
        self.waiting.insert(self.newest, id);
    }

    /// Puts an end before all others.
    fn return_to_front(&mut self, id: LoanId) {
        self.waiting.insert(self.oldest, id);
        self.oldest -= 1;
    }

    /// Removes one end with `pop`, unless all are held back.
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

/// How many ends a lane may have in flight.
#[derive(Clone, Copy, Debug)]
enum Capacity {
    Open(usize),
    /// A few trials, which show whether Bokbasen responds again. The breaker holds the others back.
    Trial(usize),
    Closed(Duration),
}

impl Capacity {
    fn has_room(self, in_flight: usize) -> bool {
        match self {
            Capacity::Open(limit) => in_flight < limit,
            Capacity::Trial(limit) => in_flight < limit,
            Capacity::Closed(_) => false,
        }
    }
}

fn capacity(circulation: &Circulation, lane: Lane) -> Capacity {
    let lending = &circulation.inner.lending;
    capacity_of(
        lane,
        lending.most_at_once(CallKind::End),
        lending.passage(CallKind::End, lane.is_retries()),
    )
}

/// Returns the limit of a lane if all lanes together may have `most` ends in flight.
fn capacity_of(lane: Lane, limit: usize, passage: Passage) -> Capacity {
    let limit = match lane {
        Lane::Oldest => limit.div_ceil(2),
        Lane::Newest => limit / 2,
        Lane::Retries => (limit / 2).max(1),
    };
    match passage {
        Passage::Open => Capacity::Open(limit),
        Passage::Trial => Capacity::Trial(limit.min(LANE_TRIALS)),
        Passage::Closed(wait) => Capacity::Closed(wait),
    }
}

/// Counts the waiting ends and the overdue ones, and reports both.
async fn count_ends(circulation: &Circulation) {
    let inner = &circulation.inner;
    let counted = inner.ledger.count_ends(clock::before(inner.clock.now(), OVERDUE_AFTER)).await;
    match counted {
        Ok((waiting, overdue)) => {
            inner.metrics.ends_waiting(waiting, overdue);
            if overdue > 0 {
                tracing::error!(
                    overdue,
                    "Bokbasen has not acknowledged ends of loans for a day; \
                     `loangate loans list --state ending` lists them"
                );
            }
        }
        Err(error) => log_ledger_failure("counting the ends that wait", &error),
    }
}

/// Sends one end to Bokbasen.
async fn send(circulation: &Circulation, loan: &Loan) -> SendResult {
    let id = loan.id;
    match call_bokbasen(circulation, loan).await {
        Ok(EndAck::Done) => SendResult::Acknowledged,
        Ok(EndAck::NoSuchLoan) if circulation.trusts_absence(loan) => SendResult::Acknowledged,
        Ok(ack) => {
            tracing::warn!(loan = %id, ?ack, "Bokbasen does not accept this end yet; retrying");
            SendResult::NotAccepted(None)
        }
        Err(error @ CallError::Rejected { retry_after, .. }) => {
            tracing::error!(loan = %id, %error, "Bokbasen rejected this end; retrying");
            SendResult::NotAccepted(retry_after)
        }
        Err(CallError::NotSent(_))
            if circulation.inner.lending.passage(CallKind::End, false) != Passage::Open =>
        {
            SendResult::HeldBack
        }
        Err(error @ CallError::NotSent(_)) => {
            // The client of Bokbasen logs the reason, once a minute for all loans.
            tracing::debug!(loan = %id, %error, "cannot send an end; retrying");
            SendResult::NotSent
        }
        Err(error @ CallError::Unknown(_)) => {
            tracing::debug!(loan = %id, %error, "Bokbasen did not respond to an end; retrying");
            SendResult::NoResponse
        }
    }
}

async fn call_bokbasen(circulation: &Circulation, loan: &Loan) -> Result<EndAck, CallError> {
    let lending = &circulation.inner.lending;
    let (Some(lending_id), Some(ended), Some(reason)) =
        (&loan.lending_id, loan.ended, loan.end_reason)
    else {
        return Ok(EndAck::Done); // Bokbasen never had it
    };
    match reason {
        EndReason::Cancelled => {
            lending
                .cancel_or_return(lending_id, ended, EndReason::Returned, "cancelled by the reader")
                .await
        }
        EndReason::Returned | EndReason::Expired | EndReason::Rejected => {
            match lending.return_loan(lending_id, ended, reason).await? {
                // Bokbasen can only cancel a loan that is still pending there.
                EndAck::StillPending => {
                    lending.cancel(lending_id, "ended before it was accepted").await
                }
                ack @ (EndAck::Done | EndAck::CancelWindowClosed | EndAck::NoSuchLoan) => Ok(ack),
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

    /// Takes all due ends of a lane, in as many batches as needed.
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
    async fn failed_end_is_expedited_once_after_an_outage() {
        let mut outbox = Outbox::default();
        let [unanswered, rejected] = [(); 2].map(|()| LoanId::generate());
        outbox.record_result(unanswered, SendResult::NoResponse);
        outbox.record_result(rejected, SendResult::NotAccepted(Some(Duration::from_secs(5))));
        outbox.expedite(false);
        assert_eq!(due(&outbox), [], "the response to another end is no reason");
        outbox.expedite(true);
        assert_eq!(due(&outbox), [unanswered]);
        assert_eq!(taken(&mut outbox, Lane::Oldest), [unanswered]);
        outbox.record_result(unanswered, SendResult::NoResponse);
        outbox.expedite(true);
        assert_eq!(due(&outbox), [], "the end itself may be at fault");
        let waits = outbox.failed[&rejected].next - Instant::now();
        assert!(waits > Duration::from_secs(4), "Bokbasen's Retry-After counts");
    }

    #[tokio::test(start_paused = true)]
    async fn one_lane_takes_the_oldest_and_one_the_newest() {
        let mut outbox = Outbox::default();
        let ends: Vec<LoanId> = (0..5).map(|_| LoanId::generate()).collect();
        ends.iter().for_each(|id| outbox.fresh.arrive(*id));
        let newest = outbox.take_due(Lane::Newest, Instant::now());
        assert_eq!(newest[0].1, ends[4]);
        outbox.fresh.waiting.extend(newest.into_iter().skip(1));
        let oldest = outbox.take_due(Lane::Oldest, Instant::now());
        let (arrival, first) = oldest[0];
        assert_eq!(first, ends[0]);
        outbox.fresh.waiting.extend(oldest.into_iter().skip(1));
        // An end that the breaker holds back keeps its place, and delays the others for a moment.
        outbox.hold_back(first, arrival, Lane::Oldest);
        assert_eq!(taken(&mut outbox, Lane::Newest), []);
        tokio::time::advance(HELD_BACK_WAIT).await;
        assert_eq!(taken(&mut outbox, Lane::Oldest), ends[..4]);
        // An end that failed in an outage precedes all others.
        outbox.fresh.arrive(ends[1]);
        outbox.record_result(ends[0], SendResult::NotSent);
        outbox.expedite(false);
        assert_eq!(taken(&mut outbox, Lane::Oldest), ends[..2]);
    }

    #[tokio::test(start_paused = true)]
    async fn oldest_lane_leaves_the_newer_half_to_the_newest_lane() {
        for waiting in [1, 2, 50, 4 * MAX_BATCH] {
            let mut outbox = Outbox::default();
            let ends: Vec<LoanId> = (0..waiting).map(|_| LoanId::generate()).collect();
            ends.iter().for_each(|id| outbox.fresh.arrive(*id));
            let oldest = outbox.take_due(Lane::Oldest, Instant::now());
            assert_eq!(oldest.len(), waiting.div_ceil(2).min(MAX_BATCH), "of {waiting}");
            assert_eq!(oldest[0].1, ends[0]);
            if waiting > 1 {
                assert_eq!(outbox.take_due(Lane::Newest, Instant::now())[0].1, ends[waiting - 1]);
            }
        }
    }

    #[test]
    fn each_lane_may_have_half_of_the_trials() {
        let capacity = |lane, passage| capacity_of(lane, 8, passage);
        for lane in Lane::ALL {
            assert!(capacity(lane, Passage::Open).has_room(3), "{lane:?}");
            assert!(!capacity(lane, Passage::Open).has_room(4), "{lane:?}");
            assert!(capacity(lane, Passage::Trial).has_room(1), "{lane:?}");
            assert!(
                !capacity(lane, Passage::Trial).has_room(2),
                "{lane:?}: the other lane needs trials"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn unsent_end_is_sent_after_the_first_response() {
        let mut outbox = Outbox::default();
        let unreached = LoanId::generate();
        for _ in 0..5 {
            outbox.record_result(unreached, SendResult::NotSent);
            assert_eq!(due(&outbox), []);
            outbox.expedite(false);
            assert_eq!(taken(&mut outbox, Lane::Newest), [unreached]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_end_keeps_its_own_backoff() {
        let mut outbox = Outbox::default();
        let (bad, good) = (LoanId::generate(), LoanId::generate());
        let mut waits = Vec::new();
        for _ in 0..10 {
            outbox.record_result(bad, SendResult::NoResponse);
            waits.push(outbox.failed[&bad].next - Instant::now());
            outbox.record_result(good, SendResult::Acknowledged);
            outbox.expedite(false);
            tokio::time::advance(LONGEST_WAIT).await;
            assert_eq!(taken(&mut outbox, Lane::Retries), [bad]);
        }
        assert!(waits[0] <= FIRST_WAIT && waits[9] >= LONGEST_WAIT.mul_f64(0.7), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= LONGEST_WAIT));
    }
}
