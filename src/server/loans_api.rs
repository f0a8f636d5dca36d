//! Readers' own loans: what they have, an explicit begin, a return, how far they have read, and
//! what can be had.
//!
//! The dispatcher calls it for `/loans` and what lies below. It asks the gate to begin and to end,
//! and reads the ledger. A signed link opens files and nothing here: it travels, and whoever finds
//! it must not return a loan.

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::limits::Limit;
use super::request_body::RequestBody;
use super::{Line, problem_response};
use crate::connection_handle::Connection;
use crate::delivery::Body;
use crate::gate::{self, Availability};
use crate::ledger::{Filter, LedgerError};
use crate::loan::{Isbn, Loan, LoanView, Progress};
use crate::path::RequestPath;
use crate::problem::{Problem, Refused};
use crate::reader::{Reader, Scope};

/// How many loans a reader is shown, the newest.
const SHOWN: u32 = 200;
/// The largest body of a request, in bytes.
const LARGEST: usize = 1024;
const PROGRESS: Problem = Problem::RequestMalformed(
    "The body cannot be read. Send the part of the title that was read, from 0 to 1, like {\"fraction\": 0.4}.",
);

const BODY_LATE: Problem = Problem::RequestMalformed(
    "The body of the request did not arrive in time. Send it at once, with a correct Content-Length.",
);

/// What a path of the loans API names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Asked {
    /// `/loans`
    All,
    /// `/loans/{isbn}`
    One(Isbn),
    /// `/loans/{isbn}/progress`
    Progress(Isbn),
    /// `/loans/{isbn}/availability`
    Availability(Isbn),
}

impl Asked {
    /// The title that it is about.
    pub(super) fn isbn(self) -> Option<Isbn> {
        match self {
            Asked::All => None,
            Asked::One(isbn) | Asked::Progress(isbn) | Asked::Availability(isbn) => Some(isbn),
        }
    }

    /// The methods that have a meaning, as the field Allow lists them.
    fn methods(self) -> &'static str {
        match self {
            Asked::All | Asked::Availability(_) => "GET, HEAD",
            Asked::One(_) => "GET, HEAD, PUT, DELETE",
            Asked::Progress(_) => "PUT",
        }
    }
}

/// A reader's loans, the newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Loans {
    loans: Vec<LoanView>,
}

/// What an app says of how far a title was read.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Progress)]
pub(super) struct Read {
    /// The part of the title that was read.
    #[schema(minimum = 0, maximum = 1, example = 0.4)]
    fraction: f64,
}

/// Whether a title can be had.
#[derive(Serialize, ToSchema)]
#[schema(as = Availability)]
pub(super) struct ShownAvailability {
    isbn: String,
    /// Whether it can be borrowed now.
    available: bool,
    /// When it can be borrowed next, where it cannot now and that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, format = DateTime)]
    next_free: Option<Timestamp>,
    licences: Vec<ShownLicences>,
}

/// The licences of one type, taken together.
#[derive(Serialize, ToSchema)]
#[schema(as = Licences)]
struct ShownLicences {
    #[serde(rename = "type")]
    #[schema(example = "PACKAGE")]
    kind: String,
    /// How many loans can be begun under them now.
    free: u32,
}

/// What the path names, where it is one of these; a problem where it lies below `/loans` and is
/// none.
pub(super) fn asked(path: &RequestPath) -> Option<Result<Asked, Problem>> {
    let mut segments = path.segments();
    if segments.next() != Some("loans") {
        return None;
    }
    let Some(isbn) = segments.next() else {
        return Some(Ok(Asked::All));
    };
    let Ok(isbn) = isbn.parse() else {
        return Some(Err(Problem::TitleNotFound));
    };
    Some(match (segments.next(), segments.next()) {
        (None, _) => Ok(Asked::One(isbn)),
        (Some("progress"), None) => Ok(Asked::Progress(isbn)),
        (Some("availability"), None) => Ok(Asked::Availability(isbn)),
        (Some(_), _) => Err(Problem::TitleNotFound),
    })
}

