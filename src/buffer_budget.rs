//! How much a stream may hold on its way through the gate: little at first, more while its reader
//! takes all it is given, little again for one who is slower, and all streams together no more than
//! `server.buffers`.
//!
//! The size of a read or a write decides what a byte costs: few large ones mean few wake-ups. But
//! what was read is held until the reader has taken it, and a thousand readers who stand still
//! would hold a thousand large pieces.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What every stream may hold, whatever the others do, in bytes: what makes a TLS record of 16 KiB
/// in all.
pub const LEAST: usize = 16 * 1024 - 32;
/// What it holds at first while few others hold more than the least: it makes short files cheap.
const FIRST: usize = 64 * 1024;
/// After how many bytes it may hold more: what a reader takes at first may lie in the buffers of
/// both systems, or in an HTTP/2 window, and say nothing.
const GROWS_FROM: usize = 3 * 1024 * 1024;
/// After how many full pieces it then holds twice as much.
const GROWS_AFTER: u32 = 4;
/// How long between a piece and the next question for one a reader is thought to keep up.
const KEEPS_UP: Duration = Duration::from_millis(20);
/// After how long it is thought to stand still.
const STANDS_STILL: Duration = Duration::from_millis(200);

/// The budget of all streams of the process (`server.buffers`). Clones share it.
#[derive(Clone, Debug)]
pub struct Buffers(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    total: usize,
    held: AtomicUsize,
}

impl Buffers {
    /// A budget of so many bytes, beyond [`LEAST`] for each stream.
    pub fn new(total: usize) -> Buffers {
        Buffers(Arc::new(Budget { total, held: AtomicUsize::new(0) }))
    }

    /// How many bytes of it are taken.
    pub fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// How many bytes it has.
    pub fn total(&self) -> usize {
        self.0.total
    }

    /// Takes so many bytes, where no more than `total` are taken then.
    fn take(&self, bytes: usize, total: usize) -> bool {
        let held = self.0.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if held > total {
            self.give(bytes);
        }
        held <= total
    }

