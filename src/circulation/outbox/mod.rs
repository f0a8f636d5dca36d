//! The outbox of ends: each is sent until Bokbasen has acknowledged it, across restarts.
//!
//! A loan in state `ending` is an end to send. There is no second list that could differ from the
//! ledger. The outbox reads the newest ones at once, and all of them each minute: support may have
//! repaired a row, and the work of another process may have become this one's. It ignores an end
//! that it has already. A loan has one end, so the order within a loan is preserved.
//!
//! Other processes may still deliver files under an ended loan, until they have read of its end. An
//! end therefore waits until they all have, see [`crate::ledger::FeedBarrier`]. The ledger divides
//! the ends among the processes, so that each is sent once.
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

mod acknowledgements;
mod arrivals;
mod count;
mod fresh;
mod lanes;
mod read;
mod retries;
mod send;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use super::{Circulation, log_ledger_failure};
use crate::ledger::{Cause, LedgerError};
use crate::loan::{Event, LoanId};
use acknowledgements::Acknowledgements;
use arrivals::Arrivals;
use count::count_ends;
use fresh::Fresh;
use lanes::{Capacity, Lane, Queues, capacity};
use retries::Retries;
use send::{SendResult, send};

/// Maximum number of ends in one ledger query, and of acknowledgements in one batch of writes.
const MAX_BATCH: usize = 128;
/// Wait before an end that the breaker held back is tried again.
const HELD_BACK_WAIT: Duration = Duration::from_millis(200);
/// Interval of ledger queries without a notification: another process may have ended a loan.
const LEDGER_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which all waiting ends are read.
const FULL_READ_INTERVAL: Duration = Duration::from_secs(60);
/// Interval at which ends that wait for other processes are checked.
const BARRIER_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// A process that did nothing for so long may have been suspended, and others have its ends.
const LONGEST_TURN: Duration = Duration::from_secs(30);
/// Interval at which waiting ends are counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// State of the outbox task.
#[derive(Default)]
struct Outbox {
    fresh: Fresh,
    retries: Retries,
    queues: Queues,
    /// Calls in flight. They are tasks because futures that only this task polls would hold ledger
    /// connections while this task waits for the ledger.
    sending: JoinSet<SendResult>,
    /// End, arrival number and lane of each of these tasks.
    senders: HashMap<task::Id, (LoanId, u64, Lane)>,
    acknowledgements: Acknowledgements,
    arrivals: Arrivals,
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
    let mut turned = Instant::now();
    loop {
        if std::mem::replace(&mut turned, Instant::now()).elapsed() > LONGEST_TURN {
            outbox.read_all_ends(&circulation).await;
        }
        outbox.release_arrivals();
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
    /// Sends due ends, within the limit of each lane.
    async fn send_ready(&mut self, circulation: &Circulation) {
        for lane in Lane::ALL {
            loop {
                let capacity = capacity(circulation, lane);
                self.was_held_back |= !matches!(capacity, Capacity::Open(_));
                if !capacity.has_room(self.queues.of(lane).in_flight) {
                    break;
                }
                self.take_over(circulation, lane);
                if self.queues.of(lane).next.is_empty() && !self.read_next(circulation, lane).await
                {
                    break;
                }
                let Some((arrival, loan)) = self.queues.of(lane).next.pop_front() else { continue };
                self.queues.of(lane).in_flight += 1;
                let (id, circulation) = (loan.id, circulation.clone());
                let sender = self.sending.spawn(async move {
                    circulation.traced("end of a loan", send(&circulation, &loan)).await
                });
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
        let is_needed = self.queues.of(lane).next.is_empty() && self.fresh.waiting.is_empty();
        if is_needed && !capacity(circulation, other).has_room(self.queues.of(other).in_flight) {
            self.return_unsent(other);
        }
    }

    /// Moves the fresh ends that a lane has read but not sent back to the waiting ends.
    fn return_unsent(&mut self, lane: Lane) {
        let unsent = std::mem::take(&mut self.queues.of(lane).next);
        self.fresh.waiting.extend(unsent.into_iter().map(|(arrival, loan)| (arrival, loan.id)));
    }

    /// Returns how long the task can sleep if no event wakes it.
    fn wait(&mut self, circulation: &Circulation) -> Duration {
        let now = Instant::now();
        let write = self.acknowledgements.wait().unwrap_or(LEDGER_POLL_INTERVAL);
        let write =
            if self.arrivals.is_waiting() { write.min(BARRIER_CHECK_INTERVAL) } else { write };
        let sends =
            Lane::ALL.map(|lane| match (capacity(circulation, lane), self.next_due(lane)) {
                (Capacity::Closed(wait), Some(_)) => wait.max(Duration::from_millis(10)),
                (capacity, Some(at)) if capacity.has_room(self.queues.of(lane).in_flight) => {
                    at.saturating_duration_since(now)
                }
                _ => LEDGER_POLL_INTERVAL,
            });
        sends.into_iter().fold(write.min(LEDGER_POLL_INTERVAL), Duration::min)
    }

    /// Returns when the next waiting end of a lane may be sent.
    fn next_due(&self, lane: Lane) -> Option<Instant> {
        if lane.is_retries() { self.retries.next_due() } else { self.fresh.next_due() }
    }

    fn record_task(
        &mut self,
        circulation: &Circulation,
        sent: Result<(task::Id, SendResult), JoinError>,
    ) {
        // A task that panicked counts as unanswered, because its outcome is unknown.
        let (task, sent) = sent.unwrap_or_else(|error| (error.id(), SendResult::NoResponse));
        let Some((id, arrival, lane)) = self.senders.remove(&task) else { return };
        let queue = self.queues.of(lane);
        queue.in_flight = queue.in_flight.saturating_sub(1);
        if sent.is_response() {
            let is_open = matches!(capacity(circulation, Lane::Oldest), Capacity::Open(_));
            let is_over = is_open && std::mem::take(&mut self.was_held_back);
            self.fresh.held_until = self.fresh.held_until.filter(|_| !is_open);
            self.expedite_failed(is_over);
        }
        match sent {
            SendResult::HeldBack => self.hold_back(id, arrival, lane),
            sent => self.record_result(id, sent),
        }
    }

    /// Puts an end that the breaker held back into its old place.
    fn hold_back(&mut self, id: LoanId, arrival: u64, lane: Lane) {
        let until = Instant::now() + HELD_BACK_WAIT;
        if lane.is_retries() {
            self.retries.hold_back(id, until);
        } else {
            self.fresh.hold_back(id, arrival, until);
        }
    }

    fn record_result(&mut self, id: LoanId, sent: SendResult) {
        if sent == SendResult::Acknowledged {
            self.acknowledgements.add(id);
        } else {
            self.retries.schedule(id, sent);
        }
    }

    /// Sends failed ends before all others, now that Bokbasen responds, as far as
    /// [`Retries::expedite`] allows.
    fn expedite_failed(&mut self, outage_is_over: bool) {
        for id in self.retries.expedite(outage_is_over) {
            self.fresh.return_to_front(id);
        }
    }

    /// Writes the acknowledgements, unless more are expected soon. If the ledger fails, the end is
    /// sent again, which Bokbasen allows.
    async fn write_acknowledged(&mut self, circulation: &Circulation) {
        let acknowledged = self.acknowledgements.take_batch(!self.sending.is_empty());
        let written = acknowledged.iter().map(|id| {
            let cause = Cause { by: "outbox", detail: None };
            circulation.inner.ledger.apply(*id, Event::EndAcknowledged, cause)
        });
        for (id, written) in acknowledged.iter().zip(join_all(written).await) {
            match written {
                // Illegal: another process sent it too, and has written the acknowledgement.
                Ok(_) | Err(LedgerError::Illegal(_)) => self.forget(*id),
                Err(error) => {
                    log_ledger_failure("writing that an end was acknowledged", &error);
                    self.retries.schedule(*id, SendResult::NotAccepted(None));
                }
            }
        }
    }
}
