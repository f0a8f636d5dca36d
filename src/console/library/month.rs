//! A month in Europe/Oslo, by which loans and costs are added up.

use std::fmt;

use jiff::civil::Date;
use jiff::{Timestamp, ToSpan};

use crate::circulation::{date_in_oslo, start_of_day};

/// The years of months that are shown.
const YEARS: std::ops::RangeInclusive<i16> = 2000..=2200;

/// A month, by its first day.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Month(Date);

impl Month {
    /// Returns the month of this time.
    pub(super) fn at(at: Timestamp) -> Month {
        Month(date_in_oslo(at).first_of_month())
    }

    /// Reads a month like `2026-10`.
    pub(super) fn parse(text: &str) -> Option<Month> {
        let first: Date = (text.len() == 7).then(|| format!("{text}-01").parse().ok())??;
        YEARS.contains(&first.year()).then_some(Month(first))
    }

    /// Returns the next month.
    pub(super) fn next(self) -> Month {
        Month(self.0.saturating_add(1.month()))
    }

    /// Returns the month before.
    pub(super) fn previous(self) -> Month {
        Month(self.0.saturating_sub(1.month()))
    }

    /// Returns its days.
    pub(super) fn days(self) -> impl Iterator<Item = Date> {
        self.0.series(1.day()).take_while(move |day| day.month() == self.0.month())
    }
}

/// Returns when a day begins, and when it is over.
pub(super) fn times_of(day: Date) -> (Timestamp, Timestamp) {
    (start_of_day(day), start_of_day(day.saturating_add(1.day())))
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.0.year(), self.0.month())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn month_has_its_days_and_neighbours() {
        let month = Month::parse("2026-12").unwrap();
        assert_eq!(month.days().count(), 31);
        assert_eq!((month.previous().to_string(), month.next().to_string()), {
            ("2026-11".to_owned(), "2027-01".to_owned())
        });
        assert_eq!(Month::parse("2028-02").unwrap().days().count(), 29);
        for wrong in ["", "2026-13", "2026-1", "2026-10-01", "1999-12", "9999-12", "-026-10"] {
            assert!(Month::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn month_and_day_begin_at_midnight_in_oslo() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(Month::at(at("2026-10-31T22:59:59Z")).to_string(), "2026-10");
        assert_eq!(Month::at(at("2026-10-31T23:00:00Z")).to_string(), "2026-11");
        let (from, before) = times_of("2026-10-25".parse().unwrap());
        assert_eq!((from, before), (at("2026-10-24T22:00:00Z"), at("2026-10-25T23:00:00Z")));
    }
}
