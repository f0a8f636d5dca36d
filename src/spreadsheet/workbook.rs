//! Tables as a workbook of Excel. Texts are cells of text, which are never formulas.

use rust_xlsxwriter::{Format, Workbook, Worksheet, XlsxError};

use super::{Cell, SpreadsheetError, Table};

/// Returns tables as a workbook, each in a sheet of its own.
///
/// # Errors
/// [`SpreadsheetError`] if a table does not fit into a sheet.
pub(crate) fn workbook(tables: &[Table]) -> Result<Vec<u8>, SpreadsheetError> {
    let mut workbook = Workbook::new();
    for table in tables {
        fill(workbook.add_worksheet().set_name(&table.name)?, table)?;
    }
    Ok(workbook.save_to_buffer()?)
}

fn fill(sheet: &mut Worksheet, table: &Table) -> Result<(), XlsxError> {
    let (bold, money) = (Format::new().set_bold(), Format::new().set_num_format("0.00"));
    for (column, name) in (0..).zip(&table.columns) {
        sheet.write_string_with_format(0, column, *name, &bold)?;
    }
    for (row, cells) in (1..).zip(&table.rows) {
        for (column, cell) in (0..).zip(cells) {
            match (cell, cell.text().parse::<f64>()) {
                (Cell::Number(_), Ok(number)) => sheet.write_number(row, column, number)?,
                (Cell::Money(_), Ok(price)) => {
                    sheet.write_number_with_format(row, column, price, &money)?
                }
                _ => sheet.write_string(row, column, cell.text())?,
            };
        }
    }
    sheet.set_freeze_panes(1, 0)?;
    sheet.autofit();
    Ok(())
}
