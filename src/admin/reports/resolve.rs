//! The resolution of a report by a person.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{ShownReport, find};
use crate::admin::App;
use crate::admin::accesses::Accessor;
use crate::admin::loans::ledger_error;
use crate::admin::problems::AdminProblem;
use crate::admin::request_body;
use crate::language::is_unprintable;
use crate::ledger::{ReportState, ReportStep};
use crate::loan::LoanId;
use crate::problem;

/// The longest reason, in characters.
const MAX_REASON: usize = 500;

/// The states from which a person may settle a report. A due report can still be withheld.
const FOR_A_PERSON: &[ReportState] = &ReportState::FOR_A_PERSON;
const NOT_SENT: &[ReportState] = &[
    ReportState::Due,
    ReportState::Unknown,
    ReportState::Rejected,
    ReportState::Unpriced,
    ReportState::Unmeasured,
    ReportState::Unidentified,
];
/// Bokbasen has proved that it did not record it.
const REJECTED: &[ReportState] = &[ReportState::Rejected];

/// How a person resolves a report.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ReportResolution)]
pub(in crate::admin) struct Resolution {
    /// `reported`: Bokbasen has it. `not-reported`: it is not sent. `due`: it is sent again, which
    /// only a rejected report is.
    #[serde(rename = "as")]
    #[schema(pattern = "^(reported|not-reported|due)$")]
    state: String,
    /// Why, for the books and the loan's history: 1 to 500 characters, and no borrower's name.
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
}

/// Resolves a usage report that a person must look at.
#[utoipa::path(post, path = "/api/v1/reports/{loan}", tag = "support",
    params(("loan" = String, Path)), request_body = Resolution, responses(
    (status = 200, description = "The resolved report", body = ShownReport),
    (status = 400, response = inline(problem::Refused)),
    (status = 401, response = inline(problem::Refused)),
    (status = 404, response = inline(problem::Refused)),
    (status = 409, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(in crate::admin) async fn resolve(
    State(app): State<Arc<App>>,
    by: Accessor,
    loan: Result<Path<String>, PathRejection>,
    body: Bytes,
) -> Result<Json<ShownReport>, AdminProblem> {
    let resolution: Resolution = request_body::parse(&body)?;
    let reason = reason_of(&resolution.reason)?;
    let report = find(&app, loan).await?;
    let by = Accessor { why: Some(reason.as_str().into()), ..by };
    let step = step(report.loan, &resolution.state, reason)?;
    if step.to == ReportState::Due {
        let reconciled = app.parts.ledger.reconciled().await.map_err(ledger_error)?;
        if reconciled.is_some_and(|at| report.due_since < at) {
            return Err(AdminProblem::BEFORE_RESTORE);
        }
    }
    let (library, target) = (report.loan.library(), report.loan.into());
    app.record_access(&by, "settle-report", Some(library), Some(target)).await?;
    // Spawned, so that the step completes even if the client disconnects.
    let ledger = app.parts.ledger.clone();
    let stepped = tokio::spawn(async move { ledger.step_report(step).await });
    match stepped.await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => return Err(AdminProblem::NOT_RESOLVABLE),
        Ok(Err(error)) => return Err(ledger_error(error)),
        Err(_) => return Err(AdminProblem::LEDGER),
    }
    let resolved = app.parts.ledger.report_of_loan(report.loan.uuid()).await;
    let resolved = resolved.map_err(ledger_error)?.ok_or(AdminProblem::NO_SUCH_REPORT)?;
    Ok(Json((&resolved).into()))
}

/// Returns the step that resolves a report.
fn step(loan: LoanId, state: &str, reason: String) -> Result<ReportStep, AdminProblem> {
    let (from, to) = match state {
        "reported" => (FOR_A_PERSON, ReportState::Reported),
        "not-reported" => (NOT_SENT, ReportState::NotReported),
        "due" => (REJECTED, ReportState::Due),
        _ => {
            let sentence = "as cannot be read. Write reported, not-reported or due.";
            return Err(AdminProblem::malformed(sentence));
        }
    };
    Ok(ReportStep { note: Some(reason), ..ReportStep::new(loan, from, to, "admin") })
}

/// Checks a reason. Unprintable characters could forge lines of a listing.
fn reason_of(text: &str) -> Result<String, AdminProblem> {
    let text = text.trim();
    let is_printable = !text.contains(is_unprintable);
    match text.chars().count() {
        1..=MAX_REASON if is_printable => Ok(text.to_owned()),
        _ => Err(AdminProblem::malformed(
            "reason must have 1 to 500 characters, without line breaks.",
        )),
    }
}
