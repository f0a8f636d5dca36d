//! How far the bytes of a running body have got: into chunks, into the connection, to the kernel.
//!
//! `outgoing` holds the counters of each body. One task writes them, and the stall monitor reads
//! them from another.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of a body's bytes.
#[derive(Debug, Default)]
pub(super) struct ByteCounters {
    /// Bytes that became chunks.
    chunked: AtomicU64,
    /// Bytes written to the connection.
    written: AtomicU64,
    /// Written bytes whose chunks were dropped, so that the connection reports them.
    reportable: AtomicU64,
    /// Bytes that the kernel accepted.
    accepted: AtomicU64,
}

impl ByteCounters {
    /// Records that `count` bytes became a chunk.
    pub(super) fn record_chunk(&self, count: u64) {
        add(&self.chunked, count);
    }

    /// Records that `count` bytes of a chunk were discarded.
    pub(super) fn record_discarded(&self, count: u64) {
        let chunked = self.chunked.load(Ordering::Relaxed).saturating_sub(count);
        self.chunked.store(chunked, Ordering::Relaxed);
    }

    /// Records that `count` bytes were written to the connection.
    pub(super) fn record_written(&self, count: usize) {
        add(&self.written, count as u64);
    }

    /// Records that the connection will report `count` bytes when the kernel has accepted them.
    pub(super) fn record_reportable(&self, count: usize) {
        add(&self.reportable, count as u64);
    }

    /// Records that the kernel has accepted `count` bytes.
    pub(super) fn record_accepted(&self, count: u64) {
        add(&self.accepted, count);
    }

    /// Returns the number of bytes written to the connection.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes that the kernel accepted.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Returns whether the kernel has accepted the bytes of all chunks.
    pub(super) fn is_all_accepted(&self) -> bool {
        self.accepted() == self.chunked.load(Ordering::Relaxed)
    }

    /// Returns whether bytes of the body wait in the connection.
    pub(super) fn has_bytes_in_connection(&self) -> bool {
        self.accepted() < self.reportable.load(Ordering::Relaxed)
    }
}

/// Adds to a counter with a single writer. This is cheaper than an atomic addition.
fn add(number: &AtomicU64, count: u64) {
    number.store(number.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}
