//! Rows that cannot be read. Queries skip them, so a damaged row never blocks the others.
//!
//! Each process logs a damaged row once, with its id, and counts it until it can be read again. A
//! query finds only the rows that it reads; `loangate ledger check` finds all.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::LedgerError;
use crate::loan::Loan;
use crate::lock::lock;
use crate::telemetry::Metrics;

/// The maximum number of remembered ids. Further damaged rows are skipped without a log line: such
/// a ledger is beyond repair.
const MAX_REMEMBERED: usize = 10_000;

/// The damaged rows that this process has read.
#[derive(Clone, Debug)]
pub(super) struct DamagedRows(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The ids of rows that could not be read last time.
    ids: Mutex<HashSet<String>>,
    count: AtomicUsize,
    metrics: Metrics,
}

impl DamagedRows {
    pub(super) fn new(metrics: Metrics) -> DamagedRows {
        metrics.ledger_damaged_rows(0);
        DamagedRows(Arc::new(Inner { ids: Mutex::default(), count: AtomicUsize::new(0), metrics }))
    }

    /// Returns the number of rows that could not be read when a query last read them.
    pub(super) fn count(&self) -> usize {
        self.0.count.load(Ordering::Relaxed)
    }

    /// Returns the loan that was read. Reports a damaged row and returns none for it.
    pub(super) fn loan(&self, read: Result<Loan, LedgerError>) -> Option<Loan> {
        let loan = self.skip(read)?;
        if self.count() > 0 {
            self.forget(&loan.id.to_string());
        }
        Some(loan)
    }

    /// Returns the value that was read. Reports a damaged row and returns none for it.
    pub(super) fn skip<T>(&self, read: Result<T, LedgerError>) -> Option<T> {
        read.inspect_err(|error| self.report(error)).ok()
    }

    fn report(&self, error: &LedgerError) {
        let LedgerError::Damaged { id, why } = error else { return };
        let mut ids = lock(&self.0.ids);
        if ids.len() < MAX_REMEMBERED && ids.insert(id.clone()) {
            self.publish_count(ids.len());
            tracing::error!(
                ?id,
                why,
                "a row of the ledger is damaged and is skipped; restore it from a backup"
            );
        }
    }

    /// Removes the id of a row that can be read again.
    fn forget(&self, id: &str) {
        let mut ids = lock(&self.0.ids);
        if ids.remove(id) {
            self.publish_count(ids.len());
        }
    }

    fn publish_count(&self, rows: usize) {
        self.0.count.store(rows, Ordering::Relaxed);
        self.0.metrics.ledger_damaged_rows(rows);
    }
}
