//! Acknowledgements of Bokbasen, collected so that many are written in one transaction.

use std::time::Duration;

use tokio::time::Instant;

use super::MAX_BATCH;
use crate::loan::LoanId;

/// How long an acknowledgement waits for others in flight, so that they are written together.
const ACKNOWLEDGEMENT_DELAY: Duration = Duration::from_millis(250);

/// Ends that Bokbasen acknowledged and whose acknowledgement is not written yet.
#[derive(Debug, Default)]
pub(super) struct Acknowledgements {
    ends: Vec<LoanId>,
    /// When the first of them was acknowledged.
    first: Option<Instant>,
}

impl Acknowledgements {
    pub(super) fn add(&mut self, end: LoanId) {
        self.ends.push(end);
        self.first.get_or_insert_with(Instant::now);
    }

    /// Removes and returns the ends to write now: none while more acknowledgements are expected
    /// soon.
    pub(super) fn take_batch(&mut self, calls_in_flight: bool) -> Vec<LoanId> {
        let more_expected = calls_in_flight && self.ends.len() < MAX_BATCH;
        let is_recent = self.first.is_some_and(|since| since.elapsed() < ACKNOWLEDGEMENT_DELAY);
        if more_expected && is_recent {
            return Vec::new();
        }
        self.first = None;
        std::mem::take(&mut self.ends)
    }

    /// Returns how long the first of them still waits.
    pub(super) fn wait(&self) -> Option<Duration> {
        self.first.map(|since| ACKNOWLEDGEMENT_DELAY.saturating_sub(since.elapsed()))
    }
}
