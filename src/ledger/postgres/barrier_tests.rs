//! Tests of the counters of acknowledged reads, on a moved clock.

use super::*;

const FRESHNESS: Duration = Duration::from_secs(60);

/// Counters at a time of the database in seconds: member, process, counter and time of death.
fn polls(now: i64, members: &[(u128, u128, i64, Option<i64>)]) -> Polls {
    let member = |&(name, process, polls, fenced): &(u128, u128, i64, Option<i64>)| {
        let fenced = fenced.map(|seconds| seconds * 1000);
        let process = Uuid::from_u128(process);
        (Uuid::from_u128(name), MemberPolls { process, polls, fenced })
    };
    Polls { now: now * 1000, members: members.iter().map(member).collect() }
}

/// Observes counters at a second, and returns whether all have read past `base`, read at `ended`.
fn observed(tracker: &PollTracker, second: u64, base: (&Polls, u64), read: &Polls) -> bool {
    let at = Duration::from_secs(second);
    tracker.observe(read, at, at);
    tracker.is_past(base.0, Duration::from_secs(base.1), FRESHNESS)
}

#[test]
fn three_acknowledged_reads_of_each_process_pass() {
    let tracker = PollTracker::default();
    let base = polls(0, &[(1, 1, 10, None), (2, 2, 20, None)]);
    let is_past = |second, one, two| {
        let read = polls(0, &[(1, 1, one, None), (2, 2, two, None)]);
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
    let base = polls(0, &[(1, 1, 10, None)]);
    let is_past = |second, old, new| {
        let read = polls(0, &[(1, 1, old, Some(0)), (3, 1, new, None)]);
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
    let base = polls(0, &[(1, 1, 10, None), (2, 2, 20, None)]);
    let is_past = |second: i64, silent| {
        let read = polls(0, &[(1, 1, silent, None), (2, 2, 20 + second, None)]);
        observed(&tracker, u64::try_from(second).unwrap(), (&base, 0), &read)
    };
    assert!(!is_past(100, 10), "first seen now");
    assert!(!is_past(174, 10));
    assert!(is_past(175, 10));
    assert!(!is_past(176, 11), "it reads again");
}

#[test]
fn silence_before_the_end_does_not_pass_it_at_once() {
    let tracker = PollTracker::default();
    let base = polls(0, &[(1, 1, 10, None)]);
    tracker.observe(&base, Duration::from_secs(1), Duration::from_secs(1));
    let is_past = |second| observed(&tracker, second, (&base, 1000), &base);
    assert!(!is_past(1000), "it may have read the loan from the ledger just before");
    assert!(!is_past(1014));
    assert!(is_past(1015));
}

#[test]
fn member_that_died_long_ago_passes_after_the_margin() {
    let tracker = PollTracker::default();
    let base = polls(0, &[(1, 1, 10, Some(1000))]);
    let is_past = |second, now| {
        let read = polls(now, &[(1, 1, 10, Some(1000))]);
        observed(&tracker, second, (&base, 0), &read)
    };
    assert!(!is_past(14, 1075), "it may still deliver what it read from the ledger");
    assert!(!is_past(15, 1074), "it may still deliver what it cached");
    assert!(is_past(16, 1075));
}

#[test]
fn process_without_a_row_passes() {
    let tracker = PollTracker::default();
    let base = polls(0, &[(1, 1, 10, None)]);
    assert!(observed(&tracker, 1, (&base, 0), &polls(0, &[])));
}

#[test]
fn overlapping_observations_are_ignored() {
    let tracker = PollTracker::default();
    let base = polls(0, &[(1, 1, 10, None)]);
    let second = Duration::from_secs;
    tracker.observe(&base, second(1), second(4));
    tracker.observe(&polls(0, &[]), second(3), second(5));
    assert!(!tracker.is_past(&base, second(1), FRESHNESS));
    tracker.observe(&polls(0, &[]), second(4), second(5));
    assert!(tracker.is_past(&base, second(1), FRESHNESS));
}
