//! Counts the bytes and ranges of each file that were delivered under each loan.
//!
//! Delivery calls [`Metered::sent`]. [`Flusher`] writes all counts to the ledger every
//! `metering.flush`, on the slow runtime.
//!
//! A *run* is a sequence of consecutive bytes of one file. On the hot path a frame costs one atomic
//! store of the end of its run. Only the start and the end of a run take a lock, which belongs to
//! the worker and is shared only with the flusher. The flusher also reads unfinished runs, so a
//! stalled stream does not delay its count.
//!
//! A kill loses the counts since the last flush. Bytes are counted when they are handed over for
//! sending, never before.

mod counters;
mod flush;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use slab::Slab;

use crate::loan::LoanId;
use crate::lock::lock;

use counters::{Key, Tallies};
pub(crate) use flush::Flusher;

/// The keys of `[metering]`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// The interval between writes to the ledger. A crash loses at most the counts of one interval.
    pub flush: Duration,
}

/// The counts that are not written yet. A worker adds to its own shard, and the flusher collects
/// all shards. Clones share everything.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    shards: Arc<Mutex<Vec<Arc<Shard>>>>,
    shard: Arc<Shard>,
}

/// The counter of one response body, for a file under a loan.
#[derive(Debug)]
pub(crate) struct Metered {
    shard: Arc<Shard>,
    key: Key,
    /// Whether the positions of the bytes in the file are known.
    has_positions: bool,
    /// The current run: its key in the shard and its end.
    run: Option<(usize, Arc<AtomicU64>)>,
    /// The position of the next byte of the run.
    next: u64,
}

#[derive(Debug, Default)]
struct Shard(Mutex<Counts>);

/// The counts of one worker.
#[derive(Debug, Default)]
struct Counts {
    runs: Slab<Run>,
    /// The counts of finished runs that are not written yet.
    finished: Tallies,
}

#[derive(Debug)]
struct Run {
    key: Key,
    has_positions: bool,
    first: u64,
    /// The end of the bytes that are already counted.
    counted: u64,
    /// The position of the next byte, which the body updates.
    next: Arc<AtomicU64>,
}

impl Meter {
    /// Creates a meter without counts.
    pub(crate) fn new() -> Meter {
        let shard = Arc::new(Shard::default());
        Meter { shards: Arc::new(Mutex::new(vec![shard.clone()])), shard }
    }

    /// Returns a handle with a new shard, so that workers do not wait for each other's lock.
    pub(crate) fn for_worker(&self) -> Meter {
        let shard = Arc::new(Shard::default());
        lock(&self.shards).push(shard.clone());
        Meter { shards: self.shards.clone(), shard }
    }

    /// Returns a counter for a body of this file under this loan.
    pub(crate) fn of(&self, loan: LoanId, file: Arc<str>) -> Metered {
        Metered {
            shard: self.shard.clone(),
            key: (loan, file),
            has_positions: true,
            run: None,
            next: 0,
        }
    }

    /// Moves the counts of all shards into `into`, including those of unfinished runs.
    fn collect(&self, into: &mut Tallies) {
        let shards = lock(&self.shards).clone();
        for shard in shards {
            let mut counts = shard.lock();
            let finished = std::mem::take(&mut counts.finished);
            for (_, run) in &mut counts.runs {
                run.count(into);
            }
            drop(counts);
            into.merge(finished);
        }
    }
}

impl Default for Meter {
    fn default() -> Meter {
        Meter::new()
    }
}

impl Metered {
    /// Counts bytes only and records no ranges, for a body with a content coding (RFC 9110 §8.4).
    pub(crate) fn count_bytes_only(&mut self) {
        self.has_positions = false;
    }

    /// Counts `count` bytes that are handed over for sending, starting at byte `first` of the file.
    pub(crate) fn sent(&mut self, first: u64, count: u64) {
        let first = if self.has_positions { first } else { self.next };
        let next = first.saturating_add(count);
        match &self.run {
            // Relaxed, because no other memory depends on this value.
            Some((_, end)) if self.next == first => end.store(next, Ordering::Relaxed),
            _ => self.start_run(first, next),
        }
        self.next = next;
    }

