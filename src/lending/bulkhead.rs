//! Limits on the calls of each kind in flight at once.
//!
//! `lending.concurrency` is the total. Each kind has guaranteed slots that no other kind can take,
//! so that hanging calls of one kind do not block the others. Polls, ends and reads also have a
//! maximum. Begins may use every slot that is not guaranteed to another kind, and get a free slot
//! first.
//!
//! A process that shares the total with others may have fewer than [`MIN_TOTAL`] slots, too few to
//! guarantee any. Then the kinds take turns, and hanging begins or polls leave the last slot to the
//! other kinds. Otherwise a standing queue of begins would stop the polls that begins wait for.
//!
//! A suspect is a loan or a title whose last call failed. All suspects of a kind share half of its
//! slots, so that subjects which Bokbasen cannot handle leave room for the rest.
//!
//! Groups limit calls that hang before the first one fails, such as the begins of one title:
//!
//! - A group may have as many slots as are free beside it. A single group gets half of the slots, a
//!   second one half of the rest.
//! - It may have one more for each of its calls answered within the last second or two, so that a
//!   popular title is fast.
//! - It never has more than seven eighths of the slots.

mod group;
mod queue;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::kind::{CallKind, PerKind};
use crate::lock::lock;
use group::Group;
use queue::{Queue, Waiting};

/// The minimum total. Below it, suspects could take every slot of a kind.
pub(super) const MIN_TOTAL: usize = 8;
/// The most calls of a kind that wait for a slot; suspects have a queue of the same length. Calls
/// further back would time out before their turn.
const MAX_WAITING: usize = 10_000;

/// The slots of all kinds, shared between clones.
#[derive(Clone, Debug)]
pub(super) struct Bulkhead {
    slots: Arc<Mutex<Slots>>,
}

/// A request for a slot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Claim {
    pub(super) kind: CallKind,
    /// A hash of the likely cause of a hang: for a begin, the title at its library.
    pub(super) group: u64,
    /// Whether the last call about the same subject failed.
    pub(super) suspect: bool,
}

#[derive(Debug)]
struct Slots {
    total: usize,
    kinds: PerKind<KindSlots>,
    /// The queue number of the next caller that waits.
    next_number: u64,
    /// The position in [`CallKind::ALL`] of the kind that gets the next free slot first.
    first_kind: usize,
}

/// The slots of one kind.
#[derive(Debug, Default)]
struct KindSlots {
    guaranteed: usize,
    max: usize,
    in_use: usize,
    suspects_in_use: usize,
    /// The groups that hold slots.
    groups: HashMap<u64, Group>,
    queue: Queue,
    suspects_queue: Queue,
}

/// A slot, which is freed when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Mutex<Slots>>,
    claim: Claim,
    is_answered: bool,
}

impl Bulkhead {
    /// Raises a total below [`MIN_TOTAL`] to it.
    pub(super) fn new(total: usize) -> Bulkhead {
        let kinds = PerKind::default();
        let mut slots = Slots { total: 0, kinds, next_number: 0, first_kind: 0 };
        slots.resize(total.max(MIN_TOTAL));
        Bulkhead { slots: Arc::new(Mutex::new(slots)) }
    }

    /// Changes the total, to at least 1. Calls in flight keep their slots.
    pub(super) fn resize(&self, total: usize) {
        lock(&self.slots).resize(total.max(1));
        admit(&self.slots);
    }

    /// Returns the most calls of this kind in flight at once.
    pub(super) fn max_in_flight(&self, kind: CallKind) -> usize {
        lock(&self.slots).kinds.of(kind).max
    }

    /// Waits up to `patience` for a slot; none after that, or if the queue is full.
    pub(super) async fn enter(&self, claim: Claim, patience: Duration) -> Option<Slot> {
        let turn = {
            let mut slots = lock(&self.slots);
            if slots.take_at_once(claim) {
                return Some(Slot::new(&self.slots, claim));
            }
            slots.enqueue(claim)?
        };
        // Callers ahead in the queue may have given up: then it is this caller's turn already.
        admit(&self.slots);
        tokio::time::timeout(patience, turn).await.ok()?.ok()
    }
}

