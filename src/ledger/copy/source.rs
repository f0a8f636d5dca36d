//! The mark of the source, so that a ledger is not used in two places after a copy.
//!
//! While the copy runs, the source has a mark with which nothing is pruned. After the comparison,
//! the copy replaces it by one with which no gate opens the source, and only then completes the
//! destination. If it is killed between the two, no gate opens either ledger, and running it again
//! completes the destination.

use super::exclusive::{ExclusiveLedger, Extent};
use crate::ledger::copy_mark::{BEING_COPIED, MOVED, SourceMark, destination_in};
use crate::ledger::{LedgerError, StoreSettings};

/// Creates the mark for a copy of this name.
pub(super) fn source_mark(copy: &str, to: &StoreSettings) -> SourceMark {
    let to = match to {
        StoreSettings::Sqlite(file) => {
            std::path::absolute(file).unwrap_or_else(|_| file.clone()).display().to_string()
        }
        database @ StoreSettings::Postgres(_) => database.to_string(),
    };
    SourceMark { copy: copy.to_owned(), to }
}

impl ExclusiveLedger {
    /// Returns where the ledger was moved to by another copy than the one with this name.
    pub(super) async fn moved_elsewhere(
        &mut self,
        copy: &str,
    ) -> Result<Option<String>, LedgerError> {
        let moved = self.find_meta(MOVED).await?;
        let other = moved.filter(|value| !SourceMark::is_of(value, copy));
        Ok(other.map(|value| destination_in(&value)))
    }

    /// Returns whether the ledger was moved by the copy with this name, and not released since.
    pub(super) async fn is_moved_by(&mut self, copy: &str) -> Result<bool, LedgerError> {
        let moved = self.find_meta(MOVED).await?;
        Ok(moved.is_some_and(|value| SourceMark::is_of(&value, copy)))
    }

    /// Marks the ledger as the source of a running copy. An older mark is of a copy that was given
    /// up: if it still runs, it fails.
    pub(super) async fn mark_source(&mut self, mark: &SourceMark) -> Result<(), LedgerError> {
        self.change_meta(async |meta| {
            meta.take(BEING_COPIED).await?;
            // The copy of this name was killed when it was almost complete.
            match meta.find(MOVED).await? {
                Some(_) => Ok(()),
                None => meta.insert(BEING_COPIED, &mark.to_bytes()).await,
            }
        })
        .await
    }

    /// Removes the mark of a copy that was refused before it wrote anything.
    pub(super) async fn unmark_source(&mut self, mark: &SourceMark) -> Result<(), LedgerError> {
        let mark = mark.to_bytes();
        self.change_meta(async |meta| meta.remove(BEING_COPIED, &mark).await).await.map(drop)
    }

    /// Marks the ledger as moved. Returns false if the mark of the running copy is not there, or if
    /// the ledger was written since `extent`: a gate that was suspended may have resumed.
    pub(super) async fn mark_moved(
        &mut self,
        mark: &SourceMark,
        extent: &Extent,
    ) -> Result<bool, LedgerError> {
        let value = mark.to_bytes();
        self.change_meta(async |meta| {
            let moved = meta.find(MOVED).await?;
            let is_moved = moved.is_some_and(|moved| SourceMark::is_of(&moved, &mark.copy));
            let is_marked = is_moved || meta.remove(BEING_COPIED, &value).await?;
            if !is_marked || meta.extent().await? != *extent {
                return Ok(false);
            }
            if !is_moved {
                meta.insert(MOVED, &value).await?;
            }
            Ok(true)
        })
        .await
    }

    /// Marks the ledger as moved by a copy that was completed before, unless it has such a mark.
    /// Returns false if the ledger was written since `extent`.
    pub(super) async fn mark_moved_before(
        &mut self,
        mark: &SourceMark,
        extent: &Extent,
    ) -> Result<bool, LedgerError> {
        self.change_meta(async |meta| {
            meta.take(BEING_COPIED).await?;
            if meta.extent().await? != *extent {
                return Ok(false);
            }
            if meta.find(MOVED).await?.is_none() {
                meta.insert(MOVED, &mark.to_bytes()).await?;
            }
            Ok(true)
        })
        .await
    }
}
