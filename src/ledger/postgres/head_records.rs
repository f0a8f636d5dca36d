//! Writes head records: see `audit::head_record`.
//!
//! A task of each process reads the chains of the libraries that the process has written, some
//! minutes apart. If the others have new steps, it appends one step to the own chain: at most one
//! an hour for each library, unless there are many new steps. Requests do not wait for it, since it
//! locks the row of the own chain for one statement only.
//!
//! The task also compares the own chains with what this process has committed, and seals the chains
//! of processes that have ended: see `ended_chains`.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use sqlx::{PgConnection, Row};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::chain;
use super::copy_marks::{self, IS_MOVED};
use super::ended_chains::RefusedChains;
use super::library_failures::LibraryFailures;
use super::other_chains::{self, Other};
use super::own_chains::OwnChains;
use super::pool::{BEGIN, Pool, TRANSACTION};
use super::sql::statement;
use crate::ledger::audit::chain_heads::ChainHeads;
use crate::ledger::audit::head_record::{self, RecordedHead};
use crate::ledger::audit::{AuditKey, Head};
use crate::loan::LibraryId;
use crate::telemetry::LogLimit;

/// The time between two rounds.
const ROUND: Duration = Duration::from_secs(300);
/// The time from one record to the next in a library, unless [`MANY_STEPS`] were written.
const INTERVAL: Duration = Duration::from_secs(3600);
/// The number of new steps of other chains that a record does not wait longer for.
const MANY_STEPS: i64 = 1000;
/// The number of libraries whose chains one statement reads.
const LIBRARIES: usize = 100;
/// The maximum number of links in a record. Others are in the next one.
const MAX_HEADS: usize = 500;
/// The attempts at a record whose chain has got another step meanwhile.
const ATTEMPTS: u32 = 5;

pub(super) const OWN: &str = "SELECT number, mac, \
     (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS at FROM chains \
     WHERE library = $1 AND chain = $2 AND closed IS NULL";
/// Appends nothing if the chain has got another step in between or was closed, or if the ledger was
/// moved.
pub(super) static APPEND: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH head AS ( \
     UPDATE chains SET number = $4, mac = $5 \
     WHERE library = $1 AND chain = $2 AND number = $3 AND closed IS NULL \
     AND NOT {IS_MOVED} \
     RETURNING number) \
     INSERT INTO history (library, chain, number, loan, at, from_state, to_state, cause, detail, \
     version, mac) SELECT $1, $2, number, $6, $7, $8, $8, $8, $9, 2, $5 FROM head"
    )
});

/// Writes the head records of this process.
pub(super) struct HeadRecords {
    pub(super) pool: Arc<Pool>,
    pub(super) own: OwnChains,
    pub(super) key: AuditKey,
    /// The epoch of `libraries`.
    epoch: i64,
    libraries: HashMap<LibraryId, Recorded>,
    pub(super) failures: LibraryFailures,
    /// The chains that lack steps, by library and name.
    pub(super) refused: RefusedChains,
}

/// What was recorded in the chain of a library.
struct Recorded {
    at: Instant,
    /// The number of the newest recorded link of each other chain.
    numbers: HashMap<Uuid, i64>,
}

/// The result of an attempt to append a record.
enum Appended {
    /// The new end of the chain.
    Head(Head),
    /// The chain has got another step.
    Moved,
    /// The chain is closed, or lacks a step that this process has committed.
    Refused,
}

impl HeadRecords {
    pub(super) fn new(pool: Arc<Pool>, own: OwnChains, key: AuditKey) -> HeadRecords {
        HeadRecords {
            pool,
            own,
            key,
            epoch: 0,
            libraries: HashMap::new(),
            failures: LibraryFailures::default(),
            refused: RefusedChains::new(),
        }
    }

    /// Writes records in the background, for as long as the ledger is open. `heads` has the newest
    /// links of this process.
    pub(super) fn start(mut self, heads: Weak<ChainHeads>) {
        static LIMIT: LogLimit = LogLimit::per_minute();
        tokio::spawn(async move {
            loop {
                sleep(ROUND).await;
                let Some(heads) = heads.upgrade() else { return };
                if let Err(error) = Box::pin(self.round(&heads)).await
                    && let Some(suppressed) = LIMIT.permit("record")
                {
                    tracing::warn!(
                        %error,
                        suppressed,
                        "cannot record the heads of the audit trail, or seal its chains; retrying"
                    );
                }
            }
        });
    }

    /// Compares the own chains with what this process has committed, writes a record in each
    /// library where one is due, and seals the chains of ended processes.
    pub(super) async fn round(&mut self, heads: &ChainHeads) -> Result<(), sqlx::Error> {
        self.own.compare(&self.pool, heads).await?;
        self.record_all(heads).await?;
        self.seal_ended(heads).await
    }

    async fn record_all(&mut self, heads: &ChainHeads) -> Result<(), sqlx::Error> {
        // After a restore, chains may be shorter than what was recorded.
        let epoch = heads.epoch();
        if epoch != self.epoch {
            (self.epoch, self.libraries) = (epoch, HashMap::new());
        }
        for libraries in heads.libraries().chunks(LIBRARIES) {
            if let Ok(others) = other_chains::read(&self.pool, libraries, self.own.chain).await {
                self.record_due(heads, others).await?;
                continue;
            }
            // One of them may be the cause.
            for library in libraries {
                let (others, read) =
                    match other_chains::read(&self.pool, &[*library], self.own.chain).await {
                        Ok(others) => (others, Ok(())),
                        Err(error) => (HashMap::new(), Err(error)),
                    };
                self.failures.note(*library, "read", read)?;
                self.record_due(heads, others).await?;
            }
        }
        Ok(())
    }

