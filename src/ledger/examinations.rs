//! Loans that a person asks the next balance of their library to examine, and what it finds out.
//!
//! Both are steps of the loan, which changes neither its state nor its terms. The balance reads the
//! requests of a library before it compares the books.

use super::command::{Command, Examination};
use super::{Ledger, LedgerError};
use crate::loan::{LibraryId, Loan, LoanId};

/// The causes of the steps.
pub(super) const REQUESTED: &str = "examination-requested";
pub(super) const EXAMINED: &str = "examination";

impl Ledger {
    /// Records that the next balance of the loan's library shall examine it. A loan that already
    /// waits gets another step.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be written, or if the loan's row is damaged or missing.
    pub async fn request_examination(&self, id: LoanId, reason: String) -> Result<(), LedgerError> {
        let examination = Examination { id, is_request: true, detail: reason };
        self.run(|reply| Command::Examine(examination, reply)).await.map(drop)
    }

    /// Records what a balance has found out about a loan that waited for it. Returns false if
    /// another balance has examined the loan meanwhile.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be written, or if the loan's row is damaged or missing.
    pub async fn record_examination(
        &self,
        id: LoanId,
        result: String,
    ) -> Result<bool, LedgerError> {
        let examination = Examination { id, is_request: false, detail: result };
        Ok(self.run(|reply| Command::Examine(examination, reply)).await? > 0)
    }

    /// Returns the loans of a library that wait for an examination, in the order of their ids, at
    /// most `limit`. Damaged rows are skipped.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn loans_to_examine(
        &self,
        library: LibraryId,
        limit: u32,
    ) -> Result<Vec<Loan>, LedgerError> {
        self.queries.loans_to_examine(library, limit).await
    }

    /// Returns whether a loan waits for an examination.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn waits_for_examination(&self, id: LoanId) -> Result<bool, LedgerError> {
        self.queries.waits_for_examination(id).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_store::{TestStore, on_each_store};
    use super::super::test_support::{accepted, end, loan};
    use super::*;

    on_each_store! {
        loan_is_examined_once_for_each_request
        steps_of_an_examination_change_no_loan
    }

    async fn waiting(ledger: &Ledger, library: LibraryId) -> Vec<LoanId> {
        let loans = ledger.loans_to_examine(library, 100).await.unwrap();
        loans.into_iter().map(|loan| loan.id).collect()
    }

    async fn loan_is_examined_once_for_each_request(store: &TestStore) {
        let (ledger, other) = (store.open().await, store.open().await);
        let (one, two) = (accepted(&ledger, 1).await, accepted(&ledger, 2).await);
        let library = one.library();
        assert!(waiting(&ledger, library).await.is_empty());
        assert!(!ledger.record_examination(one, "nobody asked".into()).await.unwrap());
        for id in [one, two, two] {
            ledger.request_examination(id, "a doubt".into()).await.unwrap();
        }
        assert_eq!(waiting(&other, library).await.len(), 2);
        assert_eq!(other.loans_to_examine(library, 1).await.unwrap().len(), 1);
        assert!(waiting(&other, "NO-0301001".parse().unwrap()).await.is_empty());
        let (first, second) = tokio::join!(
            ledger.record_examination(two, "by one".into()),
            other.record_examination(two, "by another".into()),
        );
        assert!(first.unwrap() ^ second.unwrap(), "one of them examines it");
        assert_eq!(waiting(&ledger, library).await, [one]);
        assert!(ledger.waits_for_examination(one).await.unwrap());
        assert!(!ledger.waits_for_examination(two).await.unwrap());
        let causes: Vec<String> =
            ledger.history(two).await.unwrap().into_iter().map(|step| step.cause).collect();
        assert_eq!(causes[2..], [REQUESTED, REQUESTED, EXAMINED]);
        let missing = loan(9).id;
        let refused = ledger.request_examination(missing, "a".into()).await;
        assert!(matches!(refused, Err(LedgerError::NoSuchLoan(id)) if id == missing));
        ledger.close().await;
        other.close().await;
        store.assert_sound().await;
    }

    async fn steps_of_an_examination_change_no_loan(store: &TestStore) {
        let ledger = store.open().await;
        let id = accepted(&ledger, 1).await;
        let before = ledger.loan(id).await.unwrap();
        ledger.request_examination(id, "a doubt".into()).await.unwrap();
        ledger.record_examination(id, "no difference".into()).await.unwrap();
        assert_eq!(ledger.loan(id).await.unwrap(), before);
        end(&ledger, id).await;
        ledger.request_examination(id, "a doubt".into()).await.unwrap();
        ledger.record_examination(id, "no difference".into()).await.unwrap();
        let step = ledger.history(id).await.unwrap().pop().unwrap();
        assert_eq!((step.from, step.detail.as_deref()), (Some(step.to), Some("no difference")));
        let (library, early) = (id.library(), jiff::Timestamp::MIN);
        let ended = ledger.ended_by_balance(Some(library), early).await.unwrap();
        assert_eq!(ended, 0, "an examination is no end");
        ledger.close().await;
        store.assert_sound().await;
    }
}
