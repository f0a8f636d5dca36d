//! Seals the chains of processes that have ended, from a running gate.
//!
//! A person who can write to the database, and does not have the key, may remove the end of such a
//! chain and wait for a seal, or may make a live process look ended. So a chain is sealed only if
//! it has every link of it that is known:
//!
//! - what the head records of its library name, in any chain;
//! - what the head files on this machine name;
//! - what this process has recorded before.
//!
//! Before the seal, a head record in the own chain names the sealed link. So an end that is removed
//! together with its seal is found.
//!
//! While begins are closed, nothing is sealed: the database may lack steps. The same holds for a
//! ledger that was moved, which no gate writes.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;
use tokio::time::Instant;
use uuid::Uuid;

use super::chain_seals;
use super::closed_begins::ARE_CLOSED;
use super::copy_marks::{self, IS_MOVED};
use super::head_files;
use super::head_records::HeadRecords;
use super::pool::{BEGIN, Pool, TRANSACTION};
use super::recorded_heads::RecordedHeads;
use super::sql::statement;
use crate::ledger::audit::Head;
use crate::ledger::audit::chain_heads::ChainHeads;
use crate::ledger::audit::head_record::RecordedHead;
use crate::loan::LibraryId;

/// The maximum number of chains that one statement returns.
const BATCH: i64 = 200;
/// How much earlier than the last step of a chain the first head record may be that names a later
/// one, in milliseconds. Gates whose clocks differ by more than minutes begin nothing.
const MARGIN_MS: i64 = 86_400_000;
/// How long a chain that lacks steps is not compared again with the same end, and the maximum
/// number of such chains that are remembered.
const REFUSAL: Duration = Duration::from_secs(3600);
const MAX_REFUSED: usize = 10_000;

/// The chains of processes that were members and have ended. Others are left as they are: nothing
/// tells that their end is the real one.
pub(super) static ENDED: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT library, chain, number, mac, (SELECT at FROM history \
         WHERE history.library = chains.library AND history.chain = chains.chain \
         AND history.number = chains.number AND history.mac = chains.mac) AS at FROM chains \
         WHERE seal IS NULL AND (library, chain) > ($1, $2) \
         AND chain = ANY(ARRAY(SELECT process FROM members \
         GROUP BY process HAVING bool_and(fenced IS NOT NULL))) \
         AND NOT {ARE_CLOSED} AND NOT {IS_MOVED} ORDER BY library, chain LIMIT $3"
    )
});

/// A chain without a seal whose process has ended.
#[derive(Debug)]
struct Ended {
    chain: Uuid,
    head: Head,
    /// The time of the last step; none if the step is missing.
    at: Option<i64>,
}

impl Ended {
    fn of(row: &PgRow) -> Result<Ended, sqlx::Error> {
        let head = Head { number: row.try_get("number")?, mac: row.try_get("mac")? };
        Ok(Ended { chain: row.try_get("chain")?, head, at: row.try_get("at")? })
    }

    /// Returns its end, for a head record.
    fn to_record(&self) -> RecordedHead {
        RecordedHead { chain: self.chain, head: self.head.clone() }
    }
}

/// The links in head files, by library and chain, and the files.
type InFiles = HashMap<(String, Uuid), (Head, PathBuf)>;
/// The chains that lack steps, by library and name: their end, and when it was found.
pub(super) type RefusedChains = HashMap<(LibraryId, Uuid), (Head, Instant)>;

impl HeadRecords {
    /// Seals the chains of processes that have ended and that lack nothing.
    pub(super) async fn seal_ended(&mut self, heads: &ChainHeads) -> Result<(), sqlx::Error> {
        self.refused.retain(|_, (_, at)| at.elapsed() < REFUSAL);
        let mut in_files = None;
        let mut position = Some((String::new(), Uuid::nil()));
        while let Some((library, chain)) = position.take() {
            let query = statement(&ENDED).bind(library).bind(chain).bind(BATCH);
            let rows =
                self.pool.read(TRANSACTION, async |connection| query.fetch_all(connection).await);
            let rows = Box::pin(rows).await?;
            let is_full = i64::try_from(rows.len()).is_ok_and(|count| count >= BATCH);
            if let Some(last) = rows.last().filter(|_| is_full) {
                position = Some((last.try_get("library")?, last.try_get("chain")?));
            }
            let by_library = self.of_page(&rows);
            if in_files.is_none() && !by_library.is_empty() {
                in_files = Some(self.read_files(heads.epoch()).await?);
            }
            let Some(in_files) = &in_files else { continue };
            for (library, ended) in by_library {
                let sealed = self.seal_in(heads, library, ended, in_files).await;
                self.failures.note(library, "seal", sealed)?;
            }
        }
        Ok(())
    }

