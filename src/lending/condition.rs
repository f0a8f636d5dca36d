//! Whether calls are sent at the moment: breakers, clocks, and the reason of a failure.

use std::time::Duration;

use jiff::SignedDuration;

use super::{Bokbasen, CallKind, OutageReason, Passage};

/// The retry delay for callers while the clock is off.
const CLOCK_RETRY_DELAY: Duration = Duration::from_secs(5);

impl Bokbasen {
    /// Returns how long begins are held back, because too many failed or the clock is off; none
    /// while begins are sent.
    pub fn closed_for(&self) -> Option<Duration> {
        if self.clock_is_off() {
            return Some(CLOCK_RETRY_DELAY);
        }
        match self.passage(CallKind::Begin, false) {
            Passage::Closed(wait) => Some(wait),
            Passage::Open | Passage::Trial => None,
        }
    }

    /// Whether our clock differs from Bokbasen's by more than 15 minutes. No loan is begun and no
    /// expiry is registered then.
    pub fn clock_is_off(&self) -> bool {
        self.transport.skew.is_off()
    }

    /// Whether the clocks were compared, or cannot be compared.
    pub fn clock_is_known(&self) -> bool {
        self.transport.skew.is_known()
    }

    /// Whether loans that seem due may be ended: as far as is known, the clock agrees with
    /// Bokbasen's.
    pub fn clock_can_end_loans(&self) -> bool {
        !self.clock_is_off() && self.clock_is_known()
    }

    /// Requests Bokbasen's time if no response carried it recently.
    pub async fn compare_clocks(&self) {
        if self.transport.skew.is_stale() {
            self.transport.request_time().await;
        }
    }

    /// Whether calls of this kind are sent. `failed_last` means that the previous call about the
    /// same loan failed; such calls are tried later than others.
    pub fn passage(&self, kind: CallKind, failed_last: bool) -> Passage {
        self.transport.guard.passage(kind, failed_last)
    }

    /// Returns the most calls of this kind in flight at once; further calls wait.
    pub fn most_at_once(&self, kind: CallKind) -> usize {
        self.transport.guard.max_in_flight(kind)
    }

    /// Divides `lending.concurrency` among this number of processes, this one included. Each has at
    /// least one call.
    pub fn share_concurrency(&self, processes: usize) {
        self.transport.guard.share(processes);
    }

    /// Whether a breaker is open for begins or polls, the calls that a new loan needs.
    pub fn is_failing(&self) -> bool {
        self.transport.is_failing()
    }

    /// Returns the reason why calls fail at the moment; none while Bokbasen answers.
    pub fn trouble(&self) -> Option<OutageReason> {
        self.transport.trouble()
    }

    /// Returns the reason of the last failure since a call was answered, also if it was the only
    /// one.
    pub fn last_trouble(&self) -> Option<OutageReason> {
        self.transport.last_trouble()
    }

    /// Returns how far our clock is ahead of Bokbasen's; none until a call was answered.
    pub fn clock_ahead(&self) -> Option<SignedDuration> {
        self.transport.skew.ahead_of_bokbasen()
    }
}
