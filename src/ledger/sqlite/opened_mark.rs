//! The durable mark of loans under which a byte may have been sent. Such a loan is returned, never
//! cancelled.
//!
//! The gate writes the mark, through circulation, before it issues the first permit of a loan in
//! this process. The mark is written only while the loan is accepted. A cancel reads the mark in
//! the transaction that ends the loan. So if one process marks and another cancels, one of them
//! sees the other's write.

use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::ledger::batch::{WriteBatch, database};
use crate::ledger::executor::Command;
use crate::ledger::{Ledger, LedgerError};
use crate::loan::{EndReason, Event, LoanId};

impl Ledger {
    /// Marks an accepted loan as opened. Returns false if the loan is no longer accepted and must
    /// not be opened. A loan that is already marked costs a read and no write.
    ///
    /// # Errors
    /// [`LedgerError`]; the loan must not be opened then.
    pub async fn mark_opened(&self, id: LoanId) -> Result<bool, LedgerError> {
        const MARKED: &str =
            "SELECT 1 FROM loans WHERE id = ? AND state = 'accepted' AND opened IS NOT NULL";
        let marked: Option<i64> = sqlx::query_scalar(MARKED)
            .bind(id.to_string())
            .fetch_optional(&self.readers)
            .await
            .map_err(|source| self.failed(source))?;
        if marked.is_some() {
            return Ok(true);
        }
        let (responder, response) = oneshot::channel();
        self.send(Command::Opened { id, responder }).await?;
        response.await.map_err(|_| LedgerError::Closed)?
    }
}

/// Writes the mark if the loan is still accepted.
pub(in crate::ledger) async fn mark(
    batch: &mut WriteBatch<'_>,
    id: LoanId,
    now: Timestamp,
) -> Result<bool, LedgerError> {
    let connection = batch.connection().await.map_err(database)?;
    let update =
        "UPDATE loans SET opened = coalesce(opened, ?) WHERE id = ? AND state = 'accepted'";
    let update = sqlx::query(update).bind(now.as_millisecond()).bind(id.to_string());
    let update = update.execute(connection).await.map_err(database)?;
    Ok(update.rows_affected() == 1)
}

/// Replaces a cancel of an opened loan with a return. Returns every other event unchanged.
pub(in crate::ledger) async fn replace_cancel_of_opened(
    batch: &mut WriteBatch<'_>,
    id: LoanId,
    event: Event,
) -> Result<Event, LedgerError> {
    if !matches!(event, Event::Ending { reason: EndReason::Cancelled }) {
        return Ok(event);
    }
    let connection = batch.connection().await.map_err(database)?;
    let opened: Option<i64> =
        sqlx::query_scalar("SELECT 1 FROM loans WHERE id = ? AND opened IS NOT NULL")
            .bind(id.to_string())
            .fetch_optional(connection)
            .await
            .map_err(database)?;
    Ok(match opened {
        Some(_) => Event::Ending { reason: EndReason::Returned },
        None => event,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::test_support::{accepted, by, open};

    #[tokio::test]
    async fn cancel_of_a_loan_opened_elsewhere_is_a_return() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("loans.db");
        let (ours, other) = (open(&file).await, open(&file).await);
        let (opened, unopened) = (accepted(&ours, 1).await, accepted(&ours, 2).await);
        assert!(ours.mark_opened(opened).await.unwrap());
        assert!(other.mark_opened(opened).await.unwrap(), "a second mark succeeds");
        let cancel = Event::Ending { reason: EndReason::Cancelled };
        let ended = other.apply(opened, cancel.clone(), by("reader")).await.unwrap();
        assert_eq!(ended.end_reason, Some(EndReason::Returned));
        let ended = other.apply(unopened, cancel, by("reader")).await.unwrap();
        assert_eq!(ended.end_reason, Some(EndReason::Cancelled));
        assert!(!ours.mark_opened(unopened).await.unwrap(), "a cancelled loan cannot be opened");
        assert!(!ours.mark_opened(opened).await.unwrap(), "nor can a returned one");
        ours.close().await;
        other.close().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn concurrent_mark_and_cancel_never_both_succeed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("loans.db");
        let (ours, other) = (open(&file).await, open(&file).await);
        for borrower in 0..40 {
            let id = accepted(&ours, borrower).await;
            let cancel = Event::Ending { reason: EndReason::Cancelled };
            let (marked, ended) =
                tokio::join!(ours.mark_opened(id), other.apply(id, cancel, by("reader")));
            let cancelled = ended.unwrap().end_reason == Some(EndReason::Cancelled);
            assert_ne!(marked.unwrap(), cancelled);
        }
        ours.close().await;
        other.close().await;
    }
}
