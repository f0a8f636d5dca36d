//! The tables of a run, as Markdown.

mod machines;
mod peak;

use std::fmt::Write as _;
use std::path::Path;

use crate::Findings;
use crate::calibration::{self, Source};
use crate::year::{SAMPLE, Year};

/// Names of the sections in the document, each between two marks, with their text.
pub(crate) fn sections(
    year: &Year,
    results: &[Findings],
    seed: u64,
) -> Vec<(&'static str, String)> {
    vec![
        ("machines", machines::machines(results)),
        ("hour", peak::hour(results)),
        ("faults", peak::faults(results)),
        ("regions", machines::regions(results)),
        ("costs", costs()),
        ("run", run(year, results, seed)),
    ]
}

/// Replaces the text between the marks of each section.
pub(crate) fn write(sections: &[(&str, String)], file: &Path) {
    let mut page = std::fs::read_to_string(file).unwrap();
    for (name, text) in sections {
        let [begin, end] = ["begin", "end"].map(|side| format!("<!-- {name}: {side} -->"));
        let (before, rest) = page.split_once(&begin).expect("a section has no mark");
        let (_, after) = rest.split_once(&end).expect("a section has no mark at its end");
        page = format!("{before}{begin}\n\n{text}\n\n{end}{after}");
    }
    std::fs::write(file, page).unwrap();
}

/// The head of a row, and its cell for a deployment.
type Row<'a> = (&'a str, &'a dyn Fn(&Findings) -> String);

/// A table with one column for each deployment.
fn table(results: &[Findings], rows: &[Row<'_>]) -> String {
    let name = |result: &Findings| result.sizing.deployment.name.to_owned();
    let line = |head: &str, cell: &dyn Fn(&Findings) -> String| {
        let cells: Vec<String> = results.iter().map(cell).collect();
        format!("| {head} | {} |", cells.join(" | "))
    };
    let mut lines = vec![line("", &name), format!("|---|{}", "---:|".repeat(results.len()))];
    lines.extend(rows.iter().map(|(head, cell)| line(head, *cell)));
    lines.join("\n")
}

fn costs() -> String {
    let mut text = "| operation | cost | unit | how it is known |\n|---|---:|---|---|\n".to_owned();
    for figure in calibration::ALL {
        let source = match figure.source {
            Source::Measured(source) => format!("measured: {source}"),
            Source::Provisional(source) => format!("**to be measured with the store**; {source}"),
            Source::Assumed(source) => format!("assumed: {source}"),
        };
        let value =
            if figure.value < 1000.0 { figure.value.to_string() } else { number(figure.value) };
        writeln!(text, "| {} | {value} | {} | {source} |", figure.name, figure.unit).unwrap();
    }
    text.trim_end().to_owned()
}

fn run(year: &Year, results: &[Findings], seed: u64) -> String {
    let events: u64 = results
        .iter()
        .flat_map(|r| [&r.normal, &r.gate_down, &r.failover, &r.outage])
        .map(|outcome| outcome.events)
        .sum();
    format!(
        "Seed {seed}. The year has {} borrowers and {} million events; the hours have {} million.\n\
         The busiest hour has {:.1} times the mean rate of requests and {:.1} times the mean rate \
         of begins.\n\
         At most {:.2} loans of each inhabitant are live.",
        number(SAMPLE),
        year.events / 1_000_000,
        events / 1_000_000,
        year.peak.requests / year.mean.requests,
        year.peak.begins / year.mean.begins,
        year.live_loans,
    )
}

fn millions(number: f64) -> String {
    if number >= 1e9 {
        format!("{:.0} billion", number / 1e9)
    } else {
        format!("{} million", number / 1e6)
    }
}

fn bold(value: f64) -> String {
    format!("**{}**", number(value))
}

/// Three significant digits.
fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => number(value),
        value if value >= 10.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// A whole number with commas, rounded to three digits.
pub(crate) fn number(value: f64) -> String {
    let digits = (value.abs().max(1.0).log10().floor() as i32 - 2).max(0);
    let step = 10f64.powi(digits);
    let whole = ((value / step).round() * step) as u64;
    let text = whole.to_string();
    let mut grouped = String::new();
    for (index, digit) in text.chars().enumerate() {
        if index > 0 && (text.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
