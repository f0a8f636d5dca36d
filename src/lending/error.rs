//! Why a call to Bokbasen did not succeed, told by what may have happened there.

use std::time::Duration;

use super::wire;

/// Why a call failed. No sentence names a token, a secret or a borrower.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CallError {
    /// It is certain that the call never left: no connection, no login, or held back here.
    #[error("the call was not sent: {0}")]
    NotSent(String),
    /// Bokbasen answered no, and did nothing.
    #[error("Bokbasen answered {status} {code}: {message}")]
    Rejected {
        /// The HTTP status, from 400 to 499.
        status: u16,
        /// Its code, word for word; empty where it gave none.
        code: String,
        /// Its message, word for word.
        message: String,
        /// When to ask again.
        retry_after: Option<Duration>,
    },
    /// The call may have been carried out: it left, and no answer that tells came back.
    #[error("what became of the call is not known: {0}")]
    Unknown(String),
}

impl CallError {
    /// Whether Bokbasen says that it has no such loan; a 404 without that word is a wrong address.
    pub(super) fn is_no_such_loan(&self) -> bool {
        matches!(self, CallError::Rejected { status: 404, code, .. } if code == wire::LOAN_NOT_FOUND)
    }

    /// The outcome's name in metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            CallError::NotSent(_) => "not_sent",
            CallError::Rejected { .. } => "rejected",
            CallError::Unknown(_) => "unknown",
        }
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[error("the client of the lending platform cannot be set up: {0}")]
pub struct SetUpError(pub(super) String);
