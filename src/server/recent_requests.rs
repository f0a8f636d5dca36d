//! The last requests, in memory, so that support can explain one by its id.
//!
//! The dispatcher records each request when its response begins. A borrower appears as a pseudonym,
//! and a path without a link's token. A restart forgets all.
//!
//! Each request costs one uncontended lock: its random id chooses one of several rings.

use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use http::StatusCode;
use jiff::Timestamp;

use super::explain::Step;
use crate::loan::LoanKey;
use crate::lock::lock;
use crate::problem::Problem;
use crate::telemetry::{RequestId, Via};

/// The number of rings: many more than workers, so that two seldom meet.
const RINGS: usize = 64;

/// A request that was answered.
#[derive(Clone, Debug)]
pub(super) struct RecentRequest {
    pub(super) id: RequestId,
    pub(super) began: Instant,
    /// As in the log: an invented method has any length, and may be a token.
    pub(super) method: &'static str,
    /// None if it was not in normal form.
    pub(super) path: Option<Arc<str>>,
    /// The step that it reached.
    pub(super) step: Step,
    /// Who asked for which title, once that is known.
    pub(super) asked: Option<Asked>,
    pub(super) via: Via,
    pub(super) answer: Result<StatusCode, Problem>,
}

/// Who asked for which title.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) key: LoanKey,
    /// When the credential was issued.
    pub(super) issued: Option<Timestamp>,
}

/// The last requests of all workers.
#[derive(Debug)]
pub(crate) struct RecentRequests {
    rings: Box<[Mutex<Ring>]>,
    /// The number of requests in each ring; zero records nothing.
    capacity: usize,
}

#[derive(Debug, Default)]
struct Ring {
    requests: Vec<RecentRequest>,
    /// The place of the oldest request, once the ring is full.
    oldest: usize,
}

impl RecentRequests {
    /// Creates a store of about this number of requests. Zero stores none.
    pub(crate) fn new(requests: usize) -> RecentRequests {
        let rings = (0..RINGS).map(|_| Mutex::default()).collect();
        RecentRequests { rings, capacity: requests.div_ceil(RINGS) }
    }

    /// Records a request in place of the oldest one.
    pub(super) fn record(&self, request: RecentRequest) {
        if self.capacity == 0 {
            return;
        }
        let Some(ring) = self.ring(request.id) else { return };
        let mut ring = lock(ring);
        if ring.requests.len() < self.capacity {
            ring.requests.push(request);
            return;
        }
        let oldest = ring.oldest;
        ring.oldest = (oldest + 1) % self.capacity;
        if let Some(place) = ring.requests.get_mut(oldest) {
            let replaced = std::mem::replace(place, request);
            drop(ring);
            drop(replaced);
        }
    }

    /// Returns the request with this id, if it is still stored.
    pub(super) fn find(&self, id: RequestId) -> Option<RecentRequest> {
        let ring = lock(self.ring(id)?);
        ring.requests.iter().find(|request| request.id == id).cloned()
    }

    fn ring(&self, id: RequestId) -> Option<&Mutex<Ring>> {
        self.rings.get(id.low_bits() as usize % RINGS)
    }
}

/// Returns the time of day of an instant in the past.
#[allow(clippy::disallowed_methods)] // about another moment than now
pub(super) fn time_of(began: Instant) -> Timestamp {
    let at = SystemTime::now().checked_sub(began.elapsed());
    at.and_then(|at| Timestamp::try_from(at).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: RequestId) -> RecentRequest {
        RecentRequest {
            id,
            began: Instant::now(),
            method: "GET",
            path: None,
            step: Step::Path,
            asked: None,
            via: Via::None,
            answer: Ok(StatusCode::OK),
        }
    }

    #[test]
    fn newest_requests_are_found_and_memory_is_bounded() {
        let recent = RecentRequests::new(128);
        let ids: Vec<_> = (0..2000).map(|_| RequestId::generate()).collect();
        ids.iter().for_each(|id| recent.record(request(*id)));
        let stored = recent.rings.iter().map(|ring| lock(ring).requests.len()).sum::<usize>();
        assert!(stored <= 128, "{stored}");
        let found = ids.iter().filter(|id| recent.find(**id).is_some()).count();
        assert_eq!(found, stored);
        assert!(recent.find(*ids.last().unwrap()).is_some());
        assert!(recent.find(ids[0]).is_none());
    }

    #[test]
    fn nothing_is_stored_if_that_is_configured() {
        let (recent, id) = (RecentRequests::new(0), RequestId::generate());
        recent.record(request(id));
        assert!(recent.find(id).is_none());
    }
}
