//! Compares the chains of this process with what it has committed.
//!
//! A transaction of a library compares its chain, too, but may be hours away.

use std::collections::HashMap;
use std::path::PathBuf;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
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
        let read = pool.read(TRANSACTION, async |connection| {
            self.incomplete(connection, &newest).await.map(|library| library.is_some())
        });
        if !Box::pin(read).await? {
            return Ok(());
        }
        // Again, where begins are closed: the first read may have been of a former primary.
        let closed = pool.transaction(BEGIN, TRANSACTION, async |connection| {
            let Some(library) = self.incomplete(connection, &newest).await? else { return Ok(()) };
            tracing::error!(
                %library,
                "the database lacks a step that this process has committed; closing the begins of \
                 all gates; {REMEDY}"
            );
            closed_begins::close(connection, self.chain, epoch).await
        });
        Box::pin(closed).await
    }

    /// Returns a library whose chain lacks one of these links.
    async fn incomplete(
        &self,
        connection: &mut PgConnection,
        newest: &HashMap<LibraryId, Head>,
    ) -> Result<Option<LibraryId>, sqlx::Error> {
        let names: Vec<String> = newest.keys().map(LibraryId::to_string).collect();
        let rows = statement(OWN_ENDS).bind(names).bind(self.chain).fetch_all(connection).await?;
        // A damaged row has no link.
        let found: HashMap<String, Head> = rows.iter().filter_map(|row| end_of(row).ok()).collect();
        let lacks = |(library, newest): &(&LibraryId, &Head)| {
            found.get(library.as_str()).is_none_or(|found| !found.follows(newest))
        };
        Ok(newest.iter().find(lacks).map(|(library, _)| *library))
    }
}

fn end_of(row: &PgRow) -> Result<(String, Head), sqlx::Error> {
    let head = Head { number: row.try_get("number")?, mac: row.try_get("mac")? };
    Ok((row.try_get("library")?, head))
}
