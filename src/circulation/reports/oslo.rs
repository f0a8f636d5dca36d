//! Days in Europe/Oslo, by which Bokbasen counts.

use std::sync::LazyLock;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

/// The rule of Central European Time since 1996, so that no database of time zones is needed.
const RULE: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

static OSLO: LazyLock<TimeZone> = LazyLock::new(|| TimeZone::posix(RULE).unwrap_or(TimeZone::UTC));

/// Returns the day in Europe/Oslo at this time.
pub fn date_in_oslo(at: Timestamp) -> Date {
    OSLO.to_datetime(at).date()
}

/// Returns when this day begins in Europe/Oslo.
pub fn start_of_day(date: Date) -> Timestamp {
    let start = OSLO.to_ambiguous_timestamp(date.at(0, 0, 0, 0)).compatible();
    start.unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_change_at_midnight_in_oslo_in_summer_and_winter() {
        for (at, date) in [
            ("2026-07-31T21:59:59Z", "2026-07-31"),
            ("2026-07-31T22:00:00Z", "2026-08-01"),
            ("2026-10-24T22:00:00Z", "2026-10-25"),
            ("2026-10-25T22:59:59Z", "2026-10-25"),
            ("2026-10-25T23:00:00Z", "2026-10-26"),
            ("2026-12-31T22:59:59Z", "2026-12-31"),
            ("2026-12-31T23:00:00Z", "2027-01-01"),
            ("2027-03-28T21:59:59Z", "2027-03-28"),
            ("2027-03-28T22:00:00Z", "2027-03-29"),
        ] {
            assert_eq!(date_in_oslo(at.parse().unwrap()).to_string(), date, "{at}");
        }
        for (date, start) in [
            ("2026-08-01", "2026-07-31T22:00:00Z"),
            ("2027-01-01", "2026-12-31T23:00:00Z"),
            ("2026-10-26", "2026-10-25T23:00:00Z"),
        ] {
            assert_eq!(start_of_day(date.parse().unwrap()).to_string(), start);
        }
    }
}
