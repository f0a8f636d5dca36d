//! The comparison of two ledgers: counts and hashes of their rows.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use aws_lc_rs::digest::{Context, SHA256};
use futures_util::TryStreamExt;

use super::exclusive::ExclusiveLedger;
use super::rows::{Position, Row, Table};
use crate::ledger::LedgerError;
use crate::ledger::audit::AuditKey;

/// The rows of a ledger, by table, and loans by state.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Summary(BTreeMap<String, Rows>);

/// Rows of one kind.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Rows {
    count: u64,
    /// The sum of the SHA-256 hashes of the rows, in two halves: the stores have different orders.
    hashes: (u128, u128),
}

impl Summary {
    /// Reads all rows of a ledger, `page` at a time.
    pub(super) async fn read(
        ledger: &mut ExclusiveLedger,
        page: usize,
        key: &AuditKey,
    ) -> Result<Summary, LedgerError> {
        ledger.begin_reading().await?;
        let read = Summary::read_tables(ledger, page, key).await;
        ledger.end_reading().await?;
        read
    }

    async fn read_tables(
        ledger: &mut ExclusiveLedger,
        page: usize,
        key: &AuditKey,
    ) -> Result<Summary, LedgerError> {
        let mut summary = Summary::default();
        for table in Table::ALL {
            let mut rows = ledger.rows(table, &Position::start(), page, key);
            while let Some(row) = rows.try_next().await? {
                summary.add(table, &row);
            }
        }
        Ok(summary)
    }

    pub(super) fn add(&mut self, table: Table, row: &Row) {
        let kind = match row {
            Row::Loan(loan) => format!("{} in state {}", table.name(), loan.state),
            _ => table.name().to_owned(),
        };
        let rows = self.0.entry(kind).or_default();
        let (high, low) = hash(row);
        rows.count += 1;
        rows.hashes.0 = rows.hashes.0.wrapping_add(high);
        rows.hashes.1 = rows.hashes.1.wrapping_add(low);
    }

    /// Returns how the destination differs from this source, as sentences.
    pub(super) fn differences(&self, destination: &Summary) -> Vec<String> {
        let kinds: BTreeMap<&String, ()> =
            self.0.keys().chain(destination.0.keys()).map(|kind| (kind, ())).collect();
        let difference = |kind: &String| {
            let of = |summary: &Summary| summary.0.get(kind).copied().unwrap_or_default();
            let (ours, theirs) = (of(self), of(destination));
            if ours.count != theirs.count {
                Some(format!(
                    "the source has {} {kind}, and the destination {}",
                    ours.count, theirs.count
                ))
            } else if ours.hashes != theirs.hashes {
                Some(format!("the {kind} of the destination differ from those of the source"))
            } else {
                None
            }
        };
        kinds.into_keys().filter_map(difference).collect()
    }

    /// Returns the number of rows of each kind.
    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        self.0.iter().map(|(kind, rows)| (kind.clone(), rows.count)).collect()
    }

    /// Returns the number of rows of a table.
    pub(super) fn count(&self, table: Table) -> u64 {
        let of_table = self.0.iter().filter(|(kind, _)| kind.starts_with(table.name()));
        of_table.map(|(_, rows)| rows.count).sum()
    }
}

fn hash(row: &Row) -> (u128, u128) {
    let mut hasher = Sha256(Context::new(&SHA256));
    row.hash(&mut hasher);
    let digest = hasher.0.finish();
    let half = |bytes: Option<&[u8]>| {
        bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u128::from_be_bytes)
    };
    (half(digest.as_ref().get(..16)), half(digest.as_ref().get(16..)))
}

/// Feeds the fields of a row to SHA-256.
struct Sha256(Context);

impl Hasher for Sha256 {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Not used: the digest is longer.
    fn finish(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::rows::{DeliveredRow, Row};
    use super::*;

    fn delivered(bytes: i64) -> Row {
        let (library, loan) = ("NO-1".parse().unwrap(), Uuid::from_u128(7));
        Row::Delivered(DeliveredRow { library, loan, file: "a".into(), bytes, ranges: vec![1] })
    }

    fn summary(bytes: &[i64]) -> Summary {
        let mut summary = Summary::default();
        bytes.iter().for_each(|bytes| summary.add(Table::Delivered, &delivered(*bytes)));
        summary
    }

    #[test]
    fn order_of_rows_does_not_matter_and_values_do() {
        assert_eq!(summary(&[1, 2]), summary(&[2, 1]));
        assert_eq!(summary(&[1, 2]).differences(&summary(&[2, 1])), Vec::<String>::new());
        assert!(summary(&[1, 2]).differences(&summary(&[1, 3]))[0].contains("differ"));
        assert!(summary(&[1]).differences(&summary(&[]))[0].contains("has 1 delivered files"));
        assert_eq!(summary(&[1, 2]).count(Table::Delivered), 2);
    }
}
