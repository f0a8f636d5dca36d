//! `loangate ledger check`: whether every row can be read, and every loan fits its steps.
//!
//! Like `verify`, it reads pages beside running gates. What it compares is in one statement.

use std::sync::LazyLock;

use futures_util::future::try_join3;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::last_steps::{LoanRow, for_each_loan};
use super::settings::PostgresSettings;
use super::whole_ledger::WholeLedger;
use crate::ledger::accesses::ACCESS;
use crate::ledger::audit::AuditKey;
use crate::ledger::audit::head_record::NO_LOAN;
use crate::ledger::findings::{self, Findings};
use crate::ledger::stored_row::{history_of, tally_of};
use crate::ledger::{LedgerError, RowsRead, reports};
use crate::loan::{LibraryId, LoanId};

pub(super) const DELIVERED: &str = "SELECT loan, file, bytes, ranges, NOT EXISTS ( \
     SELECT 1 FROM loans WHERE loans.library = $1 AND loans.id = delivered.loan) \
     AS has_no_loan FROM delivered \
     WHERE library = $1 AND (loan, file) > ($2, $3) ORDER BY loan, file LIMIT $4";
pub(super) const STEPS: &str = "SELECT *, NOT EXISTS ( \
     SELECT 1 FROM loans WHERE loans.library = $1 AND loans.id = history.loan) \
     AS has_no_loan FROM history \
     WHERE library = $1 AND (chain, number) > ($2, $3) ORDER BY chain, number LIMIT $4";

pub(super) static REPORTS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {} FROM reports WHERE (library, loan) > ($1, $2) \
         ORDER BY library, loan LIMIT $3",
        reports::COLUMNS
    )
});

/// Checks every loan, every delivered row, every step and every usage report. Returns the problems
/// as sentences.
///
/// # Errors
/// [`LedgerError`] if the ledger cannot be read.
pub(in crate::ledger) async fn check(
    settings: &PostgresSettings,
    key: &AuditKey,
    rows: &RowsRead,
) -> Result<Vec<String>, LedgerError> {
    let mut ledger = WholeLedger::open(settings).await?;
    ledger.count_rows(rows, &["loans", "delivered", "history"]).await;
    let found = check_ledger(&ledger, key).await;
    ledger.pool.close().await;
    found
}

async fn check_ledger(ledger: &WholeLedger, key: &AuditKey) -> Result<Vec<String>, LedgerError> {
    let mut found = Findings::default();
    for name in ledger.libraries().await? {
        let Ok(library) = name.parse::<LibraryId>() else {
            found.report(findings::damaged_library(&name));
            continue;
        };
        let mut of_loans = Findings::default();
        let examine = |row: &LoanRow| {
            let findings = row.change().into_iter().chain(row.broken_history());
            findings.for_each(|finding| of_loans.report(finding));
        };
        let loans = for_each_loan(ledger, library, key, examine);
        let delivered = check_delivered(ledger, library);
        let steps = check_steps(ledger, library);
        let ((), of_delivered, of_steps) = try_join3(loans, delivered, steps).await?;
        for finding in of_loans.into_sentences().into_iter().chain(of_delivered).chain(of_steps) {
            found.report(finding);
        }
    }
    check_reports(ledger, &mut found).await?;
    Ok(found.into_sentences())
}

/// Checks the usage reports of all libraries.
async fn check_reports(ledger: &WholeLedger, found: &mut Findings) -> Result<(), LedgerError> {
    let mut position = Some((String::new(), Uuid::nil()));
    while let Some((library, loan)) = position.take() {
        let rows = ledger.snapshot(async |connection| {
            let query = sqlx::query(REPORTS.as_str()).bind(library.as_str()).bind(loan);
            query.bind(ledger.page).persistent(false).fetch_all(connection).await
        });
        let rows = rows.await?;
        rows.iter().filter_map(reports::check_row).for_each(|sentence| found.report(sentence));
        if let Some(last) = rows.last().filter(|_| ledger.is_full(&rows)) {
            let last = || Ok((last.try_get("library")?, last.try_get("loan")?));
            position = Some(last().map_err(LedgerError::Server)?);
        }
    }
    Ok(())
}

async fn check_delivered(
    ledger: &WholeLedger,
    library: LibraryId,
) -> Result<Vec<String>, LedgerError> {
    let mut found = Findings::default();
    let mut position = Some((Uuid::nil(), String::new()));
    while let Some((loan, file)) = position.take() {
        let rows = ledger.snapshot(async |connection| {
            let query =
                sqlx::query(DELIVERED).bind(library.as_str()).bind(loan).bind(file.as_str());
            query.bind(ledger.page).persistent(false).fetch_all(connection).await
        });
        let rows = rows.await?;
        ledger.rows.add(rows.len());
        for row in &rows {
            match tally_of(row) {
                Ok((loan, file, _)) if has_no_loan(row)? => found
                    .report(format!("loan {loan} is missing, and {file} was delivered under it")),
                Ok(_) => {}
                Err(error) => found.report(error.to_string()),
            }
        }
        if let Some(last) = rows.last().filter(|_| ledger.is_full(&rows)) {
            let last = || Ok((last.try_get("loan")?, last.try_get("file")?));
            position = Some(last().map_err(LedgerError::Server)?);
        }
    }
    Ok(found.into_sentences())
}

