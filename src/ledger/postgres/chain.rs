//! The chains of the audit trail. Each has the steps that one process has written for one library.
//!
//! The row of a chain also numbers the transactions of the process, which makes the result of a
//! commit without a response readable.
//!
//! The statement that locks a chain also reads the renewals of this process and the marks of a
//! copy, so that no transaction runs in a database that was restored since the last renewal, or in
//! a ledger that was moved.

use std::sync::LazyLock;

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::copy_marks::IS_MOVED;
use super::session::prepares;
use super::sql::column;
use super::transaction::Scope;
use crate::ledger::audit::{AuditKey, Head, NewStep};
use crate::ledger::store::LastCommit;
use crate::loan::LibraryId;

/// The version of the steps that this program writes.
const STEP_VERSION: i64 = 2;

pub(super) static LOCK: LazyLock<String> = LazyLock::new(|| {
    format!(
        "INSERT INTO chains (library, chain, batch, number, mac, opened) \
         VALUES ($1, $2, 1, 0, $3, (extract(epoch FROM clock_timestamp()) * 1000)::bigint) \
         ON CONFLICT (library, chain) DO UPDATE \
         SET batch = chains.batch + 1, closed = NULL, seal = NULL \
         RETURNING batch, number, mac, (SELECT renewals FROM members WHERE member = $4), \
         {IS_MOVED} AS is_moved"
    )
});

/// What the statement that locks a chain returns.
pub(super) struct Locked {
    pub(super) scope: Scope,
    /// The renewals of this member, unless its row is missing.
    pub(super) renewals: Option<i64>,
    /// Whether the ledger was moved, or a copy into it is unfinished. The transaction that marks a
    /// ledger locks the table of chains first, so no transaction writes after the mark.
    pub(super) is_moved: bool,
}

/// Locks the chain of this process until the end of the transaction, and numbers the transaction.
/// Opens a missing chain.
pub(super) async fn lock(
    connection: &mut PgConnection,
    library: LibraryId,
    chain: Uuid,
    key: &AuditKey,
    member: Uuid,
) -> Result<Locked, sqlx::Error> {
    let query = sqlx::query(LOCK.as_str()).bind(library.as_str()).bind(chain);
    let query = query.bind(key.chain_start(library, chain)).bind(member);
    let row = query.persistent(prepares(connection)).fetch_one(connection).await?;
    let head = Head { number: row.try_get("number")?, mac: row.try_get("mac")? };
    let scope = Scope { library, batch: row.try_get("batch")?, head };
    Ok(Locked { scope, renewals: row.try_get("renewals")?, is_moved: row.try_get("is_moved")? })
}

pub(super) const EXTEND: &str = "WITH head AS ( \
         UPDATE chains SET number = $4, mac = $5 WHERE library = $1 AND chain = $2) \
         INSERT INTO history (library, chain, number, loan, at, from_state, to_state, cause, \
         detail, version, salt, loan_mac, mac) \
         SELECT $1, $2, t.number, t.loan::uuid, t.at, t.from_state, t.to_state, t.cause, \
         t.detail, $3, t.salt, t.loan_mac, t.mac \
         FROM unnest($6::bigint[], $7::text[], $8::bigint[], $9::text[], $10::text[], \
         $11::text[], $12::text[], $13::bytea[], $14::bytea[], $15::bytea[]) \
         AS t (number, loan, at, from_state, to_state, cause, detail, salt, loan_mac, mac)";

/// Appends steps to a chain that this transaction has locked.
pub(super) async fn extend(
    connection: &mut PgConnection,
    library: LibraryId,
    chain: Uuid,
    steps: &[NewStep],
) -> Result<(), sqlx::Error> {
    let Some(last) = steps.last() else { return Ok(()) };
    let query = sqlx::query(EXTEND)
        .bind(library.as_str())
        .bind(chain)
        .bind(STEP_VERSION)
        .bind(last.link.number)
        .bind(last.link.mac.as_slice())
        .bind(column(steps, |step| step.link.number))
        .bind(column(steps, |step| step.loan.as_str()))
        .bind(column(steps, |step| step.at))
        .bind(column(steps, |step| step.from))
        .bind(column(steps, |step| step.to))
        .bind(column(steps, |step| step.cause.by))
        .bind(column(steps, |step| step.cause.detail.as_deref()))
        .bind(column(steps, |step| step.salt.as_ref().map(<[u8; 16]>::as_slice)))
        .bind(column(steps, |step| step.loan_mac.as_deref()))
        .bind(column(steps, |step| step.link.mac.as_slice()));
    query.persistent(prepares(connection)).execute(connection).await.map(drop)
}

pub(super) const OPEN: &str = "INSERT INTO chains (library, chain, batch, number, mac, opened) \
         VALUES ($1, $2, 0, 0, $3, 0) ON CONFLICT (library, chain) DO NOTHING";

pub(super) const BATCH: &str =
    "SELECT batch FROM chains WHERE library = $1 AND chain = $2 FOR UPDATE";

/// Opens a chain, unless it exists.
pub(super) async fn open(
    connection: &mut PgConnection,
    library: LibraryId,
    chain: Uuid,
    key: &AuditKey,
) -> Result<(), sqlx::Error> {
    let open = sqlx::query(OPEN).bind(library.as_str()).bind(chain);
    let open = open.bind(key.chain_start(library, chain)).persistent(prepares(connection));
    open.execute(&mut *connection).await.map(drop)
}

/// Returns whether the transaction with this number is durable. Waits for an unfinished one.
///
/// A read that does not find the chain proves nothing: the transaction that opens it may still
/// commit. So an insertion of the same key waits for that one first. The caller commits.
pub(super) async fn last_commit(
    connection: &mut PgConnection,
    library: LibraryId,
    chain: Uuid,
    key: &AuditKey,
    batch: i64,
) -> Result<LastCommit, sqlx::Error> {
    open(connection, library, chain, key).await?;
    let query = sqlx::query_scalar(BATCH)
        .bind(library.as_str())
        .bind(chain)
        .persistent(prepares(connection));
    let durable: i64 = query.fetch_one(connection).await?;
    Ok(if durable >= batch { LastCommit::Durable } else { LastCommit::RolledBack })
}
