//! Reads the next ends of a lane from the ledger, in batches.

use std::collections::{BTreeMap, HashMap};

use tokio::time::Instant;

use super::lanes::{Capacity, Lane, capacity};
use super::send::SendResult;
use super::{MAX_BATCH, Outbox};
use crate::circulation::{Circulation, log_ledger_failure};
use crate::loan::{Loan, LoanId, LoanState};

/// Maximum number of newest ends in one ledger query. It is small because newer ends may arrive.
const MAX_NEWEST_BATCH: usize = 16;
/// Arrival number of failed ends, which have no place among the fresh ones.
const NO_ARRIVAL: u64 = 0;

impl Outbox {
    /// Reads the due ends of a lane from the ledger. Returns whether there were any.
    pub(super) async fn read_next(&mut self, circulation: &Circulation, lane: Lane) -> bool {
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
                        None => self.retries.schedule(id, SendResult::NotAccepted(None)),
                    }
                }
                if !is_open && lane != Lane::Newest {
                    // Trials in random order: the oldest ends may all be bad ones.
                    fastrand::shuffle(&mut ordered);
                }
                for (arrival, loan) in ordered {
                    let is_own = circulation.inner.ledger.sends_end_of(loan.id);
                    self.enqueue(arrival, loan, lane, is_own);
                }
            }
            Err(error) => {
                log_ledger_failure("reading an end to send", &error);
                ids.iter().for_each(|id| self.retries.schedule(*id, SendResult::NotAccepted(None)));
            }
        }
        true
    }

    /// Removes and returns the due ends of a lane, at most one batch.
    pub(super) fn take_due(&mut self, lane: Lane, now: Instant) -> Vec<(u64, LoanId)> {
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
                Lane::Retries => self.retries.take(now).map(|id| (NO_ARRIVAL, id)),
            }
        {
            due.push(next);
        }
        due
    }

    fn enqueue(&mut self, arrival: u64, loan: Loan, lane: Lane, is_own: bool) {
        if is_own && loan.state == LoanState::Ending {
            self.queues.of(lane).next.push_back((arrival, loan));
        } else {
            // Another process sent it, or has become its sender.
            self.forget(loan.id);
        }
    }
}
