//! The difference between the clock of the database and this machine's.

use std::time::Duration;

use jiff::Timestamp;

/// Above this difference between the clocks, no loan is begun and none expires.
const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_secs(10);

/// By how many milliseconds the clock of the database is certainly ahead of this machine's;
/// negative if it is behind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct ClockDifference(pub(super) i64);

impl ClockDifference {
    pub(super) fn between(
        sent: Timestamp,
        database: Timestamp,
        answered: Timestamp,
    ) -> ClockDifference {
        let (earliest, latest) = (sent.min(answered), sent.max(answered));
        let database = database.as_millisecond();
        let ahead = (database - latest.as_millisecond()).max(0);
        let behind = (earliest.as_millisecond() - database).max(0);
        ClockDifference(ahead - behind)
    }

    pub(super) fn amount(self) -> Duration {
        Duration::from_millis(self.0.unsigned_abs())
    }

    /// Returns the difference in seconds.
    pub(super) fn seconds(self) -> f64 {
        let seconds = self.amount().as_secs_f64();
        if self.0 < 0 { -seconds } else { seconds }
    }

    pub(super) fn is_too_large(self) -> bool {
        self.amount() > MAX_CLOCK_DIFFERENCE
    }
}
