//! A chunk of a body as HTTP/1.1 and HTTP/2 write it: bytes that keep their body's permit and
//! limits in force until they are with the kernel.
//!
//! `body` makes them; the server writes and drops them. A chunk that is dropped reports to its
//! connection how much of it was written. It never blocks and copies nothing.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::outgoing::Outgoing;
use crate::connection_handle::Written;

/// Bytes of a response's body.
#[derive(Debug, Default)]
pub struct Chunk {
    bytes: Bytes,
    hold: Option<Hold>,
}

/// What a chunk of a file holds on to.
#[derive(Debug)]
struct Hold {
    body: Arc<Outgoing>,
    /// Where in the file the chunk began; none where its bytes are not the file's.
    at: Option<u64>,
    /// How many bytes of it were written.
    written: usize,
}

impl Chunk {
    /// Bytes of a body that runs under a permit or a limit.
    pub(super) fn held(bytes: Bytes, at: Option<u64>, body: Arc<Outgoing>) -> Chunk {
        Chunk { bytes, hold: Some(Hold { body, at, written: 0 }) }
    }

    /// Splits off the first `count` bytes, of which nothing was written yet.
    pub fn split_to(&mut self, count: usize) -> Chunk {
        let bytes = self.bytes.split_to(count.min(self.bytes.len()));
        let hold = self.hold.as_mut().map(|hold| {
            let first = Hold { body: hold.body.clone(), at: hold.at, written: 0 };
            hold.at = hold.at.map(|at| at + bytes.len() as u64);
            first
        });
        Chunk { bytes, hold }
    }

    /// Whether the bytes are a file's, by their place in it.
    pub(super) fn is_of_file(&self) -> bool {
        self.hold.as_ref().is_some_and(|hold| hold.at.is_some())
    }

    /// Copies the bytes where they keep a larger buffer alive.
    pub(super) fn shrink(&mut self) {
        self.bytes = Bytes::copy_from_slice(&self.bytes);
    }
}

impl From<Bytes> for Chunk {
    /// Bytes that nothing depends on.
    fn from(bytes: Bytes) -> Chunk {
        Chunk { bytes, hold: None }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if let Some(hold) = &mut self.hold {
            hold.written += count;
            hold.body.note_written(count);
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(Hold { body, at, written: count @ 1.. }) = self.hold.take() {
            let connection = body.connection_handle();
            body.note_recorded(count);
            connection.record(Written { body, at, count });
        }
    }
}
