//! The support API's loans: a listing with filters and a cursor, and one loan with its history.

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

use super::problems::Refused;
use super::{App, Parts};
use crate::ledger::{Filter, HistoryRow, LedgerError};
use crate::loan::{Loan, LoanId, LoanView, Tally, state_schema};
use crate::problem;

/// How many loans a page has where nobody says, and at most.
const PAGE: u32 = 100;
const LARGEST_PAGE: u32 = 1000;

/// The filters as they are written. An unknown one is refused: it would else list everything.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// Of this library, by its ISIL.
    #[param(max_length = 16, pattern = "^[A-Za-z0-9]{1,4}-[A-Za-z0-9:/-]{1,11}$")]
    library: Option<String>,
    /// Of this title.
    #[param(pattern = "^97[89][0-9]{10}$")]
    isbn: Option<String>,
    /// In this state.
    #[param(schema_with = state_schema)]
    state: Option<String>,
    /// Of this borrower, by pseudonym: 26 characters of base 32 in lower case.
    #[param(min_length = 26, max_length = 26, pattern = "^[a-z2-7]{26}$")]
    borrower: Option<String>,
    /// Begun at this time or later.
    #[param(format = DateTime)]
    since: Option<String>,
    /// At most so many, from 1 to 1000; else 100.
    #[param(value_type = u32, minimum = 1, maximum = 1000)]
    limit: Option<String>,
    /// What a page gave as `next`.
    cursor: Option<String>,
}

/// A page of loans, and where the next one begins.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page {
    loans: Vec<Shown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    next: Option<String>,
}

/// A loan as support sees it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SupportLoan)]
pub(super) struct Shown {
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
    /// It ended here more than a day ago, and Bokbasen has not acknowledged that.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    end_overdue: bool,
    /// When its borrower was forgotten: `borrower` is a random value since.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, format = DateTime)]
    forgotten: Option<Timestamp>,
    library: String,
    /// The pseudonym.
    borrower: String,
    reference: String,
    #[schema(required)]
    lending_id: Option<String>,
    /// What was delivered under it, by the path of each file; what came in the last
    /// `metering.flush` may be missing.
    delivered: BTreeMap<String, ShownTally>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<ShownStep>, required = false)]
    history: Option<Vec<ShownStep>>,
}

