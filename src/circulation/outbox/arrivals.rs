//! Ends as they arrive from the ledger, before they are queued.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::lanes::Lane;
use super::{FULL_READ_INTERVAL, Outbox};
use crate::circulation::{Circulation, log_ledger_failure};
use crate::ledger::{EndPosition, Ends, FeedBarrier, LedgerError};
use crate::loan::LoanId;

/// How long an end of another process is left to it while it runs, if the two do not divide the
/// work. Both would send it otherwise. One that is suspended must not keep it for ever.
const LEFT_TO_OTHERS: Duration = Duration::from_secs(60);

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
    /// Ends that other processes may not have read yet, in the order of their arrival.
    held: VecDeque<(FeedBarrier, Vec<LoanId>)>,
    /// Ends that are left to other processes until then, in the order of their arrival.
    left: VecDeque<(Instant, Vec<LoanId>)>,
}

impl Arrivals {
    /// Whether ends wait for other processes.
    pub(super) fn is_waiting(&self) -> bool {
        !self.held.is_empty() || !self.left.is_empty()
    }

    /// Adds ends that were not known. Those that are not `own` are left to other processes.
    pub(super) fn add(
        &mut self,
        ends: Vec<LoanId>,
        barrier: FeedBarrier,
        own: impl Fn(LoanId) -> bool,
    ) {
        self.known.extend(&ends);
        let (own, left): (Vec<_>, Vec<_>) = ends.into_iter().partition(|id| own(*id));
        self.held.push_back((barrier, own));
        if !left.is_empty() {
            self.left.push_back((Instant::now() + LEFT_TO_OTHERS, left));
        }
    }

    /// Leaves those ends to others no more that are `own`. Other processes do not have to read them
    /// first: only processes that divide the work wait for each other.
    pub(super) fn take_back(&mut self, own: impl Fn(LoanId) -> bool) {
        for (_, ends) in &mut self.left {
            let taken = ends.extract_if(.., |id| own(*id)).collect();
            self.held.push_back((FeedBarrier::none(), taken));
        }
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
    pub(super) async fn read_new_ends(&mut self, circulation: &Circulation) {
        let read_at = Instant::now();
        let (ledger, own_ends) = (&circulation.inner.ledger, &circulation.inner.own_ends);
        let is_divided = ledger.divides_work() || ledger.other_processes() == 0;
        let read = async {
            let ends = self.arrivals.read(circulation).await?;
            let known = &self.arrivals.known;
            let new: Vec<LoanId> =
                ends.loans.iter().copied().filter(|id| !known.contains(id)).collect();
            // After the ends were read: every process that has not seen them counts.
            let barrier = match new.is_empty() {
                true => None,
                false => Some(ledger.feed_barrier().await?),
            };
            Ok((ends, new, barrier))
        };
        match read.await {
            Ok((ends, new, barrier)) => {
                if ends.is_complete {
                    self.arrivals.read_all = Some(read_at);
                    self.drop_others(&ends.loans);
                }
                if let Some(barrier) = barrier {
                    self.arrivals.add(new, barrier, |id| own_ends.forget(id) || is_divided);
                }
                // An end can be read before it is noted as this process's own.
                if !own_ends.is_empty() {
                    self.arrivals.take_back(|id| own_ends.forget(id));
                }
                if ends.is_complete {
                    own_ends.forget_older_than(FULL_READ_INTERVAL);
                }
                self.arrivals.position = Some(ends.next);
            }
            Err(error) => log_ledger_failure("reading the ends to send", &error),
        }
    }

    /// Queues the ends that every process has read, and those that were left to others for long
    /// enough, or until there are no others.
    pub(super) fn release_arrivals(&mut self, has_others: bool) {
        let is_past = |(barrier, _): &mut (FeedBarrier, _)| barrier.is_past();
        while let Some((_, ends)) = self.arrivals.held.pop_front_if(is_past) {
            self.arrive(ends);
        }
        let now = Instant::now();
        let is_over = |(until, _): &mut (Instant, _)| !has_others || *until <= now;
        while let Some((_, ends)) = self.arrivals.left.pop_front_if(is_over) {
            self.arrive(ends);
        }
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
        self.arrivals.held.iter_mut().for_each(|(_, ends)| ends.retain(|id| keep(*id)));
        self.arrivals.left.iter_mut().for_each(|(_, ends)| ends.retain(|id| keep(*id)));
    }
}
