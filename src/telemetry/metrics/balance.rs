//! Metrics of the balance, the comparison of the ledger with Bokbasen's listings.
//!
//! Its labels are also fields of the balance's report.

use jiff::Timestamp;
use metrics::Unit;
use serde::Serialize;
use utoipa::ToSchema;

use super::Metrics;
use super::family::{Definition, Family};
use super::label::label_enum;

const FINDINGS: Family<(FindingKind, FindingAction)> = Family::counter(
    "loangate_balance_findings_total",
    Unit::Count,
    "Differences between the ledger and Bokbasen, by kind and action",
);
const LAST: Family<()> = Family::gauge(
    "loangate_balance_last_seconds",
    Unit::Seconds,
    "Time of the last balance, since the epoch",
);
pub(super) const UNBALANCED: Family<()> = Family::gauge(
    "loangate_balance_unbalanced",
    Unit::Count,
    "1 if the last balance failed or left a difference for an operator",
);

pub(super) const DEFINITIONS: [Definition; 3] =
    [FINDINGS.definition, LAST.definition, UNBALANCED.definition];

label_enum! {
    /// Kind of difference.
    #[derive(Serialize, ToSchema)]
    #[serde(rename_all = "kebab-case")]
    #[schema(as = Kind)]
    pub enum FindingKind: "kind" {
        /// The loan has a reference of this program, but is not in the ledger.
        UnknownHere = "unknown-here",
        /// The loan is accepted here, and Bokbasen does not know it.
        UnknownThere = "unknown-there",
        /// The loan is accepted here, and has ended at Bokbasen.
        EndedThere = "ended-there",
        /// The loan has ended here, and is live at Bokbasen.
        LiveThere = "live-there",
        /// Several loans are live at Bokbasen under one reference.
        TwiceThere = "twice-there",
        /// The loan is accepted on both sides, with different due times.
        DueDiffers = "due-differs",
        /// The loan is accepted here and by id, but missing in the listing.
        NotListed = "not-listed",
        /// The loan has a status that this program does not know.
        UnknownStatus = "unknown-status",
        /// The listing has the loan without a reference, which breaks the protocol.
        NoReference = "no-reference",
        /// The listing differs from the loan as it was begun, or as Bokbasen returns it by id.
        RowDiffers = "row-differs",
        /// The listing has the loan twice, with different contents.
        ListedTwice = "listed-twice",
        /// A row of the listing cannot be read.
        UnreadableRow = "unreadable-row",
    }
}

label_enum! {
    /// How a difference was handled.
    #[derive(Serialize, ToSchema)]
    #[serde(rename_all = "kebab-case")]
    #[schema(as = Done)]
    pub enum FindingAction: "done" {
        /// Only reported: a person must check it.
        Reported = "reported",
        /// The loan was ended in the ledger, and opens nothing any more.
        EndedHere = "ended-here",
        /// The loan was ended at Bokbasen.
        EndedThere = "ended-there",
    }
}

impl Metrics {
    /// Counts a difference that a balance found, and its action.
    pub fn balance_finding(&self, kind: FindingKind, action: FindingAction) {
        self.count(&FINDINGS, (kind, action));
    }

    /// Records a finished balance, and whether it left no difference for an operator.
    pub fn balanced(&self, at: Timestamp, balanced: bool) {
        self.set(&LAST, (), at.duration_since(Timestamp::UNIX_EPOCH).as_secs_f64());
        self.set(&UNBALANCED, (), if balanced { 0.0 } else { 1.0 });
    }

    /// Records a failed balance.
    pub fn balance_failed(&self) {
        self.set(&UNBALANCED, (), 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_and_metrics_use_the_same_names() {
        for kind in FindingKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        for action in FindingAction::ALL {
            assert_eq!(serde_json::to_value(action).unwrap(), action.name());
        }
    }
}
