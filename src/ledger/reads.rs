//! The queries of [`Ledger`], as their callers see them. The database implements each.
//!
//! A query sees everything that was committed before it started.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;
use uuid::Uuid;

use super::{EndPosition, Ends, Filter, HistoryRow, Ledger, LedgerError};
use crate::loan::{LibraryId, Loan, LoanId, LoanKey, Reference, Tally};

/// How long finding the other processes may delay a query. Afterwards it goes on beside it.
const SHARES_DEADLINE: Duration = Duration::from_secs(2);

impl Ledger {
    /// Returns the live loan of this reader and title, or the newest one if none is live.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read or the row is damaged.
    pub async fn newest(&self, key: &LoanKey) -> Result<Option<Loan>, LedgerError> {
        let _span = self.span("newest");
        self.queries_of_ours()?.newest(key).await
    }

    /// Returns when the last accepted loan of this reader and title ended (invariant 7).
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn last_end(&self, key: &LoanKey) -> Result<Option<Timestamp>, LedgerError> {
        let _span = self.span("last-end");
        self.queries.last_end(key).await
    }

    /// Returns the loan with this id.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read or the row is damaged.
    pub async fn loan(&self, id: LoanId) -> Result<Option<Loan>, LedgerError> {
        let _span = self.span("loan");
        self.queries_of_ours()?.loan(id).await
    }

    /// Returns the loan with this UUID. It searches all libraries, so it is only for support.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read or the row is damaged.
    pub async fn find(&self, uuid: Uuid) -> Result<Option<Loan>, LedgerError> {
        self.queries.find(uuid).await
    }

