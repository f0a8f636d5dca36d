//! Requests that were answered, stored for a limited time, so that support can explain one that
//! another gate answered.
//!
//! They belong to no loan and to no chain: nothing depends on them, and a copy of the ledger leaves
//! them behind. They are written over connections of their own, so a failure is none of a loan's.
//! Each row has its own end, so any gate removes it, whatever it stores itself.

use jiff::Timestamp;
use uuid::Uuid;

use super::{Ledger, LedgerError};

/// A request as the ledger stores it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredRequest {
    /// The id of the request.
    pub id: Uuid,
    /// When it was made.
    pub at: Timestamp,
    /// When it is removed.
    pub until: Timestamp,
    /// What support sees of it, as JSON. A borrower is in it as a pseudonym.
    pub detail: String,
}

impl StoredRequest {
    /// Returns a request from its columns; none if a time is damaged.
    pub(super) fn of_columns(
        id: Uuid,
        at: i64,
        until: i64,
        detail: String,
    ) -> Option<StoredRequest> {
        let (at, until) = (Timestamp::from_millisecond(at), Timestamp::from_millisecond(until));
        Some(StoredRequest { id, at: at.ok()?, until: until.ok()?, detail })
    }
}

impl Ledger {
    /// Stores requests, unless the ledger was moved. One that is stored already is left as it is.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be written.
    pub async fn record_requests(&self, requests: &[StoredRequest]) -> Result<(), LedgerError> {
        if requests.is_empty() {
            return Ok(());
        }
        self.support.add_requests(requests).await
    }

    /// Removes up to `limit` requests whose time is over, and returns their number.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be written.
    pub async fn remove_requests(&self, now: Timestamp, limit: u32) -> Result<u64, LedgerError> {
        // A read first: most runs find nothing, and a write would wait for its turn.
        if !self.support.has_old_requests(now).await? {
            return Ok(0);
        }
        self.support.remove_requests(now, limit).await
    }

    /// Returns the request with this id; none if its time is over.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn request(
        &self,
        id: Uuid,
        now: Timestamp,
    ) -> Result<Option<StoredRequest>, LedgerError> {
        let found = self.support.request(id).await?;
        Ok(found.filter(|request| request.until > now))
    }
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
