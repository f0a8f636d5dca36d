//! The rows of a ledger, as both stores have them.
//!
//! Columns are copied as they are stored, so that a copy changes nothing that a newer version may
//! read in another way.

use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ledger::accesses::ACCESS;
use crate::ledger::audit::{AuditKey, AuditStep, Head};
use crate::loan::LibraryId;

/// A table whose rows are copied.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(super) enum Table {
    Loans,
    Steps,
    Delivered,
    Doubts,
    /// The steps of accesses, which belong to no loan.
    Accesses,
    Reports,
}

impl Table {
    /// All tables, in the order in which they are copied: loans precede what refers to them.
    pub(super) const ALL: [Table; 6] = [
        Table::Loans,
        Table::Steps,
        Table::Delivered,
        Table::Doubts,
        Table::Accesses,
        Table::Reports,
    ];

    /// Returns what the rows of the table are, for operators.
    pub(super) fn name(self) -> &'static str {
        match self {
            Table::Loans => "loans",
            Table::Steps => "steps",
            Table::Delivered => "delivered files",
            Table::Doubts => "doubts",
            Table::Accesses => "accesses",
            Table::Reports => "reports",
        }
    }

    /// Returns the name of the table in both stores.
    pub(super) fn sql_name(self) -> &'static str {
        match self {
            Table::Loans => "loans",
            Table::Steps | Table::Accesses => "history",
            Table::Delivered => "delivered",
            Table::Doubts => "doubts",
            Table::Reports => "reports",
        }
    }
}

/// The position of a row in the order in which its store reads the table. Each order uses some of
/// the fields.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Position {
    pub(super) library: String,
    /// The UUID of the loan.
    pub(super) id: String,
    pub(super) number: i64,
    pub(super) file: String,
}

impl Position {
    /// Returns the position before the first row.
    pub(super) fn start() -> Position {
        let (library, id, file) = Default::default();
        Position { library, id, number: 0, file }
    }

    /// Returns `id` as a UUID, the nil UUID at the start.
    pub(super) fn uuid(&self) -> Uuid {
        self.id.parse().unwrap_or_default()
    }
}

/// A row of one of the tables.
#[derive(Hash)]
pub(super) enum Row {
    Loan(Box<LoanRow>),
    Step(Box<StepRow>),
    Delivered(DeliveredRow),
    Doubt(DoubtRow),
    Report(Box<ReportRow>),
}

#[derive(Hash)]
pub(super) struct LoanRow {
    pub(super) library: LibraryId,
    pub(super) id: Uuid,
    pub(super) borrower: Vec<u8>,
    pub(super) isbn: i64,
    pub(super) reference: String,
    pub(super) lending_id: Option<String>,
    pub(super) state: String,
    pub(super) begun: i64,
    pub(super) accepted: Option<i64>,
    pub(super) due: Option<i64>,
    pub(super) licence_id: Option<String>,
    pub(super) licence_type: Option<String>,
    pub(super) ended: Option<i64>,
    pub(super) end_reason: Option<String>,
    pub(super) refusal_code: Option<String>,
    pub(super) refusal_message: Option<String>,
    pub(super) refusal_retry: Option<i64>,
    pub(super) progress: Option<i64>,
    pub(super) forgotten: Option<i64>,
    pub(super) opened: Option<i64>,
    pub(super) assessed: Option<i64>,
    pub(super) examine: Option<i64>,
    pub(super) changed: i64,
    /// The process that decides the loan. SQLite stores it without hyphens.
    pub(super) owner: Uuid,
}

pub(super) struct StepRow {
    pub(super) library: LibraryId,
    pub(super) loan: Uuid,
    pub(super) at: i64,
    pub(super) from_state: Option<String>,
    pub(super) to_state: String,
    pub(super) cause: String,
    pub(super) detail: Option<String>,
    pub(super) version: i64,
    pub(super) salt: Option<Vec<u8>>,
    pub(super) loan_mac: Option<Vec<u8>>,
    /// The number in the chain of SQLite. In PostgreSQL, the place among the steps of the loan, or
    /// the number of an access in its chain.
    pub(super) place: i64,
    /// The chain of an access in PostgreSQL.
    pub(super) chain: Option<Uuid>,
}

