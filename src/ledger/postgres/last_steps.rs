//! The comparison of loans with their last steps, in statements that read both.
//!
//! A loan may have steps of several processes, in a chain each. Their clocks differ, so no time
//! tells which step of two chains is the later one. But a loan enters its state once more than it
//! leaves it, and leaves every other state as often as it enters it. So the row must be as the
//! newest step of one chain left it, and its state must be the one that the steps lead to.

use std::sync::LazyLock;

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::whole_ledger::WholeLedger;
use crate::ledger::LedgerError;
use crate::ledger::audit::{AuditKey, Verified};
use crate::ledger::findings;
use crate::ledger::stored_row::{COLUMNS, loan_of};
use crate::loan::LibraryId;

/// Selects loans of the library $1 with what [`LoanRow`] reads of their steps. A condition is
/// appended.
const LOANS_WITH_STEPS: &str = "FROM loans CROSS JOIN LATERAL ( \
     SELECT count(*) FILTER (WHERE to_state = loans.state) \
     - count(*) FILTER (WHERE from_state = loans.state) AS balance, \
     count(*) FILTER (WHERE from_state IS NULL AND to_state = 'intended') AS intents \
     FROM history WHERE history.library = $1 AND history.loan = loans.id) AS path \
     CROSS JOIN LATERAL (SELECT array_agg(salt) AS salts, array_agg(loan_mac) AS macs FROM ( \
     SELECT DISTINCT ON (chain) salt, loan_mac FROM history \
     WHERE history.library = $1 AND history.loan = loans.id \
     ORDER BY chain, number DESC) AS step) AS newest";

/// A page of a library's loans.
pub(super) static PAGE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS}, balance, intents, salts, macs {LOANS_WITH_STEPS} \
         WHERE library = $1 AND id >= $2 ORDER BY id LIMIT $3"
    )
});

/// Loans of a library by their ids.
pub(super) static BY_IDS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS}, balance, intents, salts, macs {LOANS_WITH_STEPS} \
         WHERE library = $1 AND id = ANY($2) ORDER BY id"
    )
});

/// What the row of a loan and its steps say about each other.
#[derive(Debug)]
pub(super) struct LoanRow {
    pub(super) id: Uuid,
    /// Why the row cannot be read.
    damage: Option<String>,
    /// Whether the newest step of a chain has the hash of this row.
    has_hash: bool,
    leads_to_state: bool,
    begins_with_intent: bool,
}

impl LoanRow {
    pub(super) fn read(row: &PgRow, key: &AuditKey) -> Result<LoanRow, sqlx::Error> {
        let (balance, intents): (i64, i64) = (row.try_get("balance")?, row.try_get("intents")?);
        let salts: Option<Vec<Option<Vec<u8>>>> = row.try_get("salts")?;
        let macs: Option<Vec<Option<Vec<u8>>>> = row.try_get("macs")?;
        let (loan, damage) = match loan_of(row) {
            Ok(loan) => (Some(loan), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let mut hashes = salts.unwrap_or_default().into_iter().zip(macs.unwrap_or_default());
        let has_hash = hashes.any(|(salt, mac)| match (&loan, salt, mac) {
            (Some(loan), Some(salt), Some(mac)) => key.loan_mac(&salt, loan) == mac,
            _ => false,
        });
        Ok(LoanRow {
            id: row.try_get("id")?,
            damage,
            has_hash,
            leads_to_state: balance == 1,
            begins_with_intent: intents == 1,
        })
    }

    /// Returns the finding if the row is damaged or not as its last step left it.
    pub(super) fn change(&self) -> Option<String> {
        let is_as_left = self.has_hash && self.leads_to_state;
        let change = || (!is_as_left).then(|| findings::changed_loan(&self.id.to_string()));
        self.damage.clone().or_else(change)
    }

    /// Returns the finding if the history does not lead from the intent to the state of the loan.
    pub(super) fn broken_history(&self) -> Option<String> {
        let is_whole = self.leads_to_state && self.begins_with_intent;
        (!is_whole).then(|| findings::broken_history(&self.id.to_string()))
    }
}

/// Passes every loan of a library to `examine`.
///
/// # Errors
/// [`LedgerError`] if the ledger cannot be read.
pub(super) async fn for_each_loan(
    ledger: &WholeLedger,
    library: LibraryId,
    key: &AuditKey,
    mut examine: impl FnMut(&LoanRow),
) -> Result<(), LedgerError> {
    let mut from = Some(Uuid::nil());
    while let Some(first) = from {
        let page = ledger.snapshot(async |connection| {
            let query = sqlx::query(PAGE.as_str()).bind(library.as_str()).bind(first);
            query.bind(ledger.page).persistent(false).fetch_all(connection).await
        });
        let rows =
            page.await?.iter().map(|row| LoanRow::read(row, key)).collect::<Result<Vec<_>, _>>();
        let rows = rows.map_err(LedgerError::Server)?;
        ledger.rows.add(rows.len());
        rows.iter().for_each(&mut examine);
        from = ledger.next_page(&rows, |row| row.id);
    }
    Ok(())
}

/// Compares every loan of a library with its last step.
pub(super) async fn compare(
    ledger: &WholeLedger,
    library: LibraryId,
    key: &AuditKey,
) -> Result<Verified, LedgerError> {
    let mut verified = Verified::default();
    let examine = |row: &LoanRow| row.change().into_iter().for_each(|found| verified.report(found));
    for_each_loan(ledger, library, key, examine).await?;
    Ok(verified)
}
