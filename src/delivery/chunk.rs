//! A chunk of a body. It keeps the body's permit and limits in force until the kernel has its
//! bytes.
//!
//! `body` creates chunks; the server writes and drops them. On drop, a chunk reports to its
//! connection how many of its bytes were written. It does not block.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::outgoing::Outgoing;
use crate::connection_handle::{OutgoingBody, Written};

/// Bytes of a response's body.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    bytes: Bytes,
    hold: Option<Hold>,
}

/// The body that a chunk of a file belongs to.
#[derive(Debug)]
struct Hold {
    body: Arc<Outgoing>,
    /// Offset of the chunk in the file; `None` for multipart text.
    at: Option<u64>,
    /// Bytes written so far.
    written: usize,
}

impl Chunk {
    /// Creates a chunk of a running body.
    pub(super) fn held(bytes: Bytes, at: Option<u64>, body: Arc<Outgoing>) -> Chunk {
        Chunk { bytes, hold: Some(Hold { body, at, written: 0 }) }
    }

    /// Splits off the first `count` bytes. None of them may have been written yet.
    pub(crate) fn split_to(&mut self, count: usize) -> Chunk {
        let bytes = self.bytes.split_to(count.min(self.bytes.len()));
        let hold = self.hold.as_mut().map(|hold| {
            let first = Hold { body: hold.body.clone(), at: hold.at, written: 0 };
            hold.at = hold.at.map(|at| at + bytes.len() as u64);
            first
        });
        Chunk { bytes, hold }
    }

    /// Returns whether the bytes are part of a file.
    pub(super) fn is_of_file(&self) -> bool {
        self.hold.as_ref().is_some_and(|hold| hold.at.is_some())
    }

    /// Copies the bytes, so that they do not keep a larger buffer alive.
    pub(super) fn shrink(&mut self) {
        self.bytes = Bytes::copy_from_slice(&self.bytes);
    }
}

impl From<Bytes> for Chunk {
    /// Creates a chunk without a permit or limit.
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
            hold.body.counters().record_written(count);
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(Hold { body, at, written: count @ 1.. }) = self.hold.take() {
            let connection = body.connection().clone();
            body.counters().record_reportable(count);
            connection.record(Written { body, at, count });
        }
    }
}
