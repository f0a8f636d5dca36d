//! Usage reports: `GET /api/v1/reports` lists them by month, and `POST /api/v1/reports/{loan}`
//! resolves one that a person must look at (`resolve`).

mod resolve;

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use jiff::civil::Date;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::accesses::Accessor;
use super::loans::{ledger_error, malformed_path, read};
use super::problems::AdminProblem;
use crate::ledger::{Report, ReportFilter, ReportPosition, ReportState};
use crate::problem;
pub(super) use resolve::{__path_resolve, resolve};

/// The default and the maximum number of reports on a page.
const DEFAULT_PAGE_SIZE: u32 = 100;
const MAX_PAGE_SIZE: u32 = 1000;
/// The query parameters, unparsed. Unknown ones are rejected: a misspelt filter would list all.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ReportsQuery {
    /// Only reports of this month in Europe/Oslo.
    #[param(pattern = "^[0-9]{4}-[0-9]{2}$")]
    month: Option<String>,
    /// Only reports of this library, by its ISIL.
    #[param(max_length = 16, pattern = "^[A-Za-z0-9]{1,4}-[A-Za-z0-9:/-]{1,11}$")]
    library: Option<String>,
    /// Only reports that a person must look at.
    #[param(value_type = bool)]
    for_a_person: Option<String>,
    /// The most reports on a page, from 1 to 1000; the default is 100.
    #[param(value_type = u32, minimum = 1, maximum = 1000)]
    limit: Option<String>,
    /// The `next` of the previous page.
    cursor: Option<String>,
}

/// A page of reports, with the cursor of the next page.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ReportPage)]
pub(super) struct Page {
    reports: Vec<ShownReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    next: Option<String>,
}

/// A usage report.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UsageReport)]
pub(super) struct ShownReport {
    /// The loan that made it due. It identifies the report.
    #[schema(format = "uuid")]
    loan: String,
    library: String,
    #[schema(pattern = "^(PACKAGE|PAY_PER_LOAN)$")]
    model: &'static str,
    isbn: String,
    #[schema(required)]
    licence_id: Option<String>,
    licence_type: String,
    /// The day on which it became due, in Europe/Oslo.
    #[schema(value_type = String, format = Date)]
    date: Date,
    /// The price in NOK, with two decimals; null without one.
    #[schema(required)]
    price: Option<String>,
    #[schema(schema_with = state_schema)]
    state: &'static str,
    /// Whether a person must look at it.
    for_a_person: bool,
    /// What shows that it is due: `accepted`, `progress`, `coverage` or `none`.
    evidence: &'static str,
    /// The part of the title that was read, from 0 to 1, rounded down.
    #[schema(required)]
    read: Option<f64>,
    /// Delivered bytes, each counted once.
    #[schema(required)]
    covered: Option<u64>,
    /// The size of the title, in bytes.
    #[schema(required)]
    size: Option<u64>,
    #[schema(value_type = String, format = DateTime)]
    measured: Timestamp,
    /// How often a gate claimed it in order to send it.
    attempts: u64,
    /// When a gate last claimed it.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    sent: Option<Timestamp>,
    /// What is known of the last attempt, or what a person noted.
    #[schema(required)]
    note: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    changed: Timestamp,
}

fn state_schema() -> utoipa::openapi::schema::Object {
    let names = ReportState::ALL.iter().map(|state| state.name());
    utoipa::openapi::ObjectBuilder::new()
        .schema_type(utoipa::openapi::schema::Type::String)
        .enum_values(Some(names))
        .build()
}

impl From<&Report> for ShownReport {
    fn from(report: &Report) -> ShownReport {
        let measure = &report.measure;
        ShownReport {
            loan: report.loan.to_string(),
            library: report.loan.library().to_string(),
            model: report.model.name(),
            isbn: report.isbn.to_string(),
            licence_id: report.licence_id.clone(),
            licence_type: report.licence_type.clone(),
            date: report.date,
            price: report.price.map(|price| format!("{}.{:02}", price / 100, price % 100)),
            state: report.state.name(),
            for_a_person: report.state.is_for_a_person(),
            evidence: measure.evidence.name(),
            read: measure.progress.map(|progress| progress.fraction()),
            covered: measure.covered,
            size: measure.size,
            measured: measure.at,
            attempts: report.attempts,
            sent: report.sent,
            note: report.note.clone(),
            changed: report.changed,
        }
    }
}