    /// Writes the records of these libraries that are due.
    async fn record_due(
        &mut self,
        heads: &ChainHeads,
        others: HashMap<LibraryId, Vec<Other>>,
    ) -> Result<(), sqlx::Error> {
        for (library, others) in others {
            let due = self.due(library, others);
            if !due.is_empty() {
                let recorded = self.record(heads, library, due).await;
                self.failures.note(library, "record", recorded.map(drop))?;
            }
        }
        Ok(())
    }

    /// Returns the number of the newest link of a chain that this process has recorded.
    pub(super) fn recorded_number(&self, library: LibraryId, chain: &Uuid) -> i64 {
        let recorded = self.libraries.get(&library);
        let number = recorded.and_then(|recorded| recorded.numbers.get(chain));
        number.copied().unwrap_or_default()
    }

    /// Returns the links for a record; none if it is not due yet.
    fn due(&self, library: LibraryId, others: Vec<Other>) -> Vec<RecordedHead> {
        let recorded = self.libraries.get(&library);
        let (mut new_steps, mut due) = (0_i64, Vec::new());
        for Other { newest, step } in others {
            let known = self.recorded_number(library, &newest.chain);
            // A chain that has head records only is recorded once.
            if step > known || known == 0 {
                new_steps = new_steps.saturating_add(step.saturating_sub(known).max(0));
                due.push(newest);
            }
        }
        let waits = recorded
            .is_some_and(|recorded| recorded.at.elapsed() < INTERVAL && new_steps < MANY_STEPS);
        due.truncate(if waits { 0 } else { MAX_HEADS });
        due
    }

    /// Records the ends of chains that are about to be sealed. Opens the own chain if this process
    /// has written nothing in the library. Returns whether they are recorded.
    pub(super) async fn record_before_seal(
        &mut self,
        heads: &ChainHeads,
        library: LibraryId,
        mut ends: Vec<RecordedHead>,
    ) -> Result<bool, sqlx::Error> {
        let (chain, key) = (self.own.chain, &self.key);
        if ends.is_empty() {
            return Ok(true);
        }
        // An own chain that this process has written is not opened again.
        if heads.newest(library).is_none() {
            let opened = self.pool.transaction(BEGIN, TRANSACTION, async |connection| {
                // A copy may have marked the ledger since.
                if copy_marks::read_to_write(connection).await?.allow_gate().is_err() {
                    return Ok(false);
                }
                chain::open(connection, library, chain, key).await.map(|()| true)
            });
            if !Box::pin(opened).await? {
                return Ok(false);
            }
        }
        while !ends.is_empty() {
            let rest = ends.split_off(ends.len().min(MAX_HEADS));
            if !self.record(heads, library, ends).await? {
                return Ok(false);
            }
            ends = rest;
        }
        Ok(true)
    }

    /// Writes a record. Returns whether the own chain has it.
    async fn record(
        &mut self,
        heads: &ChainHeads,
        library: LibraryId,
        others: Vec<RecordedHead>,
    ) -> Result<bool, sqlx::Error> {
        let text = head_record::to_text(&others);
        for _ in 0..ATTEMPTS {
            let (chain, key) = (self.own.chain, &self.key);
            let appended = self.pool.transaction(BEGIN, TRANSACTION, async |connection| {
                append(connection, library, chain, heads, &text, key).await
            });
            match Box::pin(appended).await? {
                Appended::Moved => continue,
                Appended::Refused => return Ok(false),
                Appended::Head(head) => heads.record(library, head),
            }
            let at = Instant::now();
            let entry = self.libraries.entry(library);
            let recorded = entry.or_insert_with(|| Recorded { at, numbers: HashMap::new() });
            recorded.at = at;
            recorded.numbers.extend(others.iter().map(|other| (other.chain, other.head.number)));
            return Ok(true);
        }
        Ok(false)
    }
}

/// Appends a record to the chain of this process.
async fn append(
    connection: &mut PgConnection,
    library: LibraryId,
    chain: Uuid,
    heads: &ChainHeads,
    text: &str,
    key: &AuditKey,
) -> Result<Appended, sqlx::Error> {
    // Before the database is read, which then has this link or a newer one.
    let newest = heads.newest(library);
    let own = statement(OWN).bind(library.to_string()).bind(chain);
    let Some(row) = own.fetch_optional(&mut *connection).await? else {
        return Ok(Appended::Refused);
    };
    let before = Head { number: row.try_get("number")?, mac: row.try_get("mac")? };
    // A record must not extend a chain whose end was removed: the next transaction finds that.
    if newest.is_some_and(|newest| !before.follows(&newest)) {
        return Ok(Appended::Refused);
    }
    let at: i64 = row.try_get("at")?;
    let link = head_record::link_after(&before, at, text, key);
    let query = statement(&APPEND)
        .bind(library.to_string())
        .bind(chain)
        .bind(before.number)
        .bind(link.number)
        .bind(link.mac.clone())
        .bind(head_record::NO_LOAN)
        .bind(at)
        .bind(head_record::HEADS)
        .bind(text.to_owned());
    match query.execute(connection).await?.rows_affected() {
        0 => Ok(Appended::Moved),
        _ => Ok(Appended::Head(link)),
    }
}
