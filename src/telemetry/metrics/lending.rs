//! Metrics of calls to Bokbasen and of its clock.

use std::time::Duration;

use metrics::Unit;

use super::Metrics;
use super::family::{Definition, Family};
use super::label::label_enum;

pub(super) const CALLS: Family<(LendingCall, CallOutcome)> = Family::counter(
    "loangate_lending_calls_total",
    Unit::Count,
    "Calls to Bokbasen, by call and outcome",
);
pub(super) const CALL_SECONDS: Family<LendingCall> =
    Family::histogram("loangate_lending_call_seconds", "Duration of a call to Bokbasen, by call");
pub(super) const BREACHES: Family<Breach> = Family::counter(
    "loangate_lending_breaches_total",
    Unit::Count,
    "Loans in Bokbasen's responses that violate its API, by breach: an alarm",
);
pub(super) const BREAKER_OPEN: Family<CallKind> = Family::gauge(
    "loangate_lending_breaker_open",
    Unit::Count,
    "1 while calls of this kind to Bokbasen are suspended",
);
const CLOCK_OFFSET: Family<()> = Family::gauge(
    "loangate_lending_clock_offset_seconds",
    Unit::Seconds,
    "How far Bokbasen's clock is ahead of this machine's; negative if it is behind",
);
pub(super) const CLOCK_ALARM: Family<()> = Family::gauge(
    "loangate_lending_clock_alarm",
    Unit::Count,
    "1 if the clocks differ by a minute; 2 if by 15 minutes, when no loan is begun",
);

pub(super) const DEFINITIONS: [Definition; 6] = [
    CALLS.definition,
    CALL_SECONDS.definition,
    BREACHES.definition,
    BREAKER_OPEN.definition,
    CLOCK_OFFSET.definition,
    CLOCK_ALARM.definition,
];

label_enum! {
    /// A call of Bokbasen's API.
    pub enum LendingCall: "call" {
        /// Begins a loan.
        Begin = "begin",
        /// Gets one loan by Bokbasen's id.
        Loan = "loan",
        /// Lists the loans of one reference.
        Find = "find",
        /// Lists the loans of a library.
        List = "list",
        /// Gets a library's licences for a title.
        Availability = "availability",
        /// Returns a loan.
        Return = "return",
        /// Cancels a loan.
        Cancel = "cancel",
        /// Reports a loan that is paid by use, or a package.
        Report = "report",
    }
}

label_enum! {
    /// The result of a call to Bokbasen.
    pub enum CallOutcome: "outcome" {
        /// Bokbasen answered with a 2xx status.
        Ok = "ok",
        /// The call was certainly not sent.
        NotSent = "not_sent",
        /// Bokbasen answered with a 4xx status, and did nothing.
        Rejected = "rejected",
        /// Bokbasen may have executed the call.
        Unknown = "unknown",
    }
}

label_enum! {
    /// A way in which a response of Bokbasen breaks its API.
    pub enum Breach: "breach" {
        /// A loan has a status that the API does not have.
        UnknownStatus = "unknown_status",
        /// A listed loan has no reference.
        NoReference = "no_reference",
        /// A listed loan has another reference than the requested one.
        OtherReference = "other_reference",
    }
}

label_enum! {
    /// A kind of call to Bokbasen. Each has its own limits and breaker. The order is that in which
    /// they get a free slot.
    pub enum CallKind: "kind" {
        /// Begins a loan; a reader waits for it.
        Begin = "begin",
        /// Gets one loan by its id.
        Poll = "poll",
        /// Returns or cancels a loan.
        End = "end",
        /// Lists loans or gets availability.
        Read = "read",
    }
}

impl Metrics {
    /// Records a finished call to Bokbasen, with its outcome and duration.
    pub fn lending_call(&self, call: LendingCall, outcome: CallOutcome, duration: Duration) {
        self.count(&CALLS, (call, outcome));
        self.record_duration(&CALL_SECONDS, call, duration);
    }

    /// Counts a loan in a response of Bokbasen that violates its API.
    pub fn lending_breach(&self, breach: Breach) {
        self.count(&BREACHES, breach);
    }

    /// Records whether calls of this kind to Bokbasen are suspended.
    pub fn lending_breaker(&self, kind: CallKind, open: bool) {
        self.set(&BREAKER_OPEN, kind, if open { 1.0 } else { 0.0 });
    }

    /// Records how many seconds Bokbasen's clock is ahead, and the level of the alarm.
    pub fn lending_clock(&self, ahead: f64, alarm: u8) {
        self.set(&CLOCK_OFFSET, (), ahead);
        self.set(&CLOCK_ALARM, (), f64::from(alarm));
    }
}
