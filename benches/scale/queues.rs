//! The parts of a discrete-event simulation: a queue of events, servers with a waiting line, the
//! flush of a write-ahead log that several transactions share, and a histogram of waits.
//!
//! Times are microseconds since the start of the simulation.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

pub(crate) const SECOND: u64 = 1_000_000;
pub(crate) const MINUTE: u64 = 60 * SECOND;
pub(crate) const HOUR: u64 = 60 * MINUTE;
pub(crate) const DAY: u64 = 24 * HOUR;

/// Events in order of time. Events of the same time keep the order in which they were scheduled.
pub(crate) struct EventQueue<E> {
    events: BinaryHeap<Reverse<(u64, u64, E)>>,
    scheduled: u64,
    pub(crate) now: u64,
}

impl<E: Ord> EventQueue<E> {
    pub(crate) fn new() -> EventQueue<E> {
        EventQueue { events: BinaryHeap::new(), scheduled: 0, now: 0 }
    }

    pub(crate) fn schedule(&mut self, at: u64, event: E) {
        self.scheduled += 1;
        self.events.push(Reverse((at.max(self.now), self.scheduled, event)));
    }

    /// Removes the earliest event before `end`, and advances the time to it.
    pub(crate) fn next(&mut self, end: u64) -> Option<E> {
        if self.events.peek()?.0.0 >= end {
            return None;
        }
        let Reverse((at, _, event)) = self.events.pop()?;
        self.now = at;
        Some(event)
    }

    /// Returns the number of events so far.
    pub(crate) fn count(&self) -> u64 {
        self.scheduled - self.events.len() as u64
    }
}

/// Equal servers, such as the cores of a machine, with one first-in, first-out line.
///
/// Jobs must arrive in order of time. Then the end of each is known when it arrives.
#[derive(Clone)]
pub(crate) struct Servers {
    free_at: Vec<u64>,
    /// The time in which servers worked, all together.
    pub(crate) busy: f64,
}

impl Servers {
    pub(crate) fn new(count: usize) -> Servers {
        Servers { free_at: vec![0; count], busy: 0.0 }
    }

    pub(crate) fn count(&self) -> usize {
        self.free_at.len()
    }

    /// Adds a job of `work` microseconds. Returns when it starts and when it ends.
    pub(crate) fn add(&mut self, now: u64, work: f64) -> (u64, u64) {
        self.busy += work;
        let free = self.free_at.iter_mut().min().unwrap();
        let start = now.max(*free);
        *free = start + work.round() as u64;
        (start, *free)
    }
}

/// A write-ahead log: one flush at a time. A commit waits for the next flush, with all that arrive
/// until it starts.
#[derive(Clone, Default)]
pub(crate) struct GroupCommit {
    flush_ends: u64,
    next_ends: u64,
    pub(crate) flushes: u64,
}

impl GroupCommit {
    /// Returns when a commit of `now` is durable.
    pub(crate) fn commit(&mut self, now: u64, flush: u64) -> u64 {
        if now >= self.next_ends {
            self.flush_ends = now + flush;
            self.next_ends = self.flush_ends;
            self.flushes += 1;
            return self.next_ends;
        }
        if now >= self.flush_ends {
            self.flush_ends = self.next_ends;
        }
        if self.next_ends == self.flush_ends {
            self.next_ends += flush;
            self.flushes += 1;
        }
        self.next_ends
    }
}

/// A histogram of waits with buckets of 2 %.
#[derive(Clone, Default)]
pub(crate) struct Waits {
    buckets: Vec<u64>,
    count: u64,
}

impl Waits {
    const BASE: f64 = 1.02;

    pub(crate) fn add(&mut self, wait: u64) {
        let bucket = ((wait + 1) as f64).log(Self::BASE) as usize;
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.count += 1;
    }

    /// Returns the wait in milliseconds that `share` of all waits do not exceed.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let mut left = share * self.count as f64;
        for (bucket, count) in self.buckets.iter().enumerate() {
            left -= *count as f64;
            if left <= 0.0 {
                return (Self::BASE.powi(bucket as i32 + 1) - 1.0) / 1e3;
            }
        }
        0.0
    }
}
