//! Reads the head records of a library, for the verification of the audit trail and for the seals
//! of ended chains.
//!
//! `verify` reads them before the chains that they name, which then have the recorded links or
//! newer ones. A changed record is found by the walk of its own chain.

use std::collections::HashMap;

use sqlx::Row;
use uuid::Uuid;

use super::pool::{Pool, TRANSACTION};
use super::sql::statement;
use super::whole_ledger::WholeLedger;
use crate::ledger::LedgerError;
use crate::ledger::audit::head_record::{self, NO_LOAN, RecordedHead};
use crate::ledger::audit::{ExpectedEnd, Head};
use crate::loan::LibraryId;

pub(super) const RECORDS: &str = "SELECT at, chain, number, detail FROM history \
     WHERE library = $1 AND loan = $2 AND (at, chain, number) > ($3, $4, $5) \
     ORDER BY at, chain, number LIMIT $6";
/// The same with the lines that name these chains only. A name is in no other part of a record.
pub(super) const NAMED: &str = "SELECT at, chain, number, ARRAY( \
     SELECT substr(detail, strpos(detail, t.name), 160) FROM unnest($6::text[]) AS t (name) \
     WHERE strpos(detail, t.name) > 0) AS lines FROM history \
     WHERE library = $1 AND loan = $2 AND (at, chain, number) > ($3, $4, $5) \
     ORDER BY at, chain, number LIMIT $7";
/// The records of one page of [`NAMED`]. A record has up to 50 KB, which the server reads.
const NAMED_PAGE: i64 = 100;

/// The newest link of each chain that another chain has recorded.
#[derive(Debug, Default)]
pub(super) struct RecordedHeads(HashMap<Uuid, Recorded>);

#[derive(Debug)]
struct Recorded {
    head: Head,
    /// The chain that has recorded the link.
    by: Uuid,
}

impl RecordedHeads {
    /// Reads all records of a library.
    pub(super) async fn read(
        ledger: &WholeLedger,
        library: LibraryId,
    ) -> Result<RecordedHeads, LedgerError> {
        let mut heads = RecordedHeads::default();
        let mut position = Some((i64::MIN, Uuid::nil(), i64::MIN));
        while let Some((at, chain, number)) = position.take() {
            let rows = ledger.snapshot(async |connection| {
                let query = statement(RECORDS).bind(library.to_string()).bind(NO_LOAN);
                let query = query.bind(at).bind(chain).bind(number).bind(ledger.page);
                let rows = query.fetch_all(connection).await?;
                let row = |row: &sqlx::postgres::PgRow| {
                    let last = (row.try_get("at")?, row.try_get("chain")?, row.try_get("number")?);
                    Ok((last, row.try_get::<Option<String>, _>("detail")?))
                };
                rows.iter().map(row).collect::<Result<Vec<_>, sqlx::Error>>()
            });
            let rows = rows.await?;
            for ((_, by, _), detail) in &rows {
                // A damaged record does not verify in its own chain.
                let recorded = head_record::from_text(detail.as_deref().unwrap_or_default());
                recorded.into_iter().flatten().for_each(|recorded| heads.add(recorded, *by));
            }
            position = rows.last().filter(|_| ledger.is_full(&rows)).map(|(last, _)| *last);
        }
        Ok(heads)
    }

    /// Reads what the records since this time, in milliseconds, name of these chains.
    pub(super) async fn read_named(
        pool: &Pool,
        library: LibraryId,
        chains: &[Uuid],
        since: i64,
    ) -> Result<RecordedHeads, sqlx::Error> {
        let names: Vec<String> = chains.iter().map(Uuid::to_string).collect();
        let mut heads = RecordedHeads::default();
        let mut position = Some((since, Uuid::nil(), i64::MIN));
        while let Some((at, chain, number)) = position.take() {
            let query = statement(NAMED).bind(library.to_string()).bind(NO_LOAN);
            let query = query.bind(at).bind(chain).bind(number).bind(names.clone());
            let query = query.bind(NAMED_PAGE);
            let rows = pool.read(TRANSACTION, async |connection| query.fetch_all(connection).await);
            let rows = Box::pin(rows).await?;
            for row in &rows {
                let by = row.try_get("chain")?;
                for line in row.try_get::<Vec<String>, _>("lines")? {
                    let line = line.split_inclusive('\n').next().unwrap_or_default();
                    let recorded = head_record::from_text(line);
                    recorded.into_iter().flatten().for_each(|recorded| heads.add(recorded, by));
                }
            }
            let is_full = i64::try_from(rows.len()).is_ok_and(|count| count >= NAMED_PAGE);
            if let Some(last) = rows.last().filter(|_| is_full) {
                position =
                    Some((last.try_get("at")?, last.try_get("chain")?, last.try_get("number")?));
            }
        }
        Ok(heads)
    }

    fn add(&mut self, RecordedHead { chain, head }: RecordedHead, by: Uuid) {
        let known = self.0.get(&chain);
        if known.is_none_or(|known| known.head.number < head.number) {
            self.0.insert(chain, Recorded { head, by });
        }
    }

    /// Removes and returns the link that a chain must contain.
    pub(super) fn take(&mut self, chain: Uuid) -> Option<ExpectedEnd> {
        let Recorded { head, by } = self.0.remove(&chain)?;
        Some(ExpectedEnd { head, place: format!("chain {by}").into() })
    }

    /// Returns a sentence for each chain that was not taken: the ledger has nothing of it.
    pub(super) fn missing(self) -> impl Iterator<Item = String> {
        self.0.into_iter().map(|(chain, Recorded { head, by })| {
            format!(
                "chain {chain}: all of it is missing, chain {by} names its step {}",
                head.number
            )
        })
    }
}