    /// Returns the loans with these ids, in no particular order. Missing and damaged rows are
    /// skipped.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn loans(&self, ids: &[LoanId]) -> Result<Vec<Loan>, LedgerError> {
        self.queries_of_ours()?.loans(ids).await
    }

    /// Returns the loan with this reference, of one library or of any. A search of all libraries
    /// is only for the balance.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read or the row is damaged.
    pub async fn by_reference(
        &self,
        library: Option<LibraryId>,
        reference: &Reference,
    ) -> Result<Option<Loan>, LedgerError> {
        self.queries.by_reference(library, reference).await
    }

    /// Returns every library with a loan. Damaged names are skipped.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn libraries(&self) -> Result<Vec<LibraryId>, LedgerError> {
        self.queries.libraries().await
    }

    /// Returns when the oldest live loan of a library was begun.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn oldest_live(&self, library: LibraryId) -> Result<Option<Timestamp>, LedgerError> {
        self.queries.oldest_live(library).await
    }

    /// Returns whether this process began the loan or took it over.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn is_ours(&self, id: LoanId) -> Result<bool, LedgerError> {
        Ok(self.queries.owner(id).await?.as_deref() == Some(self.membership.name().as_ref()))
    }

    /// Returns the loans of this process that are intended, pending or unknown.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn undecided(&self) -> Result<Vec<LoanId>, LedgerError> {
        self.queries.undecided(&self.membership.name()).await
    }

    /// Returns the transitions of a loan, the oldest first. Damaged rows are skipped.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn history(&self, id: LoanId) -> Result<Vec<HistoryRow>, LedgerError> {
        self.queries.history(id).await
    }

    /// Returns a page of loans, the newest first. Damaged rows are skipped, and the rows after them
    /// fill the page.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn page(&self, filter: &Filter) -> Result<Vec<Loan>, LedgerError> {
        self.queries.page(filter).await
    }

    /// Returns the next undecided loans (intended, pending or unknown) of dead processes: first
    /// without `after`, then after the last one of the page before. None are left if it returns
    /// none.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn orphans(&self, after: Option<LoanId>) -> Result<Vec<Loan>, LedgerError> {
        self.queries.orphans(self.membership.as_ref(), after).await
    }

    /// Returns the accepted loans that are due at this time, the earliest first. Damaged rows do
    /// not count towards `limit`, so they cannot prevent the other loans from being ended.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn due(&self, at: Timestamp, limit: u32) -> Result<Vec<Loan>, LedgerError> {
        self.queries.due(at, limit).await
    }

    /// Returns the number of accepted loans that are due at this time.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn count_due(&self, at: Timestamp) -> Result<u64, LedgerError> {
        self.queries.count_due(at).await
    }

    /// Returns the earliest due time of an accepted loan after this time.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn next_due(&self, after: Timestamp) -> Result<Option<Timestamp>, LedgerError> {
        self.queries.next_due(after).await
    }

    /// Returns every loan of this process's share whose end has not been acknowledged, and the
    /// position from which [`Ledger::ends_after`] continues.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn ends_waiting(&self) -> Result<Ends, LedgerError> {
        self.refresh_end_shares().await;
        // Before the query: a change meanwhile leads to another one.
        let shares = self.membership.end_shares_version();
        let ends = self.queries.ends_waiting().await?;
        Ok(self.own_ends(ends, shares))
    }

    /// Returns the loans that ended after this position, in the order of their ends. It may return
    /// a loan again. If this process's share has changed, it returns all as
    /// [`Ledger::ends_waiting`] does.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn ends_after(&self, position: &EndPosition) -> Result<Ends, LedgerError> {
        self.refresh_end_shares().await;
        let shares = self.membership.end_shares_version();
        if shares != position.shares {
            return self.ends_waiting().await;
        }
        let ends = self.queries.ends_after(position).await?;
        Ok(self.own_ends(ends, shares))
    }

    /// Keeps the ends of this process's share, of which this is the version.
    fn own_ends(&self, mut ends: Ends, shares: Option<u64>) -> Ends {
        ends.loans.retain(|loan| self.membership.sends_end_of(*loan));
        ends.next.shares = shares;
        ends
    }

    /// Whether this process sends the end of this loan, if it is in its buckets.
    pub fn sends_end_of(&self, loan: LoanId) -> bool {
        self.membership.sends_end_of(loan)
    }

    /// Updates this process's share of the ends.
    async fn refresh_end_shares(&self) {
        if self.membership.end_shares_version().is_some() {
            let membership = self.membership.clone();
            let refreshing = tokio::task::spawn_blocking(move || membership.refresh_end_shares());
            let _ = timeout(SHARES_DEADLINE, refreshing).await;
        }
    }

    /// Returns the number of ends that have not been acknowledged, of this process's buckets, and
    /// the number of those that ended before this time.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn count_ends(&self, before: Timestamp) -> Result<(u64, u64), LedgerError> {
        self.queries.count_ends(before).await
    }

    /// Returns when the loan of any process ended whose end has waited the longest for an
    /// acknowledgement.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn oldest_end(&self) -> Result<Option<Timestamp>, LedgerError> {
        self.queries.oldest_end().await
    }

    /// Tests that the ledger can be read, within two seconds.
    ///
    /// # Errors
    /// [`LedgerError`] if it cannot.
    pub async fn check(&self) -> Result<(), LedgerError> {
        self.queries.check().await
    }

    /// Returns the tallies of these loans, by the path of each file. Damaged rows are skipped.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn delivered(
        &self,
        loans: &[LoanId],
    ) -> Result<HashMap<LoanId, BTreeMap<String, Tally>>, LedgerError> {
        self.queries.delivered(loans).await
    }

    /// Returns the doubts about a library, each with the time of the first run that found the loan
    /// absent.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn doubts(
        &self,
        library: LibraryId,
        now: Timestamp,
    ) -> Result<HashMap<LoanId, Timestamp>, LedgerError> {
        self.queries.doubts(library, now).await
    }

    /// Returns the number of loans that a balance has ended after this time, of one library or of
    /// all.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn ended_by_balance(
        &self,
        library: Option<LibraryId>,
        after: Timestamp,
    ) -> Result<usize, LedgerError> {
        let count = self.queries.ended_by_balance(library, after).await?;
        Ok(usize::try_from(count).unwrap_or_default())
    }

    /// Returns the number of accepted loans of all libraries.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn count_accepted(&self) -> Result<usize, LedgerError> {
        let count = self.queries.count_accepted().await?;
        Ok(usize::try_from(count).unwrap_or_default())
    }

    /// Returns a loan with this id of Bokbasen, other than `except`. It searches all libraries, so
    /// it is only for findings of the balance.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read or the row is damaged.
    pub async fn by_lending_id(
        &self,
        lending_id: &str,
        except: Option<LoanId>,
    ) -> Result<Option<Loan>, LedgerError> {
        self.queries.by_lending_id(lending_id, except).await
    }

    /// Returns the number of rows that could not be read when a query last read them.
    pub fn damaged_rows(&self) -> usize {
        self.queries.damaged_rows()
    }
}
