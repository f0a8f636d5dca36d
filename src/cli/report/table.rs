//! The monthly report as a table for a terminal.

use std::fmt::Write as _;

use super::statement::{Line, Statement};
use crate::spreadsheet::nok;

pub(super) fn of(statement: &Statement) -> String {
    let mut text = String::new();
    let header = ["date", "library", "model", "isbn", "price", "state", "read %", "loan"];
    let rows: Vec<[String; 8]> = std::iter::once(header.map(str::to_owned))
        .chain(statement.lines.iter().map(cells))
        .collect();
    push_rows(&mut text, &rows);
    text.push('\n');
    for ((library, model), total) in statement.totals() {
        let (count, price) = (total.count, nok(total.price));
        let _ = writeln!(text, "{library} {model}: {count} reported, {price} NOK");
    }
    let corrections: Vec<&Line> = statement.corrections().collect();
    if corrections.is_empty() {
        text.push_str("no report waits for a person\n");
        return text;
    }
    let count = corrections.len();
    let _ = writeln!(text, "\n{count} for a person (`loangate report resolve`):");
    for line in corrections {
        let (date, library, loan, state) = (&line.date, &line.library, &line.loan, &line.state);
        let note = line.note.as_deref().unwrap_or(advice(state));
        let _ = writeln!(text, "{date} {library} loan {loan} {state}: {note}");
    }
    text
}

/// Returns what a person does about a report in this state.
fn advice(state: &str) -> &'static str {
    match state {
        "unknown" => "ask Bokbasen whether it has the report",
        "rejected" => "read why Bokbasen refused it",
        "unpriced" => "add the price of the licence type or title to the price list",
        "unmeasured" => "add the size of the title to the list of sizes, or decide",
        "unidentified" => "Bokbasen named no licence; ask which package it is",
        _ => "",
    }
}

fn cells(line: &Line) -> [String; 8] {
    [
        line.date.clone(),
        line.library.clone(),
        line.model.clone(),
        line.isbn.clone(),
        line.price.clone().unwrap_or_else(|| "–".to_owned()),
        line.state.clone(),
        line.percent().unwrap_or_else(|| "–".to_owned()),
        line.loan.clone(),
    ]
}

fn push_rows(text: &mut String, rows: &[[String; 8]]) {
    let mut widths = [0; 8];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in rows {
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::super::statement::tests::statement;

    #[test]
    fn table_has_totals_and_corrections() {
        let text = super::of(&statement());
        assert!(text.contains("NO-0301000 PAY_PER_LOAN: 2 reported, 30.05 NOK"), "{text}");
        assert!(text.contains("2 for a person"), "{text}");
        assert_eq!(text.matches("unpriced").count(), 1, "{text}");
    }
}
