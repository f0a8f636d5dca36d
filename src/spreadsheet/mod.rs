//! Tables as CSV and as a workbook of Excel. A text in them is never a formula.
//!
//! The command line writes monthly reports with it, and the console the tables of a library.

mod delimited;
mod workbook;

pub(crate) use delimited::csv;
pub(crate) use workbook::workbook;

/// A table, which is a sheet of a workbook.
#[derive(Debug)]
pub(crate) struct Table {
    /// The name of the sheet: at most 31 characters, without brackets, colons and slashes.
    pub(crate) name: String,
    /// The names of the columns.
    pub(crate) columns: Vec<&'static str>,
    /// The rows, with a cell for each column.
    pub(crate) rows: Vec<Vec<Cell>>,
}

/// A cell of a table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Cell {
    /// A text, which may be hostile.
    Text(String),
    /// A decimal number.
    Number(String),
    /// An amount of money, a decimal number with two decimals.
    Money(String),
}

/// Why a table was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpreadsheetError {
    #[error(transparent)]
    Csv(#[from] ::csv::Error),
    #[error(transparent)]
    Workbook(#[from] rust_xlsxwriter::XlsxError),
}

impl Cell {
    /// Returns the cell of a count.
    pub(crate) fn count(count: u64) -> Cell {
        Cell::Number(count.to_string())
    }

    /// Returns the cell of an amount in øre, in NOK.
    pub(crate) fn nok(amount: u64) -> Cell {
        Cell::Money(nok(amount))
    }

    fn text(&self) -> &str {
        match self {
            Cell::Text(text) | Cell::Number(text) | Cell::Money(text) => text,
        }
    }
}

/// Formats an amount in øre, in NOK.
pub(crate) fn nok(amount: u64) -> String {
    format!("{}.{:02}", amount / 100, amount % 100)
}
