//! The rows that say where a ledger was copied from, for the verification of the audit trail.
//!
//! A hash belongs to the place of its step in its chain, so a copy computes all hashes again. It
//! verifies the source first. A row in the destination stores the newest link of the source, sealed
//! with the audit key, so that the two can be compared later.

use std::fmt;
use std::time::Duration;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::CopyError;
use crate::ledger::audit::{AuditKey, Head};
use crate::ledger::copy_mark::COPIED_FROM;
use crate::ledger::postgres::{Connector, Purpose, within};
use crate::ledger::{LedgerError, StoreSettings, sqlite};

/// The deadline of reading the origins of a database, including its connection.
const READ_DEADLINE: Duration = Duration::from_secs(30);

/// A ledger from which another one was copied.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Origin {
    /// The kind of its database.
    pub store: String,
    /// When the copy was started, for the last time if it was interrupted.
    pub at: String,
    /// The number of its newest step; with several chains, the sum of their numbers.
    pub step: i64,
    /// The hash of that step in hexadecimal digits; with several chains, a hash of their hashes.
    pub mac: String,
    /// The number of copied loans.
    pub loans: u64,
    /// The number of copied steps.
    pub steps: u64,
    /// The number of its steps that were pruned before. The copy has no anchors for them.
    pub pruned: i64,
    seal: String,
}

impl Origin {
    /// Creates the sealed origin of a copy.
    pub(super) fn new(
        store: &str,
        head: &Head,
        [loans, steps]: [u64; 2],
        (pruned, at): (i64, Timestamp),
        key: &AuditKey,
    ) -> Origin {
        let origin = Origin {
            store: store.to_owned(),
            at: at.to_string(),
            step: head.number,
            mac: HEXLOWER.encode(&head.mac),
            loans,
            steps,
            pruned,
            seal: String::new(),
        };
        Origin { seal: origin.expected_seal(key), ..origin }
    }

    fn expected_seal(&self, key: &AuditKey) -> String {
        let unsealed = Origin { seal: String::new(), ..self.clone() };
        let text = serde_json::to_string(&unsealed).unwrap_or_default();
        HEXLOWER.encode(&key.origin_seal(&text))
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Returns whether the source ended with this link.
    pub(super) fn is_of(&self, source: &Head) -> bool {
        self.step == source.number && self.mac == HEXLOWER.encode(&source.mac)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Origin { store, at, step, mac, loans, steps, pruned, .. } = self;
        write!(
            f,
            "copied from {store} at {at}: {loans} loans and {steps} steps; its audit trail ended \
             at step {step}, {mac}, and {pruned} of its steps were pruned before"
        )
    }
}

/// Returns the origins in these rows, the oldest first. A forged row is a finding.
pub(super) fn read_origins(
    rows: &[(String, Vec<u8>)],
    key: &AuditKey,
) -> Result<Vec<Origin>, CopyError> {
    let mut origins = Vec::with_capacity(rows.len());
    for (name, value) in rows {
        let origin: Option<Origin> = serde_json::from_slice(value).ok();
        match origin.filter(|origin| origin.seal == origin.expected_seal(key)) {
            Some(origin) => origins.push(origin),
            None => {
                return Err(CopyError::Refused(format!(
                    "the row \"{name}\" of the table meta was changed or forged"
                )));
            }
        }
    }
    Ok(origins)
}

/// Returns the ledgers from which this one was copied, the oldest first. Works while a gate runs.
///
/// # Errors
/// [`CopyError`] if the ledger cannot be read, or such a row was changed.
pub async fn copied_from(store: &StoreSettings, key: &AuditKey) -> Result<Vec<Origin>, CopyError> {
    let like = format!("{COPIED_FROM}%");
    let rows = match store {
        StoreSettings::Sqlite(file) => {
            let mut connection = sqlite::open_to_read(file).await?;
            let query = sqlx::query(SQLITE_ROWS).bind(like).fetch_all(&mut connection).await;
            let rows = query.and_then(|rows| rows.iter().map(named).collect());
            rows.map_err(|source| LedgerError::Database { file: file.clone(), source })?
        }
        StoreSettings::Postgres(settings) => {
            let read = async {
                let mut connection = Connector::new(settings).connect(Purpose::Command).await?;
                let query = sqlx::query(POSTGRES_ROWS).bind(like).persistent(false);
                let rows = query.fetch_all(&mut connection).await?;
                rows.iter().map(named).collect::<Result<Vec<_>, _>>()
            };
            within(READ_DEADLINE, read).await.map_err(LedgerError::Server)?
        }
    };
    read_origins(&rows, key)
}

/// In the order of their numbers.
pub(super) const SQLITE_ROWS: &str =
    "SELECT name, value FROM meta WHERE name LIKE ? ORDER BY length(name), name";
pub(super) const POSTGRES_ROWS: &str =
    "SELECT name, value FROM meta WHERE name LIKE $1 ORDER BY length(name), name";

/// Reads a row of `meta`.
pub(super) fn named<R: sqlx::Row>(row: &R) -> Result<(String, Vec<u8>), sqlx::Error>
where
    usize: sqlx::ColumnIndex<R>,
    String: for<'r> sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    Vec<u8>: for<'r> sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
{
    Ok((row.try_get(0)?, row.try_get(1)?))
}
