//! The tables of a library to download.

use std::sync::Arc;

use http::HeaderValue;

use super::counts::Counted;
use super::request::Wanted;
use super::sums::{Sum, TitleRow};
use crate::spreadsheet::{Cell, SpreadsheetError, Table, csv, workbook};

/// The form of a download.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Form {
    Csv,
    Xlsx,
}

impl Form {
    /// Returns the extension of its files.
    pub(super) fn extension(self) -> &'static str {
        match self {
            Form::Csv => "csv",
            Form::Xlsx => "xlsx",
        }
    }

    /// Returns its media type.
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Form::Csv => "text/csv; charset=utf-8",
            Form::Xlsx => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        }
    }

    /// Returns the disposition of a file with the tables of a library and month.
    pub(super) fn disposition(self, wanted: &Wanted) -> Option<HeaderValue> {
        let library = wanted.library.as_str().replace(['/', ':'], "-");
        let (month, extension) = (wanted.month, self.extension());
        let name = format!("loans-{library}-{month}.{extension}");
        HeaderValue::try_from(format!("attachment; filename=\"{name}\"")).ok()
    }

    /// Returns the bytes of a file: a workbook of all tables, or the titles as CSV. It takes time
    /// with many titles, so it is no work for a thread that serves requests.
    ///
    /// # Errors
    /// [`SpreadsheetError`] if a table does not fit into the form.
    pub(super) fn write(
        self,
        counted: &Arc<Counted>,
        has_prices: bool,
    ) -> Result<Vec<u8>, SpreadsheetError> {
        let titles = titles(counted, has_prices);
        match self {
            Form::Csv => csv(&titles),
            Form::Xlsx => {
                workbook(&[titles, types(counted, has_prices), days(counted, has_prices)])
            }
        }
    }
}

/// Returns a table: its own columns, and those of a sum.
fn table<'a>(
    name: &str,
    own: &[&'static str],
    rows: impl Iterator<Item = (Vec<Cell>, &'a Sum)>,
    has_prices: bool,
) -> Table {
    let mut columns = own.to_vec();
    columns.extend(["loans", "refused", "budget_exceeded"]);
    if has_prices {
        columns.extend(["cost_nok", "open_reports"]);
    }
    let row = |(mut cells, sum): (Vec<Cell>, &Sum)| {
        cells.extend([sum.lent, sum.refused, sum.over_budget].map(Cell::count));
        if has_prices {
            cells.extend([Cell::nok(sum.cost), Cell::count(sum.open)]);
        }
        cells
    };
    Table { name: name.to_owned(), columns, rows: rows.map(row).collect() }
}

fn titles(counted: &Counted, has_prices: bool) -> Table {
    let row = |row: &'_ TitleRow| {
        vec![Cell::Text(row.isbn.to_string()), Cell::Text(row.licence_type.to_string())]
    };
    let rows = counted.rows.iter().map(|title| (row(title), &title.sum));
    let others = counted.sums.other_titles.iter().map(|sum| (vec![others(), others()], sum));
    let rows = rows.chain(others);
    table("Titles", &["isbn", "licence_type"], rows, has_prices)
}

/// Names what has no row of its own, so that a column adds up to the total.
fn others() -> Cell {
    Cell::Text("others".to_owned())
}

fn types(counted: &Counted, has_prices: bool) -> Table {
    let types = counted.sums.types.iter();
    let rows = types.map(|(name, sum)| (vec![Cell::Text(name.to_string())], sum));
    let rows = rows.chain(counted.sums.other_types.iter().map(|sum| (vec![others()], sum)));
    table("Licence types", &["licence_type"], rows, has_prices)
}

fn days(counted: &Counted, has_prices: bool) -> Table {
    let days = counted.sums.days.iter();
    let rows = days.map(|(day, sum)| (vec![Cell::Text(day.to_string())], sum));
    table("Days", &["date"], rows, has_prices)
}
