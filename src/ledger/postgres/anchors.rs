//! Anchors in the chains of a library: each replaces a run of steps that were pruned.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::sql::statement;
use crate::ledger::LedgerError;
use crate::ledger::audit::{Anchor, AuditKey, Removal, StoredStep, Surroundings};
use crate::ledger::stored_row::{anchor_of, step_of};
use crate::loan::LibraryId;

pub(super) const STEPS_OF: &str = "SELECT * FROM history \
     WHERE library = $1 AND loan = ANY($2) ORDER BY chain, number";
/// The anchors that end before these steps.
pub(super) const LEFT: &str = "SELECT first, last, mac, seal FROM anchors \
     WHERE library = $1 AND chain = $2 AND last = ANY($3)";
/// The anchors that begin with these steps. An anchor is found by its end.
pub(super) const RIGHT: &str = "SELECT first, last, mac, seal \
     FROM unnest($3::bigint[]) AS t (number) CROSS JOIN LATERAL ( \
     SELECT * FROM anchors WHERE library = $1 AND chain = $2 AND last >= t.number \
     ORDER BY last LIMIT 1) AS anchor WHERE first = t.number";
pub(super) const MACS: &str = "SELECT number, mac FROM history \
     WHERE library = $1 AND chain = $2 AND number = ANY($3) \
     UNION ALL SELECT last, mac FROM anchors WHERE library = $1 AND chain = $2 AND last = ANY($3)";
pub(super) const REMOVE_STEPS: &str = "DELETE FROM history WHERE library = $1 AND loan = ANY($2)";
pub(super) const REMOVE_ANCHORS: &str =
    "DELETE FROM anchors WHERE library = $1 AND chain = $2 AND last = ANY($3)";
pub(super) const INSERT_ANCHORS: &str = "INSERT INTO anchors \
     (library, chain, first, last, mac, seal) SELECT $1, $2, t.first, t.last, t.mac, t.seal \
     FROM unnest($3::bigint[], $4::bigint[], $5::bytea[], $6::bytea[]) \
     AS t (first, last, mac, seal)";

/// The steps of some loans, in the order of their numbers, by their chains.
pub(super) type StepsByChain = BTreeMap<Uuid, Vec<StoredStep>>;

/// The changes to one chain.
#[derive(Debug)]
pub(super) struct SealedChain {
    chain: Uuid,
    /// The ends of the anchors that the new ones cover.
    covered: Vec<i64>,
    anchors: Vec<Anchor>,
}

/// Reads the steps of these loans.
pub(super) async fn steps_of(
    connection: &mut PgConnection,
    library: LibraryId,
    loans: &[Uuid],
) -> Result<StepsByChain, sqlx::Error> {
    let query = statement(STEPS_OF).bind(library.as_str().to_owned()).bind(loans.to_vec());
    let mut steps = StepsByChain::new();
    for row in query.fetch_all(connection).await? {
        steps.entry(row.try_get("chain")?).or_default().push(step_of(&row)?);
    }
    Ok(steps)
}

/// Verifies steps of a chain that this transaction has locked, and seals the anchors that replace
/// them. Writes nothing.
///
/// # Errors
/// The inner error if a step does not verify, so that pruning never hides a change.
pub(super) async fn seal(
    connection: &mut PgConnection,
    key: &AuditKey,
    library: LibraryId,
    chain: Uuid,
    steps: Vec<StoredStep>,
) -> Result<Result<SealedChain, LedgerError>, sqlx::Error> {
    let removal = Removal::new(steps);
    let start = key.chain_start(library, chain);
    let surroundings = surroundings(connection, library, chain, start, &removal).await?;
    let covered = surroundings.anchors.iter().map(|anchor| anchor.last).collect();
    let sealed = removal.seal(&surroundings, key);
    Ok(sealed.map(|anchors| SealedChain { chain, covered, anchors }).map_err(|unverified| {
        unverified.in_chain(&format!(" of library {library}, chain {chain}"))
    }))
}

async fn surroundings(
    connection: &mut PgConnection,
    library: LibraryId,
    chain: Uuid,
    start: Vec<u8>,
    removal: &Removal,
) -> Result<Surroundings, sqlx::Error> {
    let of_chain = |sql| statement(sql).bind(library.as_str().to_owned()).bind(chain);
    let (mut preceding, following): (Vec<i64>, Vec<i64>) =
        removal.ranges().into_iter().map(|(first, last)| (first - 1, last + 1)).unzip();
    let left = of_chain(LEFT).bind(preceding.clone()).fetch_all(&mut *connection).await?;
    let left = left.iter().map(anchor_of).collect::<Result<Vec<_>, _>>()?;
    preceding.extend(left.iter().map(|anchor| anchor.first.saturating_sub(1)));
    let right = of_chain(RIGHT).bind(following).fetch_all(&mut *connection).await?;
    let right = right.iter().map(anchor_of).collect::<Result<Vec<_>, _>>()?;
    let macs = of_chain(MACS).bind(preceding).fetch_all(connection).await?;
    let mac = |row: &sqlx::postgres::PgRow| Ok((row.try_get(0)?, row.try_get(1)?));
    let macs = macs.iter().map(mac).collect::<Result<_, sqlx::Error>>()?;
    Ok(Surroundings { start, macs, anchors: left.into_iter().chain(right).collect() })
}

/// Removes the steps of these loans and writes the anchors that replace them.
pub(super) async fn replace_steps(
    connection: &mut PgConnection,
    library: LibraryId,
    loans: &[Uuid],
    sealed: Vec<SealedChain>,
) -> Result<(), sqlx::Error> {
    let remove = statement(REMOVE_STEPS).bind(library.as_str().to_owned()).bind(loans.to_vec());
    remove.execute(&mut *connection).await?;
    write(connection, library, sealed).await
}

/// Writes the anchors that replace removed steps.
pub(super) async fn write(
    connection: &mut PgConnection,
    library: LibraryId,
    sealed: Vec<SealedChain>,
) -> Result<(), sqlx::Error> {
    for SealedChain { chain, covered, anchors } in sealed {
        let of_chain = |sql| statement(sql).bind(library.as_str().to_owned()).bind(chain);
        of_chain(REMOVE_ANCHORS).bind(covered).execute(&mut *connection).await?;
        let insert = of_chain(INSERT_ANCHORS)
            .bind(anchors.iter().map(|anchor| anchor.first).collect::<Vec<_>>())
            .bind(anchors.iter().map(|anchor| anchor.last).collect::<Vec<_>>())
            .bind(anchors.iter().map(|anchor| anchor.mac.clone()).collect::<Vec<_>>())
            .bind(anchors.iter().map(|anchor| anchor.seal.clone()).collect::<Vec<_>>());
        insert.execute(&mut *connection).await?;
    }
    Ok(())
}