/// What was delivered of a file under a loan.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Delivered)]
struct ShownTally {
    /// All bytes of it that were sent, also those that were sent again.
    bytes: u64,
    /// Which of them, each once: the first and the last byte of each range, in their order. There
    /// is room for 512; of more, the shortest are left out.
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
struct ShownStep {
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// None for the intent, with which a loan begins.
    #[schema(required)]
    from: Option<&'static str>,
    #[schema(schema_with = state_schema)]
    to: &'static str,
    /// What did it, in a word.
    cause: String,
    /// In words, Bokbasen's own where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    detail: Option<String>,
}

/// Loans, the newest first.
#[utoipa::path(get, path = "/api/v1/loans", operation_id = "support_list", tag = "support", params(Asked), responses(
    (status = 200, description = "A page of loans", body = Page),
    (status = 400, response = inline(problem::Refused)), (status = 401, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<Page>, Refused> {
    let Query(asked) = asked.map_err(|rejection| Refused::malformed(rejection.body_text()))?;
    let mut filter = asked.filter()?;
    let limit = filter.limit;
    filter.limit += 1; // one more tells whether there is another page
    let mut loans = app.parts.ledger.page(&filter).await.map_err(unreadable)?;
    let more = loans.len() > limit as usize;
    loans.truncate(limit as usize);
    let next = loans.last().filter(|_| more).map(|loan| loan.id.to_string());
    let ids: Vec<LoanId> = loans.iter().map(|loan| loan.id).collect();
    let mut delivered = app.parts.ledger.delivered(&ids).await.map_err(unreadable)?;
    let shown =
        |loan: &Loan| Shown::of(loan, delivered.remove(&loan.id).unwrap_or_default(), &app.parts);
    let loans = loans.iter().map(shown).collect();
    Ok(Json(Page { loans, next }))
}

/// A loan with its history.
#[utoipa::path(get, path = "/api/v1/loans/{id}", operation_id = "support_show", tag = "support",
    params(("id" = String, Path)), responses(
    (status = 200, description = "The loan", body = Shown),
    (status = 400, response = inline(problem::Refused)), (status = 401, response = inline(problem::Refused)),
    (status = 404, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn one(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, Refused> {
    let id = id.map_err(unreadable_path)?.parse().map_err(|_| Refused::NO_SUCH_LOAN)?;
    let loan = app.parts.ledger.loan(id).await.map_err(unreadable)?;
    let loan = loan.ok_or(Refused::NO_SUCH_LOAN)?;
    let history = app.parts.ledger.history(id).await.map_err(unreadable)?;
    let history = history.into_iter().map(ShownStep::from).collect();
    let delivered = app.parts.ledger.delivered(&[id]).await.map_err(unreadable)?;
    let delivered = delivered.into_values().next().unwrap_or_default();
    Ok(Json(Shown { history: Some(history), ..Shown::of(&loan, delivered, &app.parts) }))
}

/// A path whose escapes are not UTF-8.
pub(super) fn unreadable_path(_: PathRejection) -> Refused {
    Refused::malformed(
        "The path cannot be read: its escapes are not UTF-8. Write the id as the list shows it.",
    )
}

pub(super) fn unreadable(error: LedgerError) -> Refused {
    tracing::error!(%error, "the ledger could not be read for the support API");
    Refused::LEDGER
}

impl Asked {
    fn filter(self) -> Result<Filter, Refused> {
        let limit = read("limit", self.limit, "a number from 1 to 1000")?.unwrap_or(PAGE);
        if !(1..=LARGEST_PAGE).contains(&limit) {
            return Err(Refused::malformed(
                "limit is out of bounds. Write a number from 1 to 1000.",
            ));
        }
        Ok(Filter {
            library: read("library", self.library, "an ISIL like NO-0301000")?,
            isbn: read("isbn", self.isbn, "13 digits with a right check digit")?,
            state: read("state", self.state, "a state like accepted")?,
            borrower: read("borrower", self.borrower, "a pseudonym, as these loans show it")?,
            since: read("since", self.since, "a time like 2026-01-31T00:00:00Z")?,
            after: read("cursor", self.cursor, "what a page gave as next")?,
            limit,
        })
    }
}

pub(super) fn read<T>(name: &str, value: Option<String>, form: &str) -> Result<Option<T>, Refused>
where
    T: FromStr<Err: Display>,
{
    // The value itself is not said back: it may be a borrower's own id, typed by mistake.
    let read = value.map(|value| value.parse()).transpose();
    read.map_err(|_| Refused::malformed(format!("{name} cannot be read. Write {form}.")))
}

impl Shown {
    fn of(loan: &Loan, delivered: BTreeMap<String, Tally>, parts: &Parts) -> Shown {
        Shown {
            id: loan.id.to_string(),
            loan: LoanView::of(loan, parts.catalog.files_of(loan.key.isbn)),
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
                .map(|(file, tally)| (file, ShownTally::from(&tally)))
                .collect(),
            history: None,
        }
    }
}

impl From<&Tally> for ShownTally {
    fn from(tally: &Tally) -> ShownTally {
        ShownTally { bytes: tally.bytes, ranges: tally.ranges.pairs().collect() }
    }
}

impl From<HistoryRow> for ShownStep {
    fn from(row: HistoryRow) -> ShownStep {
        ShownStep {
            at: row.at,
            from: row.from.map(|state| state.name()),
            to: row.to.name(),
            cause: row.cause,
            detail: row.detail,
        }
    }
}
