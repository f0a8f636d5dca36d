//! The monthly report as CSV and as a workbook of Excel.

use super::statement::{COLUMNS, Line, Statement};
use crate::cli::CliError;
use crate::spreadsheet::{self, Cell, Table};

/// The columns of numbers.
const PRICE: usize = 6;
const PERCENT: usize = 8;

pub(super) fn csv(statement: &Statement) -> Result<Vec<u8>, CliError> {
    let lines = statement.lines.iter().chain(&statement.earlier);
    spreadsheet::csv(&table("Reports".to_owned(), lines)).map_err(CliError::new)
}

pub(super) fn workbook(statement: &Statement) -> Result<Vec<u8>, CliError> {
    let tables = [
        table(format!("Reports {}", statement.month), statement.lines.iter()),
        table("For a person".to_owned(), statement.corrections()),
        totals(statement),
    ];
    spreadsheet::workbook(&tables).map_err(CliError::new)
}

fn table<'a>(name: String, lines: impl Iterator<Item = &'a Line>) -> Table {
    let cell = |(place, text)| match place {
        PRICE => Cell::Money(text),
        PERCENT => Cell::Number(text),
        _ => Cell::Text(text),
    };
    let row = |line: &Line| line.cells().into_iter().enumerate().map(cell).collect();
    Table { name, columns: COLUMNS.to_vec(), rows: lines.map(row).collect() }
}

fn totals(statement: &Statement) -> Table {
    let totals = statement.totals();
    let rows = totals.iter().map(|((library, model), total)| {
        let (library, model) = (Cell::Text((*library).into()), Cell::Text((*model).into()));
        vec![library, model, Cell::count(total.count), Cell::nok(total.price)]
    });
    Table {
        name: "Totals".to_owned(),
        columns: vec!["library", "model", "reported", "price_nok"],
        rows: rows.collect(),
    }
}

#[cfg(test)]
mod tests {
    use calamine::{Data, Reader, Xlsx};

    use super::super::statement::tests::statement;
    use super::*;

    #[test]
    fn no_field_of_a_record_is_a_formula() {
        let bytes = csv(&statement()).unwrap();
        let mut reader = ::csv::Reader::from_reader(bytes.as_slice());
        let records: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!(records.len(), 5, "the reports of the month, and an earlier one");
        for record in &records {
            assert!(record.iter().all(|field| !field.starts_with('=')), "{record:?}");
            assert_eq!(&record[5], "'=cmd|' /C calc'!A0");
        }
    }

    #[test]
    fn workbook_has_numbers_and_no_formula() {
        let bytes = workbook(&statement()).unwrap();
        let mut book: Xlsx<_> = Xlsx::new(std::io::Cursor::new(bytes)).unwrap();
        assert_eq!(book.sheet_names(), ["Reports 2026-10", "For a person", "Totals"]);
        for name in book.sheet_names() {
            assert!(book.worksheet_formula(&name).unwrap().cells().next().is_none(), "{name}");
        }
        let reports = book.worksheet_range("Reports 2026-10").unwrap();
        assert_eq!(reports.height(), 5);
        assert_eq!(reports.get((1, PRICE)), Some(&Data::Float(29.9)));
        let licence = Data::String("=cmd|' /C calc'!A0".to_owned());
        assert_eq!(reports.get((1, 5)), Some(&licence));
        assert_eq!(reports.get((1, 3)), Some(&Data::String("9788299999014".to_owned())));
        let totals = book.worksheet_range("Totals").unwrap();
        assert_eq!(totals.get((1, 3)), Some(&Data::Float(30.05)));
    }
}
