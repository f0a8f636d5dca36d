//! How many calls of each kind may be in flight at once.
//!
//! `lending.concurrency` is the total. Each kind has a guaranteed number of slots that no other
//! kind can take, so that calls of one kind which hang do not block the others. Polls, ends and
//! reads have a maximum as well; begins may use every slot that is not guaranteed to another kind,
//! and get a free slot first.
//!
//! Calls about a subject that failed last (a loan, or a title) may use half of their kind's slots,
//! so that a few subjects which Bokbasen cannot handle leave room for the rest.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::kind::{CallKind, PerKind};

/// The least total: below it, a kind would have no slot for subjects beside those that failed.
pub(super) const LEAST_TOTAL: usize = 8;
/// How many calls of a kind may wait for a slot; a longer queue would only wait in vain.
const MAX_WAITING: usize = 10_000;

/// The slots.
#[derive(Clone, Debug)]
pub(super) struct Bulkhead {
    slots: Arc<Mutex<Slots>>,
}

#[derive(Debug)]
struct Slots {
    total: usize,
    kinds: PerKind<KindSlots>,
}

/// The slots of one kind.
#[derive(Debug, Default)]
struct KindSlots {
    guaranteed: usize,
    most: usize,
    in_use: usize,
    suspects_in_use: usize,
    waiting: VecDeque<oneshot::Sender<Slot>>,
    suspects_waiting: VecDeque<oneshot::Sender<Slot>>,
}

/// A slot; free again once it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Mutex<Slots>>,
    kind: CallKind,
    suspect: bool,
}

impl Bulkhead {
    /// A total below [`LEAST_TOTAL`] counts as that.
    pub(super) fn new(total: usize) -> Bulkhead {
        let total = total.max(LEAST_TOTAL);
        let kind = |guaranteed: usize, most: usize| KindSlots { guaranteed, most, ..KindSlots::default() };
        let (quarter, eighth) = (total / 4, total / 8);
        let read = (total / 16).max(1);
        let kinds = PerKind {
            begin: kind(quarter, total - 2 * eighth - read),
            // Each begin leads to a poll or two: with fewer, begins would wait for their polls.
            poll: kind(eighth, total / 2),
            end: kind(eighth, quarter),
            read: kind(read, quarter),
        };
        Bulkhead { slots: Arc::new(Mutex::new(Slots { total, kinds })) }
    }

    /// The most calls of this kind at once.
    pub(super) fn most(&self, kind: CallKind) -> usize {
        self.lock().kinds.of(kind).most
    }

    /// A slot, waited for as long as `patience`; none after that.
    pub(super) async fn enter(&self, kind: CallKind, suspect: bool, patience: Duration) -> Option<Slot> {
        let turn = {
            let mut slots = self.lock();
            if slots.queue(kind, suspect).is_empty() && slots.has_room(kind, suspect) {
                slots.take(kind, suspect);
                return Some(self.slot(kind, suspect));
            }
            let queue = slots.queue(kind, suspect);
            if queue.len() >= MAX_WAITING {
                queue.retain(|waiting| !waiting.is_closed());
            }
            if queue.len() >= MAX_WAITING {
                return None;
            }
            let (turn, waits) = oneshot::channel();
            queue.push_back(turn);
            waits
        };
        // A caller that was queued behind callers who have left meanwhile has its turn at once.
        admit(&self.slots);
        tokio::time::timeout(patience, turn).await.ok()?.ok()
    }