/// Answers a request for a reader's loans.
pub(super) async fn answer(
    line: &Line,
    connection: &Connection,
    request: &Parts,
    body: RequestBody,
    asked: Asked,
    link: Option<&str>,
) -> Result<Response<Body>, Problem> {
    let (method, methods) = (&request.method, asked.methods());
    if !methods.split(", ").any(|known| known == method.as_str()) {
        return Err(Problem::MethodNotAllowed(methods));
    }
    let reader = line.readers.authenticate(&request.headers, request.uri.query(), link)?;
    connection.note_credentials();
    if reader.scope != Scope::All {
        return Err(super::dispatch::outside_of_link());
    }
    match asked {
        Asked::All => list(line, &reader).await,
        Asked::One(isbn) if *method == Method::PUT => begin(line, &reader, isbn).await,
        Asked::One(isbn) if *method == Method::DELETE => give_back(line, &reader, isbn).await,
        Asked::One(isbn) => show(line, &reader, isbn).await,
        Asked::Progress(isbn) => progress(line, &reader, isbn, body).await,
        Asked::Availability(isbn) => availability(line, &reader, isbn).await,
    }
}

fn view(line: &Line, loan: &Loan) -> LoanView {
    LoanView::of(loan, line.catalog.files_of(loan.key.isbn))
}

/// The reader's own loans, the newest 200.
#[utoipa::path(get, path = "/loans", tag = "reader", responses(
    (status = 200, description = "The loans", body = Loans),
    (status = 400, response = inline(Refused)), (status = 401, response = inline(Refused)),
    (status = 503, response = inline(Refused)),
))]
pub(super) async fn list(line: &Line, reader: &Reader) -> Result<Response<Body>, Problem> {
    let filter = Filter {
        library: Some(reader.library),
        borrower: Some(reader.borrower),
        limit: SHOWN,
        ..Filter::default()
    };
    let loans = line.ledger.page(&filter).await.map_err(unreadable)?;
    json(StatusCode::OK, &Loans { loans: loans.iter().map(|loan| view(line, loan)).collect() })
}

/// The reader's loan of a title: the one that lives, or else the newest that there was.
#[utoipa::path(get, path = "/loans/{isbn}", tag = "reader", params(("isbn" = String, Path)), responses(
    (status = 200, description = "The loan", body = LoanView),
    (status = 400, response = inline(Refused)), (status = 401, response = inline(Refused)),
    (status = 404, response = inline(Refused)),
    (status = 503, response = inline(Refused)),
))]
pub(super) async fn show(
    line: &Line,
    reader: &Reader,
    isbn: Isbn,
) -> Result<Response<Body>, Problem> {
    let loan = line.ledger.newest(&reader.key(isbn)).await.map_err(unreadable)?;
    json(StatusCode::OK, &view(line, &loan.ok_or(Problem::LoanNotFound)?))
}

/// Gives a loan back. Idempotent, also where there is none; streams that run are cut within a
/// second.
#[utoipa::path(delete, path = "/loans/{isbn}", tag = "reader", params(("isbn" = String, Path)), responses(
    (status = 204, description = "There is no live loan any more"),
    (status = 400, response = inline(Refused)), (status = 401, response = inline(Refused)),
    (status = 404, response = inline(Refused)),
    (status = 503, response = inline(Refused)),
))]
pub(super) async fn give_back(
    line: &Line,
    reader: &Reader,
    isbn: Isbn,
) -> Result<Response<Body>, Problem> {
    line.gate.revoke(reader.key(isbn)).await?;
    Ok(problem_response::no_content())
}

