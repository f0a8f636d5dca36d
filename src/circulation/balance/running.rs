//! How far the running balance is. `Circulation::running_balance` shows it to operators.

use std::sync::Mutex;

use serde::Serialize;
use utoipa::ToSchema;

use crate::lock::lock;

/// How far a running balance is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, ToSchema)]
pub struct RunningBalance {
    /// The number of libraries that it compares.
    pub libraries: usize,
    /// The number of those that are compared.
    pub compared: usize,
    /// The number of loans that were read so far, at Bokbasen and in the ledger.
    pub loans: usize,
}

/// The balance that is running, if one is.
#[derive(Debug, Default)]
pub(in crate::circulation) struct Running(Mutex<Option<RunningBalance>>);

impl Running {
    pub(super) fn get(&self) -> Option<RunningBalance> {
        *lock(&self.0)
    }

    /// Notes that a balance of this number of libraries begins. Dropping the result notes its end.
    pub(super) fn begin(&self, libraries: usize) -> RunningGuard<'_> {
        *lock(&self.0) = Some(RunningBalance { libraries, ..RunningBalance::default() });
        RunningGuard(self)
    }

    /// Counts loans that were read.
    pub(super) fn add_loans(&self, loans: usize) {
        if let Some(running) = lock(&self.0).as_mut() {
            running.loans += loans;
        }
    }
}

/// Shows a balance as running until it is dropped, also when its future is dropped halfway.
pub(super) struct RunningGuard<'a>(&'a Running);

impl RunningGuard<'_> {
    /// Counts a library that is compared.
    pub(super) fn add_library(&self) {
        if let Some(running) = lock(&self.0.0).as_mut() {
            running.compared += 1;
        }
    }
}

impl Drop for RunningGuard<'_> {
    fn drop(&mut self) {
        *lock(&self.0.0) = None;
    }
}
