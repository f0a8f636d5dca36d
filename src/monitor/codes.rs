//! The kinds of problems: how bad each is, for how long it must last, and what to do.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// A person should look at it today.
    Warning,
    /// Readers or loans are affected, or soon will be.
    Critical,
}

/// How well a component works.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[schema(as = StatusLevel)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// It works.
    #[default]
    Ok,
    /// It works for some, or late.
    Degraded,
    /// It does not work.
    Down,
}

/// How a problem affects readers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Impact {
    /// Files under loans that have begun.
    pub(crate) reading: Level,
    /// New loans.
    pub(crate) borrowing: Level,
    /// Returns.
    pub(crate) returning: Level,
}

/// Who sees a problem.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Scope {
    /// The gate that has it.
    Node,
    /// Every gate of a cluster.
    Cluster,
}

/// Defines the codes, each with its name, the time that it must last, whether it concerns the
/// whole cluster, and what to do.
macro_rules! codes {
    ($($code:ident = $name:literal, $hold:literal s, $scope:ident, $advice:literal;)*) => {
        /// The kind of a problem. Its name never changes.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub(crate) enum Code {
            $(#[doc = $name] $code,)*
        }

        impl Code {
            /// All codes.
            pub(crate) const ALL: &[Code] = &[$(Code::$code,)*];

            /// Returns the name, which is also the anchor in the runbook.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Code::$code => $name,)* }
            }

            /// Returns the code with this name.
            pub(super) fn parse(name: &str) -> Option<Code> {
                Code::ALL.iter().copied().find(|code| code.name() == name)
            }

            /// Returns how long the condition must last before it is a problem.
            pub(super) fn hold(self) -> Duration {
                match self { $(Code::$code => Duration::from_secs($hold),)* }
            }

            /// Returns whether every gate of a cluster sees the same problem.
            pub(super) fn is_of_cluster(self) -> bool {
                match self { $(Code::$code => Scope::$scope == Scope::Cluster,)* }
            }

            /// Returns what to do, as a sentence.
            pub(crate) fn advice(self) -> &'static str {
                match self { $(Code::$code => $advice,)* }
            }
        }
    };
}

