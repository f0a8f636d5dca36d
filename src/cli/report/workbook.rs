//! The monthly report as a workbook of Excel. Texts are cells of text, which are never formulas.

use rust_xlsxwriter::{Format, Workbook, Worksheet, XlsxError};

use super::statement::{COLUMNS, Line, Statement};
use crate::cli::CliError;

/// The columns of numbers.
const PRICE: usize = 6;
const PERCENT: usize = 8;

pub(super) fn of(statement: &Statement) -> Result<Vec<u8>, CliError> {
    write(statement).map_err(CliError::new)
}

fn write(statement: &Statement) -> Result<Vec<u8>, XlsxError> {
    let mut workbook = Workbook::new();
    let sheet = workbook.add_worksheet().set_name(format!("Reports {}", statement.month))?;
    fill(sheet, statement.lines.iter())?;
    let sheet = workbook.add_worksheet().set_name("For a person")?;
    fill(sheet, statement.corrections())?;
    let sheet = workbook.add_worksheet().set_name("Totals")?;
    let bold = Format::new().set_bold();
    for (column, name) in (0..).zip(["library", "model", "reported", "price_nok"]) {
        sheet.write_string_with_format(0, column, name, &bold)?;
    }
    for (row, ((library, model), total)) in (1..).zip(statement.totals()) {
        sheet.write_string(row, 0, library)?;
        sheet.write_string(row, 1, model)?;
        sheet.write_number(row, 2, number(total.count))?;
        sheet.write_number_with_format(row, 3, number(total.price) / 100.0, &money())?;
    }
    sheet.autofit();
    workbook.save_to_buffer()
}

fn fill<'a>(sheet: &mut Worksheet, lines: impl Iterator<Item = &'a Line>) -> Result<(), XlsxError> {
    let bold = Format::new().set_bold();
    for (column, name) in (0..).zip(COLUMNS) {
        sheet.write_string_with_format(0, column, name, &bold)?;
    }
    for (row, line) in (1..).zip(lines) {
        for (place, (column, cell)) in (0..).zip(line.cells()).enumerate() {
            match cell.parse::<f64>() {
                Ok(price) if place == PRICE => {
                    sheet.write_number_with_format(row, column, price, &money())?;
                }
                Ok(percent) if place == PERCENT => {
                    sheet.write_number(row, column, percent)?;
                }
                _ => {
                    sheet.write_string(row, column, cell)?;
                }
            }
        }
    }
    sheet.set_freeze_panes(1, 0)?;
    sheet.autofit();
    Ok(())
}

fn money() -> Format {
    Format::new().set_num_format("0.00")
}

/// Counts and prices are far below the range of exact integers.
#[allow(clippy::cast_precision_loss)]
fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use calamine::{Data, Reader, Xlsx};

    use super::super::statement::tests::statement;
    use super::*;

    #[test]
    fn workbook_has_numbers_and_no_formula() {
        let bytes = of(&statement()).unwrap();
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
