//! Readers' own loans: what they have, an explicit begin, a return.
//!
//! The dispatcher calls it for `/loans` and what lies below. It asks the gate to begin and to end, and reads the ledger.
//! A signed link opens files and nothing here: it travels, and whoever finds it must not return a loan.

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};
use serde::Serialize;

use super::{Line, respond};
use crate::delivery::Body;
use crate::gate;
use crate::ledger::{Filter, LedgerError};
use crate::loan::{Isbn, Loan, LoanView};
use crate::path::RequestPath;
use crate::problem::Problem;
use crate::reader::{Reader, Scope};

/// How many loans a reader is shown, the newest.
const SHOWN: u32 = 200;
const OF_THE_LIST: &str = "GET, HEAD";
const OF_ONE: &str = "GET, HEAD, PUT, DELETE";

/// What a path of the loans API names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Asked {
    /// `/loans`
    All,
    /// `/loans/{isbn}`
    One(Isbn),
}

#[derive(Serialize)]
struct List {
    loans: Vec<LoanView>,
}

/// What the path names, where it is one of these; a problem where it lies below `/loans` and is none.
pub(super) fn asked(path: &RequestPath) -> Option<Result<Asked, Problem>> {
    let mut segments = path.segments();
    if segments.next() != Some("loans") {
        return None;
    }
    Some(match (segments.next(), segments.next()) {
        (None, _) => Ok(Asked::All),
        (Some(isbn), None) => isbn.parse().map(Asked::One).map_err(|_| Problem::TitleNotFound),
        (Some(_), Some(_)) => Err(Problem::TitleNotFound),
    })
}

/// Answers a request for a reader's loans.
pub(super) async fn answer(
    line: &Line,
    request: &Parts,
    asked: Asked,
    link: Option<&str>,
) -> Result<Response<Body>, Problem> {
    let method = &request.method;
    let reads = *method == Method::GET || *method == Method::HEAD;
    let allowed = match asked {
        Asked::All => (reads, OF_THE_LIST),
        Asked::One(_) => (reads || *method == Method::PUT || *method == Method::DELETE, OF_ONE),
    };
    if let (false, methods) = allowed {
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
