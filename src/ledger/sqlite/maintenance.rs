//! Backup and check of a ledger, also while a gate uses it.
//!
//! The command line calls [`backup`] and [`check`]. They read the ledger in one transaction and do
//! not block a running gate. Circulation calls [`empty_log`].

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row, SqliteConnection};

use super::connection::write_options;
use crate::ledger::findings::{self, Findings};
use crate::ledger::stored_row::{COLUMNS, loan_of, tally_of};
use crate::ledger::{LedgerError, RowsRead, reports};

/// How long emptying the log waits for other connections.
const EMPTYING_WAIT: Duration = Duration::from_millis(200);

/// Selects loans whose history does not begin with the intent or does not end in their state.
const HISTORY: &str = "SELECT id FROM loans WHERE state IS NOT \
     (SELECT to_state FROM history WHERE loan = loans.id ORDER BY number DESC LIMIT 1) \
     OR 'intended' IS NOT \
     (SELECT to_state FROM history WHERE loan = loans.id ORDER BY number LIMIT 1)";

/// Selects the loans that have steps and are missing. The steps of accesses belong to none.
const MISSING: &str = "SELECT DISTINCT loan FROM history \
     WHERE loan <> 'ffffffff-ffff-ffff-ffff-ffffffffffff' \
     AND NOT EXISTS (SELECT 1 FROM loans WHERE loans.id = history.loan)";

/// Copies the ledger to a new file that only its owner can read.
///
/// # Errors
/// [`LedgerError`] if the ledger cannot be read or the file exists.
pub async fn backup(ledger: &Path, to: &Path) -> Result<(), LedgerError> {
    let mut connection = open(ledger).await?;
    // SQLite accepts an empty file. Created here, it is never readable by others.
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    created.map_err(|source| LedgerError::File { file: to.to_owned(), source })?;
    let copied = sqlx::query("VACUUM INTO ?").bind(to.to_string_lossy().into_owned());
    let copied = match copied.execute(&mut connection).await {
        Ok(_) => remove_requests(to).await,
        Err(error) => Err(error),
    };
    if copied.is_err() {
        let _ = std::fs::remove_file(to);
    }
    copied.map_err(|source| LedgerError::Database { file: ledger.to_owned(), source })
}

/// Removes the stored requests from a copy, which may be kept for longer than they may.
async fn remove_requests(copy: &Path) -> Result<(), sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(copy)
        .journal_mode(SqliteJournalMode::Delete)
        .pragma("secure_delete", "ON");
    let mut connection = options.connect().await?;
    sqlx::query("DELETE FROM requests").execute(&mut connection).await?;
    connection.close().await
}

/// Checks the structure of the file, every loan, every history and every usage report. Returns the
/// problems as sentences.
///
/// # Errors
/// [`LedgerError`] if the ledger cannot be read.
pub(in crate::ledger) async fn check(
    ledger: &Path,
    read: &RowsRead,
) -> Result<Vec<String>, LedgerError> {
    // Each loan is compared with its last step, too.
    const TOTAL: &str =
        "SELECT 2 * (SELECT count(*) FROM loans) + (SELECT count(*) FROM delivered)";
    let failed = |source| LedgerError::Database { file: ledger.to_owned(), source };
    let mut connection = open(ledger).await?;
    let mut reading = connection.begin().await.map_err(failed)?;
    let mut found = Findings::default();
    for pragma in ["PRAGMA integrity_check", "PRAGMA foreign_key_check"] {
        let rows = sqlx::query(pragma).fetch_all(&mut *reading).await.map_err(failed)?;
        let messages = rows.iter().filter_map(|row| row.try_get::<String, _>(0).ok());
        let problems = messages.filter(|message| message != "ok");
        problems.for_each(|message| found.report(format!("SQLite reports: {message}")));
    }
    // A damaged index must not keep the rest from being read.
    let total = sqlx::query_scalar(TOTAL).fetch_one(&mut *reading).await;
    read.expect(total.unwrap_or(0));
    let sql = format!("SELECT {COLUMNS} FROM loans");
    let mut rows = sqlx::query(AssertSqlSafe(sql)).fetch(&mut *reading);
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        read.add(1);
        if let Err(error) = loan_of(&row) {
            found.report(error.to_string());
        }
    }
    drop(rows);
    let mut rows =
        sqlx::query("SELECT loan, file, bytes, ranges FROM delivered").fetch(&mut *reading);
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        read.add(1);
        if let Err(error) = tally_of(&row) {
            found.report(error.to_string());
        }
    }
    drop(rows);
    let sql = format!("SELECT {} FROM reports", reports::COLUMNS);
    let mut rows = sqlx::query(AssertSqlSafe(sql)).fetch(&mut *reading);
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        reports::check_row(&row).into_iter().for_each(|sentence| found.report(sentence));
    }
    drop(rows);
    let inconsistent: Vec<String> =
        sqlx::query_scalar(HISTORY).fetch_all(&mut *reading).await.map_err(failed)?;
    inconsistent.iter().for_each(|id| found.report(findings::broken_history(id)));
    let missing: Vec<String> =
        sqlx::query_scalar(MISSING).fetch_all(&mut *reading).await.map_err(failed)?;
    missing.iter().for_each(|id| found.report(findings::missing_loan(id)));
    Ok(found.into_sentences())
}

