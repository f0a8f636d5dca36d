//! The values that callers exchange with the ledger.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use uuid::Uuid;

use super::Brake;
use super::postgres::PostgresSettings;
use crate::loan::{Borrower, Isbn, LibraryId, Loan, LoanId, LoanState, Tally};

/// The maximum number of retained loans that are reported.
const MAX_REPORTED: usize = 20;

/// The keys of `[ledger]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where loans are stored.
    pub store: StoreSettings,
    /// `[brake]`: the limits on new loans.
    pub brake: Brake,
}

/// The database of a ledger.
#[derive(Clone, Debug)]
pub enum StoreSettings {
    /// A SQLite file. A missing directory is created.
    Sqlite(PathBuf),
    /// A PostgreSQL database, which several processes on several machines share.
    Postgres(Box<PostgresSettings>),
}

impl fmt::Display for StoreSettings {
    /// Names the ledger for operators, without a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreSettings::Sqlite(file) => write!(f, "{}", file.display()),
            StoreSettings::Postgres(settings) => write!(f, "{}", settings.endpoint),
        }
    }
}

impl Settings {
    /// Returns the settings of a ledger in a SQLite file.
    pub fn sqlite(file: impl Into<PathBuf>, brake: Brake) -> Settings {
        Settings { store: StoreSettings::Sqlite(file.into()), brake }
    }

    /// Returns the SQLite file; none for another database.
    pub fn sqlite_file(&self) -> Option<&Path> {
        match &self.store {
            StoreSettings::Sqlite(file) => Some(file),
            StoreSettings::Postgres(_) => None,
        }
    }
}

/// The result of writing an intent.
#[derive(Clone, Debug)]
pub enum Intended {
    /// The intent is durable, and the begin may be sent.
    Written(Loan),
    /// Nothing was written because this reader already has a live loan of the title.
    Live(Loan),
    /// Nothing was written because an accepted loan ended at or after the time at which the
    /// credential was issued (invariant 7).
    EndedSince(Timestamp),
    /// Nothing was written because lending of the library is paused.
    Paused,
    /// Nothing was written because a brake limit is reached until this time.
    Braked(Timestamp),
}

/// Why a loan changed, for its history.
#[derive(Clone, Debug)]
pub struct Cause {
    /// A short slug: `reader`, `expiry`, `settle`, `admin`, `poll`.
    pub by: &'static str,
    /// A text for support, such as Bokbasen's message. It never has a borrower, a token or a
    /// secret.
    pub detail: Option<String>,
}

/// One transition of a loan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HistoryRow {
    /// When the step was written.
    pub at: Timestamp,
    /// The state before the step; none for the intent.
    pub from: Option<LoanState>,
    /// The state after the step.
    pub to: LoanState,
    /// The slug of [`Cause::by`].
    pub cause: String,
    /// The text of [`Cause::detail`].
    pub detail: Option<String>,
}

/// Ended loans whose end Bokbasen has not acknowledged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ends {
    /// The ids of the loans.
    pub loans: Vec<LoanId>,
    /// Whether these are all such loans, and not only those after a position.
    pub is_complete: bool,
    /// Where [`super::Ledger::ends_after`] continues.
    pub next: EndPosition,
}

/// A position in the ends of loans. Each store has its own order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EndPosition {
    /// The number of a step in SQLite; a time of the database in PostgreSQL, in milliseconds.
    pub(super) at: i64,
    /// The buckets that were read; none if the store does not divide its loans.
    pub(super) buckets: Option<Arc<[i16]>>,
    /// The version of the process's share of the ends, if it is not by buckets.
    pub(super) shares: Option<u64>,
}

/// The filters of a listing. A field that is none does not filter.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only loans of this library.
    pub library: Option<LibraryId>,
    /// Only loans of this title.
    pub isbn: Option<Isbn>,
    /// Only loans in this state.
    pub state: Option<LoanState>,
    /// Only loans of this borrower.
    pub borrower: Option<Borrower>,
    /// Only loans that were begun at this time or later.
    pub since: Option<Timestamp>,
    /// Only loans after the one with this UUID in the order of the listing, newest first.
    pub after: Option<Uuid>,
    /// The maximum number of loans returned.
    pub limit: u32,
}

/// The bytes of a file delivered under a loan since the last write.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// The loan that permitted the delivery.
    pub loan: LoanId,
    /// The path with which readers request the file.
    pub file: Arc<str>,
    /// The number of bytes, and their ranges.
    pub tally: Tally,
}

/// The loans of a library that a run found absent at Bokbasen.
#[derive(Clone, Debug)]
pub struct Doubts {
    /// The library that was compared.
    pub library: LibraryId,
    /// Every absent loan; doubts about any other loan of the library are cleared.
    pub absent: Vec<LoanId>,
    /// When the run began.
    pub run: Timestamp,
}

/// The kinds of loans that [`super::prune`] removes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Prunable {
    /// Loans that Bokbasen never accepted and whose refusal is no longer active at `now`.
    NeverLent {
        /// Only loans that last changed before this time.
        before: Timestamp,
        /// The time at which a refusal must be over.
        now: Timestamp,
    },
    /// Ended loans whose end Bokbasen has acknowledged and whose borrower is forgotten.
    Ended {
        /// Only loans that ended before this time.
        before: Timestamp,
    },
}

/// The result of [`super::prune`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Pruned {
    /// The number of removed loans.
    pub loans: u64,
    /// The loans that were retained because their row is damaged or was changed, as sentences.
    pub left: Vec<String>,
}

impl Pruned {
    /// Reports a retained loan, up to a maximum.
    pub(super) fn report_left(&mut self, sentence: String) {
        if self.left.len() < MAX_REPORTED {
            self.left.push(sentence);
        }
    }
}