codes! {
    BeginsClosed = "begins-closed", 10 s, Cluster,
        "Compare the database with Bokbasen, and run `loangate ledger reconcile`.";
    BooksUnbalanced = "books-unbalanced", 0 s, Node,
        "Read the report of the last balance, and decide about each finding that was reported.";
    BreakerOpen = "breaker-open", 60 s, Node,
        "Contact Bokbasen, or check the network to it. The gate retries.";
    CertificateExpires = "certificate-expires", 0 s, Node,
        "Renew the certificate. The gate loads it by itself.";
    CertificateInvalid = "certificate-invalid", 0 s, Node,
        "Install a valid certificate. The gate loads it by itself.";
    CertificateOrders = "certificate-orders", 0 s, Node,
        "Make what the sentence names right. The gate orders again at the time that it names.";
    ClockSkew = "clock-skew", 10 s, Node,
        "Set the clock of this machine by NTP.";
    DiskFilling = "disk-filling", 30 s, Node,
        "Free space on the disk of the ledger, or enlarge it.";
    EndsDelayed = "ends-delayed", 60 s, Node,
        "Check whether Bokbasen answers returns. The gate goes on sending them.";
    EndsOverdue = "ends-overdue", 0 s, Node,
        "Ask Bokbasen about these loans; they have end_overdue in the support API.";
    FeedStale = "feed-stale", 10 s, Node,
        "Check the database of the ledger, and the network to it.";
    LateBegin = "late-begin", 0 s, Node,
        "Find out what suspended the machine that began a loan too late.";
    LeaseLost = "lease-lost", 10 s, Node,
        "Check the database of the ledger, and the network to it.";
    LedgerClock = "ledger-clock", 10 s, Node,
        "Set the clocks of this machine and of the database by NTP.";
    LedgerDamaged = "ledger-damaged", 0 s, Node,
        "Run `loangate ledger check`, and restore what it names from a backup.";
    LedgerMoved = "ledger-moved", 0 s, Cluster,
        "Start the gates with the ledger that the log names.";
    LedgerUnreadable = "ledger-unreadable", 10 s, Node,
        "Check the disk or the database of the ledger.";
    LedgerUnwritable = "ledger-unwritable", 10 s, Node,
        "Check the disk or the database of the ledger.";
    LendingBreach = "lending-breach", 0 s, Node,
        "Ask Bokbasen: its responses violate its API. The log has the loans.";
    LendingPaused = "lending-paused", 0 s, Cluster,
        "Ask who paused it: `loangate lending list`. `loangate lending resume` ends it.";
    LendingUnavailable = "lending-unavailable", 30 s, Node,
        "Check Bokbasen's service, and the network and the login to it.";
    LoansUndecided = "loans-undecided", 60 s, Node,
        "Check whether Bokbasen answers. The gate settles these loans when it does.";
    LoginKeys = "login-keys", 10 s, Node,
        "Check the login service, and the network to it: `loangate check --online`.";
    NodeMissing = "node-missing", 10 s, Node,
        "Find out why the gate stopped, and start it again.";
    OriginFailing = "origin-failing", 60 s, Node,
        "Check the storage, and the network to it.";
    ReportsForAPerson = "reports-for-a-person", 0 s, Cluster,
        "List them with `loangate report`, and settle each with `loangate report resolve`.";
    ReportsLate = "reports-late", 0 s, Cluster,
        "Read in the log why usage reports are not sent, and check Bokbasen's Reporting API.";
    TaskRestarted = "task-restarted", 0 s, Node,
        "Report the panic, with the log, as an error of loangate.";
}

impl Code {
    /// Returns how a problem of this kind affects readers.
    pub(super) fn impact(self, severity: Severity) -> Impact {
        use Level::{Degraded, Down, Ok};
        let is_critical = severity == Severity::Critical;
        let [reading, borrowing, returning] = match self {
            Code::BeginsClosed | Code::LeaseLost | Code::LendingUnavailable => [Ok, Down, Degraded],
            Code::ClockSkew | Code::LedgerClock if is_critical => [Ok, Down, Degraded],
            Code::BreakerOpen => [Ok, Degraded, Degraded],
            Code::CertificateInvalid | Code::LedgerMoved => [Down, Down, Down],
            Code::CertificateOrders if is_critical => [Down, Down, Down],
            Code::EndsDelayed | Code::EndsOverdue => [Ok, Ok, Degraded],
            Code::FeedStale if is_critical => [Down, Down, Down],
            Code::FeedStale => [Degraded, Degraded, Degraded],
            Code::LedgerUnreadable => [Degraded, Down, Down],
            Code::LedgerUnwritable => [Degraded, Down, Down],
            Code::LendingPaused | Code::LoansUndecided => [Ok, Degraded, Ok],
            Code::LoginKeys if is_critical => [Degraded, Degraded, Degraded],
            Code::OriginFailing => [Degraded, Ok, Ok],
            _ => [Ok, Ok, Ok],
        };
        Impact { reading, borrowing, returning }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runbook_has_a_heading_for_each_code_and_for_alerts_only() {
        let runbook = include_str!("../../docs/runbook.md");
        let headings: Vec<&str> =
            runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert!(headings.is_sorted(), "{headings:?}");
        let codes: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert!(codes.iter().all(|code| headings.contains(code)), "{headings:?}");
        let alerts = include_str!("../../deploy/prometheus/alerts.yml");
        for heading in headings.iter().filter(|heading| !codes.contains(heading)) {
            assert!(alerts.contains(&format!("docs/runbook.md#{heading}'")), "{heading}");
        }
    }
}