    fn start_run(&mut self, first: u64, next: u64) {
        let end = Arc::new(AtomicU64::new(next));
        let (key, has_positions, next) = (self.key.clone(), self.has_positions, end.clone());
        let mut counts = self.shard.lock();
        if let Some((previous, _)) = self.run.take() {
            counts.finish_run(previous);
        }
        let run = counts.runs.insert(Run { key, has_positions, first, counted: first, next });
        self.run = Some((run, end));
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        if let Some((run, _)) = self.run.take() {
            self.shard.lock().finish_run(run);
        }
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        lock(&self.0)
    }
}

impl Counts {
    fn finish_run(&mut self, key: usize) {
        if let Some(mut run) = self.runs.try_remove(key) {
            run.count(&mut self.finished);
        }
    }
}

impl Run {
    /// Adds the bytes since the last call to `into`. The range always covers the whole run. A full
    /// [`crate::loan::Ranges`] drops its shortest ranges, and a growing run must not look short.
    fn count(&mut self, into: &mut Tallies) {
        let next = self.next.load(Ordering::Relaxed);
        if next > self.counted {
            let range: Range<u64> = if self.has_positions { self.first..next } else { 0..0 };
            into.add(&self.key, next - self.counted, range);
            self.counted = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(meter: &Meter) -> Vec<(String, u64, Vec<[u64; 2]>)> {
        let mut all = Tallies::default();
        meter.collect(&mut all);
        let tallies = all.take(usize::MAX).into_iter();
        let mut collected: Vec<_> = tallies
            .map(|one| (one.file.to_string(), one.tally.bytes, one.tally.ranges.pairs().collect()))
            .collect();
        collected.sort();
        collected
    }

    #[test]
    fn unfinished_run_is_counted_without_duplicates() {
        let meter = Meter::new();
        let worker = meter.for_worker();
        let mut body = worker.of(LoanId::random(), "/a".into());
        assert_eq!(collected(&meter), []);
        body.sent(100, 50);
        assert_eq!(collected(&meter), [("/a".into(), 50, vec![[100, 149]])]);
        assert_eq!(collected(&meter), [], "no byte was sent since the last call");
        body.sent(150, 50);
        body.sent(300, 10); // not consecutive: a new run
        body.sent(310, 10);
        assert_eq!(collected(&meter), [("/a".into(), 70, vec![[100, 199], [300, 319]])]);
        body.sent(320, 5);
        drop(body);
        assert_eq!(collected(&meter), [("/a".into(), 5, vec![[300, 324]])]);
        assert_eq!(collected(&meter), []);
        assert!(worker.shard.lock().runs.is_empty());
    }

    #[test]
    fn resent_bytes_add_no_range_and_coded_bodies_record_none() {
        let meter = Meter::new();
        let loan = LoanId::random();
        for _ in 0..3 {
            meter.of(loan, "/a".into()).sent(0, 10);
            meter.for_worker().of(loan, "/a".into()).sent(5, 10);
        }
        let mut coded = meter.of(loan, "/b".into());
        coded.count_bytes_only();
        coded.sent(0, 10);
        coded.sent(10, 10);
        drop(coded);
        assert_eq!(
            collected(&meter),
            [("/a".into(), 60, vec![[0, 14]]), ("/b".into(), 20, vec![])]
        );
    }

    #[test]
    fn concurrent_collection_counts_each_byte_exactly_once() {
        let meter = Meter::new();
        let loan = LoanId::random();
        let mut all = Tallies::default();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4_u64)
                .map(|number| {
                    let worker = meter.for_worker();
                    scope.spawn(move || {
                        for round in 0..200 {
                            let mut body = worker.of(loan, "/a".into());
                            let at = 1_000_000 * number + 100 * round;
                            (0..10).for_each(|frame| body.sent(at + 10 * frame, 10));
                        }
                    })
                })
                .collect();
            while workers.iter().any(|worker| !worker.is_finished()) {
                meter.collect(&mut all);
            }
        });
        meter.collect(&mut all);
        let tally = all.take(2).pop().unwrap().tally;
        assert_eq!(tally.bytes, 4 * 200 * 100);
        let wanted: Vec<[u64; 2]> =
            (0..4).map(|number| [1_000_000 * number, 1_000_000 * number + 19_999]).collect();
        assert_eq!(tally.ranges.pairs().collect::<Vec<_>>(), wanted);
    }
}