    fn give(&self, bytes: usize) {
        self.0.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// How much one stream moves at once.
#[derive(Debug)]
pub struct Size {
    buffers: Buffers,
    most: usize,
    bytes: usize,
    has_begun: bool,
    /// How much has been moved since it began, or last stood still.
    moved: usize,
    full: u32,
    /// When the last piece had come; none while more is waited for.
    came: Option<Instant>,
}

impl Size {
    /// A little at first, up to `most` later, which is at least 64 KiB.
    pub fn new(buffers: &Buffers, most: usize) -> Size {
        Size {
            buffers: buffers.clone(),
            most,
            bytes: LEAST,
            has_begun: false,
            moved: 0,
            full: 0,
            came: None,
        }
    }

    /// How much to move now that the reader takes more.
    pub fn next(&mut self, now: Instant) -> usize {
        if !std::mem::replace(&mut self.has_begun, true)
            && self.buffers.take(FIRST - LEAST, self.buffers.0.total / 32)
        {
            self.bytes = FIRST;
        }
        // Only the time in which nobody asked for more is the reader's; the storage's is not.
        match self.came.take().map(|came| now.duration_since(came)) {
            Some(waited) if waited > STANDS_STILL => {
                self.change(LEAST);
                self.moved = 0;
            }
            // So it comes to what a reader takes in that time.
            Some(waited) if waited > KEEPS_UP => self.change((self.bytes / 2).max(LEAST)),
            _ => {}
        }
        self.bytes
    }

    /// Whether it is as much as it may ever be: the reader keeps up.
    pub fn is_most(&self) -> bool {
        self.bytes == self.most
    }

    /// Whether it holds nothing beyond the least.
    pub fn is_least(&self) -> bool {
        self.bytes == LEAST
    }

    /// Releases what it holds beyond the least, since nothing is under way.
    pub fn shrink(&mut self) {
        self.change(LEAST);
        (self.moved, self.has_begun) = (0, false);
    }

    /// Gives back what it holds beyond the least where its reader stands still and does not ask.
    pub fn rest(&mut self, now: Instant) {
        if self.came.is_some_and(|came| now.duration_since(came) > STANDS_STILL) {
            self.change(LEAST);
            self.moved = 0;
        }
    }

    /// Notes that so much has come.
    pub fn came(&mut self, bytes: usize, now: Instant) {
        self.came = Some(now);
        self.moved = self.moved.saturating_add(bytes);
        if self.moved < GROWS_FROM || bytes < self.bytes / 8 * 7 {
            return;
        }
        self.full += 1;
        if self.full >= GROWS_AFTER {
            self.change((self.bytes * 2).min(self.most));
        }
    }

    /// Takes what is more from the budget, where there is so much, and gives back what is less.
    fn change(&mut self, bytes: usize) {
        self.full = 0;
        if bytes <= self.bytes || self.buffers.take(bytes - self.bytes, self.buffers.0.total) {
            self.buffers.give(self.bytes.saturating_sub(bytes));
            self.bytes = bytes;
        }
    }
}

impl Drop for Size {
    fn drop(&mut self) {
        self.buffers.give(self.bytes - LEAST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 1024 * 1024;

    /// Moves so many bytes in full pieces, at one moment; the sizes that it came by.
    fn moves(size: &mut Size, bytes: usize, now: Instant) -> Vec<usize> {
        let (mut sizes, mut moved) = (Vec::new(), 0);
        while moved < bytes {
            let next = size.next(now);
            size.came(next, now);
            moved += next;
            sizes.push(next);
        }
        sizes.dedup();
        sizes
    }

    #[test]
    fn it_grows_while_all_is_taken_at_once_and_falls_when_the_reader_lets_it_wait() {
        let buffers = Buffers::new(64 << 20);
        let mut size = Size::new(&buffers, MOST);
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        assert_eq!(moves(&mut size, GROWS_FROM, at(0)), [FIRST], "so much may lie in buffers");
        let grown: Vec<usize> = (0..=4).map(|twice| FIRST << twice).collect();
        assert_eq!(moves(&mut size, 8 << 20, at(0)), grown);
        assert_eq!(size.next(at(10)), MOST);
        assert_eq!(size.next(at(9000)), MOST, "the storage lets wait, not the reader");
        size.came(MOST, at(9000));
        assert_eq!(size.next(at(9050)), MOST / 2, "the reader is slower");
        size.came(MOST / 2, at(9050));
        assert_eq!(size.next(at(9300)), LEAST, "the reader stands still");
        assert_eq!(moves(&mut size, GROWS_FROM, at(9300)), [LEAST], "and begins anew");
    }

    #[test]
    fn who_stands_still_holds_nothing_beyond_the_least() {
        let buffers = Buffers::new(64 << 20);
        let mut size = Size::new(&buffers, MOST);
        assert_eq!(buffers.held(), 0, "nor who has not begun");
        let began = Instant::now();
        moves(&mut size, 16 << 20, began);
        size.rest(began + Duration::from_millis(100));
        assert_eq!(buffers.held(), MOST - LEAST);
        size.rest(began + Duration::from_millis(300));
        assert_eq!(buffers.held(), 0);
        moves(&mut size, 16 << 20, began);
        size.next(began);
        size.rest(began + Duration::from_secs(9));
        assert_eq!(buffers.held(), MOST - LEAST, "who waits for the storage does not stand still");
    }

    #[test]
    fn what_comes_in_small_pieces_is_moved_in_small_pieces() {
        let mut size = Size::new(&Buffers::new(64 << 20), MOST);
        let now = Instant::now();
        for _ in 0..2 * GROWS_FROM / 1000 {
            size.next(now);
            size.came(1000, now);
        }
        assert_eq!(size.next(now), FIRST);
    }

    #[test]
    fn all_together_hold_no_more_than_the_budget_and_give_back_what_they_held() {
        let buffers = Buffers::new(100 * 1024);
        let now = Instant::now();
        let mut sizes: Vec<Size> = (0..20).map(|_| Size::new(&buffers, MOST)).collect();
        for size in &mut sizes {
            moves(size, 16 << 20, now);
            assert!(buffers.held() <= 100 * 1024);
        }
        let held: usize = sizes.iter().map(|size| size.bytes - LEAST).sum();
        assert_eq!(buffers.held(), held);
        assert_eq!(sizes.pop().unwrap().bytes, LEAST, "nothing was left for the last");
        drop(sizes);
        assert_eq!(buffers.held(), 0);
    }
}
