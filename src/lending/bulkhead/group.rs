//! The slots of a group of calls that may hang together, such as the begins of one title.

use std::time::Duration;

use tokio::time::Instant;

/// The length of a counting period: an answer of a group counts for one to two periods.
pub(super) const ANSWER_PERIOD: Duration = Duration::from_secs(1);

/// The slots that a group holds, and its answered calls.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) in_use: usize,
    answered: usize,
    answered_previously: usize,
    /// The start of the period that `answered` counts.
    counted_from: Instant,
}

impl Group {
    pub(super) fn new() -> Group {
        Group { in_use: 0, answered: 0, answered_previously: 0, counted_from: Instant::now() }
    }

    pub(super) fn note_answer(&mut self, now: Instant) {
        let age = now.duration_since(self.counted_from);
        if age >= ANSWER_PERIOD {
            let is_next = age < ANSWER_PERIOD * 2;
            self.answered_previously = if is_next { self.answered } else { 0 };
            (self.answered, self.counted_from) = (0, now);
        }
        self.answered += 1;
    }

    /// Returns the number of calls answered within the last one to two periods.
    pub(super) fn recent_answers(&self, now: Instant) -> usize {
        let age = now.duration_since(self.counted_from);
        if age < ANSWER_PERIOD {
            self.answered_previously + self.answered
        } else if age < ANSWER_PERIOD * 2 {
            self.answered
        } else {
            0
        }
    }
}
