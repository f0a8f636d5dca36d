//! Reads the newest links of the chains of other processes, for head records.
//!
//! It reads the open chains, and those that were closed in the last days. So the work does not grow
//! with the age of the ledger. A chain that was closed is recorded once more.

use std::collections::HashMap;

use sqlx::Row;
use uuid::Uuid;

use super::pool::{Pool, TRANSACTION};
use super::sql::statement;
use crate::ledger::audit::Head;
use crate::ledger::audit::head_record::RecordedHead;
use crate::loan::LibraryId;

/// Also returns the number of the last step that is no head record. Otherwise two chains would
/// record each other's records for ever. It is searched among the last steps only: an earlier one
/// was recorded when it was written. A closed chain gets no more records.
pub(super) const OTHERS: &str = "SELECT other.* \
     FROM unnest($1::text[]) AS t (name) CROSS JOIN LATERAL ( \
     (SELECT library, chain, number, mac, coalesce(( \
     SELECT max(newest.number) FROM (SELECT history.number, loan FROM history \
     WHERE history.library = t.name AND history.chain = chains.chain \
     ORDER BY history.number DESC LIMIT 50) AS newest \
     WHERE loan <> '00000000-0000-0000-0000-000000000000'), number - 50) AS step FROM chains \
     WHERE library = t.name AND seal IS NULL AND chain <> $2 AND number > 0 \
     ORDER BY chain LIMIT 2000) UNION ALL \
     (SELECT library, chain, number, mac, number AS step FROM chains \
     WHERE library = t.name AND closed > (extract(epoch FROM now()) * 1000)::bigint - 259200000 \
     AND seal IS NOT NULL AND chain <> $2 AND number > 0 \
     ORDER BY closed DESC LIMIT 2000)) AS other";

/// Another chain.
pub(super) struct Other {
    pub(super) newest: RecordedHead,
    /// The number of the last step that is no head record.
    pub(super) step: i64,
}

/// Reads the chains of these libraries that have another name than `own`.
pub(super) async fn read(
    pool: &Pool,
    libraries: &[LibraryId],
    own: Uuid,
) -> Result<HashMap<LibraryId, Vec<Other>>, sqlx::Error> {
    let names: Vec<String> = libraries.iter().map(LibraryId::to_string).collect();
    let query = statement(OTHERS).bind(names).bind(own);
    let rows = pool.read(TRANSACTION, async |connection| query.fetch_all(connection).await);
    let mut others: HashMap<LibraryId, Vec<Other>> = HashMap::new();
    for row in Box::pin(rows).await? {
        let library = row.try_get::<&str, _>("library")?.parse::<LibraryId>();
        let Ok(library) = library else { continue };
        let head = Head { number: row.try_get("number")?, mac: row.try_get("mac")? };
        let newest = RecordedHead { chain: row.try_get("chain")?, head };
        let other = Other { newest, step: row.try_get("step")? };
        others.entry(library).or_default().push(other);
    }
    Ok(others)
}
