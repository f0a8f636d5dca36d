//! Limits on the calls of each kind in flight at once.
//!
//! `lending.concurrency` is the total. Each kind has guaranteed slots that no other kind can take,
//! so that hanging calls of one kind do not block the others. Polls, ends and reads also have a
//! maximum. Begins may use every slot that is not guaranteed to another kind, and get a free slot
//! first.
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

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::kind::{CallKind, PerKind};

/// The minimum total. Below it, suspects could take every slot of a kind.
pub(super) const MIN_TOTAL: usize = 8;
/// The most calls of a kind that wait for a slot; suspects have a queue of the same length. Calls
/// further back would time out before their turn.
const MAX_WAITING: usize = 10_000;
/// The length of a counting period: an answer of a group counts for one to two periods.
const ANSWER_PERIOD: Duration = Duration::from_secs(1);

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

/// The callers that wait for a slot of one kind.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Callers whose group is at its limit, by group.
    held_back: BTreeMap<u64, VecDeque<Waiting>>,
}

/// The slots that a group holds, and its answered calls.
#[derive(Debug)]
struct Group {
    in_use: usize,
    answered: usize,
    answered_previously: usize,
    /// The start of the period that `answered` counts.
    counted_from: Instant,
}

/// A caller that waits for a slot.
#[derive(Debug)]
struct Waiting {
    number: u64,
    claim: Claim,
    turn: oneshot::Sender<Slot>,
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
        let total = total.max(MIN_TOTAL);
        let kind =
            |guaranteed: usize, max: usize| KindSlots { guaranteed, max, ..KindSlots::default() };
        let (quarter, eighth) = (total / 4, total / 8);
        let read = (total / 16).max(1);
        let kinds = PerKind {
            begin: kind(quarter, total - 2 * eighth - read),
            // Each begin needs a poll or two: with fewer slots, begins would wait for their polls.
            poll: kind(eighth, total / 2),
            end: kind(eighth, quarter),
            read: kind(read, quarter),
        };
        Bulkhead { slots: Arc::new(Mutex::new(Slots { total, kinds, next_number: 0 })) }
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

fn lock(slots: &Mutex<Slots>) -> MutexGuard<'_, Slots> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slots {
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
        queue.waiting.push_back(Waiting { number: self.next_number, claim, turn });
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
        for kind in CallKind::ALL {
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

impl Queue {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.held_back.is_empty()
    }

    fn len(&self) -> usize {
        self.waiting.len() + self.held_back.values().map(VecDeque::len).sum::<usize>()
    }

    /// Removes callers that stopped waiting.
    fn remove_closed(&mut self) {
        for queue in self.held_back.values_mut().chain([&mut self.waiting]) {
            queue.retain(|waiting| !waiting.turn.is_closed());
        }
        self.held_back.retain(|_, queue| !queue.is_empty());
    }

    fn next_held_back(&mut self, group: u64) -> Option<Waiting> {
        let queue = self.held_back.get_mut(&group)?;
        let next = queue.pop_front();
        if queue.is_empty() {
            self.held_back.remove(&group);
        }
        next
    }
}

impl Group {
    fn new() -> Group {
        Group { in_use: 0, answered: 0, answered_previously: 0, counted_from: Instant::now() }
    }

    fn note_answer(&mut self, now: Instant) {
        let age = now.duration_since(self.counted_from);
        if age >= ANSWER_PERIOD {
            let is_next = age < ANSWER_PERIOD * 2;
            self.answered_previously = if is_next { self.answered } else { 0 };
            (self.answered, self.counted_from) = (0, now);
        }
        self.answered += 1;
    }

