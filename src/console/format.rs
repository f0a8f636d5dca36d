//! Times, sizes and shares as people read them.

use std::sync::LazyLock;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use maud::{Markup, html};

use crate::language::Language;

/// Between groups of digits in Norwegian.
const NO_BREAK_SPACE: char = '\u{a0}';

/// Norwegian time: the rule of the European Union since 1996, so that no table of zones is needed.
static OSLO: LazyLock<TimeZone> =
    LazyLock::new(|| TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap_or(TimeZone::UTC));

/// Returns a time in Norwegian time, to the second.
pub(super) fn time(at: Timestamp) -> Markup {
    let local = OSLO.to_datetime(at);
    let text = local.strftime("%Y-%m-%d %H:%M:%S").to_string();
    html! { time datetime=(at) { (text) } }
}

/// Returns a time in Norwegian time, by a pattern of strftime.
pub(super) fn local(at: Timestamp, pattern: &str) -> String {
    OSLO.to_datetime(at).strftime(pattern).to_string()
}

/// Returns a number of bytes with a unit.
pub(super) fn size(bytes: u64, language: Language) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    let (mut tenths, mut unit) = (bytes / 100, 0);
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        (tenths, unit) = (tenths / 1000, unit + 1);
    }
    let point = match language {
        Language::English => '.',
        Language::Norwegian => ',',
    };
    let unit = UNITS.get(unit).copied().unwrap_or_default();
    format!("{}{point}{} {unit}", tenths / 10, tenths % 10)
}

/// Returns a count, its digits in groups of three.
pub(super) fn count(count: u64, language: Language) -> String {
    let separator = match language {
        Language::English => ',',
        Language::Norwegian => NO_BREAK_SPACE,
    };
    let digits = count.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(separator);
        }
        grouped.push(digit);
    }
    grouped
}

/// Returns an amount in øre, in NOK.
pub(super) fn nok(amount: u64, language: Language) -> String {
    let point = match language {
        Language::English => '.',
        Language::Norwegian => ',',
    };
    format!("{}{point}{:02}", count(amount / 100, language), amount % 100)
}

/// Returns hundredths of a per cent as per cent, rounded down.
pub(super) fn percent(hundredths: u16, language: Language) -> String {
    match language {
        Language::English => format!("{}%", hundredths / 100),
        Language::Norwegian => format!("{} %", hundredths / 100),
    }
}

/// Returns Markdown with its code in elements.
pub(super) fn with_code(text: &str) -> Markup {
    html! {
        @for (number, part) in text.split('`').enumerate() {
            @if number % 2 == 0 { (part) } @else { code { (part) } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_norwegian_in_winter_and_summer() {
        for (at, shown) in [
            ("2026-01-15T12:00:00Z", "2026-01-15 13:00:00"),
            ("2026-07-15T12:00:00Z", "2026-07-15 14:00:00"),
            ("2026-10-25T00:59:59Z", "2026-10-25 02:59:59"),
            ("2026-10-25T01:00:00Z", "2026-10-25 02:00:00"),
        ] {
            let text = time(at.parse().unwrap()).into_string();
            assert!(text.contains(shown), "{at}: {text}");
        }
    }

    #[test]
    fn numbers_are_grouped_in_each_language() {
        for (number, english, norwegian) in [
            (0, "0", "0"),
            (999, "999", "999"),
            (1000, "1,000", "1\u{a0}000"),
            (1_234_567, "1,234,567", "1\u{a0}234\u{a0}567"),
        ] {
            assert_eq!(count(number, Language::English), english);
            assert_eq!(count(number, Language::Norwegian), norwegian);
        }
        assert_eq!(nok(123_405, Language::English), "1,234.05");
        assert_eq!(nok(5, Language::Norwegian), "0,05");
    }

    #[test]
    fn sizes_have_a_unit_and_one_decimal() {
        for (bytes, shown) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1_234_567, "1.2 MB"),
            (999_999, "999.9 kB"),
            (5_000_000_000_000_000, "5000.0 TB"),
        ] {
            assert_eq!(size(bytes, Language::English), shown);
        }
        assert_eq!(size(1500, Language::Norwegian), "1,5 kB");
    }
}
