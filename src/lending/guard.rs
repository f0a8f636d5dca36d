//! Admission of calls: one bulkhead for all, and one breaker for each kind of call.
//!
//! They protect Bokbasen from loangate, and each kind of call from the others. `transport` requests
//! a permit for every call.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::CallError;
use super::breaker::{Breaker, Outcome, Passage, Subject};
use super::bulkhead::{Bulkhead, Claim, MIN_TOTAL, Slot};
use super::kind::{CallKind, PerKind};
use crate::lock::lock;

/// The bulkhead and the breakers.
#[derive(Debug)]
pub(super) struct Guard {
    bulkhead: Bulkhead,
    /// The total of the bulkhead if no other process shares it.
    concurrency: usize,
    breakers: PerKind<Mutex<Breaker>>,
    /// Randomly keyed, so that no client can choose names that collide.
    hasher: RandomState,
}

/// Permission to send one call. Dropping it frees the slot.
#[derive(Debug)]
pub(super) struct Permit {
    slot: Slot,
    is_trial: bool,
}

impl Guard {
    pub(super) fn new(concurrency: usize) -> Guard {
        let (bulkhead, breakers) = (Bulkhead::new(concurrency), PerKind::default());
        Guard { bulkhead, concurrency, breakers, hasher: RandomState::new() }
    }

    /// Divides the calls in flight among this number of processes.
    pub(super) fn share(&self, processes: usize) {
        match processes {
            0 | 1 => self.bulkhead.resize(self.concurrency.max(MIN_TOTAL)),
            several => self.bulkhead.resize(self.concurrency.max(MIN_TOTAL) / several),
        }
    }

    /// Returns the subject of a call about one name.
    pub(super) fn subject(&self, name: impl Hash) -> Subject {
        let hash = self.hasher.hash_one(name);
        Subject { counted: hash, suspected: hash, group: hash }
    }

    /// Returns the subject of a call about one loan whose failure makes a whole title suspect.
    pub(super) fn subject_within(&self, name: impl Hash, suspected: impl Hash) -> Subject {
        let suspected = self.hasher.hash_one(suspected);
        Subject { counted: self.hasher.hash_one(name), suspected, group: suspected }
    }

    /// Returns the subject in another bulkhead group, for calls whose outcome is independent of
    /// other calls about it.
    pub(super) fn with_group(&self, subject: Subject, name: impl Hash) -> Subject {
        Subject { group: self.hasher.hash_one(name), ..subject }
    }

    /// Waits up to `patience` for a permit.
    pub(super) async fn enter(
        &self,
        kind: CallKind,
        subject: Subject,
        patience: Duration,
    ) -> Result<Permit, CallError> {
        let suspect = self.breaker(kind).is_suspect(subject);
        let claim = Claim { kind, group: subject.group, suspect };
        let Some(slot) = self.bulkhead.enter(claim, patience).await else {
            return Err(CallError::NotSent("too many calls of its kind are in flight".to_owned()));
        };
        match self.breaker(kind).pass(suspect) {
            Passage::Open => Ok(Permit { slot, is_trial: false }),
            Passage::Trial => Ok(Permit { slot, is_trial: true }),
            Passage::Closed(_) => {
                Err(CallError::NotSent("too many calls of its kind failed recently".to_owned()))
            }
        }
    }

    /// Records the outcome of a call and frees its slot. Returns the breaker's new state (true:
    /// open) if it changed.
    pub(super) fn note(
        &self,
        kind: CallKind,
        subject: Subject,
        mut permit: Permit,
        outcome: Outcome,
    ) -> Option<bool> {
        if outcome == Outcome::Answered {
            permit.slot.set_answered();
        }
        self.breaker(kind).note(subject, outcome, permit.is_trial)
    }

    pub(super) fn is_suspect(&self, kind: CallKind, subject: Subject) -> bool {
        self.breaker(kind).is_suspect(subject)
    }

    /// Returns whether calls of this kind are sent; suspects have trials of their own.
    pub(super) fn passage(&self, kind: CallKind, suspect: bool) -> Passage {
        self.breaker(kind).passage(suspect)
    }

    pub(super) fn is_open(&self, kind: CallKind) -> bool {
        self.breaker(kind).is_open()
    }

    /// Returns the most calls of this kind in flight at once.
    pub(super) fn max_in_flight(&self, kind: CallKind) -> usize {
        self.bulkhead.max_in_flight(kind)
    }

    fn breaker(&self, kind: CallKind) -> MutexGuard<'_, Breaker> {
        lock(self.breakers.of(kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn open_breaker_holds_back_its_own_kind_only() {
        let guard = Guard::new(32);
        for number in 0..10 {
            let subject = guard.subject(number);
            if let Ok(permit) = guard.enter(CallKind::End, subject, PATIENCE).await {
                guard.note(CallKind::End, subject, permit, Outcome::Failed);
            }
        }
        let subject = guard.subject("another");
        for kind in CallKind::ALL {
            let held_back = guard.enter(kind, subject, PATIENCE).await.is_err();
            assert_eq!(held_back, kind == CallKind::End, "{kind:?}");
        }
    }
}
