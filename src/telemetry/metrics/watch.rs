//! Metrics of what the gate's own watch finds, as of its last look: problems, how well readers are
//! served, the oldest end, and the disk of the ledger.

use std::time::Duration;

use metrics::{SharedString, Unit};

use super::Metrics;
use super::family::{Definition, Family};
use super::label::{Label, LabelValues, label_enum};

const PROBLEMS: Family<(ProblemCode, ProblemSeverity)> = Family::gauge(
    "loangate_problems",
    Unit::Count,
    "Problems of this gate that need a person now, by code and severity: an alarm",
);
const SERVICE_STATUS: Family<Service> = Family::gauge(
    "loangate_service_status",
    Unit::Count,
    "How well this gate serves readers: 0 as it should, 1 some or late, 2 none (an alarm)",
);
const OLDEST_END: Family<()> = Family::gauge(
    "loangate_ends_oldest_age_seconds",
    Unit::Seconds,
    "Age of the oldest end in the ledger that Bokbasen has not acknowledged; 0 if there is none",
);
const DISK_FREE: Family<()> = Family::gauge(
    "loangate_ledger_disk_free_bytes",
    Unit::Bytes,
    "Free space on the disk of a ledger in SQLite",
);
const DISK_SIZE: Family<()> = Family::gauge(
    "loangate_ledger_disk_size_bytes",
    Unit::Bytes,
    "Size of the disk of a ledger in SQLite",
);

pub(super) const DEFINITIONS: [Definition; 5] = [
    PROBLEMS.definition,
    SERVICE_STATUS.definition,
    OLDEST_END.definition,
    DISK_FREE.definition,
    DISK_SIZE.definition,
];

/// The code of a problem, which the watch defines.
struct ProblemCode(&'static str);

impl Label for ProblemCode {
    const KEY: &'static str = "code";

    fn values() -> LabelValues {
        LabelValues::Configured("a heading of [the runbook](runbook.md)")
    }

    fn value(&self) -> SharedString {
        SharedString::const_str(self.0)
    }
}

label_enum! {
    /// How bad a problem is.
    pub enum ProblemSeverity: "severity" {
        /// A person should look at it today.
        Warning = "warning",
        /// Readers or loans are affected, or soon will be.
        Critical = "critical",
    }
}

label_enum! {
    /// What a gate does for readers.
    pub enum Service: "service" {
        /// Files under loans that have begun.
        Reading = "reading",
        /// New loans.
        Borrowing = "borrowing",
        /// Returns.
        Returning = "returning",
    }
}

/// How well a service works, with its value in the metrics.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ServiceStatus {
    /// It works.
    Ok = 0,
    /// It works for some, or late.
    Degraded = 1,
    /// It does not work.
    Down = 2,
}

impl Metrics {
    /// Records how many problems of this code and severity there are.
    pub fn problems(&self, code: &'static str, severity: ProblemSeverity, count: usize) {
        let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        self.set(&PROBLEMS, (ProblemCode(code), severity), count);
    }

    /// Records how well a service works.
    pub fn service_status(&self, service: Service, status: ServiceStatus) {
        self.set(&SERVICE_STATUS, service, f64::from(status as u8));
    }

    /// Records the age of the oldest unacknowledged end; zero if there is none.
    pub fn oldest_end(&self, age: Duration) {
        self.set(&OLDEST_END, (), age.as_secs_f64());
    }

    /// Records the free and all bytes of the ledger's disk.
    pub fn ledger_disk(&self, free: u64, size: u64) {
        self.set(&DISK_FREE, (), free as f64);
        self.set(&DISK_SIZE, (), size as f64);
    }
}
