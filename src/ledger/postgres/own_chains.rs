//! Compares the chains of this process with what it has committed.
//!
//! A transaction of a library compares its chain, too, but may be hours away.

use std::collections::HashMap;
use std::path::PathBuf;

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::closed_begins::{self, REMEDY};
use super::pool::{BEGIN, Pool, TRANSACTION};
use super::sql::statement;
use crate::ledger::audit::Head;
use crate::ledger::audit::chain_heads::ChainHeads;
use crate::loan::LibraryId;

/// The own chains, in the libraries that this process has written.
pub(super) const OWN_ENDS: &str =
    "SELECT library, number, mac FROM chains WHERE library = ANY($1) AND chain = $2";

/// The chains of a process.
#[derive(Debug)]
pub(super) struct OwnChains {
    /// Their name.
    pub(super) chain: Uuid,
    /// The id of the ledger.
    pub(super) ledger: Uuid,
    /// The directory of the head files.
    pub(super) directory: PathBuf,
}

impl OwnChains {
    /// Closes the begins of all gates if a chain lacks a link that this process has committed.
    pub(super) async fn compare(&self, pool: &Pool, heads: &ChainHeads) -> Result<(), sqlx::Error> {
        // Read before the database is, whose links are then as new or newer.
        let (epoch, newest) = heads.all();
        let names: Vec<String> = newest.keys().map(LibraryId::to_string).collect();
        let own = statement(OWN_ENDS).bind(names).bind(self.chain);
        let rows = pool.read(TRANSACTION, async |connection| own.fetch_all(connection).await);
        // A damaged row has no link.
        let found: HashMap<String, Head> =
            Box::pin(rows).await?.iter().filter_map(|row| end_of(row).ok()).collect();
        let lacks = |(library, newest): &(&LibraryId, &Head)| {
            found.get(library.as_str()).is_none_or(|found| !found.follows(newest))
        };
        let Some((library, _)) = newest.iter().find(lacks) else { return Ok(()) };
        tracing::error!(
            %library,
            "the database lacks a step that this process has committed; closing the begins of all \
             gates; {REMEDY}"
        );
        let closed = pool.transaction(BEGIN, TRANSACTION, async |connection| {
            closed_begins::close(connection, self.chain, epoch).await
        });
        Box::pin(closed).await
    }
}

fn end_of(row: &PgRow) -> Result<(String, Head), sqlx::Error> {
    let head = Head { number: row.try_get("number")?, mac: row.try_get("mac")? };
    Ok((row.try_get("library")?, head))
}
