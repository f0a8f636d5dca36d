//! A chart as a card: its value now, an SVG with a title and a description, a legend, and the same
//! figures as a table. Lines differ in their dashes, and not by colour only.

use jiff::Timestamp;
use maud::{Markup, html};

use super::format::local;
use super::plot::{self, BOTTOM, HEIGHT, LEFT, RIGHT, Scale, TOP, Unit, WIDTH};
use super::text::now;
use super::visit::Visit;
use crate::monitor::{Overview, Window};

/// The number of rows of a table.
const ROWS: usize = 12;
/// The classes of lines, in their order, and that of failures.
const LINES: [&str; 4] = ["line-a", "line-b", "line-c", "line-d"];
const FAILURES: &str = "line-failed";

/// A line of a chart.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// What it shows.
    pub(super) name: String,
    /// The value of each slot; none if there is none.
    pub(super) values: Vec<Option<f64>>,
    /// Whether it shows what fails.
    pub(super) is_of_failures: bool,
}

/// A chart.
#[derive(Debug)]
pub(super) struct Chart<'a> {
    /// A word that no other chart of the page has.
    pub(super) id: &'static str,
    pub(super) title: &'a str,
    pub(super) hint: &'a str,
    /// The value now, with a unit.
    pub(super) value: Markup,
    /// What its values are, and the words after each.
    pub(super) unit: Unit,
    pub(super) suffix: &'a str,
    pub(super) lines: Vec<Line>,
    /// Whether a row of the table has the highest value of its time, and not the mean.
    pub(super) has_highest: bool,
    /// What is below it.
    pub(super) below: Markup,
}

/// Returns a chart as a card. Its parts with `data-live` are replaced while the page is open.
pub(super) fn card(
    visit: &Visit,
    (overview, window): (&Overview, Window),
    chart: &Chart<'_>,
) -> Markup {
    let (texts, id) = (now(visit.language), chart.id);
    html! {
        section.card.chart aria-labelledby={ (id) "-name" } {
            h2 id={ (id) "-name" } { (chart.title) }
            p.value data-live={ (id) "-value" } { (chart.value) }
            div.plot data-live={ (id) "-plot" } { (svg(visit, (overview, window), chart)) }
            div data-live={ (id) "-legend" } {
                @if chart.lines.len() > 1 { (legend(visit, chart)) }
            }
            div data-live={ (id) "-below" } {
                @if !chart.hint.is_empty() { p.hint { (chart.hint) } }
                (chart.below)
            }
            details {
                summary { (texts.as_table) span.hidden { ": " (chart.title) } }
                div.scroll role="region" tabindex="0"
                    aria-label={ (texts.as_table) ": " (chart.title) } {
                    table.plain.narrow-cells data-live={ (id) "-table" } {
                        (table(visit, (overview, window), chart))
                    }
                }
            }
        }
    }
}

fn legend(visit: &Visit, chart: &Chart<'_>) -> Markup {
    html! {
        ul.legend {
            @for (line, class) in with_classes(&chart.lines) {
                li {
                    svg.swatch viewBox="0 0 24 8" aria-hidden="true" {
                        path class={ "line " (class) } d="M1 4H23" {}
                    }
                    span { (line.name) }
                    @if let Some(value) = line.values.iter().rev().find_map(|value| *value) {
                        " " strong { (chart.unit.text(value, visit.language)) }
                    }
                }
            }
        }
    }
}

fn svg(visit: &Visit, (overview, window): (&Overview, Window), chart: &Chart<'_>) -> Markup {
    let (id, lines) = (chart.id, &chart.lines);
    let highest = known(lines).fold(0.0, f64::max);
    let scale = Scale::new(chart.unit, highest);
    html! {
        svg role="img" viewBox={ "0 0 " (WIDTH) " " (HEIGHT) }
            aria-labelledby={ (id) "-title " (id) "-desc" } {
            title id={ (id) "-title" } { (chart.title) }
            desc id={ (id) "-desc" } { (description(visit, chart)) }
            @for (left, width) in plot::gaps(&overview.slots) {
                rect.gap x=(shown(left)) width=(shown(width)) y=(TOP) height=(BOTTOM - TOP) {}
            }
            @for (tick, y) in scale.ticks() {
                path.grid d={ "M" (LEFT) " " (shown(y)) "H" (RIGHT) } {}
                text.tick x=(LEFT - 6.0) y=(shown(y + 4.0)) text-anchor="end" {
                    (chart.unit.text(tick, visit.language))
                }
            }
            @for (x, text, anchor) in times(overview, window) {
                path.grid d={ "M" (shown(x)) " " (BOTTOM) "v4" } {}
                text.tick x=(shown(x)) y=(BOTTOM + 18.0) text-anchor=(anchor) { (text) }
            }
            @if let [only] = lines.as_slice() {
                path.area d=(plot::area(&only.values, &scale)) {}
            }
            // The first line is the last one drawn, so that no other one covers it.
            @for (line, class) in with_classes(lines).into_iter().rev() {
                path class={ "line " (class) } d=(plot::line(&line.values, &scale)) {}
            }
        }
    }
}

