//! Upkeep beside a running gate: a copy of the ledger that is whole, and a check of all that is in
//! it.
//!
//! The command line calls it. It only reads the ledger, in one transaction of its own, so that
//! readers and the writing task of a running gate go on meanwhile.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row, SqliteConnection};

use super::open::write_options;
use super::row::{COLUMNS, loan_of};
use super::{Ledger, LedgerError, delivered};

/// How many findings are told; a broken disk makes more than anyone reads.
const TOLD: usize = 100;

/// How long emptying the log waits for others.
const EMPTYING_WAIT: Duration = Duration::from_millis(200);

/// Loans whose history does not end where they are, or does not begin with the intent.
const HISTORY: &str = "SELECT id FROM loans WHERE state IS NOT \
     (SELECT to_state FROM history WHERE loan = loans.id ORDER BY number DESC LIMIT 1) \
     OR 'intended' IS NOT (SELECT to_state FROM history WHERE loan = loans.id ORDER BY number LIMIT 1)";

/// Copies the ledger into a file that is not there yet, for its owner alone.
///
/// # Errors
/// [`LedgerError`], where the ledger cannot be read or the file is there already.
pub async fn backup(ledger: &Path, to: &Path) -> Result<(), LedgerError> {
    let mut connection = open(ledger).await?;
    // SQLite takes an empty file; made here, it is never readable by others.
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    made.map_err(|source| LedgerError::File { file: to.to_owned(), source })?;
    let copied = sqlx::query("VACUUM INTO ?").bind(to.to_string_lossy().into_owned());
    let copied = copied.execute(&mut connection).await.map(drop);
    if copied.is_err() {
        let _ = std::fs::remove_file(to);
    }
    copied.map_err(|source| LedgerError::Database { file: ledger.to_owned(), source })
}

/// Checks the file's structure, every loan and every history, and gives what is wrong as sentences.
///
/// # Errors
/// [`LedgerError`], where the ledger cannot be read at all.
pub async fn check(ledger: &Path) -> Result<Vec<String>, LedgerError> {
    let failed = |source| LedgerError::Database { file: ledger.to_owned(), source };
    let mut connection = open(ledger).await?;
    let mut reading = connection.begin().await.map_err(failed)?;
    let mut found = Vec::new();
    for pragma in ["PRAGMA integrity_check", "PRAGMA foreign_key_check"] {
        let rows = sqlx::query(pragma).fetch_all(&mut *reading).await.map_err(failed)?;
        let said = rows.iter().filter_map(|row| row.try_get::<String, _>(0).ok());
        found.extend(said.filter(|said| said != "ok").map(|said| format!("SQLite says: {said}")));
    }
    let sql = format!("SELECT {COLUMNS} FROM loans");
    let mut rows = sqlx::query(AssertSqlSafe(sql)).fetch(&mut *reading);
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        if let Err(error) = loan_of(&row) {
            found.push(error.to_string());
        }
    }
    drop(rows);
    let mut rows =
        sqlx::query("SELECT loan, file, bytes, ranges FROM delivered").fetch(&mut *reading);
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        if let Err(error) = delivered::kept(&row) {
            found.push(error.to_string());
        }
    }
    drop(rows);
    let odd: Vec<String> =
        sqlx::query_scalar(HISTORY).fetch_all(&mut *reading).await.map_err(failed)?;
    found
        .extend(odd.iter().map(|id| {
            format!("the history of loan {id} does not lead to the state that it is in")
        }));
    found.truncate(TOLD);
    Ok(found)
}

impl Ledger {
    /// Copies the write-ahead log into the file and empties it, so that what was deleted stands
    /// nowhere any more. False where another connection still reads an older state; the caller
    /// tries again later.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn empty_log(&self) -> Result<bool, LedgerError> {
        // The waits are short: while the log is emptied, nobody else can write.
        let options = write_options(&self.file).busy_timeout(EMPTYING_WAIT);
        let emptied = async {
            let mut connection = options.connect().await?;
            // What can be copied without a lock, so that the rest is short.
            sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(&mut connection).await?;
            let row =
                sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut connection).await?;
            connection.close().await?;
            row.try_get::<i64, _>(0)
        };
        emptied.await.map(|busy| busy == 0).map_err(|source| self.failed(source))
    }
}

/// A connection that only reads. A ledger that is not there is not made.
pub(super) async fn open(ledger: &Path) -> Result<SqliteConnection, LedgerError> {
    let options =
        SqliteConnectOptions::new().filename(ledger).read_only(true).disable_statement_logging();
    let opened = SqliteConnection::connect_with(&options).await;
    opened.map_err(|source| LedgerError::Database { file: ledger.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::super::test_support;
    use super::*;
    use crate::loan::Event;

    async fn with_loans(file: &Path, count: u8) -> Ledger {
        let ledger = test_support::open(file).await;
        for borrower in 0..count {
            let loan = test_support::loan(borrower);
            let id = loan.id;
            ledger.intend(loan, None, test_support::by("reader")).await.unwrap();
            ledger.apply(id, Event::Lost, test_support::by("begin")).await.unwrap();
        }
        ledger
    }

    async fn run(file: &Path, statement: &'static str) {
        let options = SqliteConnectOptions::new().filename(file);
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::query(statement).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_backup_beside_a_running_ledger_is_whole_and_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let (file, copy) = (directory.path().join("loans.db"), directory.path().join("copy.db"));
        let ledger = with_loans(&file, 20).await;
        backup(&file, &copy).await.unwrap();
        assert_eq!(copy.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(
            matches!(backup(&file, &copy).await, Err(LedgerError::File { .. })),
            "nothing is overwritten"
        );
        assert_eq!(check(&copy).await.unwrap(), Vec::<String>::new());
        ledger.close().await;
        let again = with_loans(&copy, 0).await;
        assert_eq!(
            again
                .page(&super::super::Filter { limit: 50, ..Default::default() })
                .await
                .unwrap()
                .len(),
            20
        );
        again.close().await;
    }

    #[tokio::test]
    async fn what_is_wrong_in_a_row_or_a_history_is_found() {
        for (damage, says) in [
            ("UPDATE loans SET begun = 1 WHERE 0", ""),
            (
                "UPDATE loans SET state = 'pending', lending_id = 'L' WHERE isbn > 0",
                "does not lead to",
            ),
            ("DELETE FROM history WHERE to_state = 'intended'", "does not lead to"),
            ("UPDATE loans SET reference = 'x' || id, isbn = 7", "is damaged"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("loans.db");
            with_loans(&file, 1).await.close().await;
            run(&file, damage).await;
            let found = check(&file).await.unwrap().join("\n");
            assert!(
                if says.is_empty() { found.is_empty() } else { found.contains(says) },
                "{damage}: {found}"
            );
        }
        let nowhere = tempfile::tempdir().unwrap().path().join("none.db");
        assert!(check(&nowhere).await.is_err());
    }
}
