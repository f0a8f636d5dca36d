//! Loans in the support API: a listing with filters and a cursor, and one loan with its history.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::accesses::Accessor;
use super::problems::AdminProblem;
use super::{App, Parts};
use crate::ledger::{AccessTarget, Filter, HistoryRow, LedgerError};
use crate::loan::{Loan, LoanId, LoanView, Tally, state_schema};
use crate::problem;

/// The default and the maximum number of loans on a page.
const DEFAULT_PAGE_SIZE: u32 = 100;
const MAX_PAGE_SIZE: u32 = 1000;

/// The query parameters, unparsed. Unknown ones are rejected: a misspelt filter would list all.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LoansQuery {
    /// Only loans of this library, by its ISIL.
    #[param(max_length = 16, pattern = "^[A-Za-z0-9]{1,4}-[A-Za-z0-9:/-]{1,11}$")]
    library: Option<String>,
    /// Only loans of this title.
    #[param(pattern = "^97[89][0-9]{10}$")]
    isbn: Option<String>,
    /// Only loans in this state.
    #[param(schema_with = state_schema)]
    state: Option<String>,
    /// Only loans of this borrower, by pseudonym: 26 characters of base 32 in lower case.
    #[param(min_length = 26, max_length = 26, pattern = "^[a-z2-7]{26}$")]
    borrower: Option<String>,
    /// Only loans that began at this time or later.
    #[param(format = DateTime)]
    since: Option<String>,
    /// The most loans on a page, from 1 to 1000; the default is 100.
    #[param(value_type = u32, minimum = 1, maximum = 1000)]
    limit: Option<String>,
    /// The `next` of the previous page.
    cursor: Option<String>,
}

/// A page of loans, with the cursor of the next page.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page {
    loans: Vec<SupportLoan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    next: Option<String>,
}

/// A loan as shown to support.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SupportLoan)]
pub(super) struct SupportLoan {
    #[schema(format = "uuid")]
    id: String,
    #[serde(flatten)]
    loan: LoanView,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    end_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = ShownRefusal, required = false)]
    refusal: Option<ShownRefusal>,
    /// True if the loan ended here more than a day ago and Bokbasen has not acknowledged the end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    end_overdue: bool,
    /// When the borrower's data was erased; `borrower` is a random value since then.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, format = DateTime)]
    forgotten: Option<Timestamp>,
    library: String,
    /// Pseudonym of the borrower: 26 characters of base 32.
    borrower: String,
    reference: String,
    #[schema(required)]
    lending_id: Option<String>,
    /// Delivered bytes by file path, perhaps without those of the last `metering.flush`.
    delivered: BTreeMap<String, DeliveredFile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<LoanStep>, required = false)]
    history: Option<Vec<LoanStep>>,
}

/// The delivered bytes of one file under a loan.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Delivered)]
struct DeliveredFile {
    /// The number of bytes sent, including repeated ones.
    bytes: u64,
    /// The distinct ranges sent, in order: the first and the last byte of each. At most 512 are
    /// stored; beyond that, the shortest are dropped.
    #[schema(value_type = Vec<[u64; 2]>)]
    ranges: Vec<[u64; 2]>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Refusal)]
struct ShownRefusal {
    code: String,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, format = DateTime)]
    retry_at: Option<Timestamp>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Step)]
struct LoanStep {
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// None for the intent, which is the first step of a loan.
    #[schema(required)]
    from: Option<&'static str>,
    #[schema(schema_with = state_schema)]
    to: &'static str,
    /// The cause of the transition, in one word.
    cause: String,
    /// A description; Bokbasen's own message if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    detail: Option<String>,
}

