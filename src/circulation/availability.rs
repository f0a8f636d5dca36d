//! Availability of a title, for apps that show it before a reader borrows.
//!
//! The gate calls this module. Concurrent callers share one query of Bokbasen, and its response is
//! cached for `lending.availability_ttl`, so that a list on many screens does not cause many calls.
//! A begin never uses the cache.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::OnceCell;

use super::Circulation;
use crate::lending::{Availability, CallError};
use crate::loan::{Isbn, LibraryId};

/// Maximum number of cached titles.
const MAX_CACHED_TITLES: u64 = 100_000;

/// Why the availability of a title is unknown.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AvailabilityError {
    /// Bokbasen refused the query with this code.
    Refused(String),
    /// Bokbasen is unavailable.
    Unavailable {
        /// When the caller should retry.
        retry_after: Duration,
    },
}

/// Cache of availabilities. An empty entry stands for a query in flight.
pub(super) struct AvailabilityCache(Cache<(LibraryId, Isbn), Arc<OnceCell<Availability>>>);

impl fmt::Debug for AvailabilityCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AvailabilityCache")
    }
}

impl AvailabilityCache {
    pub(super) fn new(ttl: Duration) -> AvailabilityCache {
        AvailabilityCache(
            Cache::builder().max_capacity(MAX_CACHED_TITLES).time_to_live(ttl).build(),
        )
    }
}

impl Circulation {
    /// Returns the availability of a title that a library's loans may use.
    ///
    /// # Errors
    /// [`AvailabilityError`], if Bokbasen gives no availability.
    pub async fn availability(
        &self,
        library: LibraryId,
        isbn: Isbn,
    ) -> Result<Availability, AvailabilityError> {
        let cell = self.inner.availabilities.0.get_with((library, isbn), Arc::default);
        let result = cell.get_or_try_init(|| self.inner.lending.availability(library, isbn)).await;
        let availability = result.map_err(|error| error_of(&error))?.clone();
        Ok(self.inner.licences.get().visible(library, availability))
    }

    /// Returns the availability that [`Circulation::availability`] has cached, without a query.
    pub fn known_availability(&self, library: LibraryId, isbn: Isbn) -> Option<Availability> {
        let known = self.inner.availabilities.0.get(&(library, isbn))?.get()?.clone();
        Some(self.inner.licences.get().visible(library, known))
    }
}

fn error_of(error: &CallError) -> AvailabilityError {
    // The Bokbasen client logs the reason, once a minute.
    tracing::debug!(%error, "cannot query the availability of a title");
    match error {
        CallError::Rejected { status: 403 | 404, code, .. } if !code.is_empty() => {
            AvailabilityError::Refused(code.clone())
        }
        CallError::Rejected { retry_after: Some(retry_after), .. } => {
            AvailabilityError::Unavailable { retry_after: *retry_after }
        }
        _ => AvailabilityError::Unavailable { retry_after: super::DEFAULT_RETRY_AFTER },
    }
}