    /// Returns the chains of these rows that may be sealed. `verify` names damaged rows.
    fn of_page(&self, rows: &[PgRow]) -> BTreeMap<LibraryId, Vec<Ended>> {
        let mut by_library: BTreeMap<LibraryId, Vec<Ended>> = BTreeMap::new();
        for row in rows {
            let library = row.try_get::<&str, _>("library").ok();
            let library = library.and_then(|library| library.parse::<LibraryId>().ok());
            let (Some(library), Ok(ended)) = (library, Ended::of(row)) else { continue };
            let refused = self.refused.get(&(library, ended.chain));
            let is_refused = refused.is_some_and(|(head, _)| *head == ended.head);
            // A record of its own end would never be the newest one.
            if !is_refused && ended.chain != self.own.chain {
                by_library.entry(library).or_default().push(ended);
            }
        }
        by_library
    }

    /// Reads the head files on this machine of this epoch or a newer one.
    async fn read_files(&self, epoch: i64) -> Result<InFiles, sqlx::Error> {
        let (directory, ledger) = (self.own.directory.clone(), self.own.ledger);
        // On a blocking thread, so that a hanging disk does not stop other tasks.
        let read = tokio::task::spawn_blocking(move || head_files::read(&directory, ledger)).await;
        let read = read.map_err(std::io::Error::other)?.map_err(std::io::Error::other)?;
        let current = read.into_iter().filter(|file| file.epoch >= epoch);
        let named = current.flat_map(|file| {
            let path = file.path;
            file.heads
                .into_iter()
                .map(move |stored| ((stored.library, stored.chain), (stored.head, path.clone())))
        });
        Ok(named.collect())
    }

    async fn seal_in(
        &mut self,
        heads: &ChainHeads,
        library: LibraryId,
        ended: Vec<Ended>,
        in_files: &InFiles,
    ) -> Result<(), sqlx::Error> {
        let mut recorded = read_recorded(&self.pool, library, &ended).await?;
        let mut complete = Vec::new();
        for ended in ended {
            match self.missing_step(library, &ended, &mut recorded, in_files) {
                Some((step, place)) => self.refuse(library, ended, step, &place),
                None => complete.push(ended),
            }
        }
        let is_new =
            |ended: &&Ended| ended.head.number > self.recorded_number(library, &ended.chain);
        let unrecorded = complete.iter().filter(is_new).map(Ended::to_record).collect::<Vec<_>>();
        if !self.record_before_seal(heads, library, unrecorded).await? {
            return Ok(());
        }
        let ends = complete.into_iter().map(|ended| (ended.chain, ended.head)).collect();
        let key = &self.key;
        let sealed = self.pool.transaction(BEGIN, TRANSACTION, async |connection| {
            // Again: a copy may have marked the ledger since.
            if copy_marks::read_to_write(connection).await?.allow_gate().is_err() {
                return Ok(());
            }
            chain_seals::seal_at(connection, library, &ends, key).await
        });
        Box::pin(sealed).await
    }

    /// Returns the number of a step that the chain had, and where that is known from; none if it
    /// lacks no step that is known.
    fn missing_step(
        &self,
        library: LibraryId,
        ended: &Ended,
        recorded: &mut RecordedHeads,
        in_files: &InFiles,
    ) -> Option<(i64, String)> {
        let Ended { chain, head, at } = ended;
        if let Some(known) = recorded.take(*chain)
            && !head.follows(&known.head)
        {
            return Some((known.head.number, known.place.into_owned()));
        }
        if let Some((known, file)) = in_files.get(&(library.to_string(), *chain))
            && !head.follows(known)
        {
            return Some((known.number, file.display().to_string()));
        }
        let known = self.recorded_number(library, chain);
        if head.number < known {
            return Some((known, "this process".to_owned()));
        }
        let is_damaged = match head.number {
            0 => head.mac != self.key.chain_start(library, *chain),
            _ => at.is_none(),
        };
        is_damaged.then(|| (head.number, "its row".to_owned()))
    }

    /// Logs a chain that lacks its last steps, once in [`REFUSAL`].
    fn refuse(&mut self, library: LibraryId, ended: Ended, step: i64, place: &str) {
        let Ended { chain, head, .. } = ended;
        tracing::error!(
            %library,
            %chain,
            end = head.number,
            step,
            place,
            "a chain of the audit trail lacks its last steps and is not sealed; run \
             `loangate audit verify`"
        );
        if self.refused.len() < MAX_REFUSED {
            self.refused.insert((library, chain), (head, Instant::now()));
        }
    }
}

/// Reads what the head records of the library name of these chains.
async fn read_recorded(
    pool: &Pool,
    library: LibraryId,
    ended: &[Ended],
) -> Result<RecordedHeads, sqlx::Error> {
    // Of a chain without a step, any record may name one that was removed.
    let from = |ended: &Ended| match ended.head.number {
        0 => i64::MIN,
        _ => ended.at.unwrap_or(i64::MIN).saturating_sub(MARGIN_MS),
    };
    let since = ended.iter().map(from).min().unwrap_or(i64::MIN);
    let chains: Vec<Uuid> = ended.iter().map(|ended| ended.chain).collect();
    RecordedHeads::read_named(pool, library, &chains, since).await
}