async fn check_steps(ledger: &WholeLedger, library: LibraryId) -> Result<Vec<String>, LedgerError> {
    let mut found = Findings::default();
    let mut position = Some((Uuid::nil(), i64::MIN));
    while let Some((chain, number)) = position.take() {
        let rows = ledger.snapshot(async |connection| {
            let query = sqlx::query(STEPS).bind(library.as_str()).bind(chain).bind(number);
            query.bind(ledger.page).persistent(false).fetch_all(connection).await
        });
        let rows = rows.await?;
        ledger.rows.add(rows.len());
        for row in &rows {
            let loan: Uuid = row.try_get("loan").map_err(LedgerError::Server)?;
            if loan == NO_LOAN || loan == ACCESS {
                // Without a loan; `verify` reads them.
                continue;
            }
            if has_no_loan(row)? {
                found.report(findings::missing_loan(&loan.to_string()));
            }
            if let Err(error) = history_of(LoanId::new(library, loan), row) {
                found.report(error.to_string());
            }
        }
        if let Some(last) = rows.last().filter(|_| ledger.is_full(&rows)) {
            let last = || Ok((last.try_get("chain")?, last.try_get("number")?));
            position = Some(last().map_err(LedgerError::Server)?);
        }
    }
    Ok(found.into_sentences())
}

fn has_no_loan(row: &PgRow) -> Result<bool, LedgerError> {
    row.try_get("has_no_loan").map_err(LedgerError::Server)
}

#[cfg(test)]
mod tests {
    use sqlx::AssertSqlSafe;

    use super::super::test_support::support::Postgres;
    use super::super::test_support::{Node, settings};
    use super::*;
    use crate::ledger::reports::tests::add_due_report;
    use crate::ledger::test_support::{accepted, audit_key};
    use crate::ledger::{Delivered, Ledger};
    use crate::loan::{Ranges, Tally};

    async fn deliver(ledger: &Ledger, loan: LoanId, file: &str) {
        let tally = Tally { bytes: 1, ranges: Ranges::default() };
        let delivered = [Delivered { loan, file: file.into(), tally }];
        ledger.note_delivered(loan.library(), delivered.into()).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn check_finds_damaged_rows_and_histories() {
        let Some(server) = Postgres::shared().await else { return };
        let database = server.database().await;
        let node = Node::open(&database).await;
        for borrower in 0..3 {
            let id = accepted(&node.ledger, borrower).await;
            deliver(&node.ledger, id, "/a").await;
            deliver(&node.ledger, id, "/b").await;
            add_due_report(&node.ledger, id).await;
        }
        node.close().await;
        let mut connection = database.connect().await;
        let mut execute = async |sql: String| {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        };
        const TABLES: [&str; 4] = ["delivered", "history", "loans", "reports"];
        for table in TABLES {
            execute(format!("CREATE TABLE saved_{table} AS SELECT * FROM {table}")).await;
        }
        let third = "(SELECT id FROM loans ORDER BY id DESC LIMIT 1)";
        for (damage, expected) in [
            ("UPDATE loans SET progress = 1 WHERE id = $third", &[][..]),
            (
                "UPDATE loans SET state = 'pending' WHERE id = $third",
                &["not as its last step", "does not lead to"],
            ),
            (
                "DELETE FROM history WHERE to_state = 'intended' AND loan = $third",
                &["does not lead to"],
            ),
            (
                "DELETE FROM history WHERE to_state = 'accepted' AND loan = $third",
                &["not as its last step", "does not lead to"],
            ),
            ("UPDATE loans SET due = due + 1 WHERE id = $third", &["not as its last step"]),
            ("UPDATE loans SET isbn = 7 WHERE id = $third", &["is damaged"]),
            (
                "UPDATE reports SET state = 'sold' WHERE loan = $third",
                &["(its report) in the ledger is damaged"],
            ),
            ("UPDATE reports SET subject = 'K2' WHERE loan = $third", &["as that of K2"]),
            ("UPDATE delivered SET ranges = '\\x01' WHERE loan = $third", &["is damaged"]),
            (
                "UPDATE history SET cause = 'x', from_state = 'x' \
                 WHERE loan = $third AND from_state = 'intended'",
                &["is damaged"],
            ),
            (
                "DELETE FROM loans WHERE id = $third",
                &["/a was delivered", "/b was delivered", "the history has its steps"],
            ),
            (
                "UPDATE history SET library = '?' WHERE loan = $third",
                &[
                    "the name of the library ? is damaged",
                    "not as its last step",
                    "does not lead to",
                ],
            ),
        ] {
            execute(damage.replace("$third", third)).await;
            for page in [1, 2, 2000] {
                let mut ledger = WholeLedger::open(&settings(&database.url())).await.unwrap();
                ledger.page = page;
                let mut found = check_ledger(&ledger, &audit_key()).await.unwrap();
                ledger.pool.close().await;
                for part in expected {
                    let at = found.iter().position(|finding| finding.contains(part));
                    found.remove(at.unwrap_or_else(|| panic!("{damage}: {part}: {found:?}")));
                }
                assert!(found.is_empty(), "{damage}, page of {page}: {found:?}");
            }
            for table in TABLES {
                let restore =
                    format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM saved_{table}");
                execute(restore).await;
            }
        }
    }
}
