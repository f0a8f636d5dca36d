//! A table as CSV.

use super::{SpreadsheetError, Table};

/// What a spreadsheet program may read as the beginning of a formula.
const FORMULA_STARTS: [char; 11] = ['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'];
/// What a spreadsheet program may take as the end of a cell or a row. In Norwegian, one divides
/// cells at semicolons, and heeds no quotes within a cell, so what follows could be a formula.
const DIVIDERS: [char; 4] = [';', '\t', '\r', '\n'];

/// Returns a table as CSV, with the names of its columns first.
///
/// # Errors
/// [`SpreadsheetError`] if a row does not have a cell for each column.
pub(crate) fn csv(table: &Table) -> Result<Vec<u8>, SpreadsheetError> {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    writer.write_record(&table.columns)?;
    for row in &table.rows {
        writer.write_record(row.iter().map(|cell| inert(cell.text())))?;
    }
    writer.into_inner().map_err(|error| ::csv::Error::from(error.into_error()).into())
}

/// Returns a text that no spreadsheet program divides, or runs as a formula: a space replaces what
/// divides cells, and an apostrophe precedes a formula.
fn inert(text: &str) -> String {
    let text = text.replace(DIVIDERS, " ");
    match text.trim_start_matches(' ').starts_with(FORMULA_STARTS) {
        true => format!("'{text}"),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Cell;
    use super::*;

    #[test]
    fn no_cell_begins_a_formula() {
        for dangerous in ["=1", "+1", "-1", "@x", "\t=1", "  =1", "＝1"] {
            assert!(inert(dangerous).starts_with('\''), "{dangerous:?}");
        }
        assert_eq!(inert("29.90"), "29.90");
        assert_eq!(inert("a;=1\t=2\r\n=3"), "a =1 =2  =3", "all in one cell");
    }

    #[test]
    fn rows_follow_the_names_of_the_columns() {
        let row = vec![Cell::Text("=1".into()), Cell::count(7), Cell::nok(2990)];
        let table = Table { name: "T".into(), columns: vec!["a", "b", "c"], rows: vec![row] };
        assert_eq!(csv(&table).unwrap(), b"a,b,c\n'=1,7,29.90\n");
        let table = Table { rows: vec![vec![Cell::count(7)]], ..table };
        assert!(csv(&table).is_err(), "a cell is missing");
    }
}
