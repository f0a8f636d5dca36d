//! How a body ends: complete, or early and for which reason.
//!
//! Bodies report it to the server as an error, and to the caller of `deliver` in [`Delivered`].

use std::time::Instant;

use http::StatusCode;

use crate::connection_handle::Abort;
use crate::telemetry::StreamEnd;

/// Callback that receives the result of a body.
pub(crate) type OnEnd = Box<dyn FnOnce(Delivered) + Send + Sync>;

/// Why a body ended early.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum BodyError {
    /// The origin broke off, or sent fewer bytes than it had announced.
    #[error("the origin's body broke off")]
    Origin,
    /// The origin sent nothing for `idle`.
    #[error("the origin's body stalled")]
    Stalled,
    /// The origin has another file now.
    #[error("the file has changed at the origin")]
    Changed,
    /// The loan ended during the transfer.
    #[error("the loan has ended")]
    LoanEnded,
    /// The reader was idle or too slow.
    #[error("the reader is too slow")]
    TooSlow,
}

impl From<Abort> for BodyError {
    fn from(why: Abort) -> BodyError {
        match why {
            Abort::LoanEnded => BodyError::LoanEnded,
            Abort::TooSlow => BodyError::TooSlow,
        }
    }
}

/// The result of a body: what was sent, and how it ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivered {
    /// Body bytes that the kernel accepted.
    pub bytes: u64,
    /// Why the body ended.
    pub end: StreamEnd,
    /// Status of the response.
    pub status: StatusCode,
    /// When the response's head was ready.
    pub opened: Instant,
    /// Times resumed after the origin broke off.
    pub resumes: u32,
}
