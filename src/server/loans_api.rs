//! The readers' API for loans: list, show, begin, return, reading progress and availability.
//!
//! The dispatcher calls it for `/loans` and the paths below. It begins and ends loans through the
//! gate, and reads the ledger. A signed link opens files only and is refused here: links are passed
//! on, and another person must not be able to return a loan.

mod endpoint;

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::limits::Limit;
use super::request_body::RequestBody;
use super::{Services, problem_response};
use crate::connection_handle::Connection;
use crate::delivery::Body;
use crate::gate::{self, Availability};
use crate::language::Sentence;
use crate::ledger::{Filter, LedgerError};
use crate::loan::{Isbn, Loan, LoanView, Progress};
use crate::problem::{Problem, Refused};
use crate::reader::{Reader, Scope};

pub(super) use endpoint::{LoansEndpoint, parse_endpoint};

/// The largest number of loans in a list; the newest are listed.
const MAX_LISTED: u32 = 200;
/// The largest accepted request body, in bytes.
const MAX_BODY: usize = 1024;
const MALFORMED_PROGRESS: Problem = Problem::RequestMalformed(&Sentence {
    english: "The body cannot be read. Send the part of the title that was read, from 0 to \
                  1, like {\"fraction\": 0.4}.",
    norwegian: "Kroppen kan ikke leses. Send den delen av tittelen som er lest, fra 0 til 1, \
                    som {\"fraction\": 0.4}.",
});

const BODY_LATE: Problem = Problem::RequestMalformed(&Sentence {
    english: "The body of the request did not arrive in time. Send it at once, with a \
                  correct Content-Length.",
    norwegian: "Forespørselens kropp kom ikke i tide. Send den med en gang, med riktig \
                    Content-Length.",
});

/// A reader's loans, the newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Loans {
    loans: Vec<LoanView>,
}

/// The reading progress that an app reports.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Progress)]
pub(super) struct ReportedProgress {
    /// The part of the title that was read, from 0 to 1.
    #[schema(minimum = 0, maximum = 1, example = 0.4)]
    fraction: f64,
}

/// Whether a title can be borrowed.
#[derive(Serialize, ToSchema)]
#[schema(as = Availability)]
pub(super) struct AvailabilityView {
    isbn: String,
    /// Whether it can be borrowed now.
    available: bool,
    /// When it can be borrowed next, if it cannot now and the time is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, format = DateTime)]
    next_free: Option<Timestamp>,
    licences: Vec<LicencesView>,
}

/// The licences of one type, summed.
#[derive(Serialize, ToSchema)]
#[schema(as = Licences)]
struct LicencesView {
    #[serde(rename = "type")]
    #[schema(example = "PACKAGE")]
    kind: String,
    /// How many loans can begin under them now.
    free: u32,
}

/// Handles a request to the loans API.
pub(super) async fn answer(
    services: &Services,
    connection: &Connection,
    request: &Parts,
    body: RequestBody,
    endpoint: LoansEndpoint,
    link: Option<&str>,
) -> Result<Response<Body>, Problem> {
    let (method, methods) = (&request.method, endpoint.methods());
    if !methods.split(", ").any(|known| known == method.as_str()) {
        return Err(Problem::MethodNotAllowed(methods));
    }
    let (readers, query) = (&services.readers, request.uri.query());
    let mut reader = readers.authenticate(&request.headers, query, link);
    if matches!(reader, Err(Problem::LoginUnavailable { .. })) {
        Box::pin(readers.until_keys_fetched(&request.headers)).await;
        reader = readers.authenticate(&request.headers, query, link);
    }
    let reader = reader?;
    connection.note_credentials();
    if reader.scope != Scope::All {
        return Err(super::dispatch::outside_of_link());
    }
    match endpoint {
        LoansEndpoint::All => list(services, &reader).await,
        LoansEndpoint::One(isbn) if *method == Method::PUT => begin(services, &reader, isbn).await,
        LoansEndpoint::One(isbn) if *method == Method::DELETE => {
            cancel_or_return(services, &reader, isbn).await
        }
        LoansEndpoint::One(isbn) => show(services, &reader, isbn).await,
        LoansEndpoint::Progress(isbn) => progress(services, &reader, isbn, body).await,
        LoansEndpoint::Availability(isbn) => availability(services, &reader, isbn).await,
    }
}

fn view(services: &Services, loan: &Loan) -> LoanView {
    LoanView::of(loan, services.catalog.files_of(loan.key.isbn))
}

/// Lists the reader's own loans, the newest 200.
#[utoipa::path(get, path = "/loans", tag = "reader", responses(
    (status = 200, description = "The loans", body = Loans),
    (status = 400, response = inline(Refused)), (status = 401, response = inline(Refused)),
    (status = 503, response = inline(Refused)),
))]
pub(super) async fn list(services: &Services, reader: &Reader) -> Result<Response<Body>, Problem> {
    let filter = Filter {
        library: Some(reader.library),
        borrower: Some(reader.borrower),
        limit: MAX_LISTED,
        ..Filter::default()
    };
    let loans = services.ledger.page(&filter).await.map_err(ledger_unavailable)?;
    json(StatusCode::OK, &Loans { loans: loans.iter().map(|loan| view(services, loan)).collect() })
}

/// Returns the reader's loan of a title: the live one, or else the most recent one.
#[utoipa::path(get, path = "/loans/{isbn}", tag = "reader",
    params(("isbn" = String, Path)), responses(
    (status = 200, description = "The loan", body = LoanView),
    (status = 400, response = inline(Refused)), (status = 401, response = inline(Refused)),
    (status = 404, response = inline(Refused)),
    (status = 503, response = inline(Refused)),
))]
pub(super) async fn show(
    services: &Services,
    reader: &Reader,
    isbn: Isbn,
) -> Result<Response<Body>, Problem> {
    let loan = services.ledger.newest(&reader.key(isbn)).await.map_err(ledger_unavailable)?;
    json(StatusCode::OK, &view(services, &loan.ok_or(Problem::LoanNotFound)?))
}

