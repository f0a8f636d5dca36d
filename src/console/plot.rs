//! The geometry of a chart: its scale with sane ticks, and the paths of its lines. Pure functions.

use crate::language::Language;

/// The size of a chart, in its own units: one is a pixel on a phone.
pub(super) const WIDTH: f64 = 340.0;
pub(super) const HEIGHT: f64 = 156.0;
/// The edges of the plot in it.
pub(super) const LEFT: f64 = 54.0;
pub(super) const RIGHT: f64 = 334.0;
pub(super) const TOP: f64 = 8.0;
pub(super) const BOTTOM: f64 = 132.0;

/// The most steps of a scale.
const MAX_STEPS: f64 = 4.0;
/// The steps of times below two days, in seconds.
const TIME_STEPS: [f64; 25] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0,
    120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0, 10_800.0, 21_600.0,
];
const DAY: f64 = 86_400.0;
/// The largest value that is drawn.
const MAX_VALUE: f64 = 1e18;

/// What the values of a chart are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unit {
    /// A number, also for each minute.
    Count,
    /// A share of one.
    Share,
    /// Bytes for each second.
    BytesPerSecond,
    /// A short time in seconds.
    Seconds,
    /// An age in seconds, of which minutes matter.
    Age,
}

/// The ticks of an axis, from zero to the top.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scale(Vec<f64>);

impl Scale {
    /// Returns the scale for values up to this one.
    pub(super) fn new(unit: Unit, highest: f64) -> Scale {
        let highest = if highest.is_finite() { highest.clamp(0.0, MAX_VALUE) } else { MAX_VALUE };
        let step = match unit {
            Unit::Share => return Scale(vec![0.0, 0.5, 1.0]),
            Unit::Count => decimal_step(highest).max(1.0),
            Unit::BytesPerSecond => decimal_step(highest).max(1000.0),
            Unit::Seconds => time_step(highest),
            Unit::Age => time_step(highest).max(60.0),
        };
        let count = (highest / step).ceil().clamp(1.0, MAX_STEPS) as u32;
        Scale((0..=count).map(|number| f64::from(number) * step).collect())
    }

    /// Returns the ticks, with their heights.
    pub(super) fn ticks(&self) -> impl Iterator<Item = (f64, f64)> {
        self.0.iter().map(|tick| (*tick, self.y(*tick)))
    }

    fn y(&self, value: f64) -> f64 {
        let top = self.0.last().copied().unwrap_or(1.0);
        let share = if value.is_finite() { (value / top).clamp(0.0, 1.0) } else { 1.0 };
        BOTTOM - share * (BOTTOM - TOP)
    }
}

/// Returns the step of 1, 2 or 5 times a power of ten with which few steps are enough.
fn decimal_step(highest: f64) -> f64 {
    let power = 10_f64.powf((highest.max(f64::MIN_POSITIVE) / MAX_STEPS).log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|factor| factor * power);
    let found = steps.into_iter().find(|step| step * MAX_STEPS >= highest);
    found.unwrap_or(10.0 * power)
}

fn time_step(highest: f64) -> f64 {
    let found = TIME_STEPS.into_iter().find(|step| step * MAX_STEPS >= highest);
    found.unwrap_or_else(|| decimal_step(highest / DAY).max(1.0) * DAY)
}

/// Returns where the middle of a slot is, of this many.
pub(super) fn x(slot: usize, count: usize) -> f64 {
    LEFT + (slot as f64 + 0.5) / count.max(1) as f64 * (RIGHT - LEFT)
}

/// Returns the path of a line, which is interrupted where a value is unknown.
pub(super) fn line(values: &[Option<f64>], scale: &Scale) -> String {
    let mut path = String::new();
    for run in runs(values, Option::is_some) {
        for (number, slot) in run.clone().enumerate() {
            let Some(value) = values.get(slot).copied().flatten() else { continue };
            let letter = if number == 0 { 'M' } else { 'L' };
            path += &format!("{letter}{:.1} {:.1}", x(slot, values.len()), scale.y(value));
        }
        if run.len() == 1 {
            // A line without a length has round ends, so it is a dot.
            path += "h0";
        }
    }
    path
}

