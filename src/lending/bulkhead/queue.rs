//! Callers that wait for a slot of one kind, in order of arrival.
//!
//! Callers whose group is at its limit are held back by group, so that they do not block callers of
//! other groups.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::oneshot;

use super::{Claim, Slot};

/// The callers that wait for a slot of one kind.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) waiting: VecDeque<Waiting>,
    /// Callers whose group is at its limit, by group.
    pub(super) held_back: BTreeMap<u64, VecDeque<Waiting>>,
}

/// A caller that waits for a slot.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) number: u64,
    pub(super) claim: Claim,
    pub(super) turn: oneshot::Sender<Slot>,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.held_back.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.held_back.values().map(VecDeque::len).sum::<usize>()
    }

    /// Adds a caller at the end.
    pub(super) fn push(&mut self, waiting: Waiting) {
        self.waiting.push_back(waiting);
    }

    /// Removes callers that stopped waiting.
    pub(super) fn remove_closed(&mut self) {
        for queue in self.held_back.values_mut().chain([&mut self.waiting]) {
            queue.retain(|waiting| !waiting.turn.is_closed());
        }
        self.held_back.retain(|_, queue| !queue.is_empty());
    }

    pub(super) fn next_held_back(&mut self, group: u64) -> Option<Waiting> {
        let queue = self.held_back.get_mut(&group)?;
        let next = queue.pop_front();
        if queue.is_empty() {
            self.held_back.remove(&group);
        }
        next
    }
}