    fn slot(&self, kind: CallKind, suspect: bool) -> Slot {
        Slot { slots: self.slots.clone(), kind, suspect }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn queue(&mut self, kind: CallKind, suspect: bool) -> &mut VecDeque<oneshot::Sender<Slot>> {
        let slots = self.kinds.of_mut(kind);
        if suspect { &mut slots.suspects_waiting } else { &mut slots.waiting }
    }

    fn has_room(&self, kind: CallKind, suspect: bool) -> bool {
        let own = self.kinds.of(kind);
        if own.in_use >= own.most || suspect && own.suspects_in_use >= (own.most / 2).max(1) {
            return false;
        }
        let mut spoken_for = 0;
        for other in CallKind::ALL {
            let slots = self.kinds.of(other);
            let reserved = if other == kind { 0 } else { slots.guaranteed };
            spoken_for += slots.in_use.max(reserved);
        }
        spoken_for < self.total
    }

    fn take(&mut self, kind: CallKind, suspect: bool) {
        let slots = self.kinds.of_mut(kind);
        slots.in_use += 1;
        slots.suspects_in_use += usize::from(suspect);
    }

    fn release(&mut self, kind: CallKind, suspect: bool) {
        let slots = self.kinds.of_mut(kind);
        slots.in_use = slots.in_use.saturating_sub(1);
        slots.suspects_in_use = slots.suspects_in_use.saturating_sub(usize::from(suspect));
    }

    /// The next caller that has a slot now, which is taken for it.
    fn next(&mut self) -> Option<(oneshot::Sender<Slot>, CallKind, bool)> {
        for kind in CallKind::ALL {
            for suspect in [false, true] {
                while self.has_room(kind, suspect) {
                    let Some(waiting) = self.queue(kind, suspect).pop_front() else { break };
                    if !waiting.is_closed() {
                        self.take(kind, suspect);
                        return Some((waiting, kind, suspect));
                    }
                }
            }
        }
        None
    }
}

/// Gives free slots to the callers that wait for them.
fn admit(slots: &Arc<Mutex<Slots>>) {
    loop {
        let next = slots.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some((waiting, kind, suspect)) = next else { return };
        // Sent without the lock: a caller that has just left drops its slot here, which takes the
        // lock again.
        let _ = waiting.send(Slot { slots: slots.clone(), kind, suspect });
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).release(self.kind, self.suspect);
        admit(&self.slots);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    async fn take_all(bulkhead: &Bulkhead, kind: CallKind, suspect: bool) -> Vec<Slot> {
        let mut held = Vec::new();
        while let Some(slot) = bulkhead.enter(kind, suspect, PATIENCE).await {
            held.push(slot);
        }
        held
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_that_hangs_leaves_the_others_their_slots() {
        for total in [1, LEAST_TOTAL, 32, 1000] {
            for hanging in CallKind::ALL {
                let bulkhead = Bulkhead::new(total);
                let held = take_all(&bulkhead, hanging, false).await;
                assert_eq!(held.len(), bulkhead.most(hanging), "{total} {hanging:?}");
                for other in CallKind::ALL.into_iter().filter(|other| *other != hanging) {
                    assert!(bulkhead.enter(other, false, PATIENCE).await.is_some(), "{total} {other:?}");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_kinds_together_never_exceed_the_total() {
        let bulkhead = Bulkhead::new(32);
        let mut held = Vec::new();
        for kind in [CallKind::Read, CallKind::End, CallKind::Poll, CallKind::Begin] {
            held.extend(take_all(&bulkhead, kind, false).await);
        }
        assert_eq!(held.len(), 32);
        let begins = held.iter().filter(|slot| slot.kind == CallKind::Begin).count();
        assert_eq!(begins, 8, "begins keep the slots that are guaranteed to them");
    }

    #[tokio::test(start_paused = true)]
    async fn suspects_use_half_of_their_kinds_slots() {
        let bulkhead = Bulkhead::new(32);
        for kind in CallKind::ALL {
            let held = take_all(&bulkhead, kind, true).await;
            assert_eq!(held.len(), bulkhead.most(kind) / 2, "{kind:?}");
            assert!(bulkhead.enter(kind, false, PATIENCE).await.is_some(), "{kind:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_free_slot_goes_to_a_begin_first() {
        let bulkhead = Bulkhead::new(LEAST_TOTAL);
        let mut held = Vec::new();
        for kind in CallKind::ALL {
            held.extend(take_all(&bulkhead, kind, false).await);
        }
        let wait = |kind| {
            let bulkhead = bulkhead.clone();
            tokio::spawn(async move { bulkhead.enter(kind, false, PATIENCE * 100).await })
        };
        let waiting_end = wait(CallKind::End);
        tokio::task::yield_now().await;
        let waiting_begin = wait(CallKind::Begin);
        tokio::task::yield_now().await;
        let surplus = held.iter().position(|slot| slot.kind == CallKind::Begin).unwrap();
        drop(held.swap_remove(surplus));
        let slot = waiting_begin.await.unwrap().unwrap();
        assert!(!waiting_end.is_finished());
        drop((slot, held));
        assert!(waiting_end.await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_leave_the_queue_take_no_slot() {
        let bulkhead = Bulkhead::new(LEAST_TOTAL);
        let held = take_all(&bulkhead, CallKind::End, false).await;
        for _ in 0..100 {
            assert!(bulkhead.enter(CallKind::End, false, PATIENCE).await.is_none(), "it leaves in time");
        }
        drop(held);
        let again = take_all(&bulkhead, CallKind::End, false).await;
        assert_eq!(again.len(), bulkhead.most(CallKind::End), "no slot is lost");
    }
}