/// Lists usage reports, in the order of their days.
#[utoipa::path(get, path = "/api/v1/reports", tag = "support", params(ReportsQuery), responses(
    (status = 200, description = "A page of reports", body = Page),
    (status = 400, response = inline(problem::Refused)),
    (status = 401, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    by: Accessor,
    query: Result<Query<ReportsQuery>, QueryRejection>,
) -> Result<Json<Page>, AdminProblem> {
    let Query(query) = query.map_err(|rejection| AdminProblem::malformed(rejection.body_text()))?;
    let filter = query.filter()?;
    app.record_access(&by, "list-reports", filter.library, None).await?;
    let (reports, next) = app.parts.ledger.reports(&filter).await.map_err(ledger_error)?;
    let next = next.as_ref().map(cursor_of);
    Ok(Json(Page { reports: reports.iter().map(ShownReport::from).collect(), next }))
}

/// Shows the usage report of a loan.
#[utoipa::path(get, path = "/api/v1/reports/{loan}", tag = "support",
    params(("loan" = String, Path)), responses(
    (status = 200, description = "The report", body = ShownReport),
    (status = 400, response = inline(problem::Refused)),
    (status = 401, response = inline(problem::Refused)),
    (status = 404, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn one(
    State(app): State<Arc<App>>,
    by: Accessor,
    loan: Result<Path<String>, PathRejection>,
) -> Result<Json<ShownReport>, AdminProblem> {
    let report = find(&app, loan).await?;
    let (library, target) = (report.loan.library(), report.loan.into());
    app.record_access(&by, "show-report", Some(library), Some(target)).await?;
    Ok(Json((&report).into()))
}

async fn find(
    app: &App,
    loan: Result<Path<String>, PathRejection>,
) -> Result<Report, AdminProblem> {
    let uuid = loan.map_err(malformed_path)?.parse().map_err(|_| AdminProblem::NO_SUCH_REPORT)?;
    let report = app.parts.ledger.report_of_loan(uuid).await.map_err(ledger_error)?;
    report.ok_or(AdminProblem::NO_SUCH_REPORT)
}

impl ReportsQuery {
    fn filter(self) -> Result<ReportFilter, AdminProblem> {
        let limit =
            read("limit", self.limit, "a number from 1 to 1000")?.unwrap_or(DEFAULT_PAGE_SIZE);
        if !(1..=MAX_PAGE_SIZE).contains(&limit) {
            return Err(AdminProblem::malformed(
                "limit is out of bounds. Write a number from 1 to 1000.",
            ));
        }
        let month = self.month.map(|month| days_of(&month)).transpose()?;
        Ok(ReportFilter {
            library: read("library", self.library, "an ISIL like NO-0301000")?,
            from: month.map(|(first, _)| first),
            before: month.map(|(_, next)| next),
            for_a_person: read("for_a_person", self.for_a_person, "true or false")?
                .unwrap_or_default(),
            after: self.cursor.map(|cursor| position_of(&cursor)).transpose()?,
            limit,
        })
    }
}

/// Returns the first day of a month, and that of the next one.
fn days_of(month: &str) -> Result<(Date, Date), AdminProblem> {
    let wrong = || AdminProblem::malformed("month cannot be read. Write one like 2026-10.");
    if month.len() != 7 {
        return Err(wrong());
    }
    let first: Date = format!("{month}-01").parse().map_err(|_| wrong())?;
    let next = first.checked_add(1.month()).map_err(|_| wrong())?;
    Ok((first, next))
}

fn cursor_of(position: &ReportPosition) -> String {
    format!("{} {} {}", position.date, position.library, position.loan)
}

fn position_of(cursor: &str) -> Result<ReportPosition, AdminProblem> {
    let wrong =
        || AdminProblem::malformed("cursor cannot be read. Write the next of the previous page.");
    let mut parts = cursor.split(' ');
    let (Some(date), Some(library), Some(loan), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(wrong());
    };
    Ok(ReportPosition {
        date: date.parse().map_err(|_| wrong())?,
        library: library.parse().map_err(|_| wrong())?,
        loan: loan.parse().map_err(|_| wrong())?,
    })
}