impl Slots {
    fn resize(&mut self, total: usize) {
        self.total = total;
        self.first_kind = 0;
        let mut set = |kind: CallKind, guaranteed: usize, max: usize| {
            let slots = self.kinds.of_mut(kind);
            (slots.guaranteed, slots.max) = (guaranteed, max);
        };
        if total < MIN_TOTAL {
            // Too few to guarantee any: every kind would wait for the others.
            let half = total.div_ceil(2);
            let all_but_one = (total - 1).max(1);
            set(CallKind::Begin, 0, all_but_one);
            set(CallKind::Poll, 0, all_but_one);
            set(CallKind::End, 0, half);
            set(CallKind::Read, 0, half);
            return;
        }
        let (quarter, eighth) = (total / 4, total / 8);
        let read = (total / 16).max(1);
        set(CallKind::Begin, quarter, total - 2 * eighth - read);
        // Each begin needs a poll or two: with fewer slots, begins would wait for their polls.
        set(CallKind::Poll, eighth, total / 2);
        set(CallKind::End, eighth, quarter);
        set(CallKind::Read, read, quarter);
    }

    /// Returns the number of slots that are free for a kind.
    fn free(&self, kind: CallKind) -> usize {
        let own = self.kinds.of(kind);
        let mut unavailable = 0;
        for other in CallKind::ALL {
            let slots = self.kinds.of(other);
            let reserved = if other == kind { 0 } else { slots.guaranteed };
            unavailable += slots.in_use.max(reserved);
        }
        own.max.saturating_sub(own.in_use).min(self.total.saturating_sub(unavailable))
    }

    /// Whether a slot is free for a call, before its group's limit.
    fn has_room(&self, kind: CallKind, suspect: bool) -> bool {
        let own = self.kinds.of(kind);
        let is_closed = suspect && own.suspects_in_use >= (own.max / 2).max(1);
        !is_closed && self.free(kind) > 0
    }

    /// Takes a slot if one is free and no other caller waits for it.
    fn take_at_once(&mut self, claim: Claim) -> bool {
        let own = self.kinds.of(claim.kind);
        let is_first =
            self.has_room(claim.kind, claim.suspect) && own.queue(claim.suspect).is_empty();
        let takes = is_first && own.allows(&claim, self.free(claim.kind));
        if takes {
            self.take(claim);
        }
        takes
    }

    /// Queues a caller; none if the queue is full.
    fn enqueue(&mut self, claim: Claim) -> Option<oneshot::Receiver<Slot>> {
        let queue = self.kinds.of_mut(claim.kind).queue_mut(claim.suspect);
        if queue.len() >= MAX_WAITING {
            queue.remove_closed();
        }
        if queue.len() >= MAX_WAITING {
            return None;
        }
        let (turn, receiver) = oneshot::channel();
        queue.push(Waiting { number: self.next_number, claim, turn });
        self.next_number += 1;
        Some(receiver)
    }

    fn take(&mut self, claim: Claim) {
        let own = self.kinds.of_mut(claim.kind);
        own.in_use += 1;
        own.suspects_in_use += usize::from(claim.suspect);
        own.groups.entry(claim.group).or_insert_with(Group::new).in_use += 1;
    }

    fn release(&mut self, claim: Claim, is_answered: bool) {
        let own = self.kinds.of_mut(claim.kind);
        own.in_use = own.in_use.saturating_sub(1);
        own.suspects_in_use = own.suspects_in_use.saturating_sub(usize::from(claim.suspect));
        let Some(group) = own.groups.get_mut(&claim.group) else { return };
        group.in_use = group.in_use.saturating_sub(1);
        if is_answered {
            group.note_answer(Instant::now());
        }
        if group.in_use == 0 {
            own.groups.remove(&claim.group);
        }
    }