/// Returns the path of the area below a line.
pub(super) fn area(values: &[Option<f64>], scale: &Scale) -> String {
    let mut path = String::new();
    for run in runs(values, Option::is_some).filter(|run| run.len() > 1) {
        let (first, last) = (x(run.start, values.len()), x(run.end - 1, values.len()));
        path += &format!("M{first:.1} {BOTTOM}");
        for slot in run {
            let Some(value) = values.get(slot).copied().flatten() else { continue };
            path += &format!("L{:.1} {:.1}", x(slot, values.len()), scale.y(value));
        }
        path += &format!("L{last:.1} {BOTTOM}Z");
    }
    path
}

/// Returns the left edges and the widths of the times of which nothing is known.
pub(super) fn gaps<T>(slots: &[Option<T>]) -> Vec<(f64, f64)> {
    let width = (RIGHT - LEFT) / slots.len().max(1) as f64;
    let unknown = runs(slots, Option::is_none);
    unknown.map(|run| (LEFT + run.start as f64 * width, run.len() as f64 * width)).collect()
}

/// Returns the runs of slots for which this holds.
fn runs<T>(
    slots: &[T],
    holds: impl Fn(&T) -> bool,
) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut found: Vec<std::ops::Range<usize>> = Vec::new();
    for (slot, _) in slots.iter().enumerate().filter(|(_, value)| holds(value)) {
        match found.last_mut() {
            Some(last) if last.end == slot => last.end = slot + 1,
            _ => found.push(slot..slot + 1),
        }
    }
    found.into_iter()
}

impl Unit {
    /// Returns a value as people read it.
    pub(super) fn text(self, value: f64, language: Language) -> String {
        let value = if value.is_finite() { value.clamp(0.0, MAX_VALUE) } else { MAX_VALUE };
        // Negative zero becomes zero.
        let value = value + 0.0;
        match self {
            Unit::Count => scaled(value, 10_000.0, &["", "k", "M", "G", "T", "P"], language),
            Unit::Share => {
                let space = if language == Language::English { "" } else { " " };
                format!("{}{space}%", (value.min(1.0) * 100.0).floor())
            }
            Unit::BytesPerSecond => {
                let units = [" B/s", " kB/s", " MB/s", " GB/s", " TB/s", " PB/s"];
                scaled(value, 1000.0, &units, language)
            }
            Unit::Seconds => duration(value, language),
            Unit::Age if value < 1.0 => "0 min".to_owned(),
            Unit::Age => duration(value, language),
        }
    }
}

/// Returns a value with the unit that makes it short. From `from` on, a larger one is used.
fn scaled(mut value: f64, from: f64, units: &[&str], language: Language) -> String {
    let mut unit = 0;
    if value >= from {
        while value >= 999.95 && unit + 1 < units.len() {
            (value, unit) = (value / 1000.0, unit + 1);
        }
    }
    format!("{}{}", number(value, language), units.get(unit).copied().unwrap_or_default())
}

fn duration(seconds: f64, language: Language) -> String {
    let days = if language == Language::English { "d" } else { "d." };
    let hours = if language == Language::English { "h" } else { "t" };
    let (value, unit) = match seconds {
        s if s < 0.9995 => (s * 1000.0, "ms"),
        s if s < 60.0 => (s, "s"),
        s if s < 3600.0 => (s / 60.0, "min"),
        s if s < 2.0 * DAY => (s / 3600.0, hours),
        s => ((s / DAY).min(99_999.0), days),
    };
    format!("{} {unit}", number(value, language))
}

