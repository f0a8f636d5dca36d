//! The monthly report as CSV.

use super::statement::{COLUMNS, Statement};
use crate::cli::CliError;

/// What a spreadsheet program may read as the beginning of a formula.
const FORMULA_STARTS: [char; 11] = ['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'];

pub(super) fn of(statement: &Statement) -> Result<Vec<u8>, CliError> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS).map_err(CliError::new)?;
    for line in statement.lines.iter().chain(&statement.earlier) {
        writer.write_record(line.cells().map(inert)).map_err(CliError::new)?;
    }
    writer.into_inner().map_err(CliError::new)
}

/// What a spreadsheet program may take as the end of a cell or a row. In Norwegian, one divides
/// cells at semicolons, and heeds no quotes within a cell, so what follows could be a formula.
const DIVIDERS: [char; 4] = [';', '\t', '\r', '\n'];

/// Returns a text that no spreadsheet program divides, or runs as a formula: a space replaces what
/// divides cells, and an apostrophe precedes a formula.
fn inert(text: String) -> String {
    let text = text.replace(DIVIDERS, " ");
    match text.trim_start_matches(' ').starts_with(FORMULA_STARTS) {
        true => format!("'{text}"),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::super::statement::tests::statement;
    use super::*;

    #[test]
    fn no_field_begins_a_formula() {
        let bytes = of(&statement()).unwrap();
        let mut reader = csv::Reader::from_reader(bytes.as_slice());
        let records: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!(records.len(), 5, "the reports of the month, and an earlier one");
        for record in &records {
            assert!(record.iter().all(|field| !field.starts_with(FORMULA_STARTS)), "{record:?}");
            assert_eq!(&record[5], "'=cmd|' /C calc'!A0");
        }
        for dangerous in ["=1", "+1", "-1", "@x", "\t=1", "  =1", "＝1"] {
            assert!(inert(dangerous.to_owned()).starts_with('\''), "{dangerous:?}");
        }
        assert_eq!(inert("29.90".to_owned()), "29.90");
        assert_eq!(inert("a;=1\t=2\r\n=3".to_owned()), "a =1 =2  =3", "all in one cell");
    }
}