/// Loans, the newest first.
#[utoipa::path(get, path = "/api/v1/loans", operation_id = "support_list", tag = "support",
    params(LoansQuery), responses(
    (status = 200, description = "A page of loans", body = Page),
    (status = 400, response = inline(problem::Refused)),
    (status = 401, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    by: Accessor,
    query: Result<Query<LoansQuery>, QueryRejection>,
) -> Result<Json<Page>, AdminProblem> {
    let Query(query) = query.map_err(|rejection| AdminProblem::malformed(rejection.body_text()))?;
    let mut filter = query.filter()?;
    let target = filter.borrower.map(AccessTarget::from);
    let target = target.or(filter.isbn.map(AccessTarget::from));
    app.record_access(&by, "list-loans", filter.library, target).await?;
    let limit = filter.limit;
    filter.limit += 1; // one extra row shows whether there is another page
    let mut loans = app.parts.ledger.page(&filter).await.map_err(ledger_error)?;
    let more = loans.len() > limit as usize;
    loans.truncate(limit as usize);
    let next = loans.last().filter(|_| more).map(|loan| loan.id.to_string());
    let ids: Vec<LoanId> = loans.iter().map(|loan| loan.id).collect();
    let mut delivered = app.parts.ledger.delivered(&ids).await.map_err(ledger_error)?;
    let shown = |loan: &Loan| {
        SupportLoan::of(loan, delivered.remove(&loan.id).unwrap_or_default(), &app.parts)
    };
    let loans = loans.iter().map(shown).collect();
    Ok(Json(Page { loans, next }))
}

/// A loan with its history.
#[utoipa::path(get, path = "/api/v1/loans/{id}", operation_id = "support_show", tag = "support",
    params(("id" = String, Path)), responses(
    (status = 200, description = "The loan", body = SupportLoan),
    (status = 400, response = inline(problem::Refused)),
    (status = 401, response = inline(problem::Refused)),
    (status = 404, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn one(
    State(app): State<Arc<App>>,
    by: Accessor,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<SupportLoan>, AdminProblem> {
    let loan = find(&app, id).await?;
    let id = loan.id;
    app.record_access(&by, "show-loan", Some(id.library()), Some(id.into())).await?;
    SupportLoan::with_history(&app, &loan).await.map(Json)
}

/// Returns the loan that a path names.
pub(super) async fn find(
    app: &App,
    id: Result<Path<String>, PathRejection>,
) -> Result<Loan, AdminProblem> {
    let uuid = id.map_err(malformed_path)?.parse().map_err(|_| AdminProblem::NO_SUCH_LOAN)?;
    let loan = app.parts.ledger.find(uuid).await.map_err(ledger_error)?;
    loan.ok_or(AdminProblem::NO_SUCH_LOAN)
}

/// Returns the problem for a path whose escapes are not UTF-8.
pub(super) fn malformed_path(_: PathRejection) -> AdminProblem {
    AdminProblem::malformed(
        "The path cannot be read: its escapes are not UTF-8. Write the id as the list shows it.",
    )
}

pub(super) fn ledger_error(error: LedgerError) -> AdminProblem {
    tracing::error!(%error, "the ledger could not be read for the support API");
    AdminProblem::LEDGER
}

impl LoansQuery {
    fn filter(self) -> Result<Filter, AdminProblem> {
        let limit =
            read("limit", self.limit, "a number from 1 to 1000")?.unwrap_or(DEFAULT_PAGE_SIZE);
        if !(1..=MAX_PAGE_SIZE).contains(&limit) {
            return Err(AdminProblem::malformed(
                "limit is out of bounds. Write a number from 1 to 1000.",
            ));
        }
        Ok(Filter {
            library: read("library", self.library, "an ISIL like NO-0301000")?,
            isbn: read("isbn", self.isbn, "13 digits with a right check digit")?,
            state: read("state", self.state, "a state like accepted")?,
            borrower: read("borrower", self.borrower, "a pseudonym, as the list shows it")?,
            since: read("since", self.since, "a time like 2026-01-31T00:00:00Z")?,
            after: read("cursor", self.cursor, "the next of the previous page")?,
            limit,
        })
    }
}

pub(super) fn read<T>(
    name: &str,
    value: Option<String>,
    form: &str,
) -> Result<Option<T>, AdminProblem>
where
    T: FromStr<Err: Display>,
{
    // The message does not repeat the value: it may be a borrower's own id, entered by mistake.
    let read = value.map(|value| value.parse()).transpose();
    read.map_err(|_| AdminProblem::malformed(format!("{name} cannot be read. Write {form}.")))
}

impl SupportLoan {
    /// Reads what the ledger has about a loan beside its row.
    pub(super) async fn with_history(app: &App, loan: &Loan) -> Result<SupportLoan, AdminProblem> {
        let history = app.parts.ledger.history(loan.id).await.map_err(ledger_error)?;
        let history = history.into_iter().map(LoanStep::from).collect();
        let delivered = app.parts.ledger.delivered(&[loan.id]).await.map_err(ledger_error)?;
        let delivered = delivered.into_values().next().unwrap_or_default();
        let shown = SupportLoan::of(loan, delivered, &app.parts);
        Ok(SupportLoan { history: Some(history), ..shown })
    }

    fn of(loan: &Loan, delivered: BTreeMap<String, Tally>, parts: &Parts) -> SupportLoan {
        SupportLoan {
            id: loan.id.to_string(),
            loan: LoanView::of(loan, parts.requests.catalog().files_of(loan.key.isbn)),
            end_reason: loan.end_reason.map(|reason| reason.name()),
            refusal: loan.refusal.as_ref().map(|refusal| ShownRefusal {
                code: refusal.code.clone(),
                message: refusal.message.clone(),
                retry_at: refusal.retry_at,
            }),
            end_overdue: loan.end_is_overdue(parts.clock.now()),
            forgotten: loan.forgotten,
            library: loan.key.library.to_string(),
            borrower: loan.key.borrower.to_string(),
            reference: loan.reference.to_string(),
            lending_id: loan.lending_id.clone(),
            delivered: delivered
                .into_iter()
                .map(|(file, tally)| (file, DeliveredFile::from(&tally)))
                .collect(),
            history: None,
        }
    }
}

impl From<&Tally> for DeliveredFile {
    fn from(tally: &Tally) -> DeliveredFile {
        DeliveredFile { bytes: tally.bytes, ranges: tally.ranges.pairs().collect() }
    }
}

impl From<HistoryRow> for LoanStep {
    fn from(row: HistoryRow) -> LoanStep {
        LoanStep {
            at: row.at,
            from: row.from.map(|state| state.name()),
            to: row.to.name(),
            cause: row.cause,
            detail: row.detail,
        }
    }
}
