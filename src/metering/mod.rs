//! What was delivered under which loan: how many bytes of each file, and which.
//!
//! Delivery counts here; [`Flusher`] calls the ledger, to which it gives every count each
//! `metering.flush`, on the slow runtime. On the hot path a frame costs one store to an atomic
//! number, which nobody else writes: how far its run has come. A *run* is bytes of one file one
//! after the other; only its begin and its end take a lock, which is its worker's own but for the
//! moments in which the flusher reads it. The flusher reads how far the runs have come that still
//! go on, so that a reader who stands still keeps no count back. A kill loses what came since the
//! last flush, and as a count is only ever added once it was handed over for sending, nothing is
//! counted that was not.

mod counters;
mod flush;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::loan::LoanId;

use counters::{Key, Tallies};
pub use flush::Flusher;

/// The keys of `[metering]`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// How often counts are written to the ledger: what a crash may lose.
    pub flush: Duration,
}

/// Where counts are kept until they are written: one worker's, and all workers' to the flusher.
/// Clones share everything.
#[derive(Clone, Debug)]
pub struct Meter {
    shards: Arc<Mutex<Vec<Arc<Shard>>>>,
    shard: Arc<Shard>,
}

/// The counts of one body: which bytes of a file left under a loan.
#[derive(Debug)]
pub struct Metered {
    shard: Arc<Shard>,
    key: Key,
    /// Whether it is known where in the file the bytes are.
    placed: bool,
    /// The run that goes on: its number, and how far it has come.
    run: Option<(u64, Arc<AtomicU64>)>,
    /// The byte that comes next in it.
    next: u64,
}

#[derive(Debug, Default)]
struct Shard(Mutex<Counts>);

/// One worker's counts.
#[derive(Debug, Default)]
struct Counts {
    last: u64,
    runs: HashMap<u64, Run>,
    /// What has not been written, of runs that are over.
    over: Tallies,
}

#[derive(Debug)]
struct Run {
    key: Key,
    placed: bool,
    first: u64,
    /// Up to where it has been counted.
    counted: u64,
    /// The byte that comes next, as the body last said.
    next: Arc<AtomicU64>,
}

impl Meter {
    /// A meter without counts.
    pub fn new() -> Meter {
        let shard = Arc::new(Shard::default());
        Meter { shards: Arc::new(Mutex::new(vec![shard.clone()])), shard }
    }

    /// The same, with a place of its own for its counts, so that workers do not wait for one
    /// another.
    pub fn for_worker(&self) -> Meter {
        let shard = Arc::new(Shard::default());
        self.shards.lock().unwrap_or_else(PoisonError::into_inner).push(shard.clone());
        Meter { shards: self.shards.clone(), shard }
    }

    /// Counts for a body of this file under this loan.
    pub fn of(&self, loan: LoanId, file: Arc<str>) -> Metered {
        Metered { shard: self.shard.clone(), key: (loan, file), placed: true, run: None, next: 0 }
    }

    /// Moves every count there is into these, also of runs that go on.
    fn collect(&self, into: &mut Tallies) {
        let shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for shard in shards {
            let mut counts = shard.lock();
            let over = std::mem::take(&mut counts.over);
            for run in counts.runs.values_mut() {
                run.count(into);
            }
            drop(counts);
            into.take_in(over);
        }
    }
}

impl Default for Meter {
    fn default() -> Meter {
        Meter::new()
    }
}

impl Metered {
    /// Counts bytes only, and claims no ranges: for a body of which the bytes are not the file's
    /// own (RFC 9110 §8.4).
    pub fn without_places(&mut self) {
        self.placed = false;
    }

    /// Counts `count` bytes that leave, from byte `first` of the file on.
    pub fn sent(&mut self, first: u64, count: u64) {
        let first = if self.placed { first } else { self.next };
        let next = first.saturating_add(count);
        match &self.run {
            // The number stands for itself: no other memory is read by it, and so the order does
            // not matter.
            Some((_, shown)) if self.next == first => shown.store(next, Ordering::Relaxed),
            _ => self.begin(first, next),
        }
        self.next = next;
    }

    fn begin(&mut self, first: u64, next: u64) {
        let shown = Arc::new(AtomicU64::new(next));
        let (key, placed, next) = (self.key.clone(), self.placed, shown.clone());
        let mut counts = self.shard.lock();
        if let Some((former, _)) = self.run.take() {
            counts.end(former);
        }
        counts.last += 1;
        let number = counts.last;
        counts.runs.insert(number, Run { key, placed, first, counted: first, next });
        self.run = Some((number, shown));
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        if let Some((number, _)) = self.run.take() {
            self.shard.lock().end(number);
        }
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn end(&mut self, number: u64) {
        if let Some(mut run) = self.runs.remove(&number) {
            run.count(&mut self.over);
        }
    }
}

impl Run {
    /// Counts what has come since this was last asked. The range is the whole run each time: where
    /// there is room for some ranges only, one that grows is so told as the long one that it is.
    fn count(&mut self, into: &mut Tallies) {
        let next = self.next.load(Ordering::Relaxed);
        if next > self.counted {
            let range: Range<u64> = if self.placed { self.first..next } else { 0..0 };
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
        let tallies = all.some(usize::MAX).into_iter();
        let mut shown: Vec<_> = tallies
            .map(|one| (one.file.to_string(), one.tally.bytes, one.tally.ranges.pairs().collect()))
            .collect();
        shown.sort();
        shown
    }

    #[test]
    fn a_run_is_counted_while_it_goes_on_and_no_byte_twice() {
        let meter = Meter::new();
        let worker = meter.for_worker();
        let mut body = worker.of(LoanId::fresh(), "/a".into());
        assert_eq!(collected(&meter), []);
        body.sent(100, 50);
        assert_eq!(collected(&meter), [("/a".into(), 50, vec![[100, 149]])]);
        assert_eq!(collected(&meter), [], "nothing has come since");
        body.sent(150, 50);
        body.sent(300, 10); // another part
        body.sent(310, 10);
        assert_eq!(collected(&meter), [("/a".into(), 70, vec![[100, 199], [300, 319]])]);
        body.sent(320, 5);
        drop(body);
        assert_eq!(collected(&meter), [("/a".into(), 5, vec![[300, 324]])]);
        assert_eq!(collected(&meter), []);
        assert!(worker.shard.lock().runs.is_empty());
    }

    #[test]
    fn what_is_sent_again_adds_bytes_and_no_ranges_and_packed_bytes_claim_none() {
        let meter = Meter::new();
        let loan = LoanId::fresh();
        for _ in 0..3 {
            meter.of(loan, "/a".into()).sent(0, 10);
            meter.for_worker().of(loan, "/a".into()).sent(5, 10);
        }
        let mut packed = meter.of(loan, "/b".into());
        packed.without_places();
        packed.sent(0, 10);
        packed.sent(10, 10);
        drop(packed);
        assert_eq!(
            collected(&meter),
            [("/a".into(), 60, vec![[0, 14]]), ("/b".into(), 20, vec![])]
        );
    }

    #[test]
    fn threads_that_count_while_all_is_collected_lose_nothing_and_count_nothing_twice() {
        let meter = Meter::new();
        let loan = LoanId::fresh();
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
        let tally = all.some(2).pop().unwrap().tally;
        assert_eq!(tally.bytes, 4 * 200 * 100);
        let wanted: Vec<[u64; 2]> =
            (0..4).map(|number| [1_000_000 * number, 1_000_000 * number + 19_999]).collect();
        assert_eq!(tally.ranges.pairs().collect::<Vec<_>>(), wanted);
    }
}
