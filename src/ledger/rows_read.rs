//! Counts the rows that a verification or a check has read, for whoever shows its progress.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The rows that were read, and about how many there are. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct RowsRead(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    read: AtomicU64,
    total: AtomicU64,
}

impl RowsRead {
    /// The number of rows that were read.
    pub fn read(&self) -> u64 {
        self.0.read.load(Ordering::Relaxed)
    }

    /// About how many rows there are. Zero while nobody knows.
    pub fn total(&self) -> u64 {
        self.0.total.load(Ordering::Relaxed)
    }

    pub(in crate::ledger) fn add(&self, rows: usize) {
        self.0.read.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// Sets how many rows there are. A database that knows nothing has a negative number.
    pub(in crate::ledger) fn expect(&self, rows: i64) {
        self.0.total.store(u64::try_from(rows).unwrap_or(0), Ordering::Relaxed);
    }
}

impl fmt::Display for RowsRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (read, total) = (self.read(), self.total());
        match total {
            0 => write!(f, "{read} rows"),
            // The number is an estimate, which must not look like an error.
            _ => write!(f, "{read} of {} rows", total.max(read)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_no_wrong_total() {
        let rows = RowsRead::default();
        rows.add(7);
        assert_eq!(rows.to_string(), "7 rows");
        rows.expect(-1);
        assert_eq!(rows.to_string(), "7 rows");
        rows.expect(10);
        assert_eq!(rows.to_string(), "7 of 10 rows");
        rows.add(5);
        assert_eq!(rows.to_string(), "12 of 12 rows");
    }
}
