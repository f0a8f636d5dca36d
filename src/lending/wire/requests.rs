//! What is sent to Bokbasen: paths, query strings and bodies.
//!
//! The rest of `lending` uses it through `wire`.

use jiff::Timestamp;
use serde::Serialize;

use crate::lending::{Begin, UsageReport};
use crate::loan::{EndReason, Isbn, LibraryId, Reference};

/// The path segments below the API's base URL.
pub(in crate::lending) type Path = Vec<String>;
/// The parameters of a query string.
pub(in crate::lending) type Query = Vec<(&'static str, String)>;

fn path(segments: &[&str]) -> Path {
    segments.iter().map(|&segment| segment.to_owned()).collect()
}

pub(in crate::lending) fn loans() -> Path {
    path(&["v1", "loans"])
}

pub(in crate::lending) fn loan(lending_id: &str) -> Path {
    path(&["v1", "loans", lending_id])
}

pub(in crate::lending) fn return_of(lending_id: &str) -> Path {
    path(&["v1", "loans", lending_id, "return"])
}

pub(in crate::lending) fn cancel_of(lending_id: &str) -> Path {
    path(&["v1", "loans", lending_id, "cancel"])
}

/// Returns the path of the Reporting API (page "Reporting API").
pub(in crate::lending) fn reports() -> Path {
    path(&["reporting", "loan", "v1"])
}

pub(in crate::lending) fn availability_at(library: LibraryId) -> Path {
    path(&["v1", "libraries", library.as_str(), "availability"])
}

pub(in crate::lending) fn of_title(isbn: Isbn) -> Query {
    vec![("isbn", isbn.to_string())]
}

pub(in crate::lending) fn by_reference(reference: &Reference) -> Query {
    vec![("reference", reference.as_str().to_owned())]
}

/// Returns the query of a library's listing. `after` is written in whole seconds, UTC (page "Export
/// paging").
pub(in crate::lending) fn of_library(library: LibraryId, after: Timestamp) -> Query {
    let after = after.strftime("%Y%m%d%H%M%S").to_string();
    vec![("library", library.as_str().to_owned()), ("after", after)]
}

pub(in crate::lending) fn next_page(cursor: String) -> Query {
    vec![("next", cursor)]
}

/// The body of a begin.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::lending) struct NewLoan<'a> {
    library: &'a str,
    isbn: String,
    borrower: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    license_id: Option<&'a str>,
    reference: &'a str,
    begin: Timestamp,
}

impl<'a> From<&'a Begin> for NewLoan<'a> {
    fn from(begin: &'a Begin) -> NewLoan<'a> {
        NewLoan {
            library: begin.library.as_str(),
            isbn: begin.isbn.to_string(),
            borrower: begin.borrower.to_string(),
            license_id: begin.licence_id.as_deref(),
            reference: begin.reference.as_str(),
            begin: begin.begin,
        }
    }
}

/// The body of a return.
#[derive(Serialize)]
pub(in crate::lending) struct Return {
    ended: Timestamp,
    reason: &'static str,
}

impl Return {
    /// Maps every reason except an expiry to a return.
    pub(in crate::lending) fn new(ended: Timestamp, reason: EndReason) -> Return {
        let reason = match reason {
            EndReason::Expired => "EXPIRED",
            EndReason::Returned | EndReason::Cancelled | EndReason::Rejected => "RETURNED",
        };
        Return { ended, reason }
    }
}

/// The body of a cancel.
#[derive(Serialize)]
pub(in crate::lending) struct Cancel<'a> {
    pub(in crate::lending) reason: &'a str,
}

/// The body of a report (page "Reporting API").
#[derive(Serialize)]
pub(in crate::lending) struct NewReport {
    isbn: String,
    model: &'static str,
    /// In NOK.
    price: f64,
    date: String,
}

impl From<&UsageReport> for NewReport {
    fn from(report: &UsageReport) -> NewReport {
        let UsageReport { isbn, model, price, date } = *report;
        // A price has few digits, so a double has all of them.
        #[allow(clippy::cast_precision_loss)]
        let price = price as f64 / 100.0;
        NewReport { isbn: isbn.to_string(), model, price, date: date.to_string() }
    }
}
