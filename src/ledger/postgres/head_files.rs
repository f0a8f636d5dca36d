//! The comparison of the database with the head files on this machine: whether it lost steps.
//!
//! `earlier_processes` compares them at a start, and `verify` reports every difference.

use std::collections::HashSet;
use std::path::Path;

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::sql::statement;
use crate::ledger::LedgerError;
use crate::ledger::audit::chain_heads::{self, HeadsFile};

/// Reads the head files of a ledger in this directory.
pub(super) fn read(directory: &Path, ledger: Uuid) -> Result<Vec<HeadsFile>, LedgerError> {
    chain_heads::read_all(directory, ledger)
        .map_err(|source| LedgerError::File { file: directory.to_owned(), source })
}

/// Returns the library and the name of each chain that lacks a link of these files.
pub(super) async fn missing<'a>(
    connection: &mut PgConnection,
    files: impl Iterator<Item = &'a HeadsFile> + Clone,
) -> Result<HashSet<(String, Uuid)>, sqlx::Error> {
    const MISSING: &str = "SELECT t.library, t.chain \
         FROM unnest($1::text[], $2::uuid[], $3::bigint[], $4::bytea[]) \
         AS t (library, chain, number, mac) \
         LEFT JOIN chains ON chains.library = t.library AND chains.chain = t.chain \
         LEFT JOIN history ON history.library = t.library AND history.chain = t.chain \
         AND history.number = t.number \
         WHERE chains.number IS NULL OR chains.number < t.number OR history.mac <> t.mac \
         OR (chains.number = t.number AND chains.mac <> t.mac)";
    let heads = || files.clone().flat_map(|file| &file.heads);
    let query = statement(MISSING)
        .bind(heads().map(|stored| stored.library.clone()).collect::<Vec<_>>())
        .bind(heads().map(|stored| stored.chain).collect::<Vec<_>>())
        .bind(heads().map(|stored| stored.head.number).collect::<Vec<_>>())
        .bind(heads().map(|stored| stored.head.mac.clone()).collect::<Vec<_>>());
    let rows = query.fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}
