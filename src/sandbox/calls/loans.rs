//! The calls about one loan: begin, get, return and cancel.
//!
//! The router in `calls` sends requests here, and the state handles them. Paths and bodies are
//! assumed. A begin is asynchronous, since the example on the page "Digital lending platform"
//! polls: its response is always PENDING.

mod list;

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use http::header::{LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};

pub(in super::super) use self::list::list;
use super::super::api_types::{Begin, Begun, Cancel, Return, ShownLoan, ShownStatus};
use super::super::context::App;
use super::super::error_response::Rejected;
use super::super::faults::{Call, Plan, Subject};
use super::super::loan::{Loan, Status};

/// The maximum length of a reference or a borrower (assumed).
const MAX_TEXT_LENGTH: usize = 128;

/// `POST /v1/loans`: begins a loan, which is PENDING at first.
pub(in super::super) async fn begin(
    State(app): State<App>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Rejected> {
    app.authenticate(&headers)?;
    let begin: Begin = super::json(&headers, &body)?;
    for (name, text) in [("reference", &begin.reference), ("borrower", &begin.borrower.0)] {
        if text.is_empty() || text.len() > MAX_TEXT_LENGTH {
            let message = format!("The {name} must have 1 to {MAX_TEXT_LENGTH} characters.");
            return Err(Rejected::malformed(message));
        }
    }
    let subject = Subject { library: Some(begin.library), isbns: vec![begin.isbn] };
    let act = move |app: &App, plan: &Plan| {
        let mut state = app.state();
        let now = app.now(&state);
        let loan = state.begin(&begin, plan, now)?;
        if plan.duplicate {
            state.begin(&begin, plan, now)?;
        }
        Ok(begun(&loan, plan.unknown_status))
    };
    app.answer(Call::Begin, &headers, subject, act).await
}

fn begun(loan: &Loan, unknown_status: bool) -> Response {
    let body =
        Begun { loan_id: &loan.id, status: ShownStatus::of(Status::Pending, unknown_status) };
    let mut response = super::json_response(StatusCode::ACCEPTED, &body);
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/loans/{}", loan.id)) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// `GET /v1/loans/{loanId}`: returns a loan, and counts a poll.
pub(in super::super) async fn loan(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Rejected> {
    app.authenticate(&headers)?;
    let subject = app.state().subject(&id);
    let act = move |app: &App, plan: &Plan| {
        let mut state = app.state();
        let now = app.now(&state);
        state.check_lag(&id, plan.lag.max(Duration::from_millis(state.bounds.get_lag_ms)), now)?;
        let loan = state.loan(&id, now)?;
        let mut response = shown(&loan, plan);
        if loan.status == Status::Pending {
            state.books.count_poll(&id);
            let wait = HeaderValue::from(state.bounds.poll_after_seconds);
            response.headers_mut().insert(RETRY_AFTER, wait);
        }
        Ok(response)
    };
    app.answer(Call::Get, &headers, subject, act).await
}

/// `POST /v1/loans/{loanId}/return`: ends an accepted loan.
pub(in super::super) async fn return_loan(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Rejected> {
    app.authenticate(&headers)?;
    let end: Return = super::json(&headers, &body)?;
    let subject = app.state().subject(&id);
    let act = move |app: &App, plan: &Plan| {
        let mut state = app.state();
        let now = app.now(&state);
        state.check_lag(&id, plan.lag, now)?;
        Ok(shown(&state.return_loan(&id, &end, now)?, plan))
    };
    app.answer(Call::Return, &headers, subject, act).await
}

/// `POST /v1/loans/{loanId}/cancel`: ends a loan and frees its licence.
pub(in super::super) async fn cancel(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Rejected> {
    app.authenticate(&headers)?;
    let cancel: Cancel = super::json(&headers, &body)?;
    if cancel.reason.is_empty() {
        return Err(Rejected::malformed("The reason must not be empty."));
    }
    let subject = app.state().subject(&id);
    let act = move |app: &App, plan: &Plan| {
        let mut state = app.state();
        let now = app.now(&state);
        state.check_lag(&id, plan.lag, now)?;
        Ok(shown(&state.cancel(&id, now)?, plan))
    };
    app.answer(Call::Cancel, &headers, subject, act).await
}

fn shown(loan: &Loan, plan: &Plan) -> Response {
    super::json_response(StatusCode::OK, &ShownLoan::of(loan, plan.unknown_status))
}
