//! The steps of accesses: their listing, and their removal.
//!
//! They are in the index of a loan's steps, by library and time. So each statement names its
//! libraries, and reads a bounded number of rows.

use std::collections::{BTreeMap, HashMap};

use futures_util::TryFutureExt;
use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::anchors::{self, SealedChain, StepsByChain};
use super::copy_marks;
use super::pool::{BEGIN, TRANSACTION};
use super::prune::{ATTEMPTS, LOCK_CHAINS, MAX_PAUSE};
use super::queries::Queries;
use super::row::{first, library_of};
use super::server_error::is_of_connection;
use super::sql::statement;
use crate::ledger::accesses::{ACCESS, no_library};
use crate::ledger::audit::AuditKey;
use crate::ledger::buckets::bucket_of_library;
use crate::ledger::store::is_contention;
use crate::ledger::stored_row::step_of;
use crate::ledger::{Access, AccessFilter, AccessPosition, LedgerError, RecordedAccess};
use crate::loan::LibraryId;

/// The number of libraries that one statement reads.
const LIBRARIES: usize = 100;
/// The number of steps that one transaction removes.
const BATCH_SIZE: i64 = 200;

/// Finds the next library with a chain by the index.
pub(super) const NEXT_LIBRARY: &str = "SELECT min(library) FROM chains WHERE library > $1";
pub(super) const ACCESSES: &str = "SELECT found.* FROM unnest($1::text[]) AS t (name) \
     CROSS JOIN LATERAL (SELECT at, library, chain, number, detail FROM history \
     WHERE library = t.name AND loan = $2 AND at >= $3 AND at < $4 \
     AND ($6::text IS NULL OR strpos(detail, $6) > 0) \
     AND (at, library, chain, number) < ($7, $8, $9, $10) \
     ORDER BY at DESC, chain DESC, number DESC LIMIT $5) AS found \
     ORDER BY at DESC, library DESC, chain DESC, number DESC LIMIT $5";
pub(super) const HAS_LOANS: &str = "SELECT 1 FROM loans WHERE library = $1 LIMIT 1";
/// Without the newest step of each chain, which stays: the next one continues from it. Those of
/// processes that are gone would fill a batch some day, and nothing would be removed any more.
pub(super) const OLD: &str = "SELECT * FROM history \
     WHERE library = $1 AND loan = $2 AND at < $3 AND NOT EXISTS (SELECT 1 FROM chains \
     WHERE chains.library = history.library AND chains.chain = history.chain \
     AND chains.number = history.number) ORDER BY at, chain, number LIMIT $4";
pub(super) const REMOVE: &str =
    "DELETE FROM history WHERE library = $1 AND chain = $2 AND number = ANY($3) AND loan = $4";

impl Queries {
    pub(in crate::ledger) async fn accesses(
        &self,
        filter: &AccessFilter,
    ) -> Result<Vec<RecordedAccess>, LedgerError> {
        let libraries = match filter.library {
            // An access before the first loan of a library is in the chain of no library.
            Some(library) => vec![library, no_library()?],
            None => self.libraries_with_chains().await?,
        };
        let mark = filter.library.map(Access::mark_of);
        let ((since, before), limit) = (filter.bounds(), i64::from(filter.limit));
        let after = filter.after.clone().unwrap_or_else(AccessPosition::end);
        let mut accesses = Vec::new();
        for libraries in libraries.chunks(LIBRARIES) {
            let names: Vec<String> = libraries.iter().map(LibraryId::to_string).collect();
            let query = statement(ACCESSES).bind(names).bind(ACCESS);
            let query = query.bind(since).bind(before).bind(limit).bind(mark.clone());
            let query = query.bind(after.at).bind(after.library.clone());
            for row in self.rows(query.bind(after.chain).bind(after.number)).await? {
                let (position, detail) = access_of(&row).map_err(LedgerError::Server)?;
                accesses.extend(RecordedAccess::parse(position, detail.as_deref()));
            }
        }
        accesses.sort_by(|one, other| other.position.cmp(&one.position));
        accesses.truncate(filter.limit as usize);
        Ok(accesses)
    }

    /// Returns whether the library has loans, so that it has a chain.
    pub(in crate::ledger) async fn has_chain_of_loans(
        &self,
        library: LibraryId,
    ) -> Result<bool, LedgerError> {
        let query = statement(HAS_LOANS).bind(library.as_str().to_owned());
        Ok(self.background_row(query).await?.is_some())
    }

    /// Returns the libraries with a chain. Damaged names are skipped.
    async fn libraries_with_chains(&self) -> Result<Vec<LibraryId>, LedgerError> {
        let (mut libraries, mut last) = (Vec::new(), String::new());
        loop {
            let row = self.background_row(statement(NEXT_LIBRARY).bind(last)).await?;
            let Some(name) = first::<Option<String>>(row)?.flatten() else {
                return Ok(libraries);
            };
            libraries.extend(self.damaged.skip(library_of(&name)));
            last = name;
        }
    }