/// Returns a loan. Idempotent, even without a loan. Streams in flight are aborted within a second.
#[utoipa::path(delete, path = "/loans/{isbn}", tag = "reader",
    params(("isbn" = String, Path)), responses(
    (status = 204, description = "There is no live loan"),
    (status = 400, response = inline(Refused)), (status = 401, response = inline(Refused)),
    (status = 404, response = inline(Refused)),
    (status = 503, response = inline(Refused)),
))]
pub(super) async fn cancel_or_return(
    services: &Services,
    reader: &Reader,
    isbn: Isbn,
) -> Result<Response<Body>, Problem> {
    services.gate.revoke(reader.key(isbn)).await?;
    Ok(problem_response::no_content())
}

/// Records how far a title was read, for its newest loan, even after the loan's end. Idempotent.
#[utoipa::path(
    put, path = "/loans/{isbn}/progress", tag = "reader", params(("isbn" = String, Path)),
    request_body = ReportedProgress,
    responses(
        (status = 204, description = "The progress is stored"),
        (status = 400, response = inline(Refused)), (status = 401, response = inline(Refused)),
        (status = 404, response = inline(Refused)), (status = 503, response = inline(Refused)),
    )
)]
pub(super) async fn progress(
    services: &Services,
    reader: &Reader,
    isbn: Isbn,
    body: RequestBody,
) -> Result<Response<Body>, Problem> {
    services.gate.note_progress(reader.key(isbn), read_progress(services, body).await?).await?;
    Ok(problem_response::no_content())
}

/// Returns whether the reader's library can lend a title now. The data is up to
/// `lending.availability_ttl` old.
#[utoipa::path(get, path = "/loans/{isbn}/availability", tag = "reader",
    params(("isbn" = String, Path)), responses(
    (status = 200, description = "The availability", body = AvailabilityView),
    (status = 400, response = inline(Refused)), (status = 401, response = inline(Refused)),
    (status = 403, response = inline(Refused)),
    (status = 404, response = inline(Refused)), (status = 503, response = inline(Refused)),
))]
pub(super) async fn availability(
    services: &Services,
    reader: &Reader,
    isbn: Isbn,
) -> Result<Response<Body>, Problem> {
    let availability = services.gate.availability(reader.library, isbn).await?;
    json(StatusCode::OK, &AvailabilityView::of(isbn, &availability))
}

/// Begins a loan at the reader's request. Idempotent. A token issued before a loan ended cannot
/// begin it again.
#[utoipa::path(put, path = "/loans/{isbn}", tag = "reader",
    params(("isbn" = String, Path)), responses(
    (status = 201, description = "The loan, which has begun now", body = LoanView),
    (status = 200, description = "The loan, which was already live", body = LoanView),
    (status = 400, response = inline(Refused)), (status = 401, response = inline(Refused)),
    (status = 403, response = inline(Refused)),
    (status = 404, response = inline(Refused)), (status = 429, response = inline(Refused)),
    (status = 503, response = inline(Refused)),
))]
pub(super) async fn begin(
    services: &Services,
    reader: &Reader,
    isbn: Isbn,
) -> Result<Response<Body>, Problem> {
    let request = gate::Request {
        key: reader.key(isbn),
        alternative_titles: &[],
        issued: reader.issued,
        issued_ahead: reader.issued_ahead,
        continues: false,
        explicit: false,
    };
    let (id, is_new) = services.gate.begin(&request).await?;
    let loan =
        services.ledger.loan(id).await.map_err(ledger_unavailable)?.ok_or(Problem::LoanNotFound)?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    json(status, &view(services, &loan))
}

/// Reads the reading progress from a request body.
async fn read_progress(services: &Services, body: RequestBody) -> Result<Progress, Problem> {
    let collected = Limited::new(body, MAX_BODY).collect();
    let Ok(body) = tokio::time::timeout(services.body_timeout, collected).await else {
        services.metrics.limit_reached(Limit::Body);
        return Err(BODY_LATE);
    };
    let body = body.map_err(|_| MALFORMED_PROGRESS)?;
    let read: ReportedProgress =
        serde_json::from_slice(&body.to_bytes()).map_err(|_| MALFORMED_PROGRESS)?;
    Progress::of(read.fraction).map_err(|_| MALFORMED_PROGRESS)
}

impl AvailabilityView {
    fn of(isbn: Isbn, availability: &Availability) -> AvailabilityView {
        let mut licences: Vec<LicencesView> = Vec::new();
        for licence in &availability.licences {
            match licences.iter_mut().find(|shown| shown.kind == licence.kind) {
                Some(shown) => shown.free = shown.free.saturating_add(licence.free),
                None => {
                    licences.push(LicencesView { kind: licence.kind.clone(), free: licence.free })
                }
            }
        }
        let (available, next_free) = (availability.available, availability.next_free());
        AvailabilityView { isbn: isbn.to_string(), available, next_free, licences }
    }
}

fn ledger_unavailable(error: LedgerError) -> Problem {
    tracing::error!(%error, "cannot read a reader's loans from the ledger");
    Problem::LedgerUnavailable
}

fn json(status: StatusCode, body: &impl Serialize) -> Result<Response<Body>, Problem> {
    let body = serde_json::to_vec(body).map_err(|_| Problem::LedgerUnavailable)?;
    let mut response = Response::new(problem_response::full(body));
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    Ok(response)
}