/// Copies the write-ahead log into the file and empties it. Returns false if another connection
/// still reads an older state.
pub(in crate::ledger) async fn empty_log(ledger: &Path) -> Result<bool, LedgerError> {
    // A short wait: no other connection can write while the log is emptied.
    let options = write_options(ledger).busy_timeout(EMPTYING_WAIT);
    let emptied = async {
        let mut connection = options.connect().await?;
        // Copy most pages without a lock first, so that the locked checkpoint is short.
        sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(&mut connection).await?;
        let row = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut connection).await?;
        connection.close().await?;
        row.try_get::<i64, _>(0)
    };
    let emptied = emptied.await.map(|busy| busy == 0);
    emptied.map_err(|source| LedgerError::Database { file: ledger.to_owned(), source })
}

/// Opens a read-only connection. A missing ledger is not created.
pub(in crate::ledger) async fn open(ledger: &Path) -> Result<SqliteConnection, LedgerError> {
    let options =
        SqliteConnectOptions::new().filename(ledger).read_only(true).disable_statement_logging();
    let opened = SqliteConnection::connect_with(&options).await;
    opened.map_err(|source| LedgerError::Database { file: ledger.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::reports::tests::add_due_report;
    use crate::ledger::{Filter, Ledger, test_support};
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
    async fn backup_of_an_open_ledger_is_complete_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let (file, copy) = (directory.path().join("loans.db"), directory.path().join("copy.db"));
        let ledger = with_loans(&file, 20).await;
        backup(&file, &copy).await.unwrap();
        assert_eq!(copy.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(
            matches!(backup(&file, &copy).await, Err(LedgerError::File { .. })),
            "an existing file is not overwritten"
        );
        let rows = RowsRead::default();
        assert_eq!(check(&copy, &rows).await.unwrap(), Vec::<String>::new());
        assert_eq!((rows.read(), rows.total()), (20, 40), "the last steps are not compared here");
        ledger.close().await;
        let restored = with_loans(&copy, 0).await;
        assert_eq!(
            restored.page(&Filter { limit: 50, ..Default::default() }).await.unwrap().len(),
            20
        );
        restored.close().await;
    }

    #[tokio::test]
    async fn check_finds_damaged_rows_and_histories() {
        for (damage, expected) in [
            ("UPDATE loans SET begun = 1 WHERE 0", ""),
            (
                "UPDATE loans SET state = 'pending', lending_id = 'L' WHERE isbn > 0",
                "does not lead to",
            ),
            ("DELETE FROM history WHERE to_state = 'intended'", "does not lead to"),
            ("UPDATE loans SET reference = 'x' || id, isbn = 7", "is damaged"),
            ("DELETE FROM loans", "is missing"),
            ("UPDATE reports SET state = 'sold'", "(its report) in the ledger is damaged"),
            ("UPDATE reports SET subject = 'K2'", "as that of K2"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("loans.db");
            let ledger = with_loans(&file, 1).await;
            let id = ledger.page(&Filter { limit: 1, ..Filter::default() }).await.unwrap()[0].id;
            add_due_report(&ledger, id).await;
            ledger.close().await;
            run(&file, damage).await;
            let found = check(&file, &RowsRead::default()).await.unwrap().join("\n");
            assert!(
                if expected.is_empty() { found.is_empty() } else { found.contains(expected) },
                "{damage}: {found}"
            );
        }
        let missing = tempfile::tempdir().unwrap().path().join("none.db");
        assert!(check(&missing, &RowsRead::default()).await.is_err());
    }
}
