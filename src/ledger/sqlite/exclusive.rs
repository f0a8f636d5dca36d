//! A ledger file that no gate can open as long as this process has it open. Only `copy` uses it.

use std::path::{Path, PathBuf};

use sqlx::SqliteConnection;

use super::chain;
use super::open::prepare;
use super::process::{OpeningLock, Process};
use crate::ledger::LedgerError;
use crate::ledger::audit::{AuditKey, head_file};
use crate::ledger::membership::Membership;

/// A ledger file with the lock that each opening needs.
pub(in crate::ledger) struct ExclusiveFile {
    pub(in crate::ledger) file: PathBuf,
    pub(in crate::ledger) connection: SqliteConnection,
    process: Process,
    _opening: OpeningLock,
}

impl ExclusiveFile {
    /// Opens a ledger file as a gate does. Creates a missing one and migrates an older schema.
    ///
    /// # Errors
    /// [`LedgerError`], the same that a gate would return.
    pub(in crate::ledger) async fn open(
        file: &Path,
        key_fingerprint: &[u8; 32],
        audit_key: &AuditKey,
    ) -> Result<ExclusiveFile, LedgerError> {
        let failed = |source| LedgerError::Database { file: file.to_owned(), source };
        let (opening, mut connection) = prepare(file, key_fingerprint).await?;
        chain::fill_in_hashes(&mut connection, audit_key).await.map_err(failed)?;
        chain::check_head_file(&mut connection, file).await?;
        let process = Process::register(file)
            .map_err(|source| LedgerError::File { file: file.to_owned(), source })?;
        Ok(ExclusiveFile { file: file.to_owned(), connection, process, _opening: opening })
    }

    /// Returns whether no other process has the ledger open.
    pub(in crate::ledger) fn is_alone(&self) -> bool {
        self.process.count_others() == 0
    }

    /// Returns whether the head file has a link, or the ledger no step.
    pub(in crate::ledger) async fn has_head_file(&mut self) -> Result<bool, LedgerError> {
        chain::has_head_file(&mut self.connection, &self.file).await
    }

    /// Writes the newest link to the head file.
    pub(in crate::ledger) async fn write_head_file(&mut self) -> Result<(), LedgerError> {
        let head = chain::read_head(&mut self.connection).await;
        let head = head.map_err(|source| self.failed(source))?;
        if head.number == 0 {
            return Ok(());
        }
        head_file::store(&self.file, &self.process.name(), &head)
            .map_err(|source| LedgerError::File { file: self.file.clone(), source })
    }

    /// Wraps an error of the database.
    pub(in crate::ledger) fn failed(&self, source: sqlx::Error) -> LedgerError {
        LedgerError::Database { file: self.file.clone(), source }
    }
}
