//! Rows that cannot be read: every batch skips them, so that one of them never blocks the others.
//!
//! Each is logged once in a process, with its id, and counted until it can be read again. A row is
//! found when a query meets it; `loangate ledger check` finds all of them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::sqlite::SqliteRow;

use super::row::loan_of;
use super::{Ledger, LedgerError};
use crate::loan::Loan;
use crate::telemetry::Metrics;

/// How many ids are remembered. Beyond that a damaged row is skipped without a word: the ledger is
/// lost anyway.
const MAX_REMEMBERED: usize = 10_000;

/// The damaged rows that this process has met.
#[derive(Clone, Debug)]
pub(super) struct DamagedRows(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Those that cannot be read at present.
    ids: Mutex<HashSet<String>>,
    count: AtomicUsize,
    metrics: Metrics,
}

impl Ledger {
    /// How many rows could not be read when a query last met them.
    pub fn damaged_rows(&self) -> usize {
        self.damaged.0.count.load(Ordering::Relaxed)
    }
}

impl DamagedRows {
    pub(super) fn new(metrics: Metrics) -> DamagedRows {
        metrics.ledger_damaged_rows(0);
        DamagedRows(Arc::new(Inner { ids: Mutex::default(), count: AtomicUsize::new(0), metrics }))
    }

    /// The loan of a row, or none where it is damaged.
    pub(super) fn loan(&self, row: &SqliteRow) -> Option<Loan> {
        let loan = self.skip(loan_of(row))?;
        if self.0.count.load(Ordering::Relaxed) > 0 {
            self.forget(&loan.id.to_string());
        }
        Some(loan)
    }

    /// What was read, or none where the row is damaged.
    pub(super) fn skip<T>(&self, read: Result<T, LedgerError>) -> Option<T> {
        read.inspect_err(|error| self.report(error)).ok()
    }

    fn report(&self, error: &LedgerError) {
        let LedgerError::Damaged { id, why } = error else { return };
        let mut ids = self.0.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if ids.len() < MAX_REMEMBERED && ids.insert(id.clone()) {
            self.counted(ids.len());
            tracing::error!(
                ?id,
                why,
                "a row of the ledger is damaged and is skipped; restore it from a backup"
            );
        }
    }

    /// The row of this id can be read: it was mended.
    fn forget(&self, id: &str) {
        let mut ids = self.0.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if ids.remove(id) {
            self.counted(ids.len());
        }
    }

    fn counted(&self, rows: usize) {
        self.0.count.store(rows, Ordering::Relaxed);
        self.0.metrics.ledger_damaged_rows(rows);
    }
}