/// Says how far a title was read, for the newest loan of it, also after its end. Idempotent.
#[utoipa::path(
    put, path = "/loans/{isbn}/progress", tag = "reader", params(("isbn" = String, Path)), request_body = Read,
    responses(
        (status = 204, description = "It is kept"),
        (status = 400, response = inline(Refused)), (status = 401, response = inline(Refused)),
        (status = 404, response = inline(Refused)), (status = 503, response = inline(Refused)),
    )
)]
pub(super) async fn progress(
    line: &Line,
    reader: &Reader,
    isbn: Isbn,
    body: RequestBody,
) -> Result<Response<Body>, Problem> {
    line.gate.note_progress(reader.key(isbn), read(line, body).await?).await?;
    Ok(problem_response::no_content())
}

/// Whether the reader's library can lend a title now; up to `lending.availability_ttl` old.
#[utoipa::path(get, path = "/loans/{isbn}/availability", tag = "reader", params(("isbn" = String, Path)), responses(
    (status = 200, description = "What is free", body = ShownAvailability),
    (status = 400, response = inline(Refused)), (status = 401, response = inline(Refused)),
    (status = 403, response = inline(Refused)),
    (status = 404, response = inline(Refused)), (status = 503, response = inline(Refused)),
))]
pub(super) async fn availability(
    line: &Line,
    reader: &Reader,
    isbn: Isbn,
) -> Result<Response<Body>, Problem> {
    let there = line.gate.availability(reader.library, isbn).await?;
    json(StatusCode::OK, &ShownAvailability::of(isbn, &there))
}

/// Begins a loan because the reader says so. Idempotent; an old token borrows nothing again that
/// has ended.
#[utoipa::path(put, path = "/loans/{isbn}", tag = "reader", params(("isbn" = String, Path)), responses(
    (status = 201, description = "The loan, which was begun", body = LoanView),
    (status = 200, description = "The loan, which lives already", body = LoanView),
    (status = 400, response = inline(Refused)), (status = 401, response = inline(Refused)),
    (status = 403, response = inline(Refused)),
    (status = 404, response = inline(Refused)), (status = 429, response = inline(Refused)),
    (status = 503, response = inline(Refused)),
))]
pub(super) async fn begin(
    line: &Line,
    reader: &Reader,
    isbn: Isbn,
) -> Result<Response<Body>, Problem> {
    let (key, issued) = (reader.key(isbn), reader.issued);
    let request = gate::Request { key, further: &[], issued, continues: false, explicit: false };
    let (id, is_new) = line.gate.begin(&request).await?;
    let loan = line.ledger.loan(id).await.map_err(unreadable)?.ok_or(Problem::LoanNotFound)?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    json(status, &view(line, &loan))
}

/// Reads how far a title was read.
async fn read(line: &Line, body: RequestBody) -> Result<Progress, Problem> {
    let collected = Limited::new(body, LARGEST).collect();
    let Ok(body) = tokio::time::timeout(line.body_timeout, collected).await else {
        line.metrics.limit_reached(Limit::Body.name());
        return Err(BODY_LATE);
    };
    let body = body.map_err(|_| PROGRESS)?;
    let read: Read = serde_json::from_slice(&body.to_bytes()).map_err(|_| PROGRESS)?;
    Progress::of(read.fraction).map_err(|_| PROGRESS)
}

impl ShownAvailability {
    fn of(isbn: Isbn, there: &Availability) -> ShownAvailability {
        let mut licences: Vec<ShownLicences> = Vec::new();
        for licence in &there.licences {
            match licences.iter_mut().find(|shown| shown.kind == licence.kind) {
                Some(shown) => shown.free = shown.free.saturating_add(licence.free),
                None => {
                    licences.push(ShownLicences { kind: licence.kind.clone(), free: licence.free })
                }
            }
        }
        let (available, next_free) = (there.available, there.next_free());
        ShownAvailability { isbn: isbn.to_string(), available, next_free, licences }
    }
}

fn unreadable(error: LedgerError) -> Problem {
    tracing::error!(%error, "the ledger could not be read for a reader's loans");
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
