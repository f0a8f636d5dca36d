//! Closes chains whose process has ended, with a seal of their newest link.
//!
//! A process seals its own chains when it stops. The chains of a process that was fenced are sealed
//! by the others, some minutes later: see `ended_chains`. A fenced process may still write ends and
//! tallies: that opens its chain again, and the chain is sealed once more.
//!
//! `verify` reports a chain without a seal whose process has ended, and a seal of another link.
//!
//! Chains are locked in the order of their keys, as a pruning does.

use std::collections::{HashMap, HashSet};

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::sql::{column, statement};
use crate::ledger::audit::{AuditKey, Head};
use crate::loan::LibraryId;

/// Reads the chains of this condition, and the time of the database in milliseconds.
macro_rules! chains {
    ($condition:literal) => {
        concat!(
            "SELECT library, chain, number, mac, \
             (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now FROM chains WHERE ",
            $condition
        )
    };
}

pub(super) const OWN: &str =
    chains!("library = ANY($1) AND chain = $2 ORDER BY library, chain FOR UPDATE");
/// Waits for no lane that writes.
pub(super) const OTHERS: &str = chains!(
    "library = ANY($1) AND chain = $2 AND seal IS NULL ORDER BY library, chain \
     FOR UPDATE SKIP LOCKED"
);
/// The chains of all libraries that were written by a copy.
const COPIED: &str = chains!("chain = $1 ORDER BY library FOR UPDATE");
/// Waits for no other process that seals them, or that writes them after all.
pub(super) const OPEN: &str = chains!(
    "library = $1 AND chain = ANY($2) AND seal IS NULL ORDER BY chain FOR UPDATE SKIP LOCKED"
);
pub(super) const SEAL: &str = "UPDATE chains SET closed = t.closed, seal = t.seal \
     FROM unnest($1::text[], $2::uuid[], $3::bigint[], $4::bytea[], $5::bigint[], $6::bytea[]) \
     AS t (library, chain, number, mac, closed, seal) \
     WHERE chains.library = t.library AND chains.chain = t.chain \
     AND chains.number = t.number AND chains.mac = t.mac";

/// A chain that is about to be sealed.
#[derive(Debug)]
struct Ending {
    library: String,
    chain: Uuid,
    head: Head,
    /// The time of the database in milliseconds.
    closed: i64,
}

impl Ending {
    fn of(row: &PgRow) -> Result<Ending, sqlx::Error> {
        let head = Head { number: row.try_get("number")?, mac: row.try_get("mac")? };
        let (library, chain) = (row.try_get("library")?, row.try_get("chain")?);
        Ok(Ending { library, chain, head, closed: row.try_get("now")? })
    }
}

/// Seals the chains of this process in these libraries, which this lane writes. Returns those whose
/// chain lacks the link in `newest`, which this process has committed: it is not sealed. Also seals
/// the chains of other libraries in `newest`, which have head records only or belong to other
/// lanes. The caller commits.
pub(super) async fn seal_own(
    connection: &mut PgConnection,
    libraries: &[LibraryId],
    newest: &HashMap<LibraryId, Head>,
    chain: Uuid,
    key: &AuditKey,
) -> Result<Vec<LibraryId>, sqlx::Error> {
    let names: Vec<String> = libraries.iter().map(LibraryId::to_string).collect();
    let others = newest.keys().map(LibraryId::to_string).filter(|name| !names.contains(name));
    let others: Vec<String> = others.collect();
    let newest_of: HashMap<&str, &Head> =
        newest.iter().map(|(library, head)| (library.as_str(), head)).collect();
    let rows = statement(OWN).bind(names).bind(chain).fetch_all(&mut *connection).await?;
    let mut chains = rows.iter().map(Ending::of).collect::<Result<Vec<_>, _>>()?;
    chains.retain(|Ending { library, head, .. }| {
        newest_of.get(library.as_str()).is_none_or(|newest| head.follows(newest))
    });
    let found: HashSet<&str> = chains.iter().map(|ending| ending.library.as_str()).collect();
    let lacks =
        |library: &&LibraryId| newest.contains_key(library) && !found.contains(library.as_str());
    let lacking = libraries.iter().filter(lacks).copied().collect();
    let rows = statement(OTHERS).bind(others).bind(chain).fetch_all(&mut *connection).await?;
    for row in &rows {
        let ending = Ending::of(row)?;
        let newest = newest_of.get(ending.library.as_str());
        if newest.is_some_and(|newest| ending.head.follows(newest)) {
            chains.push(ending);
        }
    }
    seal(connection, chains, key).await?;
    Ok(lacking)
}

/// Seals the chains with this name in all libraries, which nobody writes.
pub(in crate::ledger) async fn seal_copied(
    connection: &mut PgConnection,
    chain: Uuid,
    key: &AuditKey,
) -> Result<(), sqlx::Error> {
    let rows = statement(COPIED).bind(chain).fetch_all(&mut *connection).await?;
    seal(connection, rows.iter().map(Ending::of).collect::<Result<_, _>>()?, key).await
}

/// Seals those of these chains of a library that are open and still end with this link.
pub(super) async fn seal_at(
    connection: &mut PgConnection,
    library: LibraryId,
    ends: &HashMap<Uuid, Head>,
    key: &AuditKey,
) -> Result<(), sqlx::Error> {
    let names: Vec<Uuid> = ends.keys().copied().collect();
    let open = statement(OPEN).bind(library.to_string()).bind(names);
    let rows = open.fetch_all(&mut *connection).await?;
    let mut chains = rows.iter().map(Ending::of).collect::<Result<Vec<_>, _>>()?;
    chains.retain(|ending| ends.get(&ending.chain) == Some(&ending.head));
    seal(connection, chains, key).await
}

/// Seals chains that this transaction has locked.
async fn seal(
    connection: &mut PgConnection,
    chains: Vec<Ending>,
    key: &AuditKey,
) -> Result<(), sqlx::Error> {
    if chains.is_empty() {
        return Ok(());
    }
    let seal_of = |ending: &Ending| {
        key.closing_seal(&ending.library, ending.chain, &ending.head, ending.closed)
    };
    let query = statement(SEAL)
        .bind(column(&chains, |ending| ending.library.clone()))
        .bind(column(&chains, |ending| ending.chain))
        .bind(column(&chains, |ending| ending.head.number))
        .bind(column(&chains, |ending| ending.head.mac.clone()))
        .bind(column(&chains, |ending| ending.closed))
        .bind(column(&chains, seal_of));
    query.execute(connection).await.map(drop)
}
