//! Responses without a file that wait for an HTTP/2 client to read them.
//!
//! Such a response waits for the client's flow-control window and does not keep the connection from
//! being idle. `http2` counts them here for the connection's deadlines.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The pending responses on one connection. Clones share the counters.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingResponses(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    waiting: AtomicUsize,
    finished: AtomicU64,
}

/// A pending response, until its last byte is queued in `h2` or its stream is reset.
#[derive(Debug)]
pub(super) struct PendingResponse(PendingResponses);

impl PendingResponses {
    /// Counts a response as waiting until the returned guard is dropped.
    pub(super) fn enter(&self) -> PendingResponse {
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        PendingResponse(self.clone())
    }

    /// The number of responses that wait for the client.
    pub(super) fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// The number of responses that were sent or reset.
    pub(super) fn finished(&self) -> u64 {
        self.0.finished.load(Ordering::Relaxed)
    }
}

impl Drop for PendingResponse {
    fn drop(&mut self) {
        self.0.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.0.finished.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_waits_until_it_is_dropped() {
        let responses = PendingResponses::default();
        let response = responses.enter();
        assert_eq!((responses.waiting(), responses.finished()), (1, 0));
        drop(response);
        assert_eq!((responses.waiting(), responses.finished()), (0, 1));
    }
}
