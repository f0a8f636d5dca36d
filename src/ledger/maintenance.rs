//! Verification, check and pruning of a ledger by its settings, in either store.
//!
//! The command line calls them, also while gates run. They open connections of their own and need
//! no [`super::Ledger`].

use super::findings::Findings;
use super::{
    AuditKey, LedgerError, Prunable, Pruned, RowsRead, StoreSettings, Verified, postgres, sqlite,
};

/// Walks the audit trail of a ledger and compares every loan with its last step. Counts the rows
/// that it has read.
///
/// # Errors
/// [`LedgerError`] if the ledger cannot be read.
pub async fn verify(
    store: &StoreSettings,
    key: &AuditKey,
    rows: &RowsRead,
) -> Result<Verified, LedgerError> {
    match store {
        StoreSettings::Sqlite(file) => sqlite::verify(file, key, rows).await,
        // Boxed: connecting takes much memory, which a caller's future would reserve.
        StoreSettings::Postgres(settings) => Box::pin(postgres::verify(settings, key, rows)).await,
    }
}

/// Checks the structure of a ledger, every loan and every history. Returns the problems as
/// sentences. Counts the rows that it has read.
///
/// # Errors
/// [`LedgerError`] if the ledger cannot be read.
pub async fn check(
    store: &StoreSettings,
    key: &AuditKey,
    rows: &RowsRead,
) -> Result<Vec<String>, LedgerError> {
    match store {
        StoreSettings::Sqlite(file) => {
            let mut found = Findings::default();
            sqlite::check(file, rows)
                .await?
                .into_iter()
                .for_each(|sentence| found.report(sentence));
            let changed = sqlite::check_loans(file, key, rows).await?;
            changed.into_iter().for_each(|sentence| found.report(sentence));
            Ok(found.into_sentences())
        }
        StoreSettings::Postgres(settings) => Box::pin(postgres::check(settings, key, rows)).await,
    }
}

/// Removes loans with their steps and tallies, also while gates run. Anchors replace the steps.
/// Counts the loans that it has read.
///
/// # Errors
/// [`LedgerError`], also if a step to be removed does not verify. Loans that were already removed
/// stay removed.
pub async fn prune(
    store: &StoreSettings,
    key: &AuditKey,
    which: Prunable,
    rows: &RowsRead,
) -> Result<Pruned, LedgerError> {
    match store {
        StoreSettings::Sqlite(file) => {
            sqlite::count_prunable(file, which, rows).await;
            sqlite::prune(file, key, which, rows).await
        }
        StoreSettings::Postgres(settings) => {
            Box::pin(postgres::prune(settings, key, which, rows)).await
        }
    }
}
