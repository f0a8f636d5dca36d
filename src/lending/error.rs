//! Errors of calls to Bokbasen, by what may have happened there.

use std::time::Duration;

use super::wire;
use crate::telemetry::CallOutcome;

/// Why a call failed. No sentence names a token, a secret or a borrower.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CallError {
    /// The call was certainly not sent: no connection, no login, or held back by the guard.
    #[error("the call was not sent: {0}")]
    NotSent(String),
    /// Bokbasen answered with a 4xx status, and did nothing.
    #[error("Bokbasen answered {status} {code}: {message}")]
    Rejected {
        /// The HTTP status, from 400 to 499.
        status: u16,
        /// Bokbasen's error code, without control characters; empty if there is none.
        code: String,
        /// Bokbasen's error message, without control characters.
        message: String,
        /// The time to wait before a retry.
        retry_after: Option<Duration>,
    },
    /// Bokbasen may have executed the call: it was sent, and no conclusive response arrived.
    #[error("the outcome of the call is unknown: {0}")]
    Unknown(String),
}

impl CallError {
    /// Whether Bokbasen reports that it has no such loan. A 404 without that code means a wrong
    /// address.
    pub(super) fn is_no_such_loan(&self) -> bool {
        match self {
            CallError::Rejected { status: 404, code, .. } => code == wire::LOAN_NOT_FOUND,
            CallError::NotSent(_) | CallError::Rejected { .. } | CallError::Unknown(_) => false,
        }
    }

    /// Returns the outcome of the call, for metrics.
    pub(super) fn outcome(&self) -> CallOutcome {
        match self {
            CallError::NotSent(_) => CallOutcome::NotSent,
            CallError::Rejected { .. } => CallOutcome::Rejected,
            CallError::Unknown(_) => CallOutcome::Unknown,
        }
    }
}

/// The reason why the client cannot be created.
#[derive(Debug, thiserror::Error)]
#[error("the client of the lending platform cannot be set up: {0}")]
pub struct SetUpError(pub(super) String);
