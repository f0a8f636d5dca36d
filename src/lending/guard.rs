//! What protects Bokbasen from us, and the kinds of calls from each other: a bulkhead and a breaker
//! for each kind.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::CallError;
use super::breaker::{Breaker, Ended, Passage, Subject};
use super::bulkhead::{Bulkhead, Claim, Slot};
use super::kind::{CallKind, PerKind};

/// The bulkhead and the breakers.
#[derive(Debug)]
pub(super) struct Guard {
    bulkhead: Bulkhead,
    breakers: PerKind<Mutex<Breaker>>,
    /// Keyed by chance, so that nobody can choose names that count as one.
    hasher: RandomState,
}

/// Permission for one call.
#[derive(Debug)]
pub(super) struct Pass {
    slot: Slot,
    is_trial: bool,
}

impl Guard {
    pub(super) fn new(concurrency: usize) -> Guard {
        let (bulkhead, breakers) = (Bulkhead::new(concurrency), PerKind::default());
        Guard { bulkhead, breakers, hasher: RandomState::new() }
    }

    /// The subject of a call that is about this alone.
    pub(super) fn subject(&self, name: impl Hash) -> Subject {
        let hash = self.hasher.hash_one(name);
        Subject { counted: hash, suspected: hash, group: hash }
    }

    /// The subject of a call about one loan, whose failure makes more than that loan suspect.
    pub(super) fn subject_within(&self, name: impl Hash, suspected: impl Hash) -> Subject {
        let suspected = self.hasher.hash_one(suspected);
        Subject { counted: self.hasher.hash_one(name), suspected, group: suspected }
    }

    /// The same subject, for calls whose answers say nothing of other calls about it.
    pub(super) fn apart(&self, subject: Subject, name: impl Hash) -> Subject {
        Subject { group: self.hasher.hash_one(name), ..subject }
    }

    /// Permission for one call, waited for as long as `patience`.
    pub(super) async fn enter(
        &self,
        kind: CallKind,
        subject: Subject,
        patience: Duration,
    ) -> Result<Pass, CallError> {
        let suspect = self.breaker(kind).is_suspect(subject);
        let claim = Claim { kind, group: subject.group, suspect };
        let Some(slot) = self.bulkhead.enter(claim, patience).await else {
            return Err(CallError::NotSent("too many calls of its kind are in flight".to_owned()));
        };
        match self.breaker(kind).pass(suspect) {
            Passage::Open => Ok(Pass { slot, is_trial: false }),
            Passage::Trial => Ok(Pass { slot, is_trial: true }),
            Passage::Closed(_) => {
                Err(CallError::NotSent("too many calls of its kind failed recently".to_owned()))
            }
        }
    }

    /// Notes how a call ended, which frees its slot, and returns whether the breaker is open now,
    /// where that changed.
    pub(super) fn note(
        &self,
        kind: CallKind,
        subject: Subject,
        mut pass: Pass,
        ended: Ended,
    ) -> Option<bool> {
        if ended == Ended::Answered {
            pass.slot.set_answered();
        }
        self.breaker(kind).note(subject, ended, pass.is_trial)
    }

    pub(super) fn is_suspect(&self, kind: CallKind, subject: Subject) -> bool {
        self.breaker(kind).is_suspect(subject)
    }

    /// Whether calls of this kind go out, of subjects that failed last or did not.
    pub(super) fn passage(&self, kind: CallKind, suspect: bool) -> Passage {
        self.breaker(kind).passage(suspect)
    }

    pub(super) fn is_open(&self, kind: CallKind) -> bool {
        self.breaker(kind).is_open()
    }

    /// The most calls of this kind at once.
    pub(super) fn most(&self, kind: CallKind) -> usize {
        self.bulkhead.most(kind)
    }

    fn breaker(&self, kind: CallKind) -> MutexGuard<'_, Breaker> {
        self.breakers.of(kind).lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn an_open_breaker_holds_back_its_own_kind_only() {
        let guard = Guard::new(32);
        for number in 0..10 {
            let subject = guard.subject(number);
            if let Ok(pass) = guard.enter(CallKind::End, subject, PATIENCE).await {
                guard.note(CallKind::End, subject, pass, Ended::Failed);
            }
        }
        let subject = guard.subject("another");
        for kind in CallKind::ALL {
            let held_back = guard.enter(kind, subject, PATIENCE).await.is_err();
            assert_eq!(held_back, kind == CallKind::End, "{kind:?}");
        }
    }
}
