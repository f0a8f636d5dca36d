//! The buffer sizes of streams. A stream starts with a small buffer, gets a larger one while its
//! reader reads at full speed, and a small one again for a slower reader. All streams together stay
//! within `server.buffers`.
//!
//! Large reads and writes cost less CPU per byte, since they cause fewer wake-ups. But a buffer is
//! occupied until the reader has read it, so large buffers for a thousand stalled readers would
//! exhaust memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Smallest buffer in bytes, which every stream may hold outside the budget. With its overhead, it
/// fills a TLS record of 16 KiB.
pub(crate) const LEAST: usize = 16 * 1024 - 32;
/// Initial buffer in bytes while the budget is mostly free. It makes short files cheap.
const INITIAL: usize = 64 * 1024;
/// Bytes before a buffer may grow. The first bytes may only fill socket buffers or an HTTP/2
/// window, so they do not show the reader's speed.
const GROWTH_THRESHOLD: usize = 3 * 1024 * 1024;
/// Number of full buffers after which the size doubles.
const FULL_READS_TO_GROW: u32 = 4;
/// Longest pause between two requests for bytes of a reader that reads at full speed.
const FULL_SPEED_PAUSE: Duration = Duration::from_millis(20);
/// Pause after which a reader counts as stalled.
const STALL_TIMEOUT: Duration = Duration::from_millis(200);

/// The budget of all streams of the process (`server.buffers`). Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Buffers(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    total: usize,
    held: AtomicUsize,
}

impl Buffers {
    /// Creates a budget of `total` bytes, in addition to [`LEAST`] for each stream.
    pub(crate) fn new(total: usize) -> Buffers {
        Buffers(Arc::new(Budget { total, held: AtomicUsize::new(0) }))
    }

    /// Returns the bytes in use.
    pub(crate) fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// Returns the size of the budget in bytes.
    pub(crate) fn total(&self) -> usize {
        self.0.total
    }

    /// Takes bytes out of the budget, unless more than `limit` would then be in use.
    fn take(&self, bytes: usize, limit: usize) -> bool {
        let held = self.0.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if held > limit {
            self.release(bytes);
        }
        held <= limit
    }