/// Returns a number with one decimal if it is small and has some.
fn number(value: f64, language: Language) -> String {
    if value >= 99.95 || (value - value.round()).abs() < 0.05 {
        return format!("{value:.0}");
    }
    let text = format!("{value:.1}");
    match language {
        Language::English => text,
        Language::Norwegian => text.replace('.', ","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(unit: Unit, highest: f64) -> Vec<String> {
        let scale = Scale::new(unit, highest);
        scale.ticks().map(|(tick, _)| unit.text(tick, Language::English)).collect()
    }

    #[test]
    fn ticks_are_round_few_and_reach_the_highest_value() {
        for (unit, highest, ticks) in [
            (Unit::Count, 0.0, &["0", "1"][..]),
            (Unit::Count, 0.2, &["0", "1"]),
            (Unit::Count, 3.0, &["0", "1", "2", "3"]),
            (Unit::Count, 7.0, &["0", "2", "4", "6", "8"]),
            (Unit::Count, 41.0, &["0", "20", "40", "60"]),
            (Unit::Count, 123_456.0, &["0", "50k", "100k", "150k"]),
            (Unit::Share, 0.3, &["0%", "50%", "100%"]),
            (Unit::BytesPerSecond, 0.0, &["0 B/s", "1 kB/s"]),
            (
                Unit::BytesPerSecond,
                1_900_000.0,
                &["0 B/s", "500 kB/s", "1 MB/s", "1.5 MB/s", "2 MB/s"],
            ),
            (Unit::Seconds, 0.0, &["0 ms", "1 ms"]),
            (Unit::Seconds, 0.07, &["0 ms", "20 ms", "40 ms", "60 ms", "80 ms"]),
            (Unit::Seconds, 100.0, &["0 ms", "30 s", "1 min", "1.5 min", "2 min"]),
            (Unit::Seconds, 20_000.0, &["0 ms", "2 h", "4 h", "6 h"]),
            (Unit::Age, 0.0, &["0 min", "1 min"]),
            (Unit::Age, 90.0, &["0 min", "1 min", "2 min"]),
            (Unit::Seconds, 500_000.0, &["0 ms", "2 d", "4 d", "6 d"]),
        ] {
            assert_eq!(labels(unit, highest), ticks, "{unit:?} {highest}");
        }
    }

    #[test]
    fn every_value_has_a_bounded_scale_and_text() {
        for unit in [Unit::Count, Unit::Share, Unit::BytesPerSecond, Unit::Seconds, Unit::Age] {
            for value in [-1.0, 1e-300, 0.0499, 0.96, 999.96, 1e17, 1e300, f64::INFINITY, f64::NAN]
            {
                let scale = Scale::new(unit, value);
                assert!((2..=5).contains(&scale.0.len()), "{unit:?} {value}: {scale:?}");
                assert!((TOP..=BOTTOM).contains(&scale.y(value)), "{unit:?} {value}");
                let text = unit.text(value, Language::Norwegian);
                assert!(text.chars().count() <= 16, "{text}");
            }
        }
        assert_eq!(Unit::Count.text(-0.0, Language::English), "0");
        assert_eq!(Unit::Count.text(1.25, Language::Norwegian), "1,2");
        assert_eq!(Unit::Share.text(0.999, Language::Norwegian), "99 %", "all is not quite all");
    }

    #[test]
    fn unknown_values_interrupt_a_line() {
        let scale = Scale::new(Unit::Count, 1.0);
        let values = [Some(0.0), Some(1.0), None, Some(1.0), None];
        let drawn = line(&values, &scale);
        assert_eq!(drawn, "M82.0 132.0L138.0 8.0M250.0 8.0h0");
        assert_eq!(area(&values, &scale), "M82.0 132L82.0 132.0L138.0 8.0L138.0 132Z");
        assert_eq!(gaps(&values), [(166.0, 56.0), (278.0, 56.0)]);
        assert_eq!((line(&[], &scale), gaps::<f64>(&[])), (String::new(), Vec::new()));
    }
}