impl StepRow {
    /// Returns the position of an access. In PostgreSQL, they are read by library, chain and
    /// number.
    fn access_position(&self) -> Position {
        Position {
            library: self.library.to_string(),
            id: self.chain.unwrap_or_default().to_string(),
            number: self.place,
            ..Position::start()
        }
    }

    /// Returns the link of this step after `before`, the end of a chain of the destination.
    pub(super) fn link_after(&self, before: &Head, key: &AuditKey) -> Head {
        let loan = self.loan.to_string();
        let covers_loan = self.version > 1;
        let step = AuditStep {
            loan: &loan,
            at: self.at,
            from: self.from_state.as_deref(),
            to: &self.to_state,
            cause: &self.cause,
            detail: self.detail.as_deref(),
            loan_mac: covers_loan.then(|| self.loan_mac.as_deref().unwrap_or_default()),
        };
        before.next(&step, key)
    }
}

/// Covers what no hash of the destination's audit trail covers in another form. The last step of a
/// loan may get a hash of the loan's row, and chains differ.
impl Hash for StepRow {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.library, self.loan, self.at).hash(state);
        (&self.from_state, &self.to_state, &self.cause, &self.detail).hash(state);
    }
}

#[derive(Hash)]
pub(super) struct DeliveredRow {
    pub(super) library: LibraryId,
    pub(super) loan: Uuid,
    pub(super) file: String,
    pub(super) bytes: i64,
    pub(super) ranges: Vec<u8>,
}

#[derive(Hash)]
pub(super) struct DoubtRow {
    pub(super) library: LibraryId,
    pub(super) loan: Uuid,
    pub(super) since: i64,
    pub(super) run: i64,
}

#[derive(Hash)]
pub(super) struct ReportRow {
    pub(super) library: LibraryId,
    pub(super) loan: Uuid,
    pub(super) model: String,
    pub(super) subject: String,
    pub(super) isbn: i64,
    pub(super) licence_id: Option<String>,
    pub(super) licence_type: String,
    pub(super) date: String,
    pub(super) evidence: String,
    pub(super) progress: Option<i64>,
    pub(super) covered: Option<i64>,
    pub(super) size: Option<i64>,
    pub(super) measured: i64,
    pub(super) due_since: Option<i64>,
    pub(super) price: Option<i64>,
    pub(super) state: String,
    /// The process that sent it. SQLite stores it without hyphens.
    pub(super) owner: Option<Uuid>,
    pub(super) attempts: i64,
    pub(super) sent: Option<i64>,
    pub(super) note: Option<String>,
    pub(super) changed: i64,
}

impl Row {
    /// Returns the id of the loan to which the row belongs.
    pub(super) fn loan(&self) -> Uuid {
        match self {
            Row::Loan(loan) => loan.id,
            Row::Step(step) => step.loan,
            Row::Delivered(delivered) => delivered.loan,
            Row::Doubt(doubt) => doubt.loan,
            Row::Report(report) => report.loan,
        }
    }

    /// Returns the position of the row in its store.
    pub(super) fn position(&self) -> Position {
        let of = |library: LibraryId, id: Uuid| Position {
            library: library.to_string(),
            id: id.to_string(),
            ..Position::start()
        };
        match self {
            Row::Loan(loan) => of(loan.library, loan.id),
            Row::Step(step) if step.loan == ACCESS => step.access_position(),
            Row::Step(step) => Position { number: step.place, ..of(step.library, step.loan) },
            Row::Delivered(row) => Position { file: row.file.clone(), ..of(row.library, row.loan) },
            Row::Doubt(doubt) => of(doubt.library, doubt.loan),
            Row::Report(report) => of(report.library, report.loan),
        }
    }
}
