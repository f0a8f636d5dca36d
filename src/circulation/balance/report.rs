//! The report of a balance, for people and programs.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

pub use crate::telemetry::{FindingAction as Done, FindingKind as Kind};

/// Maximum number of findings in a report; the rest are only counted.
const MAX_REPORTED: usize = 1000;

/// Result of comparing the ledger with Bokbasen's listings.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Report {
    /// When the balance started.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Whether every library was compared and every difference was repaired.
    pub balanced: bool,
    /// One entry for each library.
    pub libraries: Vec<Compared>,
    /// The differences, up to a limit.
    pub findings: Vec<Finding>,
    /// Number of further differences, beyond the limit.
    pub more: usize,
}

/// Comparison of one library.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Compared {
    /// ISIL of the library.
    pub library: String,
    /// Loans begun before this time were not compared.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Number of loans that Bokbasen lists.
    pub listed: usize,
    /// Number of listed loans that another system began.
    pub foreign: usize,
    /// Number of listed loans that were not compared because they changed too recently.
    pub too_recent: usize,
    /// Number of accepted loans in the ledger.
    pub accepted_here: usize,
    /// Why the comparison stopped early.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub failed: Option<String>,
}

/// A difference between the ledger and Bokbasen.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Finding {
    /// Kind of difference.
    pub kind: Kind,
    /// How the difference was handled.
    pub done: Done,
    /// ISIL of the library.
    pub library: String,
    /// ISBN of the title, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub isbn: Option<String>,
    /// Id of the loan in the ledger, if the ledger has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub loan: Option<String>,
    /// Reference of the begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub reference: Option<String>,
    /// Bokbasen's id of the loan.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub lending_id: Option<String>,
    /// Description of the difference for people.
    pub detail: String,
}

impl Report {
    /// Returns the time since which the loans of all libraries were compared; none without a
    /// library.
    pub(super) fn compared_since(&self) -> Option<Timestamp> {
        self.libraries.iter().map(|library| library.since).max()
    }

    /// Creates an empty report.
    pub(super) fn begun(at: Timestamp) -> Report {
        Report { at, balanced: true, libraries: Vec::new(), findings: Vec::new(), more: 0 }
    }

    /// Returns whether the report has room for another finding.
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
