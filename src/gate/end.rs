//! Ends a loan: first its access here, then the loan itself in circulation.
//!
//! A reader's request calls [`Gate::revoke`], and support calls [`Gate::revoke_loan`]. Circulation
//! announces every end to [`closed`], also of an expired loan, and `closed` aborts the running
//! bodies. Over HTTP/2 this resets only their streams. If bytes of the loan still wait in a
//! connection a moment later, because its kernel buffer is full, the connection is closed.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::timeout;

use super::access::Access;
use super::cache::Decisions;
use super::{Gate, PENDING_RETRY_AFTER};
use crate::circulation::{Closed, EndError, RunningStreams};
use crate::clock;
use crate::loan::{EndReason, Loan, LoanId, LoanKey, LoanState};
use crate::problem::Problem;

/// How long after its acceptance a loan can be cancelled, which frees its licence (assumed: 15
/// minutes). A cancel that arrives too late is sent as a return.
const CANCEL_WINDOW: Duration = Duration::from_secs(15 * 60);
/// How long a caller waits for the end of a loan. The end continues after it.
const END_DEADLINE: Duration = Duration::from_secs(2);
/// How long an aborted body may take until its last byte is sent or discarded.
const ABORT_TIMEOUT: Duration = Duration::from_millis(500);

/// Closes the access of an ended loan. A repeated announcement has no effect: the change feed also
/// returns the ends of this process.
pub(super) fn closed(decisions: &Decisions, closed: &Closed, slow: &Handle) {
    if decisions.is_closed(closed.loan) {
        return;
    }
    if let Some(access) = decisions.close(closed) {
        abort_streams(access, closed.loan, slow);
    }
}

/// Aborts the bodies of a closed access, and later closes the connections that still hold their
/// bytes.
fn abort_streams(access: Arc<Access>, loan: LoanId, slow: &Handle) {
    access.abort();
    slow.spawn(async move {
        tokio::time::sleep(ABORT_TIMEOUT).await;
        let bodies = access.close_connections();
        if bodies > 0 {
            tracing::info!(%loan, bodies, "closed connections that held bytes of an ended loan");
        }
    });
}

/// The running streams, for the task that follows the ledger's change feed.
pub(super) struct Running {
    pub(super) decisions: Arc<Decisions>,
    pub(super) slow: Handle,
}

impl RunningStreams for Running {
    fn running(&self) -> Vec<LoanId> {
        self.decisions.accesses.running()
    }

    fn abort(&self, loans: &[LoanId]) {
        for loan in loans {
            let access = self.decisions.accesses.find(*loan);
            // The loan may be live: once the ledger can be read, it is opened again.
            self.decisions.accesses.remove(*loan);
            if let Some(access) = access {
                access.close();
                abort_streams(access, *loan, &self.slow);
            }
        }
    }
}

impl Gate {
    /// Ends this reader's loan of this title. Succeeds if there is no loan, or if it is over.
    ///
    /// # Errors
    /// `loan-pending` while Bokbasen has not decided, or while an earlier request may still begin a
    /// loan; the loan is then unchanged.
    /// `ledger-unavailable`; the end may still be completed.
    pub async fn revoke(&self, key: LoanKey) -> Result<(), Problem> {
        let gate = self.clone();
        // If the client disconnects, the end must still be completed.
        let ended = self.flights.run(async move {
            // Checked before the read: an intent that was written since is then read.
            let may_begin = gate.flights.may_begin(&key);
            match gate.flights.circulation.newest(&key).await {
                Ok(Some(loan)) if loan.state.is_live() => gate.end(&loan, "reader", None).await,
                Ok(_) if may_begin => {
                    Err(Problem::LoanPending { retry_after: PENDING_RETRY_AFTER })
                }
                Ok(_) => Ok(()),
                Err(error) => Err(ledger_failure(&error)),
            }
        });
        in_time(ended).await
    }

    /// Ends a loan for support, with a reason in words. Returns false if there is no such loan.
    ///
    /// # Errors
    /// As [`Gate::revoke`].
    pub async fn revoke_loan(&self, id: LoanId, why: Option<String>) -> Result<bool, Problem> {
        let gate = self.clone();
        let ended = self.flights.run(async move {
            match gate.flights.circulation.loan(id).await {
                Ok(Some(loan)) => gate.end(&loan, "admin", why).await.map(|()| true),
                Ok(None) => Ok(false),
                Err(error) => Err(ledger_failure(&error)),
            }
        });
        in_time(ended).await
    }

    async fn end(&self, loan: &Loan, by: &'static str, why: Option<String>) -> Result<(), Problem> {
        match loan.state {
            LoanState::Ending | LoanState::Ended | LoanState::Refused => return Ok(()),
            LoanState::Intended | LoanState::Unknown => {
                return Err(Problem::LoanPending { retry_after: PENDING_RETRY_AFTER });
            }
            LoanState::Pending | LoanState::Accepted => {}
        }
        let (access, reason) = self.stop_access(loan);
        let ended = self.flights.circulation.end(loan.id, reason, by, why).await;
        drop(access);
        match ended {
            // A lagging read has made it unknown: it may be live, and must be returned again.
            Err(EndError::NotLive(LoanState::Intended | LoanState::Unknown)) => {
                self.decisions.accesses.remove(loan.id);
                Err(Problem::LoanPending { retry_after: PENDING_RETRY_AFTER })
            }
            // Another caller or Bokbasen ended it first.
            Ok(_) | Err(EndError::NotLive(_) | EndError::NoSuchLoan) => Ok(()),
            Err(EndError::Ledger(error)) => {
                self.decisions.accesses.remove(loan.id);
                Err(ledger_failure(&error))
            }
        }
    }

    /// Closes the access and returns the reason for the end. The loan is cancelled, which frees its
    /// licence, if this process has given no permit, or else returned. The ledger turns a cancel
    /// into a return if another process may have given one.
    fn stop_access(&self, loan: &Loan) -> (Arc<Access>, EndReason) {
        let access = self.decisions.accesses.get_or_create(loan.id);
        let now = self.clock.now();
        let in_time = loan.accepted.is_none_or(|at| clock::after(at, CANCEL_WINDOW) > now);
        let cancelled = in_time && access.close_unopened();
        access.close();
        self.decisions.remove(&loan.key);
        (access, if cancelled { EndReason::Cancelled } else { EndReason::Returned })
    }
}

/// Returns the result of an end; an error if it takes too long or has failed abnormally.
async fn in_time<T>(ended: impl Future<Output = Option<Result<T, Problem>>>) -> Result<T, Problem> {
    let ended = timeout(END_DEADLINE, ended).await.ok().flatten();
    ended.unwrap_or(Err(Problem::LedgerUnavailable))
}

fn ledger_failure(error: &dyn std::fmt::Display) -> Problem {
    tracing::error!(%error, "cannot end a loan");
    Problem::LedgerUnavailable
}
