//! Ends as they arrive from the ledger, before they are queued.

use std::collections::{HashSet, VecDeque};

use tokio::time::Instant;

use super::lanes::Lane;
use super::{FULL_READ_INTERVAL, Outbox};
use crate::circulation::{Circulation, log_ledger_failure};
use crate::ledger::{EndPosition, Ends, FeedBarrier, LedgerError};
use crate::loan::LoanId;

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
}

impl Arrivals {
    /// Whether ends wait for other processes.
    pub(super) fn is_waiting(&self) -> bool {
        !self.held.is_empty()
    }

    #[cfg(test)]
    pub(super) fn know(&mut self, ends: &[LoanId]) {
        self.known.extend(ends);
    }

    #[cfg(test)]
    pub(super) fn knows(&self, end: LoanId) -> bool {
        self.known.contains(&end)
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
                self.arrivals.held.extend(barrier.map(|barrier| (barrier, new)));
                self.arrivals.position = Some(ends.next);
                self.release_arrivals();
            }
            Err(error) => log_ledger_failure("reading the ends to send", &error),
        }
    }

    /// Queues the ends that every process has read.
    pub(super) fn release_arrivals(&mut self) {
        let is_past = |(barrier, _): &mut (FeedBarrier, _)| barrier.is_past();
        while let Some((_, ends)) = self.arrivals.held.pop_front_if(is_past) {
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

    /// Reads all ends that wait. If they cannot be read, forgets those that no call sends yet, of
    /// which others may have become the senders: the next query reads them.
    pub(super) async fn read_all_ends(&mut self, circulation: &Circulation) {
        self.arrivals.read_all = None;
        self.read_new_ends(circulation).await;
        if self.arrivals.read_all.is_none() {
            self.drop_others(&[]);
        }
    }

    /// Drops the waiting ends that are not among all those of the ledger: another process has sent
    /// them, or their loans have become its work. Calls in flight continue.
    pub(super) fn drop_others(&mut self, all: &[LoanId]) {
        self.return_unsent(Lane::Newest);
        self.return_unsent(Lane::Oldest);
        let all: HashSet<LoanId> = all.iter().copied().collect();
        // Those that are read already, since the breaker may hold them back for long.
        let mut others = Vec::new();
        self.queues.of(Lane::Retries).next.retain(|(_, loan)| {
            let is_kept = all.contains(&loan.id);
            others.extend((!is_kept).then_some(loan.id));
            is_kept
        });
        others.into_iter().for_each(|id| self.forget(id));
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
    }
}
