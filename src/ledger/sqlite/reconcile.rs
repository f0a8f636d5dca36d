//! Accepts a ledger file that may lack its newest steps: an older copy that took the place of a
//! newer one.
//!
//! `loangate ledger reconcile` calls [`reconcile_file`]. The head file of the newer ledger keeps
//! gates from opening the older one until then. Where the head file is missing or has no link,
//! nothing shows that the ledger is the newest, so [`super::open()`] reconciles it without the
//! command.
//!
//! The books of usage reports do not know what was sent in the lost time, so what is not sent yet
//! goes to a person.

use std::path::Path;

use jiff::Timestamp;
use sqlx::{Connection, SqliteConnection};
use uuid::Uuid;

use super::open::prepare;
use super::{BEGIN, chain, copy_marks};
use crate::durable_file::ignore_missing;
use crate::ledger::audit::{Head, head_file};
use crate::ledger::reports::{PASS_ON, RECONCILED, RECORD, millis};
use crate::ledger::{Keys, LedgerError};

/// Passes the usage reports of this file that are not sent yet to a person, and replaces the head
/// file if the ledger lacks its step. Returns the number of these reports. `is_restored` is what an
/// operator says of the file, and needs no evidence.
///
/// # Errors
/// [`LedgerError`]: [`NothingLost`](LedgerError::NothingLost) if the ledger has the step that its
/// head file names, and is not restored. Nothing is changed then. After another error, the command
/// can be repeated.
pub async fn reconcile_file(
    ledger: &Path,
    keys: &Keys,
    now: Timestamp,
    is_restored: bool,
) -> Result<u64, LedgerError> {
    let unusable = |source| LedgerError::File { file: ledger.to_owned(), source };
    let failed = |source| LedgerError::Database { file: ledger.to_owned(), source };
    // Opening would create a missing one.
    ledger.metadata().map_err(unusable)?;
    let (_opening, mut connection) = prepare(ledger, &keys.fingerprint).await?;
    copy_marks::read(&mut connection).await.map_err(failed)?.allow_gate()?;
    let checked = chain::check_head_file(&mut connection, ledger).await;
    let is_lost = match checked {
        Ok(_) => chain::stored_head(ledger)?.link().is_none(),
        Err(LedgerError::HeadMissing { .. }) => true,
        Err(error) => return Err(error),
    };
    if !is_lost && !is_restored {
        return Err(LedgerError::NothingLost);
    }
    let passed = pass_reports_on(&mut connection, now).await.map_err(failed)?;
    if is_lost {
        let head = chain::read_head(&mut connection).await.map_err(failed)?;
        store_head(ledger, &head).map_err(unusable)?;
    }
    connection.close().await.map_err(failed)?;
    Ok(passed)
}

/// Reconciles a ledger with steps whose head file is missing or has no link.
pub(super) async fn reconcile_without_head(
    connection: &mut SqliteConnection,
    ledger: &Path,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let failed = |source| LedgerError::Database { file: ledger.to_owned(), source };
    if chain::has_head_file(connection, ledger).await? {
        return Ok(());
    }
    let head = chain::read_head(connection).await.map_err(failed)?;
    let reports = pass_reports_on(connection, now).await.map_err(failed)?;
    // Otherwise a gate that ends before it has written a step would do it again.
    store_head(ledger, &head)
        .map_err(|source| LedgerError::File { file: ledger.to_owned(), source })?;
    tracing::warn!(
        head_file = %head_file::path(ledger).display(),
        reports,
        "the head file of the ledger is missing or damaged, so the ledger may be an older copy; \
         usage reports that are not sent yet go to a person"
    );
    Ok(())
}

fn store_head(ledger: &Path, head: &Head) -> std::io::Result<()> {
    if head.number == 0 {
        return ignore_missing(std::fs::remove_file(head_file::path(ledger)));
    }
    head_file::store(ledger, &Uuid::new_v4().simple().to_string(), head)
}

async fn pass_reports_on(
    connection: &mut SqliteConnection,
    now: Timestamp,
) -> Result<u64, sqlx::Error> {
    let mut transaction = connection.begin_with(BEGIN).await?;
    let passed = assume_lost_steps(&mut transaction, now).await?;
    transaction.commit().await?;
    Ok(passed)
}

/// Changes the ledger as one that may lack its newest steps: it sends no usage report that it may
/// have sent already. Returns the number of reports that it passes to a person.
pub(in crate::ledger) async fn assume_lost_steps(
    connection: &mut SqliteConnection,
    now: Timestamp,
) -> Result<u64, sqlx::Error> {
    const NEWEST: &str = "SELECT max(at) FROM history";
    // A clock that is behind must not put the loss before steps that the ledger still has.
    let newest: Option<i64> = sqlx::query_scalar(NEWEST).fetch_one(&mut *connection).await?;
    let now = millis(now).max(newest.unwrap_or(i64::MIN));
    let passed = sqlx::query(PASS_ON).bind(now).execute(&mut *connection).await?;
    let record = sqlx::query(RECORD).bind(RECONCILED).bind(now.to_be_bytes().to_vec());
    record.execute(&mut *connection).await?;
    Ok(passed.rows_affected())
}