/// Returns the lines with their classes.
fn with_classes(lines: &[Line]) -> Vec<(&Line, &'static str)> {
    let class = |line: &Line, of_place| if line.is_of_failures { FAILURES } else { of_place };
    lines.iter().zip(LINES).map(|(line, of_place)| (line, class(line, of_place))).collect()
}

fn known(lines: &[Line]) -> impl Iterator<Item = f64> {
    lines.iter().flat_map(|line| line.values.iter().filter_map(|value| *value))
}

fn shown(length: f64) -> String {
    format!("{length:.1}")
}

/// Returns what the lines show, for people who do not see them.
fn description(visit: &Visit, chart: &Chart<'_>) -> String {
    let texts = now(visit.language);
    let text = |value: f64| match chart.suffix {
        "" => chart.unit.text(value, visit.language),
        suffix => format!("{} {suffix}", chart.unit.text(value, visit.language)),
    };
    let sentences = chart.lines.iter().filter_map(|line| {
        let mut values = line.values.iter().filter_map(|value| *value);
        let newest = values.next_back()?;
        let (lowest, highest) = values.fold((newest, newest), |(lowest, highest), value| {
            (lowest.min(value), highest.max(value))
        });
        Some((texts.summary)(&line.name, &text(newest), &text(lowest), &text(highest)))
    });
    let sentences: Vec<_> = sentences.collect();
    if sentences.is_empty() { texts.nothing_known.to_owned() } else { sentences.join(" ") }
}

/// Returns the beginning of a slot.
fn start_of(overview: &Overview, slot: usize) -> Timestamp {
    let offset = i64::try_from(slot).unwrap_or_default().saturating_mul(overview.step);
    let second = overview.start.as_second().saturating_add(offset);
    Timestamp::from_second(second).unwrap_or(overview.start)
}

/// Returns the round times of the axis: each quarter of an hour, or each six hours.
fn times(overview: &Overview, window: Window) -> Vec<(f64, String, &'static str)> {
    let count = overview.slots.len();
    let is_round = |at: Timestamp| match window {
        Window::Hour => at.as_second() % 900 == 0,
        Window::Day => {
            at.as_second() % 3600 == 0
                && local(at, "%H").parse().is_ok_and(|hour: u8| hour.is_multiple_of(6))
        }
    };
    let round = (0..count).map(|slot| (slot, start_of(overview, slot)));
    let round = round.filter(|(_, at)| is_round(*at));
    round
        .map(|(slot, at)| {
            let width = (RIGHT - LEFT) / count.max(1) as f64;
            let x = LEFT + slot as f64 * width;
            // The last one must not be cut off.
            let anchor = if x > RIGHT - 16.0 { "end" } else { "middle" };
            (x, local(at, "%H:%M"), anchor)
        })
        .collect()
}

fn table(visit: &Visit, (overview, window): (&Overview, Window), chart: &Chart<'_>) -> Markup {
    let texts = now(visit.language);
    let size = overview.slots.len().div_ceil(ROWS).max(1);
    let pattern = match window {
        Window::Hour => "%H:%M",
        Window::Day => "%Y-%m-%d %H:%M",
    };
    html! {
        caption.hidden { (chart.title) " " (chart.suffix) }
        thead {
            tr {
                th scope="col" { (texts.time) }
                @for line in &chart.lines { th scope="col" { (line.name) } }
            }
        }
        tbody {
            @for first in (0..overview.slots.len()).step_by(size).rev() {
                tr {
                    th scope="row" { (local(start_of(overview, first), pattern)) }
                    @for line in &chart.lines {
                        td {
                            @match fold(&line.values, first..first + size, chart.has_highest) {
                                Some(value) => (chart.unit.text(value, visit.language)),
                                None => "–",
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Returns the highest or the mean value of these slots; none if all are unknown.
fn fold(values: &[Option<f64>], slots: std::ops::Range<usize>, has_highest: bool) -> Option<f64> {
    let end = slots.end.min(values.len());
    let known = values.get(slots.start..end)?.iter().filter_map(|value| *value);
    let known: Vec<f64> = known.collect();
    if known.is_empty() {
        return None;
    }
    Some(match has_highest {
        true => known.iter().copied().fold(0.0, f64::max),
        false => known.iter().sum::<f64>() / known.len() as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_of_a_table_has_what_is_known_of_its_time() {
        let values = [Some(1.0), None, Some(4.0), None];
        assert_eq!(fold(&values, 0..3, true), Some(4.0));
        assert_eq!(fold(&values, 0..3, false), Some(2.5));
        assert_eq!(fold(&values, 3..6, true), None);
        assert_eq!(fold(&values, 9..12, false), None);
    }
}
