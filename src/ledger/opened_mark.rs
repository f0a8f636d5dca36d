//! The durable mark of loans under which a byte may have left: such a loan is returned, never
//! cancelled.
//!
//! The gate writes it, through circulation, before it gives the first permit of a loan in this
//! process. The mark is only written while the loan is accepted, and a cancel reads it inside the
//! transaction that ends the loan; so of a mark and a cancel in two processes, one always sees the
//! other.

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::batch::{Draft, database};
use super::write::Command;
use super::{Ledger, LedgerError};
use crate::loan::{EndReason, Event, LoanId};

impl Ledger {
    /// Marks an accepted loan as opened. False where the loan is no longer accepted, so that it
    /// opens nothing. A loan that is marked already costs a read and no write.
    ///
    /// # Errors
    /// [`LedgerError`]; the loan must then not be opened.
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
        let (answer, answered) = oneshot::channel();
        self.send(Command::Opened { id, answer }).await?;
        answered.await.map_err(|_| LedgerError::Closed)?
    }
}

/// Writes the mark, where the loan is still accepted.
pub(super) async fn mark(
    draft: &mut Draft<'_>,
    id: LoanId,
    now: Timestamp,
) -> Result<bool, LedgerError> {
    let connection = draft.connection().await.map_err(database)?;
    let update =
        "UPDATE loans SET opened = coalesce(opened, ?) WHERE id = ? AND state = 'accepted'";
    let update = sqlx::query(update).bind(now.as_millisecond()).bind(id.to_string());
    let update = update.execute(connection).await.map_err(database)?;
    Ok(update.rows_affected() == 1)
}

/// The event as it may happen to this loan: a cancel of a loan that was opened is a return.
pub(super) async fn permitted(
    draft: &mut Draft<'_>,
    id: LoanId,
    event: Event,
) -> Result<Event, LedgerError> {
    if !matches!(event, Event::Ending { reason: EndReason::Cancelled }) {
        return Ok(event);
    }
    let connection = draft.connection().await.map_err(database)?;
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
    use super::super::test_support::{accepted, by, open};
    use super::*;

    #[tokio::test]
    async fn cancel_of_a_loan_that_another_process_opened_is_a_return() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("loans.db");
        let (ours, other) = (open(&file).await, open(&file).await);
        let (opened, unopened) = (accepted(&ours, 1).await, accepted(&ours, 2).await);
        assert!(ours.mark_opened(opened).await.unwrap());
        assert!(other.mark_opened(opened).await.unwrap(), "again");
        let cancel = Event::Ending { reason: EndReason::Cancelled };
        let ended = other.apply(opened, cancel.clone(), by("reader")).await.unwrap();
        assert_eq!(ended.end_reason, Some(EndReason::Returned));
        let ended = other.apply(unopened, cancel, by("reader")).await.unwrap();
        assert_eq!(ended.end_reason, Some(EndReason::Cancelled));
        assert!(!ours.mark_opened(unopened).await.unwrap(), "it is over");
        assert!(!ours.mark_opened(opened).await.unwrap(), "so is the other");
        ours.close().await;
        other.close().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_a_mark_and_a_cancel_one_sees_the_other() {
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
