//! A test whether a start could open and write the ledger.
//!
//! `loangate check` calls it, also while a gate is running. It neither creates nor changes a
//! ledger.

use std::fs::{self, OpenOptions};
use std::io::{Error, ErrorKind, Write as _};
use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use uuid::Uuid;

use super::copy_marks;
use crate::durable_file::directory_of;
use crate::ledger::LedgerError;
use crate::ledger::copy_mark::Marks;

/// The number of bytes written to test the disk: one page of SQLite.
const PAGE: usize = 4096;
/// How long the test waits for a write of another process.
const BUSY: Duration = Duration::from_secs(5);

/// Tests whether a start could open and write the ledger with this pseudonym key.
///
/// # Errors
/// [`LedgerError`], the same that a start would return.
pub async fn probe(file: &Path, key_fingerprint: &[u8; 32]) -> Result<(), LedgerError> {
    let size =
        test_file(file).map_err(|source| LedgerError::File { file: file.to_owned(), source })?;
    if size == 0 {
        return Ok(());
    }
    let failed = |source| LedgerError::Database { file: file.to_owned(), source };
    let options = SqliteConnectOptions::new()
        .filename(file)
        .read_only(true)
        .busy_timeout(BUSY)
        .disable_statement_logging();
    let mut connection = SqliteConnection::connect_with(&options).await.map_err(failed)?;
    let tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_master WHERE name IN ('meta', 'loans')")
            .fetch_one(&mut connection)
            .await
            .map_err(failed)?;
    let known: Option<Vec<u8>> = match tables {
        2 => sqlx::query_scalar("SELECT value FROM meta WHERE name = 'pseudonym key'")
            .fetch_optional(&mut connection)
            .await
            .map_err(failed)?,
        _ => None,
    };
    let marks = match tables {
        2 => copy_marks::read(&mut connection).await.map_err(failed)?,
        _ => Marks::default(),
    };
    let _ = connection.close().await;
    match known {
        Some(known) if known != key_fingerprint => Err(LedgerError::OtherPseudonymKey),
        _ => marks.allow_gate(),
    }
}

/// Tests the file and its directory. Returns the size of the file, or 0 if it does not exist.
fn test_file(file: &Path) -> Result<u64, Error> {
    let size = match fs::metadata(file) {
        Ok(metadata) if metadata.is_dir() => {
            return Err(Error::new(ErrorKind::IsADirectory, "it is a directory, not a file"));
        }
        Ok(metadata) => {
            OpenOptions::new().append(true).open(file)?;
            metadata.len()
        }
        Err(error) if error.kind() == ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let nearest = directory_of(file)
        .ancestors()
        .find(|directory| directory.exists())
        .unwrap_or(Path::new("."));
    let nearest = if nearest.as_os_str().is_empty() { Path::new(".") } else { nearest };
    // SQLite writes its log beside the file, so the directory must be writable too.
    test_directory(nearest).map_err(|error| {
        let shown = nearest.display();
        Error::new(
            error.kind(),
            format!("nothing can be written in the directory {shown}: {error}"),
        )
    })?;
    Ok(size)
}

fn test_directory(directory: &Path) -> Result<(), Error> {
    let trial = directory.join(format!(".loangate-check-{}", Uuid::new_v4().simple()));
    let mut opened = OpenOptions::new().write(true).create_new(true).open(&trial)?;
    let written = opened.write_all(&[0; PAGE]).and_then(|()| opened.sync_all());
    let removed = fs::remove_file(&trial);
    written.and(removed)
}
