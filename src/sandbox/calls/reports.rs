//! Reports of loans that are paid for (page "Reporting API").
//!
//! Routed to by the calls' map; it writes to the books. Two equal reports are two reports: the page
//! names no key by which to tell them apart.

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};

use super::super::api_types::{BookedReport, Report};
use super::super::context::App;
use super::super::error_response::Rejected;
use super::super::faults::{Call, Plan, Subject};

/// `POST /reporting/loan/v1`.
pub(in super::super) async fn report(
    State(app): State<App>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Rejected> {
    app.authenticate(&headers)?;
    let report: Report = super::json(&headers, &body)?;
    if report.price < 0.0 {
        return Err(Rejected::malformed("The price must not be negative."));
    }
    let plan =
        app.plan(Call::Report, &headers, |_| Subject { library: None, isbns: vec![report.isbn] })?;
    let act = move |app: &App, _: &Plan| {
        let mut state = app.state();
        let received = app.now(&state);
        state.books.report(BookedReport {
            isbn: report.isbn,
            model: report.model,
            price: report.price,
            date: report.date,
            received,
        })?;
        Ok(StatusCode::NO_CONTENT.into_response())
    };
    Ok(app.perform(plan, act).await)
}
