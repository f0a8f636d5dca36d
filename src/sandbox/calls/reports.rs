//! The reports of paid loans (page "Reporting API").
//!
//! The router in `calls` sends requests here. Two equal reports count as two, because the page
//! documents no idempotency key.

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};

use super::super::api_types::{BookedReport, Report};
use super::super::context::App;
use super::super::error_response::Rejected;
use super::super::faults::{Call, Plan, Subject};

/// `POST /reporting/loan/v1`: stores a report of a paid loan.
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
    let subject = Subject { library: None, isbns: vec![report.isbn] };
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
    app.answer(Call::Report, &headers, subject, act).await
}
