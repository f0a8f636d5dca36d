//! The bodies whose bytes a TLS stream has sealed and the kernel has not accepted.
//!
//! The stream counts its ciphertext here. A body is released once the kernel has accepted the
//! ciphertext up to its end.

use std::collections::VecDeque;

use crate::connection_handle::{Connection, Written};

/// The unsent bodies, and positions in the ciphertext of the connection.
#[derive(Debug, Default)]
pub(super) struct SentBodies {
    /// Ciphertext produced since the start, in bytes; an upper bound.
    produced: u64,
    /// The position in the ciphertext up to which the kernel has accepted it.
    sent: u64,
    /// The position in the ciphertext where the last released body ends.
    released_end: u64,
    /// Written parts of bodies that the kernel has not accepted, with their end in the ciphertext.
    unsent: VecDeque<(u64, Written)>,
}

impl SentBodies {
    /// Counts sealed bytes; `ciphertext` is an upper bound of their length.
    pub(super) fn record_produced(&mut self, ciphertext: u64) {
        self.produced += ciphertext;
    }

    /// Counts ciphertext that the kernel accepted, and releases the bodies that it completes.
    pub(super) fn record_sent(&mut self, sent: usize, is_all: bool) {
        self.sent = if is_all { self.produced } else { self.sent + sent as u64 };
        self.release();
    }

    /// Releases all bodies: the kernel has accepted everything, so `sent` catches up with the upper
    /// bound `produced`.
    pub(super) fn release_all(&mut self) {
        self.sent = self.produced;
        self.release();
        self.released_end = self.produced;
    }

    /// Queues the parts of bodies written since the last call. All of them are sealed.
    pub(super) fn list(&mut self, connection: &Connection) {
        let (produced, unsent) = (self.produced, &mut self.unsent);
        connection.take_written(|written| unsent.push_back((produced, written)));
    }

    fn release(&mut self) {
        while self.unsent.front().is_some_and(|(end, _)| *end <= self.sent) {
            if let Some((end, Written { body, at, count })) = self.unsent.pop_front() {
                self.released_end = end;
                body.left(at, count);
            }
        }
    }

    /// Counts the sent bytes of unfinished bodies after the connection broke: the reader may have
    /// received them.
    pub(super) fn count_unfinished(&mut self, connection: &Connection) {
        self.list(connection);
        let mut sent =
            usize::try_from(self.sent.saturating_sub(self.released_end)).unwrap_or(usize::MAX);
        for (_, Written { body, at, count }) in self.unsent.drain(..) {
            let part = count.min(sent);
            if part > 0 {
                body.left(at, part);
            }
            sent -= part;
        }
    }
}
