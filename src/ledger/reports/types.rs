//! A usage report as the ledger stores it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::Date;
use uuid::Uuid;

use crate::loan::{Isbn, LibraryId, LoanId, Progress, UnknownName};

/// Defines an enum whose values have a name in the ledger and in the APIs.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum $name {
            $($(#[$value_doc])* $value,)+
        }

        impl $name {
            /// All values.
            pub const ALL: &[$name] = &[$($name::$value),+];

            /// Returns the name in the ledger and in the APIs.
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$value => $text,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $name {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<$name, UnknownName> {
                $name::ALL.iter().copied().find(|value| value.name() == text).ok_or(UnknownName)
            }
        }
    };
}

named! {
    /// How a licence is paid, as Bokbasen names it.
    ReportModel {
        /// A package of loans, which is paid once.
        Package = "PACKAGE",
        /// A loan that is paid once a part of the title is read.
        PayPerLoan = "PAY_PER_LOAN",
    }
}

named! {
    /// The state of a report.
    ReportState {
        /// It will be sent.
        Due = "due",
        /// A process has claimed it, and may have sent it.
        Sending = "sending",
        /// Bokbasen has acknowledged it.
        Reported = "reported",
        /// It may have arrived: a person finds out.
        Unknown = "unknown",
        /// Bokbasen refused it, and has not recorded it.
        Rejected = "rejected",
        /// It has no price. It becomes due when the price list has one.
        Unpriced = "unpriced",
        /// The loan is over, and it cannot be said how far the title was read.
        Unmeasured = "unmeasured",
        /// Bokbasen named no licence, so it cannot be said which package it is.
        Unidentified = "unidentified",
        /// It is not sent: a person decided so, or too little was read.
        NotReported = "not-reported",
    }
}

impl ReportState {
    /// The states in which a person must look at the report.
    pub const FOR_A_PERSON: [ReportState; 5] = [
        ReportState::Unknown,
        ReportState::Rejected,
        ReportState::Unpriced,
        ReportState::Unmeasured,
        ReportState::Unidentified,
    ];

    /// Returns whether a person must look at the report.
    pub fn is_for_a_person(self) -> bool {
        ReportState::FOR_A_PERSON.contains(&self)
    }

    /// Returns whether nothing changes the report any more.
    pub fn is_settled(self) -> bool {
        matches!(self, ReportState::Reported | ReportState::NotReported)
    }
}

named! {
    /// What shows that a report is due.
    Evidence {
        /// Bokbasen accepted a loan under the licence.
        Accepted = "accepted",
        /// The app reported the progress.
        Progress = "progress",
        /// The delivered bytes, each counted once, of the size of the title.
        Coverage = "coverage",
        /// There is none.
        None = "none",
    }
}

/// How far a title was read under a loan, and how that is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Measure {
    /// What the measure rests on.
    pub evidence: Evidence,
    /// The part that was read, rounded down; none without evidence.
    pub progress: Option<Progress>,
    /// The number of delivered bytes, each counted once.
    pub covered: Option<u64>,
    /// The size of the title, in bytes.
    pub size: Option<u64>,
    /// When it was measured.
    pub at: Timestamp,
}

/// A report in the books.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// The loan that made it due. It identifies the report.
    pub loan: LoanId,
    /// How the licence is paid.
    pub model: ReportModel,
    /// What is reported: the licence of a package, or the loan. Unique in the library and model.
    pub subject: String,
    /// The title.
    pub isbn: Isbn,
    /// The licence of the loan, if Bokbasen named it.
    pub licence_id: Option<String>,
    /// The type of the licence.
    pub licence_type: String,
    /// The day of `due_since` in Europe/Oslo. Bokbasen documents no more than that a report has a
    /// day. So a report that is sent late keeps the day of its use: a later one would claim a use
    /// that did not occur then, and could move it to another invoice. If Bokbasen refuses a day
    /// as too old, it answers 400, and a person decides.
    pub date: Date,
    /// When the fact occurred that made it due, as far as it is known: the acceptance of the loan
    /// for a package, or else the measure that first showed it, but no later than the loan's end.
    /// It never changes, so it shows what became due before the ledger was restored.
    pub due_since: Timestamp,
    /// The evidence.
    pub measure: Measure,
    /// The price, in øre.
    pub price: Option<u64>,
    /// Its state.
    pub state: ReportState,
    /// The process that claimed it last.
    pub owner: Option<Arc<str>>,
    /// The number of claims.
    pub attempts: u64,
    /// When it was claimed last.
    pub sent: Option<Timestamp>,
    /// What is known of the last attempt, or what a person noted.
    pub note: Option<String>,
    /// When it last changed.
    pub changed: Timestamp,
}

