//! Readers' own loans: what they have, an explicit begin, a return, how far they have read, and what can be had.
//!
//! The dispatcher calls it for `/loans` and what lies below. It asks the gate to begin and to end, and reads the ledger.
//! A signed link opens files and nothing here: it travels, and whoever finds it must not return a loan.

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Line, respond};
use crate::delivery::Body;
use crate::gate::{self, Availability};
use crate::ledger::{Filter, LedgerError};
use crate::loan::{Isbn, Loan, LoanView, Progress};
use crate::path::RequestPath;
use crate::problem::Problem;
use crate::reader::{Reader, Scope};

/// How many loans a reader is shown, the newest.
const SHOWN: u32 = 200;
/// The largest body of a request, in bytes.
const LARGEST: usize = 1024;
const PROGRESS: Problem = Problem::RequestMalformed(
    "The body cannot be read. Send the part of the title that was read, from 0 to 1, like {\"fraction\": 0.4}.",
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

#[derive(Serialize)]
struct List {
    loans: Vec<LoanView>,
}

/// What an app says of how far a title was read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    fraction: f64,
}

/// Whether a title can be had.
#[derive(Serialize)]
struct ShownAvailability {
    isbn: String,
    available: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_free: Option<Timestamp>,
    licences: Vec<ShownLicences>,
}

/// The licences of one type, taken together.
#[derive(Serialize)]
struct ShownLicences {
    #[serde(rename = "type")]
    kind: String,
    free: u32,
}

/// What the path names, where it is one of these; a problem where it lies below `/loans` and is none.
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
    request: &Parts,
    body: Incoming,
    asked: Asked,
    link: Option<&str>,
) -> Result<Response<Body>, Problem> {
    let (method, methods) = (&request.method, asked.methods());
    if !methods.split(", ").any(|known| known == method.as_str()) {
        return Err(Problem::MethodNotAllowed(methods));
    }
    let reader = line.readers.authenticate(&request.headers, request.uri.query(), link)?;
    if reader.scope != Scope::All {
        return Err(super::dispatch::outside_of_link());
    }
    match asked {
        Asked::All => list(line, &reader).await,
        Asked::One(isbn) if *method == Method::PUT => begin(line, &reader, isbn).await,
        Asked::One(isbn) if *method == Method::DELETE => {
            line.gate.revoke(reader.key(isbn)).await?;
            Ok(respond::no_content())
        }
        Asked::One(isbn) => {
            let loan = line.ledger.newest(&reader.key(isbn)).await.map_err(unreadable)?;
            let loan = loan.ok_or(Problem::LoanNotFound)?;
            json(StatusCode::OK, &view(line, &loan))
        }
        Asked::Progress(isbn) => {
            line.gate.note_progress(reader.key(isbn), read(body).await?).await?;
            Ok(respond::no_content())
        }
        Asked::Availability(isbn) => {
            let there = line.gate.availability(reader.library, isbn).await?;
            json(StatusCode::OK, &ShownAvailability::of(isbn, &there))
        }
    }
}

fn view(line: &Line, loan: &Loan) -> LoanView {
    LoanView::of(loan, line.catalog.files_of(loan.key.isbn))
}

async fn list(line: &Line, reader: &Reader) -> Result<Response<Body>, Problem> {
    let filter = Filter {
        library: Some(reader.library),
        borrower: Some(reader.borrower),
        limit: SHOWN,
        ..Filter::default()
    };
    let loans = line.ledger.page(&filter).await.map_err(unreadable)?;
    json(StatusCode::OK, &List { loans: loans.iter().map(|loan| view(line, loan)).collect() })
}

/// Begins a loan because the reader says so; idempotent. Invariant 7 holds here too: an old token borrows nothing again.
async fn begin(line: &Line, reader: &Reader, isbn: Isbn) -> Result<Response<Body>, Problem> {
    let request =
        gate::Request { key: reader.key(isbn), issued: reader.issued, continues: false, explicit: false };
    let (id, is_new) = line.gate.begin(&request).await?;
    let loan = line.ledger.loan(id).await.map_err(unreadable)?.ok_or(Problem::LoanNotFound)?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    json(status, &view(line, &loan))
}

/// Reads how far a title was read.
async fn read(body: Incoming) -> Result<Progress, Problem> {
    let body = Limited::new(body, LARGEST).collect().await.map_err(|_| PROGRESS)?;
    let read: Read = serde_json::from_slice(&body.to_bytes()).map_err(|_| PROGRESS)?;
    Progress::of(read.fraction).map_err(|_| PROGRESS)
}

impl ShownAvailability {
    fn of(isbn: Isbn, there: &Availability) -> ShownAvailability {
        let mut licences: Vec<ShownLicences> = Vec::new();
        for licence in &there.licences {
            match licences.iter_mut().find(|shown| shown.kind == licence.kind) {
                Some(shown) => shown.free = shown.free.saturating_add(licence.free),
                None => licences.push(ShownLicences { kind: licence.kind.clone(), free: licence.free }),
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
    let mut response = Response::new(respond::full(body));
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    Ok(response)
}