    /// Removes the accesses before this time in the libraries whose work this process does.
    pub(in crate::ledger) async fn prune_accesses(
        &self,
        key: &AuditKey,
        before: Timestamp,
    ) -> Result<u64, LedgerError> {
        let (mut total, mut failure) = (0, None);
        for library in self.libraries_with_chains().await? {
            if !self.owned.get().contains(&bucket_of_library(library)) {
                continue;
            }
            // A damaged step of one library keeps no access of the others.
            match self.prune_accesses_of(key, library, before).await {
                Ok(removed) => total += removed,
                Err(LedgerError::Server(error)) if is_of_connection(&error) => {
                    return Err(LedgerError::Server(error));
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(total), Err)
    }

    async fn prune_accesses_of(
        &self,
        key: &AuditKey,
        library: LibraryId,
        before: Timestamp,
    ) -> Result<u64, LedgerError> {
        let old = statement(OLD).bind(library.as_str().to_owned()).bind(ACCESS);
        let old = old.bind(before.as_millisecond()).bind(1_i64);
        // A read first, which locks nothing: most runs find nothing.
        if self.background_row(old).await?.is_none() {
            return Ok(0);
        }
        let mut total = 0;
        loop {
            let began = Instant::now();
            let removed = self.remove_accesses(key, library, before).await?;
            if removed == 0 {
                return Ok(total);
            }
            total += removed;
            sleep(began.elapsed().min(MAX_PAUSE)).await;
        }
    }

    async fn remove_accesses(
        &self,
        key: &AuditKey,
        library: LibraryId,
        before: Timestamp,
    ) -> Result<u64, LedgerError> {
        let mut attempts = 0;
        loop {
            let removed = self.pool.transaction(BEGIN, TRANSACTION, async |connection| {
                remove(connection, key, library, before).await
            });
            attempts += 1;
            match Box::pin(removed).await {
                Err(error) if is_contention(&error) && attempts < ATTEMPTS => {}
                Err(error) => return Err(LedgerError::Server(error)),
                Ok(removed) => return removed,
            }
        }
    }
}

/// Returns the position and the detail of a step.
fn access_of(row: &PgRow) -> Result<(AccessPosition, Option<String>), sqlx::Error> {
    let (at, library) = (row.try_get("at")?, row.try_get("library")?);
    let (chain, number) = (row.try_get("chain")?, row.try_get("number")?);
    Ok((AccessPosition { at, library, chain, number }, row.try_get("detail")?))
}

/// Returns the number of removed steps, or the inner error before anything is written if a step
/// does not verify.
async fn remove(
    connection: &mut PgConnection,
    key: &AuditKey,
    library: LibraryId,
    before: Timestamp,
) -> Result<Result<u64, LedgerError>, sqlx::Error> {
    if let Err(refused) = copy_marks::read_to_write(connection).await?.allow_pruning() {
        return Ok(Err(refused));
    }
    let chains = old_steps(connection, library, before).await?.into_keys().collect();
    let ends = lock_chains(connection, library, chains).await?;
    // Again, under the locks. A chain that was not locked, or has no end, is left alone.
    let mut steps = old_steps(connection, library, before).await?;
    for (chain, steps) in &mut steps {
        let end = ends.get(chain).copied().unwrap_or_default();
        steps.retain(|step| step.number < end);
    }
    let (mut sealed, mut removed) = (Vec::<SealedChain>::new(), BTreeMap::new());
    for (chain, steps) in steps.into_iter().filter(|(_, steps)| !steps.is_empty()) {
        let numbers: Vec<i64> = steps.iter().map(|step| step.number).collect();
        match anchors::seal(connection, key, library, chain, steps).await? {
            Ok(anchors) => sealed.push(anchors),
            Err(unverified) => return Ok(Err(unverified)),
        }
        removed.insert(chain, numbers);
    }
    let count = removed.values().map(|numbers| numbers.len() as u64).sum();
    for (chain, numbers) in removed {
        let query = statement(REMOVE).bind(library.as_str().to_owned()).bind(chain);
        query.bind(numbers).bind(ACCESS).execute(&mut *connection).await?;
    }
    anchors::write(connection, library, sealed).map_ok(|()| Ok(count)).await
}

/// Locks these chains. Returns the number of each one's newest step.
async fn lock_chains(
    connection: &mut PgConnection,
    library: LibraryId,
    chains: Vec<Uuid>,
) -> Result<HashMap<Uuid, i64>, sqlx::Error> {
    let lock = statement(LOCK_CHAINS).bind(library.as_str().to_owned()).bind(chains);
    let rows = lock.fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Reads the oldest steps of accesses, in the order of their numbers, by their chains.
async fn old_steps(
    connection: &mut PgConnection,
    library: LibraryId,
    before: Timestamp,
) -> Result<StepsByChain, sqlx::Error> {
    let query = statement(OLD).bind(library.as_str().to_owned()).bind(ACCESS);
    let query = query.bind(before.as_millisecond()).bind(BATCH_SIZE);
    let mut steps = StepsByChain::new();
    for row in query.fetch_all(connection).await? {
        steps.entry(row.try_get("chain")?).or_default().push(step_of(&row)?);
    }
    steps.values_mut().for_each(|steps| steps.sort_by_key(|step| step.number));
    Ok(steps)
}
