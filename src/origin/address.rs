//! The addresses of an origin: chooses one for each request, and records how its requests end.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use super::breaker::{Breaker, Evidence};
use super::{Origin, OriginError};
use crate::path::FilePath;
use crate::telemetry::OriginOutcome;

impl Origin {
    /// Chooses an address for a request. It prefers addresses that have not failed recently.
    ///
    /// # Errors
    /// Returns the time until the next trial if all breakers are open.
    pub(super) fn choose(&self, except: Option<usize>) -> Result<usize, Duration> {
        if self.places.len() == 1 && except.is_none() {
            return self.admit(0).map(|()| 0);
        }
        let now = Instant::now();
        let others =
            self.shared.breakers.iter().enumerate().filter(|(index, _)| Some(*index) != except);
        let (preferred, avoided): (Vec<_>, Vec<_>) =
            others.partition(|(_, breaker)| breaker.is_preferred(now));
        let mut wait = Duration::MAX;
        for (index, _) in preferred.into_iter().chain(avoided) {
            match self.admit(index) {
                Ok(()) => return Ok(index),
                Err(until) => wait = wait.min(until),
            }
        }
        Err(wait)
    }

    pub(super) fn admit(&self, address: usize) -> Result<(), Duration> {
        match self.breaker(address) {
            Some(breaker) if !breaker.is_closed() => breaker.admit(Instant::now()),
            _ => Ok(()),
        }
    }

    pub(super) fn breaker(&self, address: usize) -> Option<&Breaker> {
        self.shared.breakers.get(address)
    }

    pub(super) fn suspended(&self, wait: Duration) -> OriginError {
        self.counts.not_sent(OriginOutcome::Suspended);
        OriginError::Failed { retry_after: Some(wait) }
    }

    /// Records that a body of this address broke off or stalled before
    /// [`USEFUL_BYTES`](super::USEFUL_BYTES).
    pub(crate) fn record_useless_body(&self, path: &FilePath, address: usize) {
        self.record_failure(address, Evidence::File(hash(path)));
    }

    /// Records a failed request; without evidence, only so that other addresses are tried first.
    pub(super) fn record_attempt(&self, address: usize, evidence: Option<Evidence>) {
        if let Some(breaker) = self.breaker(address) {
            breaker.avoid(Instant::now());
        }
        if let Some(evidence) = evidence {
            self.record_failure(address, evidence);
        }
    }

    pub(super) fn record_success(&self, address: usize, now: Instant) {
        if self.breaker(address).is_some_and(|breaker| breaker.record_success(now)) {
            self.record_suspended();
            tracing::info!(
                origin = self.settings.name,
                place = self.places.get(address).map(|place| place.name()),
                "an origin address works again"
            );
        }
    }

    fn record_suspended(&self) {
        let open = self.shared.breakers.iter().filter(|breaker| !breaker.is_closed());
        self.counts.suspended(open.count());
    }

    fn record_failure(&self, address: usize, evidence: Evidence) {
        if self
            .breaker(address)
            .is_some_and(|breaker| breaker.record_failure(Instant::now(), evidence))
        {
            self.record_suspended();
            tracing::warn!(
                origin = self.settings.name,
                place = self.places.get(address).map(|place| place.name()),
                "most requests to an origin address fail; sending it a trial from time to time only"
            );
        }
    }
}

/// Returns the key by which a breaker tells files apart.
pub(super) fn hash(path: &FilePath) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}
