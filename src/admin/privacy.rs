//! What the ledger has about one person, and its erasure (GDPR, articles 15 and 17).
//!
//! The person's own id becomes a pseudonym at once; no response and no log contains it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::accesses::Accessor;
use super::links::{check_borrower, library_of};
use super::loans::{SupportLoan, ledger_error, read};
use super::problems::AdminProblem;
use super::{App, request_body};
use crate::clock;
use crate::console::checked_reason;
use crate::ledger::Filter;
use crate::loan::{Borrower, LibraryId, Loan};
use crate::problem;

/// The loans on a page of an export. Each has its history.
const PAGE: u32 = 100;
/// The most loans that an erasure names as left.
const MAX_LEFT: u32 = 1000;
/// Added to the longest life of a credential: the clocks of login services differ.
const MARGIN: Duration = Duration::from_secs(300);

/// A person whose data is wanted.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExportRequest {
    /// The ISIL of the library.
    #[schema(max_length = 16)]
    library: String,
    /// The person's own id at the library. It is not stored.
    #[schema(min_length = 1, max_length = 256)]
    borrower: String,
    /// The `next` of the previous page.
    #[serde(default)]
    cursor: Option<String>,
}

/// A person whose data is to be erased.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ErasureRequest {
    /// The ISIL of the library.
    #[schema(max_length = 16)]
    library: String,
    /// The person's own id at the library. It is not stored.
    #[schema(min_length = 1, max_length = 256)]
    borrower: String,
    /// Why, for the access trail, such as the number of the case. It must not name the person.
    #[schema(min_length = 1, max_length = 200)]
    reason: String,
}

/// The loans of a person, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Export {
    library: String,
    /// The person's pseudonym, which Bokbasen has as well.
    borrower: String,
    loans: Vec<SupportLoan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    next: Option<String>,
}

/// The result of an erasure.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Erasure {
    /// The number of loans that name the person no more.
    erased: u64,
    /// The loans that still do, the newest first; 1000 at most.
    left: Vec<Left>,
    /// Whether the log of SQLite still has what was erased, since it is in use. The gate empties it
    /// within minutes.
    log_has_traces: bool,
}

/// A loan that cannot be erased yet.
#[derive(Debug, Serialize, ToSchema)]
struct Left {
    #[schema(format = "uuid")]
    id: String,
    state: &'static str,
    /// When it can be erased; absent for a loan that has not ended, or whose end Bokbasen has not
    /// acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, format = DateTime)]
    from: Option<Timestamp>,
}

/// Exports the loans of a person with their histories. A POST, so that the id is in no URL.
#[utoipa::path(post, path = "/api/v1/privacy/export", tag = "support",
    request_body = ExportRequest, responses(
    (status = 200, description = "A page of loans", body = Export),
    (status = 400, response = inline(problem::Refused)),
    (status = 401, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn export(
    State(app): State<Arc<App>>,
    by: Accessor,
    body: Bytes,
) -> Result<Json<Export>, AdminProblem> {
    let ExportRequest { library, borrower, cursor } = request_body::parse(&body)?;
    let (library, borrower) = person(&app, &library, &borrower)?;
    let after = read("cursor", cursor, "the next of the previous page")?;
    app.record_access(&by, "export-borrower", Some(library), Some(borrower.into())).await?;
    let filter = Filter { after, ..of_person(library, borrower, PAGE + 1) };
    let mut page = app.parts.ledger.page(&filter).await.map_err(ledger_error)?;
    let has_more = page.len() > PAGE as usize;
    page.truncate(PAGE as usize);
    let next = page.last().filter(|_| has_more).map(|loan| loan.id.to_string());
    let mut loans = Vec::with_capacity(page.len());
    for loan in &page {
        loans.push(SupportLoan::with_history(&app, loan).await?);
    }
    let (library, borrower) = (library.to_string(), borrower.to_string());
    Ok(Json(Export { library, borrower, loans, next }))
}

/// Erases a person from all loans that have ended, as far as no credential of theirs that is still
/// valid could begin such a loan again. Idempotent.
#[utoipa::path(post, path = "/api/v1/privacy/erase", tag = "support",
    request_body = ErasureRequest, responses(
    (status = 200, description = "What was erased, and what is left", body = Erasure),
    (status = 400, response = inline(problem::Refused)),
    (status = 401, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn erase(
    State(app): State<Arc<App>>,
    by: Accessor,
    body: Bytes,
) -> Result<Json<Erasure>, AdminProblem> {
    let ErasureRequest { library, borrower, reason } = request_body::parse(&body)?;
    let (library, borrower) = person(&app, &library, &borrower)?;
    let reason = checked_reason(&reason).ok_or(AdminProblem::malformed(
        "An erasure needs a reason: up to 200 characters without control or invisible characters.",
    ))?;
    let by = Accessor { why: Some(reason.as_str().into()), ..by };
    // The trail does not name the person: it would keep what is erased.
    app.record_access(&by, "erase-borrower", Some(library), None).await?;
    let guarded = app.parts.readers.longest_lifetime() + MARGIN;
    let before = clock::before(app.parts.clock.now(), guarded);
    let erasing = app.parts.circulation.erase_borrower(library, borrower, before);
    let erased = erasing.await.map_err(ledger_error)?;
    let emptied = app.parts.ledger.empty_log().await.map_err(ledger_error)?;
    let filter = of_person(library, borrower, MAX_LEFT);
    let left = app.parts.ledger.page(&filter).await.map_err(ledger_error)?;
    let left = left.iter().map(|loan| Left::of(loan, guarded)).collect();
    Ok(Json(Erasure { erased, left, log_has_traces: !emptied }))
}

impl Left {
    fn of(loan: &Loan, guarded: Duration) -> Left {
        let over = Some(loan.ended.unwrap_or(loan.changed)).filter(|_| !loan.state.is_live());
        Left {
            id: loan.id.to_string(),
            state: loan.state.name(),
            from: over.map(|over| clock::after(over, guarded)),
        }
    }
}

/// Returns the pseudonym of a person.
fn person(app: &App, library: &str, borrower: &str) -> Result<(LibraryId, Borrower), AdminProblem> {
    let library = library_of(library)?;
    check_borrower(borrower)?;
    Ok((library, app.parts.readers.pseudonym_to_look_up(library, borrower)))
}

fn of_person(library: LibraryId, borrower: Borrower, limit: u32) -> Filter {
    let (library, borrower) = (Some(library), Some(borrower));
    Filter { library, borrower, limit, ..Filter::default() }
}
