//! Answers of the gate's own that an HTTP/2 client has not taken yet.
//!
//! Such an answer waits for the client's window and holds nothing of the connection. `http2` counts
//! them here for the connection's deadlines.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The answers on one connection. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingAnswers(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    waiting: AtomicUsize,
    taken: AtomicU64,
}

/// One answer, until its last byte is handed to HTTP/2 or its stream is reset.
#[derive(Debug)]
pub(super) struct PendingAnswer(PendingAnswers);

impl PendingAnswers {
    /// Counts an answer for as long as the result is held.
    pub(super) fn enter(&self) -> PendingAnswer {
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        PendingAnswer(self.clone())
    }

    /// How many answers wait to be taken.
    pub(super) fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// How many were taken, or given up.
    pub(super) fn taken(&self) -> u64 {
        self.0.taken.load(Ordering::Relaxed)
    }
}

impl Drop for PendingAnswer {
    fn drop(&mut self) {
        self.0.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.0.taken.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_waits_until_it_is_dropped() {
        let answers = PendingAnswers::default();
        let answer = answers.enter();
        assert_eq!((answers.waiting(), answers.taken()), (1, 0));
        drop(answer);
        assert_eq!((answers.waiting(), answers.taken()), (0, 1));
    }
}