    fn release(&self, bytes: usize) {
        self.0.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The buffer size of one stream.
#[derive(Debug)]
pub(crate) struct Size {
    buffers: Buffers,
    most: usize,
    bytes: usize,
    has_begun: bool,
    /// Bytes moved since the stream began or last stalled.
    moved: usize,
    full_reads: u32,
    /// Arrival of the last bytes; `None` while the stream waits for more.
    last_arrival: Option<Instant>,
}

impl Size {
    /// Creates a size that grows up to `most` bytes, which must be at least 64 KiB.
    pub(crate) fn new(buffers: &Buffers, most: usize) -> Size {
        Size {
            buffers: buffers.clone(),
            most,
            bytes: LEAST,
            has_begun: false,
            moved: 0,
            full_reads: 0,
            last_arrival: None,
        }
    }

    /// Returns the size for the next read. Call it when the reader requests more bytes.
    pub(crate) fn next(&mut self, now: Instant) -> usize {
        if !std::mem::replace(&mut self.has_begun, true)
            && self.buffers.take(INITIAL - LEAST, self.buffers.0.total / 32)
        {
            self.bytes = INITIAL;
        }
        // Measures only the time until the reader requests more, not the origin's response time.
        match self.last_arrival.take().map(|arrival| now.duration_since(arrival)) {
            Some(waited) if waited > STALL_TIMEOUT => {
                self.change(LEAST);
                self.moved = 0;
            }
            // Converges on the amount that the reader reads in this time.
            Some(waited) if waited > FULL_SPEED_PAUSE => self.change((self.bytes / 2).max(LEAST)),
            _ => {}
        }
        self.bytes
    }

    /// Returns whether the size is at its maximum: the reader reads at full speed.
    pub(crate) fn is_at_maximum(&self) -> bool {
        self.bytes == self.most
    }

    /// Returns whether the stream uses nothing of the budget.
    pub(crate) fn is_at_minimum(&self) -> bool {
        self.bytes == LEAST
    }

    /// Releases everything beyond [`LEAST`], since no transfer is running.
    pub(crate) fn shrink(&mut self) {
        self.change(LEAST);
        (self.moved, self.has_begun) = (0, false);
    }

    /// Releases everything beyond [`LEAST`] if the reader has stalled.
    pub(crate) fn rest(&mut self, now: Instant) {
        if self.last_arrival.is_some_and(|arrival| now.duration_since(arrival) > STALL_TIMEOUT) {
            self.change(LEAST);
            self.moved = 0;
        }
    }

    /// Records that this many bytes arrived.
    pub(crate) fn record_arrival(&mut self, bytes: usize, now: Instant) {
        self.last_arrival = Some(now);
        self.moved = self.moved.saturating_add(bytes);
        if self.moved < GROWTH_THRESHOLD || bytes < self.bytes / 8 * 7 {
            return;
        }
        self.full_reads += 1;
        if self.full_reads >= FULL_READS_TO_GROW {
            self.change((self.bytes * 2).min(self.most));
        }
    }

    /// Changes the size. Growth needs free budget; shrinking releases budget.
    fn change(&mut self, bytes: usize) {
        self.full_reads = 0;
        if bytes <= self.bytes || self.buffers.take(bytes - self.bytes, self.buffers.0.total) {
            self.buffers.release(self.bytes.saturating_sub(bytes));
            self.bytes = bytes;
        }
    }
}

impl Drop for Size {
    fn drop(&mut self) {
        self.buffers.release(self.bytes - LEAST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 1024 * 1024;

    /// Moves this many bytes in full reads without a pause. Returns the distinct sizes used.
    fn moves(size: &mut Size, bytes: usize, now: Instant) -> Vec<usize> {
        let (mut sizes, mut moved) = (Vec::new(), 0);
        while moved < bytes {
            let next = size.next(now);
            size.record_arrival(next, now);
            moved += next;
            sizes.push(next);
        }
        sizes.dedup();
        sizes
    }

    #[test]
    fn size_follows_the_speed_of_the_reader() {
        let buffers = Buffers::new(64 << 20);
        let mut size = Size::new(&buffers, MOST);
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        assert_eq!(
            moves(&mut size, GROWTH_THRESHOLD, at(0)),
            [INITIAL],
            "the first bytes may only fill buffers"
        );
        let grown: Vec<usize> = (0..=4).map(|twice| INITIAL << twice).collect();
        assert_eq!(moves(&mut size, 8 << 20, at(0)), grown);
        assert_eq!(size.next(at(10)), MOST);
        assert_eq!(size.next(at(9000)), MOST, "the origin is slow, not the reader");
        size.record_arrival(MOST, at(9000));
        assert_eq!(size.next(at(9050)), MOST / 2, "the reader is slower");
        size.record_arrival(MOST / 2, at(9050));
        assert_eq!(size.next(at(9300)), LEAST, "the reader has stalled");
        assert_eq!(moves(&mut size, GROWTH_THRESHOLD, at(9300)), [LEAST], "growth starts over");
    }

    #[test]
    fn stalled_stream_releases_its_budget() {
        let buffers = Buffers::new(64 << 20);
        let mut size = Size::new(&buffers, MOST);
        assert_eq!(buffers.held(), 0, "a stream that has not begun uses no budget");
        let began = Instant::now();
        moves(&mut size, 16 << 20, began);
        size.rest(began + Duration::from_millis(100));
        assert_eq!(buffers.held(), MOST - LEAST);
        size.rest(began + Duration::from_millis(300));
        assert_eq!(buffers.held(), 0);
        moves(&mut size, 16 << 20, began);
        size.next(began);
        size.rest(began + Duration::from_secs(9));
        assert_eq!(buffers.held(), MOST - LEAST, "waiting for the origin is not a stall");
    }

    #[test]
    fn small_reads_do_not_grow_the_size() {
        let mut size = Size::new(&Buffers::new(64 << 20), MOST);
        let now = Instant::now();
        for _ in 0..2 * GROWTH_THRESHOLD / 1000 {
            size.next(now);
            size.record_arrival(1000, now);
        }
        assert_eq!(size.next(now), INITIAL);
    }

    #[test]
    fn streams_stay_within_the_budget_and_release_it() {
        let buffers = Buffers::new(100 * 1024);
        let now = Instant::now();
        let mut sizes: Vec<Size> = (0..20).map(|_| Size::new(&buffers, MOST)).collect();
        for size in &mut sizes {
            moves(size, 16 << 20, now);
            assert!(buffers.held() <= 100 * 1024);
        }
        let held: usize = sizes.iter().map(|size| size.bytes - LEAST).sum();
        assert_eq!(buffers.held(), held);
        assert_eq!(sizes.pop().unwrap().bytes, LEAST, "no budget was left for the last");
        drop(sizes);
        assert_eq!(buffers.held(), 0);
    }
}
