//! What a balance came to, for people and programs.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

/// How many findings a report has one by one; the rest are counted.
const MAX_REPORTED: usize = 1000;

/// The ledger beside Bokbasen's listing.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Report {
    /// When it was begun.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Whether every library could be compared, and nothing is left that was not repaired.
    pub balanced: bool,
    /// What was compared.
    pub libraries: Vec<Compared>,
    /// What differed.
    pub findings: Vec<Finding>,
    /// How many more differed than are told.
    pub more: usize,
}

/// One library's part.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Compared {
    /// Its ISIL.
    pub library: String,
    /// Loans that were begun earlier were not looked at.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// How many loans Bokbasen lists.
    pub there: usize,
    /// How many of those were begun by someone else.
    pub foreign: usize,
    /// How many were left out because they change at the moment.
    pub young: usize,
    /// How many accepted loans the ledger has.
    pub accepted_here: usize,
    /// Why it could not be compared to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub failed: Option<String>,
}

/// One difference.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Finding {
    /// What differs.
    pub kind: Kind,
    /// What was done about it.
    pub done: Done,
    /// Whose loan.
    pub library: String,
    /// Of which title, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub isbn: Option<String>,
    /// Its id in the ledger, where it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub loan: Option<String>,
    /// The reference that it was begun with.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub reference: Option<String>,
    /// Bokbasen's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub lending_id: Option<String>,
    /// In words.
    pub detail: String,
}

/// What differs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It bears a reference of this program, and the ledger does not have it.
    UnknownHere,
    /// It is accepted here, and Bokbasen does not know it.
    UnknownThere,
    /// It is accepted here, and has ended there.
    EndedThere,
    /// It has ended here, and lives there.
    LiveThere,
    /// Several live there under one reference.
    TwiceThere,
    /// Both have it as accepted, with another due time.
    DueDiffers,
    /// It is accepted here and by id, and the listing lacks it.
    NotListed,
    /// It has a status that this program does not know.
    UnknownStatus,
    /// The listing shows it without a reference, which breaks the protocol.
    NoReference,
    /// The listing shows it otherwise than it was begun, or than Bokbasen shows it by id.
    RowDiffers,
    /// The listing shows it twice, in two ways.
    ListedTwice,
    /// A row of the listing cannot be read.
    UnreadableRow,
}

impl Kind {
    /// Its name, as the report writes it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::UnknownHere => "unknown-here",
            Kind::UnknownThere => "unknown-there",
            Kind::EndedThere => "ended-there",
            Kind::LiveThere => "live-there",
            Kind::TwiceThere => "twice-there",
            Kind::DueDiffers => "due-differs",
            Kind::NotListed => "not-listed",
            Kind::UnknownStatus => "unknown-status",
            Kind::NoReference => "no-reference",
            Kind::RowDiffers => "row-differs",
            Kind::ListedTwice => "listed-twice",
            Kind::UnreadableRow => "unreadable-row",
        }
    }
}

/// What was done about a difference.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Done {
    /// Nothing: a person has to look.
    Reported,
    /// It was ended in the ledger, and opens nothing any more.
    EndedHere,
    /// It was ended at Bokbasen.
    EndedThere,
}

impl Done {
    /// Its name, as the report writes it.
    pub fn name(self) -> &'static str {
        match self {
            Done::Reported => "reported",
            Done::EndedHere => "ended-here",
            Done::EndedThere => "ended-there",
        }
    }
}

impl Report {
    /// A report of nothing yet.
    pub(super) fn begun(at: Timestamp) -> Report {
        Report { at, balanced: true, libraries: Vec::new(), findings: Vec::new(), more: 0 }
    }

    /// Whether another finding is reported one by one.
    pub(super) fn has_room(&self) -> bool {
        self.findings.len() < MAX_REPORTED
    }

    pub(super) fn found(&mut self, finding: Finding) {
        self.balanced &= finding.done != Done::Reported;
        if self.has_room() { self.findings.push(finding) } else { self.more += 1 }
    }

    pub(super) fn compared(&mut self, compared: Compared) {
        self.balanced &= compared.failed.is_none();
        self.libraries.push(compared);
    }
}
