//! What protects Bokbasen from us: a limit of calls at once, and a breaker that opens when calls keep failing.
//!
//! The breaker lets no call out for a while that doubles up to five seconds, then one, and closes when that one
//! is answered. Five seconds at most, since a reader waits for the end of an outage.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::CallError;

/// How many failures in a row open the breaker.
const FAILURES: u32 = 5;
/// How long it stays open: at first, and the longest that it doubles up to.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(5);

/// The limit and the breaker.
#[derive(Debug)]
pub(super) struct Guard {
    slots: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    rest: Duration,
    /// Until when no call is let out; in the past, the next call is the trial.
    open_until: Option<Instant>,
}

/// Leave for one call.
#[derive(Debug)]
pub(super) struct Leave<'a> {
    _slot: SemaphorePermit<'a>,
}

impl Guard {
    pub(super) fn new(concurrency: usize) -> Guard {
        Guard { slots: Semaphore::new(concurrency), state: Mutex::default() }
    }

    /// Leave for one call, waited for as long as `patience`.
    pub(super) async fn enter(&self, patience: Duration) -> Result<Leave<'_>, CallError> {
        let waiting = tokio::time::timeout(patience, self.slots.acquire());
        let Ok(Ok(slot)) = waiting.await else {
            return Err(CallError::NotSent("too many calls are on their way".to_owned()));
        };
        self.pass_breaker()?;
        Ok(Leave { _slot: slot })
    }

    fn pass_breaker(&self) -> Result<(), CallError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match state.open_until {
            Some(until) if until > now => {
                Err(CallError::NotSent("too many calls have failed lately".to_owned()))
            }
            Some(_) => {
                // This call is the trial; the others wait for its outcome, or for as long again.
                state.open_until = Some(now + state.rest);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// How long no call is let out.
    pub(super) fn closed_for(&self) -> Option<Duration> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let left = state.open_until?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Whether the last calls failed, so that calls are held back or only tried.
    pub(super) fn is_open(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).open_until.is_some()
    }

    /// Notes a call's outcome, and says whether the breaker is open now, where that changed.
    pub(super) fn note(&self, answered: bool) -> Option<bool> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if answered {
            let was_open = state.open_until.is_some();
            *state = State::default();
            return was_open.then_some(false);
        }
        state.failures = state.failures.saturating_add(1);
        if state.failures < FAILURES {
            return None;
        }
        let was_open = state.open_until.is_some();
        state.rest = (state.rest * 2).clamp(FIRST_REST, LONGEST_REST);
        state.open_until = Some(Instant::now() + state.rest);
        (!was_open).then_some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_hold_calls_back_until_one_is_answered() {
        let guard = Guard::new(4);
        let patience = Duration::from_secs(1);
        for _ in 0..FAILURES {
            assert!(guard.enter(patience).await.is_ok());
            guard.note(false);
        }
        assert_eq!(guard.closed_for(), Some(FIRST_REST));
        assert!(guard.enter(patience).await.is_err());
        tokio::time::advance(FIRST_REST).await;
        assert!(guard.enter(patience).await.is_ok(), "the trial is let out");
        assert!(guard.enter(patience).await.is_err(), "and nothing beside it");
        assert_eq!(guard.note(false), None);
        assert_eq!(guard.closed_for(), Some(FIRST_REST * 2));
        tokio::time::advance(FIRST_REST * 2).await;
        assert!(guard.enter(patience).await.is_ok());
        assert_eq!(guard.note(true), Some(false));
        assert!(guard.enter(patience).await.is_ok() && guard.closed_for().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_calls_go_out_than_are_allowed() {
        let guard = Guard::new(1);
        let first = guard.enter(Duration::from_secs(1)).await.unwrap();
        assert!(guard.enter(Duration::from_secs(1)).await.is_err());
        drop(first);
        assert!(guard.enter(Duration::from_secs(1)).await.is_ok());
    }
}