    /// Returns the number of calls answered within the last one to two periods.
    fn recent_answers(&self, now: Instant) -> usize {
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
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    fn claim(kind: CallKind, group: u64) -> Claim {
        Claim { kind, group, suspect: false }
    }

    /// Takes slots until none is left, each in its own group.
    async fn take_all(bulkhead: &Bulkhead, kind: CallKind, suspect: bool) -> Vec<Slot> {
        let mut held = Vec::new();
        while let Some(slot) = bulkhead
            .enter(Claim { suspect, ..claim(kind, 1000 + held.len() as u64) }, PATIENCE)
            .await
        {
            held.push(slot);
        }
        held
    }

    /// Takes all slots that one group gets.
    async fn take_all_of(bulkhead: &Bulkhead, group: u64) -> Vec<Slot> {
        let mut held = Vec::new();
        while let Some(slot) = bulkhead.enter(claim(CallKind::Begin, group), PATIENCE).await {
            held.push(slot);
        }
        held
    }

    fn wait(bulkhead: &Bulkhead, claim: Claim) -> tokio::task::JoinHandle<Option<Slot>> {
        let bulkhead = bulkhead.clone();
        tokio::spawn(async move { bulkhead.enter(claim, PATIENCE * 100).await })
    }

    #[tokio::test(start_paused = true)]
    async fn hanging_kind_leaves_the_others_their_slots() {
        for total in [1, MIN_TOTAL, 32, 1000] {
            for hanging in CallKind::ALL {
                let bulkhead = Bulkhead::new(total);
                let held = take_all(&bulkhead, hanging, false).await;
                assert_eq!(held.len(), bulkhead.max_in_flight(hanging), "{total} {hanging:?}");
                for other in CallKind::ALL.into_iter().filter(|other| *other != hanging) {
                    assert!(
                        bulkhead.enter(claim(other, 0), PATIENCE).await.is_some(),
                        "{total} {other:?}"
                    );
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_kinds_together_stay_within_the_total() {
        let bulkhead = Bulkhead::new(32);
        let mut held = Vec::new();
        for kind in [CallKind::Read, CallKind::End, CallKind::Poll, CallKind::Begin] {
            held.extend(take_all(&bulkhead, kind, false).await);
        }
        assert_eq!(held.len(), 32);
        let begins = held.iter().filter(|slot| slot.claim.kind == CallKind::Begin).count();
        assert_eq!(begins, 8, "begins keep the slots that are guaranteed to them");
    }

    #[tokio::test(start_paused = true)]
    async fn suspects_use_at_most_half_of_the_slots() {
        let bulkhead = Bulkhead::new(32);
        for kind in CallKind::ALL {
            let held = take_all(&bulkhead, kind, true).await;
            assert_eq!(held.len(), bulkhead.max_in_flight(kind) / 2, "{kind:?}");
            assert!(bulkhead.enter(claim(kind, 0), PATIENCE).await.is_some(), "{kind:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn free_slot_goes_to_a_begin_first() {
        let bulkhead = Bulkhead::new(MIN_TOTAL);
        let mut held = Vec::new();
        for kind in CallKind::ALL {
            held.extend(take_all(&bulkhead, kind, false).await);
        }
        let waiting_end = wait(&bulkhead, claim(CallKind::End, 99));
        tokio::task::yield_now().await;
        let waiting_begin = wait(&bulkhead, claim(CallKind::Begin, 99));
        tokio::task::yield_now().await;
        let surplus = held.iter().position(|slot| slot.claim.kind == CallKind::Begin).unwrap();
        drop(held.swap_remove(surplus));
        let slot = waiting_begin.await.unwrap().unwrap();
        assert!(!waiting_end.is_finished());
        drop((slot, held));
        assert!(waiting_end.await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_time_out_hold_no_slot() {
        let bulkhead = Bulkhead::new(MIN_TOTAL);
        let held = take_all(&bulkhead, CallKind::End, false).await;
        for _ in 0..100 {
            assert!(
                bulkhead.enter(claim(CallKind::End, 0), PATIENCE).await.is_none(),
                "it times out"
            );
        }
        drop(held);
        let again = take_all(&bulkhead, CallKind::End, false).await;
        assert_eq!(again.len(), bulkhead.max_in_flight(CallKind::End), "no slot is lost");
    }

    #[tokio::test(start_paused = true)]
    async fn hanging_group_leaves_half_to_others() {
        let bulkhead = Bulkhead::new(32);
        let half = bulkhead.max_in_flight(CallKind::Begin) / 2;
        let hanging = take_all_of(&bulkhead, 7).await;
        assert_eq!(hanging.len(), half);
        let waiting: Vec<_> = (0..50).map(|_| wait(&bulkhead, claim(CallKind::Begin, 7))).collect();
        tokio::task::yield_now().await;
        assert_eq!(
            take_all(&bulkhead, CallKind::Begin, false).await.len(),
            half,
            "no other group is held back"
        );
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
        drop(hanging);
        for waiting in waiting {
            assert!(waiting.await.unwrap().is_some(), "each gets a slot");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn several_hanging_groups_leave_slots_to_others() {
        let bulkhead = Bulkhead::new(32);
        let mut hanging = Vec::new();
        for group in 1..=3 {
            hanging.push(take_all_of(&bulkhead, group).await);
            assert!(bulkhead.enter(claim(CallKind::Begin, 8), PATIENCE).await.is_some(), "{group}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn group_that_became_suspect_gets_no_second_half() {
        let bulkhead = Bulkhead::new(32);
        let _hanging = take_all_of(&bulkhead, 7).await;
        let suspect = Claim { suspect: true, ..claim(CallKind::Begin, 7) };
        assert!(bulkhead.enter(suspect, PATIENCE).await.is_none());
        let other = Claim { suspect: true, ..claim(CallKind::Begin, 8) };
        assert!(
            bulkhead.enter(other, PATIENCE).await.is_some(),
            "another suspect is not held back"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn group_whose_calls_are_answered_gets_seven_eighths() {
        let bulkhead = Bulkhead::new(32);
        let max = bulkhead.max_in_flight(CallKind::Begin);
        let mut held = take_all_of(&bulkhead, 7).await;
        for _ in 0..3 {
            let waiting: Vec<_> =
                (0..max).map(|_| wait(&bulkhead, claim(CallKind::Begin, 7))).collect();
            tokio::task::yield_now().await;
            held.drain(..).for_each(|mut slot| slot.set_answered());
            tokio::task::yield_now().await;
            for waiting in waiting {
                if waiting.is_finished() {
                    held.extend(waiting.await.unwrap());
                } else {
                    waiting.abort();
                }
            }
        }
        assert_eq!(held.len(), max - max / 8);
        assert!(bulkhead.enter(claim(CallKind::Begin, 8), PATIENCE).await.is_some());
        // No call was answered recently, so the slots above half are not replaced.
        tokio::time::advance(ANSWER_PERIOD * 3).await;
        held.truncate(max / 2);
        assert!(bulkhead.enter(claim(CallKind::Begin, 7), PATIENCE).await.is_none());
        assert!(bulkhead.enter(claim(CallKind::Begin, 8), PATIENCE).await.is_some());
    }

    /// Every second call of the group hangs; the others are answered.
    #[tokio::test(start_paused = true)]
    async fn half_hanging_group_leaves_an_eighth_to_others() {
        let bulkhead = Bulkhead::new(32);
        let mut hanging = Vec::new();
        for number in 0..200 {
            let Some(mut slot) = bulkhead.enter(claim(CallKind::Begin, 7), PATIENCE / 100).await
            else {
                continue;
            };
            if number % 2 == 0 {
                hanging.push(slot);
            } else {
                slot.set_answered();
            }
        }
        let max = bulkhead.max_in_flight(CallKind::Begin);
        assert!(hanging.len() <= max - max / 8, "{}", hanging.len());
        assert!(bulkhead.enter(claim(CallKind::Begin, 8), PATIENCE).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn full_queue_removes_callers_that_stopped_waiting() {
        let bulkhead = Bulkhead::new(MIN_TOTAL);
        let held = take_all(&bulkhead, CallKind::Begin, false).await;
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..MAX_WAITING {
            let bulkhead = bulkhead.clone();
            waiting.spawn(async move {
                bulkhead.enter(claim(CallKind::Begin, 7), PATIENCE * 100).await
            });
        }
        let queued = || lock(&bulkhead.slots).kinds.begin.queue.len();
        while queued() < MAX_WAITING {
            tokio::task::yield_now().await;
        }
        let began = Instant::now();
        assert!(bulkhead.enter(claim(CallKind::Begin, 7), PATIENCE * 100).await.is_none());
        assert_eq!(
            began.elapsed(),
            Duration::ZERO,
            "the queue is full, and the caller is rejected at once"
        );
        waiting.shutdown().await;
        let last = wait(&bulkhead, claim(CallKind::Begin, 7));
        tokio::task::yield_now().await;
        drop(held);
        assert!(last.await.unwrap().is_some());
        assert!(lock(&bulkhead.slots).kinds.begin.groups.is_empty(), "no group is left");
    }
}