    /// Dequeues the next caller that may have a slot, and takes the slot for it.
    fn next(&mut self) -> Option<Waiting> {
        let count = CallKind::ALL.len();
        for position in (self.first_kind..count).chain(0..self.first_kind) {
            let Some(kind) = CallKind::ALL.get(position) else { continue };
            if let Some(waiting) = self.next_of(*kind) {
                if self.total < MIN_TOTAL {
                    self.first_kind = (position + 1) % count;
                }
                return Some(waiting);
            }
        }
        None
    }

    fn next_of(&mut self, kind: CallKind) -> Option<Waiting> {
        for suspect in [false, true] {
            while self.has_room(kind, suspect) {
                let free = self.free(kind);
                let Some(waiting) = self.kinds.of_mut(kind).next(suspect, free) else { break };
                if !waiting.turn.is_closed() {
                    self.take(waiting.claim);
                    return Some(waiting);
                }
            }
        }
        None
    }
}

impl KindSlots {
    fn queue(&self, suspect: bool) -> &Queue {
        if suspect { &self.suspects_queue } else { &self.queue }
    }

    fn queue_mut(&mut self, suspect: bool) -> &mut Queue {
        if suspect { &mut self.suspects_queue } else { &mut self.queue }
    }

    /// Whether the group of a call may take one of the `free` slots.
    fn allows(&self, claim: &Claim, free: usize) -> bool {
        let Some(group) = self.groups.get(&claim.group) else { return true };
        let max = self.max - (self.max / 8).max(1);
        let answers = if claim.suspect { 0 } else { group.recent_answers(Instant::now()) };
        group.in_use < (free + answers).min(max)
    }

    /// Dequeues the next caller that may take one of the `free` slots, in order of arrival.
    fn next(&mut self, suspect: bool, free: usize) -> Option<Waiting> {
        self.hold_back(suspect, free);
        let queue = self.queue(suspect);
        let held_back = queue.held_back.iter().filter_map(|(group, callers)| {
            let first = callers.front().filter(|first| self.allows(&first.claim, free))?;
            Some((first.number, *group))
        });
        let (held_back, first) = (held_back.min(), queue.waiting.front());
        match (held_back, first.map(|first| first.number)) {
            (Some((number, group)), first) if first.is_none_or(|first| number < first) => {
                self.queue_mut(suspect).next_held_back(group)
            }
            _ => self.queue_mut(suspect).waiting.pop_front(),
        }
    }

    /// Moves callers at the front whose group is at its limit into `held_back`, so that they do not
    /// block callers of other groups.
    fn hold_back(&mut self, suspect: bool, free: usize) {
        while let Some(first) = self.queue(suspect).waiting.front()
            && !self.allows(&first.claim, free)
        {
            let queue = self.queue_mut(suspect);
            let Some(first) = queue.waiting.pop_front() else { return };
            queue.held_back.entry(first.claim.group).or_default().push_back(first);
        }
    }
}

/// Hands free slots to waiting callers.
fn admit(slots: &Arc<Mutex<Slots>>) {
    loop {
        let next = lock(slots).next();
        let Some(Waiting { claim, turn, .. }) = next else { return };
        // Sent without the lock: if the caller has just stopped waiting, the slot is dropped here,
        // which takes the lock again.
        let _ = turn.send(Slot::new(slots, claim));
    }
}

impl Slot {
    fn new(slots: &Arc<Mutex<Slots>>, claim: Claim) -> Slot {
        Slot { slots: slots.clone(), claim, is_answered: false }
    }

    /// Records that Bokbasen answered the call.
    pub(super) fn set_answered(&mut self) {
        self.is_answered = true;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.slots).release(self.claim, self.is_answered);
        admit(&self.slots);
    }
}

#[cfg(test)]
mod tests;
