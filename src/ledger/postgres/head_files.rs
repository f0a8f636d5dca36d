//! The comparison of the database with the head files on this machine: whether it lost steps.
//!
//! `open` confirms the files of earlier processes, and `verify` reports every difference.

use std::collections::HashSet;
use std::path::Path;

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::closed_begins;
use super::sql::statement;
use crate::ledger::LedgerError;
use crate::ledger::audit::chain_heads::{self, HeadsFile};

/// Checks that the database has every step that the files of earlier processes name, and removes
/// the files of processes that have ended. If a step is missing, closes the begins of all gates.
pub(super) async fn confirm(
    connection: &mut PgConnection,
    directory: &Path,
    ledger: Uuid,
) -> Result<(), LedgerError> {
    let files = read(directory, ledger)?;
    if files.is_empty() {
        return Ok(());
    }
    let missing = missing(connection, &files).await.map_err(LedgerError::Server)?;
    let missing: HashSet<Uuid> = missing.into_iter().map(|(_, chain)| chain).collect();
    if let Some(file) = files.iter().find(|file| missing.contains(&file.chain)) {
        if let Err(error) = closed_begins::close(connection, file.chain).await {
            tracing::error!(%error, "cannot close the begins of the other gates");
        }
        return Err(LedgerError::DatabaseOlder { head_file: file.path.clone() });
    }
    let alive = sqlx::query_scalar("SELECT process FROM members WHERE fenced IS NULL");
    let alive = alive.persistent(false).fetch_all(connection).await.map_err(LedgerError::Server)?;
    let alive: HashSet<Uuid> = alive.into_iter().collect();
    for file in files.iter().filter(|file| !alive.contains(&file.chain)) {
        if let Err(error) = std::fs::remove_file(&file.path) {
            let file = file.path.display();
            tracing::warn!(%error, %file, "cannot remove the head file of an ended process");
        }
    }
    Ok(())
}

/// Reads the head files of a ledger in this directory.
pub(super) fn read(directory: &Path, ledger: Uuid) -> Result<Vec<HeadsFile>, LedgerError> {
    chain_heads::read_all(directory, ledger)
        .map_err(|source| LedgerError::File { file: directory.to_owned(), source })
}

/// Returns the library and the name of each chain that lacks a link of these files.
pub(super) async fn missing(
    connection: &mut PgConnection,
    files: &[HeadsFile],
) -> Result<HashSet<(String, Uuid)>, sqlx::Error> {
    const MISSING: &str = "SELECT t.library, t.chain \
         FROM unnest($1::text[], $2::uuid[], $3::bigint[], $4::bytea[]) \
         AS t (library, chain, number, mac) \
         LEFT JOIN chains ON chains.library = t.library AND chains.chain = t.chain \
         LEFT JOIN history ON history.library = t.library AND history.chain = t.chain \
         AND history.number = t.number \
         WHERE chains.number IS NULL OR chains.number < t.number OR history.mac <> t.mac \
         OR (chains.number = t.number AND chains.mac <> t.mac)";
    let heads = || files.iter().flat_map(|file| &file.heads);
    let query = statement(MISSING)
        .bind(heads().map(|stored| stored.library.clone()).collect::<Vec<_>>())
        .bind(heads().map(|stored| stored.chain).collect::<Vec<_>>())
        .bind(heads().map(|stored| stored.head.number).collect::<Vec<_>>())
        .bind(heads().map(|stored| stored.head.mac.clone()).collect::<Vec<_>>());
    let rows = query.fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}
