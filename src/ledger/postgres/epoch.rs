//! The epoch of a ledger, with a seal: a person who writes to the database cannot change it.
//!
//! What gates and their files have seen in an older epoch proves no loss. So a raised number would
//! hide that the database lost steps. The seal also covers the id of the ledger, since files of
//! another ledger prove nothing either.

use sqlx::PgConnection;
use uuid::Uuid;

use super::sql::statement;
use crate::ledger::audit::AuditKey;

/// The epoch that stands for one whose seal is wrong. It is older than all others, so each gate
/// finds that the database lost writes.
pub(super) const FORGED: i64 = i64::MIN;
/// What happened to it, for sentences.
pub(super) const FORGED_SENTENCE: &str = "the epoch in the table meta has no valid seal: it or the \
     id of the ledger was changed without the audit key";
/// Only in a ledger without rows: in another one, a person has removed the seal.
const SEAL_FIRST: &str = "UPDATE meta SET value = $1 \
     WHERE name = 'epoch' AND value = int8send(0) \
     AND NOT EXISTS (SELECT 1 FROM chains) AND NOT EXISTS (SELECT 1 FROM loans)";

/// Seals the epochs of one ledger.
#[derive(Clone, Debug)]
pub(super) struct EpochSeals {
    key: AuditKey,
    ledger: Uuid,
}

impl EpochSeals {
    pub(super) fn new(key: AuditKey, ledger: Uuid) -> EpochSeals {
        EpochSeals { key, ledger }
    }

    /// Returns the id of the ledger.
    pub(super) fn ledger(&self) -> Uuid {
        self.ledger
    }

    /// Returns the value of a row with this epoch.
    pub(super) fn to_bytes(&self, epoch: i64) -> Vec<u8> {
        [&epoch.to_be_bytes(), self.key.epoch_seal(self.ledger, epoch).as_slice()].concat()
    }

    /// Reads the value of a row like [`EpochSeals::read`]. A missing row was deleted by a person.
    pub(super) fn read_row(&self, value: Option<&[u8]>) -> i64 {
        value.map_or(FORGED, |value| self.read(value))
    }

    /// Reads the value of a row; [`FORGED`] if its seal is wrong or missing.
    pub(super) fn read(&self, value: &[u8]) -> i64 {
        let epoch = value.first_chunk().copied().map(i64::from_be_bytes);
        epoch.filter(|epoch| value == self.to_bytes(*epoch)).unwrap_or(FORGED)
    }

    /// Seals the epoch of a new ledger, which is 0 until an operator reconciles the ledger.
    pub(super) async fn seal_first(
        &self,
        connection: &mut PgConnection,
    ) -> Result<(), sqlx::Error> {
        statement(SEAL_FIRST).bind(self.to_bytes(0)).execute(connection).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoch_without_its_seal_is_forged() {
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let seals = |key, ledger| EpochSeals::new(AuditKey::new(&[key; 32]), ledger);
        let sealed = seals(2, one).to_bytes(7);
        assert_eq!(seals(2, one).read(&sealed), 7);
        assert_eq!(seals(2, one).read(&seals(2, one).to_bytes(0)), 0);
        let raised = [&8_i64.to_be_bytes(), &sealed[8..]].concat();
        let first = 0_i64.to_be_bytes();
        for forged in [&raised, &sealed[..8], &sealed[..39], &first, b"", b"x"] {
            assert_eq!(seals(2, one).read(forged), FORGED);
        }
        assert_eq!(seals(3, one).read(&sealed), FORGED, "of another key");
        assert_eq!(seals(2, other).read(&sealed), FORGED, "of another ledger");
    }
}
