//! Closes chains whose process has ended, with a seal of their newest link.
//!
//! A process seals its own chains when it stops. The chains of a process that was fenced are sealed
//! by the others, some minutes later. A fenced process may still write ends and tallies: that opens
//! its chain again, and the chain is sealed once more.
//!
//! `verify` reports a chain without a seal whose process has ended, and a seal of another link.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::copy_marks::{self, MarkedLedger};
use super::pool::{BEGIN, Pool, TRANSACTION};
use super::sql::{column, statement};
use crate::ledger::audit::{AuditKey, Head};
use crate::loan::LibraryId;

/// The maximum number of chains that one transaction seals.
const BATCH: i64 = 200;

/// In the order of the libraries: several lanes may have written the same ones.
const OWN: &str = "SELECT library, chain, number, mac, \
     (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now FROM chains \
     WHERE library = ANY($1) AND chain = $2 ORDER BY library FOR UPDATE";
/// The chains of all libraries that were written by a copy.
const COPIED: &str = "SELECT library, chain, number, mac, \
     (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now FROM chains \
     WHERE chain = $1";
/// The chains of processes that were members and have ended. Others are left as they are: nothing
/// tells that their end is the real one.
pub(super) const ENDED: &str = "SELECT library, chain, number, mac, \
     (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now FROM chains \
     WHERE seal IS NULL AND (library, chain) > ($1, $2) \
     AND chain = ANY(ARRAY(SELECT process FROM members \
     GROUP BY process HAVING bool_and(fenced IS NOT NULL))) \
     ORDER BY library, chain LIMIT $3";
/// Leaves a chain that has got another step meanwhile.
const SEAL: &str = "UPDATE chains SET closed = t.closed, seal = t.seal \
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

/// Seals the chains of this process in these libraries. The caller commits.
pub(super) async fn seal_own(
    connection: &mut PgConnection,
    libraries: &[LibraryId],
    chain: Uuid,
    key: &AuditKey,
) -> Result<(), sqlx::Error> {
    let libraries: Vec<String> = libraries.iter().map(LibraryId::to_string).collect();
    let rows = statement(OWN).bind(libraries).bind(chain).fetch_all(&mut *connection).await?;
    seal(connection, rows.iter().map(Ending::of).collect::<Result<_, _>>()?, key).await
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

/// Seals the chains of processes that have ended, except those that lack a link which is known:
/// `known` returns the number of the newest one.
pub(super) async fn seal_ended(
    pool: &Pool,
    key: &AuditKey,
    known: impl Fn(&str, Uuid) -> i64 + Sync,
) -> Result<(), sqlx::Error> {
    let mut position = Some((String::new(), Uuid::nil()));
    while let Some((library, chain)) = position.take() {
        let page = pool.transaction(BEGIN, TRANSACTION, async |connection| {
            let marks = copy_marks::read_to_write(&mut *connection).await?;
            if marks.allow_gate().is_err() {
                return Err(MarkedLedger::error(marks));
            }
            let query = statement(ENDED).bind(library).bind(chain).bind(BATCH);
            let rows = query.fetch_all(&mut *connection).await?;
            let mut ended = rows.iter().map(Ending::of).collect::<Result<Vec<_>, _>>()?;
            let is_full = i64::try_from(ended.len()).is_ok_and(|count| count >= BATCH);
            let last = ended.last().filter(|_| is_full);
            let last = last.map(|ending| (ending.library.clone(), ending.chain));
            ended.retain(|ending| ending.head.number >= known(&ending.library, ending.chain));
            seal(connection, ended, key).await?;
            Ok(last)
        });
        position = Box::pin(page).await?;
    }
    Ok(())
}

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
