use super::group::ANSWER_PERIOD;
use super::*;

const PATIENCE: Duration = Duration::from_secs(1);

fn claim(kind: CallKind, group: u64) -> Claim {
    Claim { kind, group, suspect: false }
}

/// Takes slots until none is left, each in its own group.
async fn take_all(bulkhead: &Bulkhead, kind: CallKind, suspect: bool) -> Vec<Slot> {
    let mut held = Vec::new();
    while let Some(slot) =
        bulkhead.enter(Claim { suspect, ..claim(kind, 1000 + held.len() as u64) }, PATIENCE).await
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
        assert!(bulkhead.enter(claim(CallKind::End, 0), PATIENCE).await.is_none(), "it times out");
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
    assert!(bulkhead.enter(other, PATIENCE).await.is_some(), "another suspect is not held back");
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
        let Some(mut slot) = bulkhead.enter(claim(CallKind::Begin, 7), PATIENCE / 100).await else {
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
        waiting
            .spawn(async move { bulkhead.enter(claim(CallKind::Begin, 7), PATIENCE * 100).await });
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

#[tokio::test(start_paused = true)]
async fn resized_bulkhead_keeps_its_total() {
    let bulkhead = Bulkhead::new(32);
    for total in [1, 2, 3, 7, MIN_TOTAL, 12, 32] {
        bulkhead.resize(total);
        let mut held = Vec::new();
        for kind in [CallKind::Read, CallKind::End, CallKind::Poll, CallKind::Begin] {
            held.extend(take_all(&bulkhead, kind, false).await);
        }
        assert_eq!(held.len(), total, "of {total}");
        drop(held);
        for kind in CallKind::ALL {
            let slot = bulkhead.enter(claim(kind, 1), PATIENCE).await;
            assert!(slot.is_some(), "{kind:?} of {total}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn growing_bulkhead_admits_callers_that_wait() {
    let bulkhead = Bulkhead::new(32);
    bulkhead.resize(1);
    let held = bulkhead.enter(claim(CallKind::Begin, 1), PATIENCE).await.unwrap();
    let waiting = wait(&bulkhead, claim(CallKind::Begin, 2));
    tokio::time::sleep(PATIENCE).await;
    assert!(!waiting.is_finished());
    bulkhead.resize(32);
    assert!(waiting.await.unwrap().is_some());
    // A smaller total takes no slot from a call in flight.
    bulkhead.resize(1);
    assert!(bulkhead.enter(claim(CallKind::End, 3), PATIENCE).await.is_none());
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn standing_queue_of_begins_stops_no_other_kind() {
    for total in 1..MIN_TOTAL {
        let bulkhead = Bulkhead::new(32);
        bulkhead.resize(total);
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..800 {
            let kind = CallKind::ALL[number / 200];
            let (bulkhead, served) = (bulkhead.clone(), served.clone());
            calls.spawn(async move {
                let claim = claim(kind, number as u64);
                let _slot = bulkhead.enter(claim, PATIENCE * 1000).await.unwrap();
                lock(&served).push(kind);
                tokio::time::sleep(PATIENCE).await;
            });
        }
        tokio::time::sleep(PATIENCE * 20).await;
        let served = lock(&served).clone();
        for kind in CallKind::ALL {
            let count = served.iter().filter(|served| **served == kind).count();
            assert!(count >= served.len() / 8, "{kind:?}: {count} of {total}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn hanging_begins_or_polls_leave_a_slot_of_a_few() {
    for hanging in [CallKind::Begin, CallKind::Poll] {
        for total in 2..MIN_TOTAL {
            let bulkhead = Bulkhead::new(32);
            bulkhead.resize(total);
            let _held = take_all(&bulkhead, hanging, false).await;
            for other in CallKind::ALL.into_iter().filter(|other| *other != hanging) {
                let slot = bulkhead.enter(claim(other, 0), PATIENCE).await;
                assert!(slot.is_some(), "{other:?} of {total}");
            }
        }
    }
}
