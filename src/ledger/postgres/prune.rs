//! Removes old loans with their steps and tallies, in short transactions beside running gates.
//!
//! Circulation prunes loans that Bokbasen never accepted, each gate those of its own buckets. The
//! command line prunes ended loans of all buckets.
//!
//! A transaction concerns some loans of one library. It first locks the rows of all chains that
//! have steps of these loans, in the order of their names, as a writer locks its own. So no step is
//! written between an anchor and the end of its chain. Then it locks the loans. It verifies
//! everything before it removes anything, and never removes the newest step of a chain, because the
//! next step continues from it. It reads the marks of a copy first, under a lock, so that nothing
//! is removed while the ledger is copied.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, Row};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::anchors::{self, StepsByChain};
use super::copy_marks;
use super::last_steps::{self, LoanRow};
use super::pool::{BEGIN, Pool, TRANSACTION};
use super::prunable::{count, search};
use super::queries::Queries;
use super::settings::PostgresSettings;
use super::sql::statement;
use super::whole_ledger::WholeLedger;
use crate::ledger::audit::AuditKey;
use crate::ledger::states::{is_refusal_active, prunable, prunable_age};
use crate::ledger::store::is_contention;
use crate::ledger::{LedgerError, Prunable, Pruned, RowsRead};
use crate::loan::LibraryId;

/// The number of loans that one transaction removes. The longest pause after it, in which writers
/// of the same chains can continue.
const BATCH_SIZE: usize = 50;
pub(super) const MAX_PAUSE: Duration = Duration::from_millis(50);
/// The attempts at a transaction that waits too long for a lock.
pub(super) const ATTEMPTS: u32 = 3;

pub(super) const CHAINS_OF: &str =
    "SELECT DISTINCT chain FROM history WHERE library = $1 AND loan = ANY($2)";
pub(super) const LOCK_CHAINS: &str = "SELECT chain, number FROM chains \
     WHERE library = $1 AND chain = ANY($2) ORDER BY chain FOR UPDATE";
pub(super) const REMOVE_TALLIES: &str =
    "DELETE FROM delivered WHERE library = $1 AND loan = ANY($2)";
pub(super) const REMOVE_LOANS: &str = "DELETE FROM loans WHERE library = $1 AND id = ANY($2)";

/// Removes loans of all buckets.
///
/// # Errors
/// [`LedgerError`], also if a step to be removed does not verify. Loans that were already removed
/// stay removed.
pub(in crate::ledger) async fn prune(
    settings: &PostgresSettings,
    key: &AuditKey,
    which: Prunable,
    rows: &RowsRead,
) -> Result<Pruned, LedgerError> {
    let ledger = WholeLedger::open(settings).await?;
    ledger
        .snapshot(async |connection| copy_marks::read(connection).await)
        .await?
        .allow_pruning()?;
    // Without the number, it prunes all the same: counting may take too long for the server.
    rows.expect(count(&ledger.pool, which).await.unwrap_or(0));
    let pruned = prune_buckets(&ledger.pool, key, which, None, rows).await;
    ledger.pool.close().await;
    pruned
}

impl Queries {
    /// Removes loans of the buckets that this process owns.
    pub(in crate::ledger) async fn prune(
        &self,
        key: &AuditKey,
        which: Prunable,
    ) -> Result<Pruned, LedgerError> {
        let (owned, rows) = (self.owned.get(), RowsRead::default());
        prune_buckets(&self.pool, key, which, Some(owned), &rows).await
    }
}

async fn prune_buckets(
    pool: &Pool,
    key: &AuditKey,
    which: Prunable,
    buckets: Option<Arc<[i16]>>,
    rows: &RowsRead,
) -> Result<Pruned, LedgerError> {
    let mut pruned = Pruned::default();
    let mut position = Some((i64::MIN, String::new(), Uuid::nil()));
    while let Some(after) = position.take() {
        let page = search(pool, which, buckets.as_deref(), after).await;
        let (candidates, next) = page.map_err(LedgerError::Server)?;
        for (library, loans) in candidates {
            for loans in loans.chunks(BATCH_SIZE) {
                let began = Instant::now();
                let batch = remove(pool, key, which, library, loans).await?;
                rows.add(loans.len());
                pruned.loans += batch.removed;
                batch.left.into_iter().for_each(|sentence| pruned.report_left(sentence));
                sleep(began.elapsed().min(MAX_PAUSE)).await;
            }
        }
        position = next;
    }
    Ok(pruned)
}

/// The result of one transaction.
#[derive(Debug, Default)]
struct Batch {
    removed: u64,
    /// The loans that were retained because their row is damaged or was changed, as sentences.
    left: Vec<String>,
}

/// Removes those of these loans that may be removed.
async fn remove(
    pool: &Pool,
    key: &AuditKey,
    which: Prunable,
    library: LibraryId,
    loans: &[Uuid],
) -> Result<Batch, LedgerError> {
    let mut attempts = 0;
    loop {
        let removed = pool.transaction(BEGIN, TRANSACTION, async |connection| {
            remove_loans(connection, key, which, library, loans).await
        });
        attempts += 1;
        match Box::pin(removed).await {
            Err(error) if is_contention(&error) && attempts < ATTEMPTS => {}
            Err(error) => return Err(LedgerError::Server(error)),
            Ok(removed) => return removed,
        }
    }
}

