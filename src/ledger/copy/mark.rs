//! How far a copy has come, as the destination stores it.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::rows::{Position, Table};
use crate::ledger::audit::Head;

/// The row of `meta` with the name [`crate::ledger::copy_mark::IN_PROGRESS`]. Each transaction that
/// writes rows replaces it, so a killed copy continues exactly after its last commit.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Mark {
    /// The newest link of the source when the copy began.
    source_number: i64,
    source_mac: String,
    /// The name of this copy, and of the destination's chains if each library has one.
    pub(super) chain: String,
    /// The table that is copied; none when all are.
    pub(super) table: Option<Table>,
    /// The last row of the table that was copied.
    pub(super) after: Position,
    /// The number of rows of the table that were copied.
    pub(super) done: u64,
}

impl Mark {
    /// Creates the mark of a copy that begins.
    pub(super) fn new(source: &Head) -> Mark {
        Mark {
            source_number: source.number,
            source_mac: HEXLOWER.encode(&source.mac),
            chain: Uuid::new_v4().to_string(),
            table: Table::ALL.first().copied(),
            after: Position::start(),
            done: 0,
        }
    }

    /// Parses a stored mark. Returns none if another version of the program has written it.
    pub(super) fn parse(bytes: &[u8]) -> Option<Mark> {
        serde_json::from_slice(bytes).ok()
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Returns whether no row was copied.
    pub(super) fn is_first(&self) -> bool {
        self.table == Table::ALL.first().copied() && self.done == 0
    }

    /// Returns whether the copy began with this newest link of the source.
    pub(super) fn is_of(&self, source: &Head) -> bool {
        self.source_number == source.number && self.source_mac == HEXLOWER.encode(&source.mac)
    }

    pub(super) fn chain(&self) -> Uuid {
        self.chain.parse().unwrap_or_default()
    }

    /// Returns the mark after `count` more rows, of which the last has this position.
    pub(super) fn advance(&self, count: usize, after: Position) -> Mark {
        Mark { after, done: self.done + count as u64, ..self.clone() }
    }

    /// Returns the mark at the start of the next table.
    pub(super) fn next_table(&self) -> Mark {
        let next = Table::ALL.into_iter().find(|table| Some(*table) > self.table);
        Mark { table: next, after: Position::start(), done: 0, ..self.clone() }
    }
}
