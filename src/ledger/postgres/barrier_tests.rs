//! Tests of the counters of acknowledged reads, on a moved clock.

use super::*;

const FRESHNESS: Duration = Duration::from_secs(60);

/// Counters: member, process and counter.
fn polls(members: &[(u128, u128, i64)]) -> Polls {
    let member = |&(name, process, polls): &(u128, u128, i64)| {
        let process = Uuid::from_u128(process);
        (Uuid::from_u128(name), MemberPolls { process, polls, freshness: FRESHNESS })
    };
    Polls { now: 0, members: members.iter().map(member).collect() }
}

/// Observes counters at a second, and returns whether all have read past `base`, read at `ended`.
fn observed(tracker: &PollTracker, second: u64, base: (&Polls, u64), read: &Polls) -> bool {
    let at = Duration::from_secs(second);
    tracker.observe(read, at, at);
    tracker.is_past(base.0, Duration::from_secs(base.1))
}

#[test]
fn three_acknowledged_reads_of_each_process_pass() {
    let tracker = PollTracker::default();
    let base = polls(&[(1, 1, 10), (2, 2, 20)]);
    let is_past = |second, one, two| {
        let read = polls(&[(1, 1, one), (2, 2, two)]);
        observed(&tracker, second, (&base, 5), &read)
    };
    assert!(!is_past(4, 99, 99), "observed before the barrier");
    assert!(!is_past(5, 11, 23), "the first read may have begun before the barrier");
    assert!(!is_past(6, 12, 23), "a failed acknowledgement may have taken effect after it");
    assert!(!is_past(7, 13, 22));
    assert!(is_past(8, 13, 23));
}

#[test]
fn reads_under_a_new_name_count() {
    let tracker = PollTracker::default();
    let base = polls(&[(1, 1, 10)]);
    let is_past = |second, old, new| {
        let read = polls(&[(1, 1, old), (3, 1, new)]);
        observed(&tracker, second, (&base, 0), &read)
    };
    assert!(!is_past(1, 10, 1));
    assert!(!is_past(2, 9, 2), "a counter that fell counts nothing");
    assert!(is_past(3, 11, 2));
    assert!(is_past(4, 10, 3));
}

#[test]
fn process_without_reads_passes_after_freshness_and_margin() {
    let tracker = PollTracker::default();
    let base = polls(&[(1, 1, 10), (2, 2, 20)]);
    let is_past = |second: i64, silent| {
        let read = polls(&[(1, 1, silent), (2, 2, 20 + second)]);
        observed(&tracker, u64::try_from(second).unwrap(), (&base, 0), &read)
    };
    assert!(!is_past(100, 10), "first seen now");
    assert!(!is_past(174, 10));
    assert!(is_past(175, 10));
    assert!(!is_past(176, 11), "it reads again");
}

#[test]
fn each_process_is_silent_for_its_own_freshness() {
    let tracker = PollTracker::default();
    let mut base = polls(&[(1, 1, 10), (2, 2, 20)]);
    base.members.get_mut(&Uuid::from_u128(1)).unwrap().freshness = Duration::from_secs(300);
    let is_past = |second| observed(&tracker, second, (&base, 0), &base);
    assert!(!is_past(100), "first seen now");
    assert!(!is_past(175), "the one with the longer freshness still delivers");
    assert!(!is_past(414));
    assert!(is_past(415));
}

#[test]
fn silence_before_the_end_does_not_pass_it_at_once() {
    let tracker = PollTracker::default();
    let base = polls(&[(1, 1, 10)]);
    tracker.observe(&base, Duration::from_secs(1), Duration::from_secs(1));
    let is_past = |second| observed(&tracker, second, (&base, 1000), &base);
    assert!(!is_past(1000), "it may have read the loan from the ledger just before");
    assert!(!is_past(1014));
    assert!(is_past(1015));
}

#[test]
fn process_without_a_row_passes() {
    let tracker = PollTracker::default();
    let base = polls(&[(1, 1, 10)]);
    assert!(observed(&tracker, 1, (&base, 0), &polls(&[])));
}

#[test]
fn overlapping_observations_are_ignored() {
    let tracker = PollTracker::default();
    let base = polls(&[(1, 1, 10)]);
    let second = Duration::from_secs;
    tracker.observe(&base, second(1), second(4));
    tracker.observe(&polls(&[]), second(3), second(5));
    assert!(!tracker.is_past(&base, second(1)));
    tracker.observe(&polls(&[]), second(4), second(5));
    assert!(tracker.is_past(&base, second(1)));
}