/// Returns the inner error before anything is written, if a step does not verify.
async fn remove_loans(
    connection: &mut PgConnection,
    key: &AuditKey,
    which: Prunable,
    library: LibraryId,
    loans: &[Uuid],
) -> Result<Result<Batch, LedgerError>, sqlx::Error> {
    if let Err(refused) = copy_marks::read_to_write(connection).await?.allow_pruning() {
        return Ok(Err(refused));
    }
    let ends = lock_chains(connection, library, loans).await?;
    let loans = lock_loans(connection, which, library, loans).await?;
    let mut batch = Batch::default();
    let loans = comparable(connection, key, library, &loans, &mut batch.left).await?;
    let steps = anchors::steps_of(connection, library, &loans).await?;
    let (loans, steps) = without_ends(loans, steps, &ends);
    if loans.is_empty() {
        return Ok(Ok(batch));
    }
    let mut sealed = Vec::new();
    for (chain, steps) in steps {
        match anchors::seal(connection, key, library, chain, steps).await? {
            Ok(chain) => sealed.push(chain),
            Err(unverified) => return Ok(Err(unverified)),
        }
    }
    anchors::replace_steps(connection, library, &loans, sealed).await?;
    for sql in [REMOVE_TALLIES, REMOVE_LOANS] {
        let remove = statement(sql).bind(library.as_str().to_owned()).bind(loans.clone());
        remove.execute(&mut *connection).await?;
    }
    batch.removed = loans.len() as u64;
    Ok(Ok(batch))
}

/// Locks the chains that have steps of these loans. Returns the number of each one's newest step.
async fn lock_chains(
    connection: &mut PgConnection,
    library: LibraryId,
    loans: &[Uuid],
) -> Result<HashMap<Uuid, i64>, sqlx::Error> {
    let chains = sqlx::query_scalar(CHAINS_OF).bind(library.as_str()).bind(loans);
    let chains: Vec<Uuid> = chains.persistent(false).fetch_all(&mut *connection).await?;
    let lock = statement(LOCK_CHAINS).bind(library.as_str().to_owned()).bind(chains);
    let rows = lock.fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Returns the statement that locks loans of this kind, in the order in which writers lock them.
pub(super) fn lock_statement(which: Prunable) -> String {
    let (condition, (age, _)) = (prunable(which), prunable_age(which));
    format!(
        "SELECT id, refusal_retry FROM loans WHERE library = $1 AND id = ANY($2) \
         AND {condition} AND {age} < $3 ORDER BY id FOR UPDATE"
    )
}

/// Locks those of these loans that are still old enough.
async fn lock_loans(
    connection: &mut PgConnection,
    which: Prunable,
    library: LibraryId,
    loans: &[Uuid],
) -> Result<Vec<Uuid>, sqlx::Error> {
    let (_, before) = prunable_age(which);
    let query = sqlx::query(AssertSqlSafe(lock_statement(which)));
    let query = query.bind(library.as_str()).bind(loans).bind(before.as_millisecond());
    let mut locked = Vec::new();
    for row in query.persistent(false).fetch_all(connection).await? {
        if !is_refusal_active(which, row.try_get("refusal_retry")?) {
            locked.push(row.try_get("id")?);
        }
    }
    Ok(locked)
}

/// Returns those of these locked loans that are as their last steps left them. It needs a statement
/// of its own: the one that locks does not see the step of a change for which it has waited.
async fn comparable(
    connection: &mut PgConnection,
    key: &AuditKey,
    library: LibraryId,
    loans: &[Uuid],
    left: &mut Vec<String>,
) -> Result<Vec<Uuid>, sqlx::Error> {
    let query = sqlx::query(last_steps::BY_IDS.as_str()).bind(library.as_str()).bind(loans);
    let mut unchanged = Vec::new();
    for row in query.persistent(false).fetch_all(connection).await? {
        let row = LoanRow::read(&row, key)?;
        match row.change() {
            Some(finding) => left.push(finding),
            None => unchanged.push(row.id),
        }
    }
    Ok(unchanged)
}

/// Leaves out loans that have the newest step of a chain, or a step of a chain that is not locked.
fn without_ends(
    loans: Vec<Uuid>,
    steps: StepsByChain,
    ends: &HashMap<Uuid, i64>,
) -> (Vec<Uuid>, StepsByChain) {
    let mut kept = HashSet::new();
    for (chain, steps) in &steps {
        let is_removable = |number| ends.get(chain).is_some_and(|end| number < *end);
        let ending = steps.iter().filter(|step| !is_removable(step.number));
        kept.extend(ending.map(|step| step.loan.clone()));
    }
    let loans = loans.into_iter().filter(|loan| !kept.contains(&loan.to_string())).collect();
    let mut removed = StepsByChain::new();
    for (chain, steps) in steps {
        let steps: Vec<_> = steps.into_iter().filter(|step| !kept.contains(&step.loan)).collect();
        if !steps.is_empty() {
            removed.insert(chain, steps);
        }
    }
    (loans, removed)
}
