//! Other requests about a title: reading progress and availability.

use crate::circulation::{Availability, AvailabilityError};
use crate::loan::{Isbn, LibraryId, LoanKey, Progress};
use crate::problem::Problem;

use super::Gate;

impl Gate {
    /// Writes how far this reader has read this title, for the newest loan of it.
    ///
    /// # Errors
    /// `loan-not-found` if it was never lent, `ledger-unavailable`.
    pub async fn note_progress(&self, key: LoanKey, progress: Progress) -> Result<(), Problem> {
        let circulation = self.flights.circulation.clone();
        let noted =
            self.flights.run(async move { circulation.note_progress(&key, progress).await });
        match noted.await {
            Some(Ok(true)) => Ok(()),
            Some(Ok(false)) => Err(Problem::LoanNotFound),
            Some(Err(error)) => {
                tracing::error!(%error, "cannot write a reading progress");
                Err(Problem::LedgerUnavailable)
            }
            None => Err(Problem::LedgerUnavailable),
        }
    }

    /// Returns the availability of a title that a library's loans may use.
    ///
    /// # Errors
    /// `loan-refused` or `title-not-found` as Bokbasen decides, `lending-unavailable`.
    pub async fn availability(
        &self,
        library: LibraryId,
        isbn: Isbn,
    ) -> Result<Availability, Problem> {
        let circulation = self.flights.circulation.clone();
        let result = self.flights.run(async move { circulation.availability(library, isbn).await });
        match result.await {
            Some(Ok(availability)) => Ok(availability),
            Some(Err(AvailabilityError::Refused(reason)))
                if reason == super::UNKNOWN_TITLE_CODE =>
            {
                Err(Problem::TitleNotFound)
            }
            Some(Err(AvailabilityError::Refused(reason))) => {
                Err(Problem::LoanRefused { reason, retry_after: None })
            }
            Some(Err(AvailabilityError::Unavailable { retry_after })) => {
                Err(Problem::LendingUnavailable { retry_after })
            }
            None => Err(Problem::LendingUnavailable { retry_after: super::PENDING_RETRY_AFTER }),
        }
    }
}