/// A change of a report's state.
#[derive(Clone, Debug)]
pub struct ReportStep {
    /// The report.
    pub loan: LoanId,
    /// The states from which it is allowed.
    pub from: &'static [ReportState],
    /// The state after it.
    pub to: ReportState,
    /// Whether the owner claims the report. If not, only the owner's report is changed.
    pub claims: bool,
    /// The process that sends or has sent the report; none if that does not matter.
    pub owner: Option<Arc<str>>,
    /// The number of claims before the step; none if that does not matter.
    pub attempts: Option<u64>,
    /// The price, in øre, if it is now known.
    pub price: Option<u64>,
    /// The evidence, if there is a new one.
    pub measure: Option<Measure>,
    /// What is known, for people.
    pub note: Option<String>,
    /// The cause of the step in the audit trail.
    pub by: &'static str,
}

impl ReportStep {
    /// Creates a step that changes the state only.
    pub fn new(
        loan: LoanId,
        from: &'static [ReportState],
        to: ReportState,
        by: &'static str,
    ) -> ReportStep {
        let (owner, attempts, price, measure, note) = (None, None, None, None, None);
        ReportStep { loan, from, to, claims: false, owner, attempts, price, measure, note, by }
    }
}

/// The filters of a listing. A field that is none does not filter.
#[derive(Clone, Debug, Default)]
pub struct ReportFilter {
    /// Only reports of this library.
    pub library: Option<LibraryId>,
    /// Only reports from this day on.
    pub from: Option<Date>,
    /// Only reports before this day.
    pub before: Option<Date>,
    /// Only reports that a person must look at.
    pub for_a_person: bool,
    /// Only reports after this one.
    pub after: Option<ReportPosition>,
    /// The maximum number of reports returned.
    pub limit: u32,
}

/// The position of a report in the order of a listing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReportPosition {
    /// The day of the report.
    pub date: Date,
    /// Its library.
    pub library: LibraryId,
    /// The loan that made it due.
    pub loan: Uuid,
}

/// An attempt to send a report, which a process has claimed.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub(super) loan: LoanId,
    /// The number of claims, this one included.
    pub(super) number: u64,
    pub(super) owner: Arc<str>,
}

impl Report {
    /// Returns the report of a package that was in use before `[reports] since`: it is never sent,
    /// and its row keeps a later loan from making the package due.
    #[must_use]
    pub fn of_known_package(self) -> Report {
        let note = Some("the package was in use before [reports] since".to_owned());
        Report { state: ReportState::NotReported, note, ..self }
    }

    /// Returns the licence of a package that will be sent, if Bokbasen named it.
    pub(in crate::ledger) fn new_package(&self) -> Option<&str> {
        let is_new = self.model == ReportModel::Package && !self.state.is_settled();
        self.licence_id.as_deref().filter(|_| is_new)
    }

    /// Describes the report for the audit trail, without a line break.
    pub(in crate::ledger) fn describe(&self) -> String {
        let mut text = format!("{} {}", self.model, self.state);
        if let Some(price) = self.price {
            text.push_str(&format!(", {}.{:02} NOK", price / 100, price % 100));
        }
        text.push_str(&format!(", {}", self.date));
        let Measure { evidence, progress, covered, size, .. } = self.measure;
        if let Some(progress) = progress {
            let hundredths = progress.hundredths();
            text.push_str(&format!(", read {}.{:02} %", hundredths / 100, hundredths % 100));
        }
        text.push_str(&format!(", by {evidence}"));
        if let (Some(covered), Some(size)) = (covered, size) {
            text.push_str(&format!(" of {covered} of {size} bytes"));
        }
        if let Some(note) = &self.note {
            text.push_str(": ");
            text.push_str(note);
        }
        text
    }
}
