//! Work that no reader waits for: ends of loans, metering, and the change feed.

use crate::calibration as cost;
use crate::deployment::METERING_FLUSH;
use crate::distributions::exponential;
use crate::queues::SECOND;

use super::database::Work;
use super::{Cell, Event};

/// Pause between two polls of the change feed.
const FEED_PAUSE: u64 = SECOND / 2;
/// Rows of one metering transaction.
const MAX_ROWS: u32 = 256;

/// One gate of the region: the counts that its next flush writes.
#[derive(Default)]
pub(super) struct Front {
    /// Rows by library.
    pub(super) delivered: Vec<(u32, u32)>,
    /// What the running flush has not written yet.
    unwritten: Vec<(u32, u32)>,
    flush_began: u64,
}

impl Cell<'_> {
    pub(super) fn end_arrival(&mut self) {
        let rate = self.plan.rates.returns + self.plan.rates.expiries;
        let next = exponential(&mut self.random, SECOND as f64 / rate) as u64;
        self.queue.schedule(self.queue.now + next, Event::End);
        self.end_loan();
    }

    /// A return or an expiry: access ends when it is durable.
    pub(super) fn end_loan(&mut self) {
        let now = self.queue.now;
        let front = self.choose_front();
        let gate = self.gate_of(front);
        let (_, ready) = self.gates[gate].cores.add(now, cost::END);
        self.create_transaction(gate, Work::Ending { asked: now }, ready);
    }

    /// Sends an end to Bokbasen after every gate has read it from the feed.
    pub(super) fn ending(&mut self, asked: u64) {
        let now = self.queue.now;
        if self.is_counted() {
            self.outcome.end.add(now - asked);
        }
        self.backlog += 1;
        self.queue.schedule(now + FEED_PAUSE + self.random.u64(..FEED_PAUSE), Event::SendEnd);
    }

    /// Writes the counts of a gate: a transaction for each library, one after another.
    pub(super) fn flush(&mut self, number: u32) {
        let now = self.queue.now;
        let front = &mut self.fronts[number as usize];
        front.flush_began = now;
        let mut counts = std::mem::take(&mut front.delivered);
        counts.sort_unstable();
        for (library, rows) in counts.drain(..) {
            match front.unwritten.last_mut() {
                Some(last) if last.0 == library && last.1 + rows <= MAX_ROWS => last.1 += rows,
                _ => front.unwritten.push((library, rows)),
            }
        }
        front.delivered = counts;
        self.write_next_counts(number);
    }

    pub(super) fn write_next_counts(&mut self, number: u32) {
        let now = self.queue.now;
        let gate = self.gate_of(number);
        if !self.gates[gate].is_up {
            return;
        }
        let Some((library, rows)) = self.fronts[number as usize].unwritten.pop() else {
            if self.is_counted() {
                self.outcome.flush.add(now - self.fronts[number as usize].flush_began);
            }
            let flush = now + METERING_FLUSH * SECOND;
            return self.queue.schedule(flush, Event::Flush { front: number });
        };
        self.create_transaction(gate, Work::Meter { front: number, library, rows }, now);
    }

    /// Keeps counts that could not be written for the next flush.
    pub(super) fn return_counts(&mut self, number: u32, counts: (u32, u32)) {
        let front = &mut self.fronts[number as usize];
        front.delivered.push(counts);
        front.delivered.append(&mut front.unwritten);
        let flush = self.queue.now + METERING_FLUSH * SECOND;
        self.queue.schedule(flush, Event::Flush { front: number });
    }

    pub(super) fn poll_feed(&mut self, front: u32) {
        self.queue.schedule(self.queue.now + FEED_PAUSE, Event::Feed { front });
        if self.gates[self.gate_of(front)].is_up {
            self.run_feed();
        }
    }
}
