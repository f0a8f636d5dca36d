//! Metrics of loans: their events, the decisions in flight, the brake, and ends that wait.

use metrics::{SharedString, Unit};

use super::Metrics;
use super::family::{Definition, Family};
use super::label::{Label, LabelValues, label_enum};
use crate::loan::EventKind;

pub(super) const LOAN_EVENTS: Family<LoanEvent> = Family::counter(
    "loangate_loan_events_total",
    Unit::Count,
    "Loan events written to the ledger, by event",
);
const FLIGHTS: Family<()> = Family::gauge(
    "loangate_flights",
    Unit::Count,
    "Decisions in flight that a caller waits for (limit: lending.flights)",
);
const FLIGHTS_LIMIT: Family<()> = Family::gauge(
    "loangate_flights_limit",
    Unit::Count,
    "Decisions that may be in flight (lending.flights)",
);
const CACHED: Family<()> = Family::gauge(
    "loangate_cached_decisions",
    Unit::Count,
    "Decisions about a reader and a title in the cache, 1,000,000 at most",
);
const FLIGHTS_REFUSED: Family<()> = Family::counter(
    "loangate_flights_refused_total",
    Unit::Count,
    "Requests refused as overloaded because lending.flights decisions were in flight",
);
const BRAKE: Family<(BrakeLimit, BrakeAction)> = Family::counter(
    "loangate_brake_total",
    Unit::Count,
    "Loan requests that reached a brake limit, by limit and mode",
);
pub(super) const ENDS_WAITING: Family<()> = Family::gauge(
    "loangate_ends_waiting",
    Unit::Count,
    "Ended loans whose end this process sends and Bokbasen has not acknowledged",
);
pub(super) const ENDS_OVERDUE: Family<()> = Family::gauge(
    "loangate_ends_overdue",
    Unit::Count,
    "Ended loans whose end this process sends and that has waited for a day: an alarm",
);
pub(super) const LATE_BEGINS: Family<LateBeginFinder> = Family::counter(
    "loangate_late_begins_total",
    Unit::Count,
    "Loans that a process without a lease began at Bokbasen, and that were ended there: an alarm",
);

pub(super) const DEFINITIONS: [Definition; 9] = [
    LOAN_EVENTS.definition,
    FLIGHTS.definition,
    FLIGHTS_LIMIT.definition,
    CACHED.definition,
    FLIGHTS_REFUSED.definition,
    BRAKE.definition,
    ENDS_WAITING.definition,
    ENDS_OVERDUE.definition,
    LATE_BEGINS.definition,
];

/// A counted event in the life of a loan.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LoanEvent {
    /// The intent of a loan was written.
    Intended,
    /// A second loan of one reference was found at Bokbasen.
    Duplicate,
    /// An event was applied to the loan.
    Applied(EventKind),
}

impl LoanEvent {
    fn name(self) -> &'static str {
        match self {
            LoanEvent::Intended => "intended",
            LoanEvent::Duplicate => "duplicate",
            LoanEvent::Applied(event) => event.name(),
        }
    }
}

impl Label for LoanEvent {
    const KEY: &'static str = "event";

    fn values() -> LabelValues {
        let applied = EventKind::ALL.into_iter().map(LoanEvent::Applied);
        let all = [LoanEvent::Intended, LoanEvent::Duplicate].into_iter().chain(applied);
        LabelValues::Fixed(all.map(LoanEvent::name).collect())
    }

    fn value(&self) -> SharedString {
        SharedString::const_str(self.name())
    }
}

label_enum! {
    /// A limit of the brake. The name is the key in `[brake]`.
    pub enum BrakeLimit: "limit" {
        /// New loans of a library in an hour.
        LibraryPerHour = "library_per_hour",
        /// New loans of a library in a day.
        LibraryPerDay = "library_per_day",
        /// New loans of a borrower in an hour.
        BorrowerPerHour = "borrower_per_hour",
        /// Begins of a borrower, including refused ones.
        AttemptsPerBorrower = "attempts_per_borrower_per_hour",
        /// Begins of a library, including refused ones.
        AttemptsPerLibrary = "attempts_per_library_per_hour",
    }
}

label_enum! {
    /// How a late begin was found.
    pub enum LateBeginFinder: "finder" {
        /// The process that sent it read the response.
        Sender = "sender",
        /// A later search for its reference.
        Search = "search",
    }
}

label_enum! {
    /// What the brake does with a loan request that reached a limit.
    pub enum BrakeAction: "mode" {
        /// Permits the request, and logs a warning.
        Shadow = "shadow",
        /// Refuses the request.
        Enforce = "enforce",
    }
}

impl Metrics {
    /// Counts a loan event written to the ledger.
    pub fn loan(&self, event: LoanEvent) {
        self.count(&LOAN_EVENTS, event);
    }

    /// Records the number of flights that a caller waits for.
    pub fn flights(&self, count: usize) {
        self.set(&FLIGHTS, (), f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
    }

    /// Records how many flights may run.
    pub fn flights_limit(&self, limit: usize) {
        self.set(&FLIGHTS_LIMIT, (), limit as f64);
    }

    /// Records the number of cached decisions.
    pub fn cached_decisions(&self, count: u64) {
        self.set(&CACHED, (), count as f64);
    }

    /// Counts a request that was refused at the limit of flights.
    pub fn flight_refused(&self) {
        self.count(&FLIGHTS_REFUSED, ());
    }

    /// Counts a loan request that reached a brake limit.
    pub fn brake(&self, limit: BrakeLimit, action: BrakeAction) {
        self.count(&BRAKE, (limit, action));
    }

    /// Counts a late begin.
    pub fn late_begin(&self, finder: LateBeginFinder) {
        self.count(&LATE_BEGINS, finder);
    }

    /// Records the number of unacknowledged ends, and of those that have waited for a day.
    pub fn ends_waiting(&self, waiting: u64, overdue: u64) {
        for (family, count) in [(&ENDS_WAITING, waiting), (&ENDS_OVERDUE, overdue)] {
            self.set(family, (), f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
        }
    }
}
