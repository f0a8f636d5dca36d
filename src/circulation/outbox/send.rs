//! Sends one end to Bokbasen, as a cancel or as a return.

use std::time::Duration;

use crate::circulation::Circulation;
use crate::lending::{CallError, CallKind, EndAck, Passage};
use crate::loan::{EndReason, Loan};

/// Result of sending an end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SendResult {
    /// Bokbasen acknowledged it; the acknowledgement is not written yet.
    Acknowledged,
    /// Bokbasen responded but does not accept the end yet; it may send a Retry-After.
    NotAccepted(Option<Duration>),
    /// Bokbasen did not respond, or responded with a 5xx, which this end itself may cause.
    NoResponse,
    /// The request was never sent: no connection or no access token.
    NotSent,
    /// The breaker blocked the request. The end waits for the breaker and has not failed.
    HeldBack,
}

impl SendResult {
    pub(super) fn is_response(self) -> bool {
        matches!(self, SendResult::Acknowledged | SendResult::NotAccepted(_))
    }
}

/// Sends one end to Bokbasen.
pub(super) async fn send(circulation: &Circulation, loan: &Loan) -> SendResult {
    let id = loan.id;
    match call_bokbasen(circulation, loan).await {
        Ok(EndAck::Done) => SendResult::Acknowledged,
        Ok(EndAck::NoSuchLoan) if circulation.trusts_absence(loan) => SendResult::Acknowledged,
        Ok(ack) => {
            tracing::warn!(loan = %id, ?ack, "Bokbasen does not accept this end yet; retrying");
            SendResult::NotAccepted(None)
        }
        Err(error @ CallError::Rejected { retry_after, .. }) => {
            tracing::error!(loan = %id, %error, "Bokbasen rejected this end; retrying");
            SendResult::NotAccepted(retry_after)
        }
        Err(CallError::NotSent(_))
            if circulation.inner.lending.passage(CallKind::End, false) != Passage::Open =>
        {
            SendResult::HeldBack
        }
        Err(error @ CallError::NotSent(_)) => {
            // The client of Bokbasen logs the reason, once a minute for all loans.
            tracing::debug!(loan = %id, %error, "cannot send an end; retrying");
            SendResult::NotSent
        }
        Err(error @ CallError::Unknown(_)) => {
            tracing::debug!(loan = %id, %error, "Bokbasen did not respond to an end; retrying");
            SendResult::NoResponse
        }
    }
}

async fn call_bokbasen(circulation: &Circulation, loan: &Loan) -> Result<EndAck, CallError> {
    let lending = &circulation.inner.lending;
    let (Some(lending_id), Some(ended), Some(reason)) =
        (&loan.lending_id, loan.ended, loan.end_reason)
    else {
        return Ok(EndAck::Done); // Bokbasen never had it
    };
    match reason {
        EndReason::Cancelled => {
            lending
                .cancel_or_return(lending_id, ended, EndReason::Returned, "cancelled by the reader")
                .await
        }
        EndReason::Returned | EndReason::Expired | EndReason::Rejected => {
            match lending.return_loan(lending_id, ended, reason).await? {
                // Bokbasen can only cancel a loan that is still pending there.
                EndAck::StillPending => {
                    lending.cancel(lending_id, "ended before it was accepted").await
                }
                ack @ (EndAck::Done | EndAck::CancelWindowClosed | EndAck::NoSuchLoan) => Ok(ack),
            }
        }
    }
}
