//! Tests of the order in which the outbox sends ends.

use super::lanes::capacity_of;
use super::retries::{FIRST_WAIT, LONGEST_WAIT};
use super::*;
use crate::lending::Passage;
use crate::loan::{Borrower, Loan, LoanKey};

fn due(outbox: &Outbox) -> Vec<LoanId> {
    outbox.fresh.waiting.values().copied().chain(outbox.retries.due()).collect()
}

/// Takes all due ends of a lane, in as many batches as needed.
fn taken(outbox: &mut Outbox, lane: Lane) -> Vec<LoanId> {
    let mut taken = Vec::new();
    loop {
        match outbox.take_due(lane, Instant::now()) {
            due if due.is_empty() => return taken,
            due => taken.extend(due.into_iter().map(|(_, id)| id)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn failed_end_is_expedited_once_after_an_outage() {
    let mut outbox = Outbox::default();
    let [unanswered, rejected] = [(); 2].map(|()| LoanId::random());
    outbox.record_result(unanswered, SendResult::NoResponse);
    outbox.record_result(rejected, SendResult::NotAccepted(Some(Duration::from_secs(5))));
    outbox.expedite_failed(false);
    assert_eq!(due(&outbox), [], "the response to another end is no reason");
    outbox.expedite_failed(true);
    assert_eq!(due(&outbox), [unanswered]);
    assert_eq!(taken(&mut outbox, Lane::Oldest), [unanswered]);
    outbox.record_result(unanswered, SendResult::NoResponse);
    outbox.expedite_failed(true);
    assert_eq!(due(&outbox), [], "the end itself may be at fault");
    let waits = outbox.retries.wait_of(rejected);
    assert!(waits > Duration::from_secs(4), "Bokbasen's Retry-After counts");
}

#[tokio::test(start_paused = true)]
async fn one_lane_takes_the_oldest_and_one_the_newest() {
    let mut outbox = Outbox::default();
    let ends: Vec<LoanId> = (0..5).map(|_| LoanId::random()).collect();
    ends.iter().for_each(|id| outbox.fresh.arrive(*id));
    let newest = outbox.take_due(Lane::Newest, Instant::now());
    assert_eq!(newest[0].1, ends[4]);
    outbox.fresh.waiting.extend(newest.into_iter().skip(1));
    let oldest = outbox.take_due(Lane::Oldest, Instant::now());
    let (arrival, first) = oldest[0];
    assert_eq!(first, ends[0]);
    outbox.fresh.waiting.extend(oldest.into_iter().skip(1));
    // An end that the breaker holds back keeps its place, and delays the others for a moment.
    outbox.hold_back(first, arrival, Lane::Oldest);
    assert_eq!(taken(&mut outbox, Lane::Newest), []);
    tokio::time::advance(HELD_BACK_WAIT).await;
    assert_eq!(taken(&mut outbox, Lane::Oldest), ends[..4]);
    // An end that failed in an outage precedes all others.
    outbox.fresh.arrive(ends[1]);
    outbox.record_result(ends[0], SendResult::NotSent);
    outbox.expedite_failed(false);
    assert_eq!(taken(&mut outbox, Lane::Oldest), ends[..2]);
}

#[tokio::test(start_paused = true)]
async fn oldest_lane_leaves_the_newer_half_to_the_newest_lane() {
    for waiting in [1, 2, 50, 4 * MAX_BATCH] {
        let mut outbox = Outbox::default();
        let ends: Vec<LoanId> = (0..waiting).map(|_| LoanId::random()).collect();
        ends.iter().for_each(|id| outbox.fresh.arrive(*id));
        let oldest = outbox.take_due(Lane::Oldest, Instant::now());
        assert_eq!(oldest.len(), waiting.div_ceil(2).min(MAX_BATCH), "of {waiting}");
        assert_eq!(oldest[0].1, ends[0]);
        if waiting > 1 {
            assert_eq!(outbox.take_due(Lane::Newest, Instant::now())[0].1, ends[waiting - 1]);
        }
    }
}

#[test]
fn each_lane_may_have_half_of_the_trials() {
    let capacity = |lane, passage| capacity_of(lane, 8, passage);
    for lane in Lane::ALL {
        assert!(capacity(lane, Passage::Open).has_room(3), "{lane:?}");
        assert!(!capacity(lane, Passage::Open).has_room(4), "{lane:?}");
        assert!(capacity(lane, Passage::Trial).has_room(1), "{lane:?}");
        assert!(
            !capacity(lane, Passage::Trial).has_room(2),
            "{lane:?}: the other lane needs trials"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn unsent_end_is_sent_after_the_first_response() {
    let mut outbox = Outbox::default();
    let unreached = LoanId::random();
    for _ in 0..5 {
        outbox.record_result(unreached, SendResult::NotSent);
        assert_eq!(due(&outbox), []);
        outbox.expedite_failed(false);
        assert_eq!(taken(&mut outbox, Lane::Newest), [unreached]);
    }
}

#[tokio::test(start_paused = true)]
async fn each_end_keeps_its_own_backoff() {
    let mut outbox = Outbox::default();
    let (bad, good) = (LoanId::random(), LoanId::random());
    let mut waits = Vec::new();
    for _ in 0..10 {
        outbox.record_result(bad, SendResult::NoResponse);
        waits.push(outbox.retries.wait_of(bad));
        outbox.record_result(good, SendResult::Acknowledged);
        outbox.expedite_failed(false);
        tokio::time::advance(LONGEST_WAIT).await;
        assert_eq!(taken(&mut outbox, Lane::Retries), [bad]);
    }
    assert!(waits[0] <= FIRST_WAIT && waits[9] >= LONGEST_WAIT.mul_f64(0.7), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= LONGEST_WAIT));
}

/// While the breaker is open, failed ends wait in their lane after they were read.
#[tokio::test(start_paused = true)]
async fn retries_that_are_read_are_dropped_once_they_belong_to_another_process() {
    let mut outbox = Outbox::default();
    let [own, others] = [(); 2].map(|()| {
        let borrower = Borrower::from_bytes([1; 16]);
        let isbn = "9788299999014".parse().unwrap();
        let library = "NO-0301000".parse().unwrap();
        Loan::intend(LoanKey { library, borrower, isbn }, jiff::Timestamp::UNIX_EPOCH)
    });
    for loan in [&own, &others] {
        outbox.arrivals.know(&[loan.id]);
        outbox.queues.of(Lane::Retries).next.push_back((0, loan.clone()));
    }
    outbox.drop_others(&[own.id]);
    let next: Vec<_> = outbox.queues.of(Lane::Retries).next.iter().map(|(_, one)| one.id).collect();
    assert_eq!(next, [own.id]);
    assert!(outbox.arrivals.knows(own.id) && !outbox.arrivals.knows(others.id));
}

#[tokio::test(start_paused = true)]
async fn what_belongs_to_others_is_forgotten_unless_a_call_sends_it() {
    let mut outbox = Outbox::default();
    let [waiting, failed, in_flight] = [(); 3].map(|()| LoanId::random());
    outbox.arrivals.know(&[waiting, failed, in_flight]);
    outbox.arrive(vec![waiting]);
    outbox.record_result(failed, SendResult::NoResponse);
    outbox.drop_others(&[]);
    assert_eq!(due(&outbox), []);
    assert!(outbox.arrivals.knows(in_flight), "a call in progress is not repeated");
    assert!(!outbox.arrivals.knows(waiting) && !outbox.arrivals.knows(failed));
}

#[tokio::test(start_paused = true)]
async fn complete_read_drops_ends_that_another_process_has_sent() {
    let mut outbox = Outbox::default();
    let [waiting, sent, failed, failed_and_sent] = [(); 4].map(|()| LoanId::random());
    outbox.arrive(vec![waiting, sent]);
    for id in [failed, failed_and_sent] {
        outbox.record_result(id, SendResult::NoResponse);
    }
    let wait = outbox.retries.wait_of(failed);
    outbox.drop_others(&[waiting, failed]);
    assert_eq!(outbox.retries.wait_of(failed), wait, "its backoff continues");
    tokio::time::advance(LONGEST_WAIT).await;
    assert_eq!(due(&outbox), [waiting, failed]);
    assert_eq!(taken(&mut outbox, Lane::Retries), [failed]);
}
