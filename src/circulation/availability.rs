//! Whether a title can be had, for apps that show it before anybody borrows.
//!
//! Called by the gate. Bokbasen is asked once for all who wait, and its answer is kept for
//! `lending.availability_ttl`: a list of titles on many screens must not become as many calls. What
//! a loan is begun under is asked anew.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::OnceCell;

use super::Circulation;
use crate::lending::{Availability, CallError};
use crate::loan::{Isbn, LibraryId};

/// How many titles are kept.
const KEPT: u64 = 100_000;

/// Why it cannot be said whether a title can be had.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Unsaid {
    /// Bokbasen refuses to say, in this word.
    Refused(String),
    /// Bokbasen cannot be asked now.
    Unavailable {
        /// When to try again.
        retry_after: Duration,
    },
}

/// What Bokbasen said of late. An entry that is not filled yet is being asked for.
pub(super) struct Kept(Cache<(LibraryId, Isbn), Arc<OnceCell<Availability>>>);

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}

impl Kept {
    pub(super) fn new(ttl: Duration) -> Kept {
        Kept(Cache::builder().max_capacity(KEPT).time_to_live(ttl).build())
    }
}

impl Circulation {
    /// What a library has of a title that its loans may use.
    ///
    /// # Errors
    /// [`Unsaid`], where Bokbasen does not say.
    pub async fn availability(
        &self,
        library: LibraryId,
        isbn: Isbn,
    ) -> Result<Availability, Unsaid> {
        let kept = self.inner.availabilities.0.get_with((library, isbn), Arc::default);
        let asked = kept.get_or_try_init(|| self.inner.lending.availability(library, isbn)).await;
        let there = asked.map_err(|error| unsaid(&error))?.clone();
        Ok(self.inner.settings.licences.visible(library, there))
    }
}

fn unsaid(error: &CallError) -> Unsaid {
    // The client of Bokbasen logs the reason, once a minute.
    tracing::debug!(%error, "cannot query whether a title is available");
    match error {
        CallError::Rejected { status: 403 | 404, code, .. } if !code.is_empty() => {
            Unsaid::Refused(code.clone())
        }
        CallError::Rejected { retry_after: Some(retry_after), .. } => {
            Unsaid::Unavailable { retry_after: *retry_after }
        }
        _ => Unsaid::Unavailable { retry_after: super::SOON },
    }
}
