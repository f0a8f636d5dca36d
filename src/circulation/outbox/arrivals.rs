//! Ends as they arrive from the ledger, before they are queued.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::lanes::Lane;
use super::{FULL_READ_INTERVAL, Outbox};
use crate::circulation::{Circulation, log_ledger_failure};
use crate::ledger::{EndPosition, Ends, FeedBarrier, Ledger, LedgerError};
use crate::loan::LoanId;

/// How long an end that another process has noted is left to it, if the two do not divide the work.
/// Both would send it otherwise. The other process may be gone, so this one sends it afterwards.
const LEFT_TO_OTHERS: Duration = Duration::from_secs(5);

/// Why ends are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// This process has noted one.
    Noted,
    /// It is time to: another process may have noted one.
    Poll,
}

/// Ends that are not sent yet.
#[derive(Debug)]
pub(super) struct Held {
    /// Other processes may not have read them before it is past.
    barrier: FeedBarrier,
    /// When they may be sent.
    from: Instant,
    ends: Vec<LoanId>,
}

/// The position in the ledger, and the ends that wait for other processes.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// Where the next query continues; none before the first query.
    position: Option<EndPosition>,
    /// When all waiting ends were last read.
    read_all: Option<Instant>,
    /// Every end that was read and is not acknowledged yet. The ledger returns some ends again, and
    /// that must not reset their backoff.
    known: HashSet<LoanId>,
    /// Ends that must wait, in the order of their arrival.
    held: Vec<Held>,
}

impl Arrivals {
    /// Whether ends must wait.
    pub(super) fn is_waiting(&self) -> bool {
        !self.held.is_empty()
    }

    async fn read(&self, circulation: &Circulation) -> Result<Ends, LedgerError> {
        let ledger = &circulation.inner.ledger;
        let is_recent = self.read_all.is_some_and(|read| read.elapsed() < FULL_READ_INTERVAL);
        match &self.position {
            Some(position) if is_recent => ledger.ends_after(position).await,
            _ => ledger.ends_waiting().await,
        }
    }
}

impl Outbox {
    /// Reads the ends since the last query, or all.
    pub(super) async fn read_new_ends(&mut self, circulation: &Circulation, why: Why) {
        let read_at = Instant::now();
        let from = read_at + wait_for_others(&circulation.inner.ledger, why);
        let read = async {
            let ends = self.arrivals.read(circulation).await?;
            let known = &self.arrivals.known;
            let new: Vec<LoanId> =
                ends.loans.iter().copied().filter(|id| !known.contains(id)).collect();
            // After the ends were read: every process that has not seen them counts.
            let barrier = match new.is_empty() {
                true => None,
                false => Some(circulation.inner.ledger.feed_barrier().await?),
            };
            Ok((ends, new, barrier))
        };
        match read.await {
            Ok((ends, new, barrier)) => {
                if ends.is_complete {
                    self.arrivals.read_all = Some(read_at);
                    self.drop_others(&ends.loans);
                }
                self.arrivals.known.extend(&new);
                self.arrivals.held.extend(barrier.map(|barrier| Held { barrier, from, ends: new }));
                self.arrivals.position = Some(ends.next);
                self.release_arrivals();
            }
            Err(error) => log_ledger_failure("reading the ends to send", &error),
        }
    }

    /// Queues the ends that every process has read, and that are not left to another one.
    pub(super) fn release_arrivals(&mut self) {
        let now = Instant::now();
        let is_past = |held: &mut Held| held.from <= now && held.barrier.is_past();
        let past: Vec<Held> = self.arrivals.held.extract_if(.., is_past).collect();
        past.into_iter().for_each(|held| self.arrive(held.ends));
    }

    /// Adds the newest ends.
    pub(super) fn arrive(&mut self, ends: Vec<LoanId>) {
        // The ends read as the newest no longer are.
        self.return_unsent(Lane::Newest);
        ends.into_iter().for_each(|id| self.fresh.arrive(id));
    }

    /// Forgets an end that was acknowledged.
    pub(super) fn forget(&mut self, id: LoanId) {
        self.retries.forget(id);
        self.arrivals.known.remove(&id);
    }

    /// Drops the waiting ends that are not among all those of the ledger: another process has sent
    /// them, or their loans have become its work. Calls in flight continue.
    pub(super) fn drop_others(&mut self, all: &[LoanId]) {
        self.return_unsent(Lane::Newest);
        self.return_unsent(Lane::Oldest);
        let all: HashSet<LoanId> = all.iter().copied().collect();
        let known = &mut self.arrivals.known;
        let mut keep = |id: LoanId| {
            let is_kept = all.contains(&id);
            if !is_kept {
                known.remove(&id);
            }
            is_kept
        };
        self.fresh.waiting.retain(|_, id| keep(*id));
        self.retries.retain(&mut keep);
        self.arrivals.held.iter_mut().for_each(|held| held.ends.retain(|id| keep(*id)));
    }
}

fn wait_for_others(ledger: &Ledger, why: Why) -> Duration {
    let is_divided = ledger.sharers() > 1;
    match why {
        Why::Poll if ledger.other_processes() > 0 && !is_divided => LEFT_TO_OTHERS,
        _ => Duration::ZERO,
    }
}
