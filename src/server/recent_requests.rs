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
    /// The number of requests that were recorded. It says which place is next.
    recorded: u64,
}

/// How much of the rings somebody has read.
#[derive(Debug, Default)]
pub(super) struct Position(Vec<u64>);

/// What was recorded since a position.
#[derive(Debug, Default)]
pub(super) struct Unread {
    pub(super) requests: Vec<RecentRequest>,
    /// The number of further requests that newer ones have replaced.
    pub(super) missed: u64,
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
        let place = ring.recorded as usize % self.capacity;
        ring.recorded += 1;
        match ring.requests.get_mut(place) {
            Some(oldest) => {
                let replaced = std::mem::replace(oldest, request);
                drop(ring);
                drop(replaced);
            }
            None => ring.requests.push(request),
        }
    }

    /// Reads up to `limit` requests of each ring that were recorded since a position, and moves the
    /// position. Each lock is held for that many copies only.
    pub(super) fn read(&self, position: &mut Position, limit: usize) -> Unread {
        let mut unread = Unread::default();
        position.0.resize(self.rings.len(), 0);
        for (ring, read) in self.rings.iter().zip(&mut position.0) {
            let ring = lock(ring);
            let oldest = ring.recorded - ring.requests.len() as u64;
            unread.missed += oldest.saturating_sub(*read);
            *read = oldest.max(*read);
            for _ in 0..limit.min((ring.recorded - *read) as usize) {
                let place = *read as usize % self.capacity;
                unread.requests.extend(ring.requests.get(place).cloned());
                *read += 1;
            }
        }
        unread
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
    fn each_request_is_read_once_or_counted_as_missed() {
        let (recent, mut position) = (RecentRequests::new(640), Position::default());
        assert!(recent.read(&mut position, 10).requests.is_empty());
        let record = |count| {
            let ids: Vec<_> = (0..count).map(|_| RequestId::generate()).collect();
            ids.iter().for_each(|id| recent.record(request(*id)));
            ids
        };
        let mut read = |limit| {
            let mut all = Unread::default();
            loop {
                let unread = recent.read(&mut position, limit);
                all.missed += unread.missed;
                if unread.requests.is_empty() {
                    return all;
                }
                all.requests.extend(unread.requests);
            }
        };
        for count in [1, 100, 300] {
            let ids = record(count);
            let unread = read(3);
            let found = ids.iter().filter(|id| unread.requests.iter().any(|one| one.id == **id));
            assert_eq!(found.count() as u64 + unread.missed, count);
            assert_eq!(unread.requests.len() as u64 + unread.missed, count);
        }
        record(5000);
        let unread = read(1000);
        assert_eq!((unread.requests.len(), unread.missed), (640, 5000 - 640));
        assert_eq!(read(1000).missed, 0);
    }

    #[test]
    fn nothing_is_stored_if_that_is_configured() {
        let (recent, id) = (RecentRequests::new(0), RequestId::generate());
        recent.record(request(id));
        assert!(recent.find(id).is_none());
    }
}
