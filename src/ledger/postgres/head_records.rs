//! Writes head records: see `audit::head_record`.
//!
//! A task of each process reads the chains of the libraries that the process has written, some
//! minutes apart. If the others have new steps, it appends one step to the own chain: at most one
//! an hour for each library, unless there are many new steps. Requests do not wait for it, since it
//! locks the row of the own chain for one statement only.
//!
//! The task also seals the chains of processes that have ended: see `chain_seals`.
//!
//! Chains that were closed some days ago are left out, so that the work does not grow with the age
//! of the ledger.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use sqlx::{PgConnection, Row};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::chain_seals;
use super::copy_marks::IS_MOVED;
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

/// Also returns the number of the last step that is no head record. Otherwise two chains would
/// record each other's records for ever.
pub(super) const OTHERS: &str = "SELECT other.* \
     FROM unnest($1::text[]) AS t (name) CROSS JOIN LATERAL ( \
     SELECT library, chain, number, mac, coalesce(( \
     SELECT history.number FROM history WHERE history.library = t.name \
     AND history.chain = chains.chain AND history.loan <> '00000000-0000-0000-0000-000000000000' \
     ORDER BY history.number DESC LIMIT 1), number) AS step FROM chains \
     WHERE library = t.name AND chain <> $2 AND number > 0 AND (closed IS NULL \
     OR closed > (extract(epoch FROM now()) * 1000)::bigint - 259200000) \
     ORDER BY chain) AS other";
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
    pool: Arc<Pool>,
    /// The name of the chains of this process.
    chain: Uuid,
    key: AuditKey,
    /// The epoch of `libraries`.
    epoch: i64,
    libraries: HashMap<LibraryId, Recorded>,
}

/// What was recorded in the chain of a library.
struct Recorded {
    at: Instant,
    /// The number of the newest recorded link of each other chain.
    numbers: HashMap<Uuid, i64>,
}

/// Another chain.
struct Other {
    newest: RecordedHead,
    /// The number of the last step that is no head record.
    step: i64,
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
    pub(super) fn new(pool: Arc<Pool>, chain: Uuid, key: AuditKey) -> HeadRecords {
        HeadRecords { pool, chain, key, epoch: 0, libraries: HashMap::new() }
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

    /// Writes a record in each library where one is due, and seals the chains of ended processes.
    pub(super) async fn round(&mut self, heads: &ChainHeads) -> Result<(), sqlx::Error> {
        self.record_all(heads).await?;
        let known = |library: &str, chain| {
            let recorded = library.parse().ok().and_then(|library| self.libraries.get(&library));
            let number = recorded.and_then(|recorded| recorded.numbers.get(&chain));
            number.copied().unwrap_or_default()
        };
        chain_seals::seal_ended(&self.pool, &self.key, known).await
    }

    async fn record_all(&mut self, heads: &ChainHeads) -> Result<(), sqlx::Error> {
        // After a restore, chains may be shorter than what was recorded.
        let epoch = heads.epoch();
        if epoch != self.epoch {
            (self.epoch, self.libraries) = (epoch, HashMap::new());
        }
        for libraries in heads.libraries().chunks(LIBRARIES) {
            for (library, others) in self.read_others(libraries).await? {
                let due = self.due(library, others);
                if !due.is_empty() {
                    self.record(heads, library, due).await?;
                }
            }
        }
        Ok(())
    }

    async fn read_others(
        &self,
        libraries: &[LibraryId],
    ) -> Result<HashMap<LibraryId, Vec<Other>>, sqlx::Error> {
        let names: Vec<String> = libraries.iter().map(LibraryId::to_string).collect();
        let query = statement(OTHERS).bind(names).bind(self.chain);
        let rows =
            self.pool.read(TRANSACTION, async |connection| query.fetch_all(connection).await);
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

    /// Returns the links for a record; none if it is not due yet.
    fn due(&self, library: LibraryId, others: Vec<Other>) -> Vec<RecordedHead> {
        let recorded = self.libraries.get(&library);
        let number = |chain: &Uuid| {
            let number = recorded.and_then(|recorded| recorded.numbers.get(chain));
            number.copied().unwrap_or_default()
        };
        let (mut new_steps, mut due) = (0_i64, Vec::new());
        for Other { newest, step } in others {
            let known = number(&newest.chain);
            if step > known {
                new_steps = new_steps.saturating_add(step - known);
                due.push(newest);
            }
        }
        let waits = recorded
            .is_some_and(|recorded| recorded.at.elapsed() < INTERVAL && new_steps < MANY_STEPS);
        due.truncate(if waits { 0 } else { MAX_HEADS });
        due
    }

    async fn record(
        &mut self,
        heads: &ChainHeads,
        library: LibraryId,
        others: Vec<RecordedHead>,
    ) -> Result<(), sqlx::Error> {
        let text = head_record::to_text(&others);
        for _ in 0..ATTEMPTS {
            let (chain, key) = (self.chain, &self.key);
            let appended = self.pool.transaction(BEGIN, TRANSACTION, async |connection| {
                append(connection, library, chain, heads, &text, key).await
            });
            match Box::pin(appended).await? {
                Appended::Moved => continue,
                Appended::Refused => return Ok(()),
                Appended::Head(head) => heads.record(library, head),
            }
            let at = Instant::now();
            let entry = self.libraries.entry(library);
            let recorded = entry.or_insert_with(|| Recorded { at, numbers: HashMap::new() });
            recorded.at = at;
            recorded.numbers.extend(others.iter().map(|other| (other.chain, other.head.number)));
            return Ok(());
        }
        Ok(())
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
