//! The sandbox's control API: its books, faults, bounds and world. It has no authentication.
//!
//! Tests, the demo and other programs call it over HTTP. Faults and `down` do not affect it.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::api_types::{Begin, BookedLoan, ShownBooks};
use super::context::App;
use super::error_response::Rejected;
use super::faults::Plan;
use super::loan::Status;
use super::serde_text;
use super::{Fault, Library, Pseudonym, Title};
use crate::loan::{Isbn, LibraryId};

/// The routes below `/sandbox`.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/sandbox/books", get(books))
        .route(
            "/sandbox/faults",
            get(faults).put(replace_faults).post(add_faults).delete(clear_faults),
        )
        .route("/sandbox/settings", get(settings).put(change_settings))
        .route("/sandbox/loans", post(make_loan))
        .route("/sandbox/titles/{isbn}", put(put_title))
        .route("/sandbox/libraries/{isil}", put(put_library))
        .route("/sandbox/borrowers/{pseudonym}", put(put_borrower))
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Rejected> {
    serde_json::from_slice(body).map_err(|error| Rejected::malformed_body(&error))
}

async fn books(State(app): State<App>) -> Result<Response, Rejected> {
    let mut state = app.state();
    let now = app.now(&state);
    state.decide_all(now)?;
    let books = ShownBooks {
        loans: state.books.all().iter().map(BookedLoan::from).collect(),
        reports: state.books.reports(),
    };
    Ok(Json(&books).into_response())
}

async fn faults(State(app): State<App>) -> Response {
    Json(app.state().faults.list()).into_response()
}

async fn replace_faults(State(app): State<App>, body: Bytes) -> Result<StatusCode, Rejected> {
    let list = read::<OneOrMore>(&body)?.0;
    app.state().faults.replace(list);
    Ok(StatusCode::NO_CONTENT)
}

async fn add_faults(State(app): State<App>, body: Bytes) -> Result<StatusCode, Rejected> {
    let list = read::<OneOrMore>(&body)?.0;
    app.state().faults.add(list);
    Ok(StatusCode::NO_CONTENT)
}

async fn clear_faults(State(app): State<App>) -> StatusCode {
    app.state().faults.replace(Vec::new());
    StatusCode::NO_CONTENT
}

/// A fault, or a list of faults.
struct OneOrMore(Vec<Fault>);

impl<'de> Deserialize<'de> for OneOrMore {
    // Written by hand, because serde's untagged enums lose the sentence with the reason.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<OneOrMore, D::Error> {
        let list = match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Array(list) => list,
            one => vec![one],
        };
        let list = serde_json::from_value(list.into()).map_err(serde::de::Error::custom)?;
        Ok(OneOrMore(list))
    }
}

async fn settings(State(app): State<App>) -> Response {
    Json(&app.state().bounds).into_response()
}

async fn change_settings(State(app): State<App>, body: Bytes) -> Result<StatusCode, Rejected> {
    let changes = read(&body)?;
    let mut state = app.state();
    state.bounds = state.bounds.patched(changes).map_err(Rejected::malformed)?;
    Ok(StatusCode::NO_CONTENT)
}

/// A loan that another client creates.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ForeignLoan {
    #[serde(with = "serde_text")]
    library: LibraryId,
    #[serde(with = "serde_text")]
    isbn: Isbn,
    #[serde(default)]
    borrower: Option<Pseudonym>,
    #[serde(default)]
    license_id: Option<String>,
    #[serde(default)]
    reference: Option<String>,
    #[serde(default)]
    begin: Option<Timestamp>,
    /// `PENDING` leaves the loan pending, as a begin does. Otherwise it is decided at once.
    #[serde(default)]
    status: Option<Status>,
    /// The code of the refusal, if the loan is refused.
    #[serde(default)]
    refuse: Option<String>,
}

async fn make_loan(State(app): State<App>, body: Bytes) -> Result<Response, Rejected> {
    let foreign: ForeignLoan = read(&body)?;
    let mut state = app.state();
    let now = app.now(&state);
    let pending = foreign.status == Some(Status::Pending);
    let begin = Begin {
        library: foreign.library,
        isbn: foreign.isbn,
        borrower: foreign.borrower.unwrap_or(Pseudonym("someone-else".to_owned())),
        license_id: foreign.license_id,
        reference: foreign
            .reference
            .unwrap_or_else(|| format!("else-{}", uuid::Uuid::new_v4().simple())),
        begin: foreign.begin.unwrap_or(now),
    };
    let plan = Plan {
        pending_polls: (!pending).then_some(0),
        refuse: foreign.refuse.map(|code| (code, None, None)),
        ..Plan::default()
    };
    let loan = state.begin(&begin, &plan, now)?;
    let loan = if pending { loan } else { state.loan(&loan.id, now)? };
    Ok((StatusCode::CREATED, Json(BookedLoan::from(&loan))).into_response())
}

async fn put_title(
    State(app): State<App>,
    Path(isbn): Path<String>,
    body: Bytes,
) -> Result<StatusCode, Rejected> {
    let title: Title = named(&body, "isbn", isbn)?;
    let mut state = app.state();
    let now = app.now(&state);
    state.world_index.put_title(title, now);
    Ok(StatusCode::NO_CONTENT)
}

async fn put_library(
    State(app): State<App>,
    Path(isil): Path<String>,
    body: Bytes,
) -> Result<StatusCode, Rejected> {
    let library: Library = named(&body, "isil", isil)?;
    app.state().world_index.put_library(library);
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    refuse: Option<String>,
}

async fn put_borrower(
    State(app): State<App>,
    Path(pseudonym): Path<String>,
    body: Bytes,
) -> Result<StatusCode, Rejected> {
    let rule: Rule = read(&body)?;
    app.state().world_index.put_borrower(pseudonym, rule.refuse);
    Ok(StatusCode::NO_CONTENT)
}

/// Parses a body, with the name from the path added under `key`.
fn named<T: DeserializeOwned>(body: &[u8], key: &str, name: String) -> Result<T, Rejected> {
    let body = if body.is_empty() { b"{}" } else { body };
    let mut fields: serde_json::Map<String, serde_json::Value> = read(body)?;
    fields.insert(key.to_owned(), name.into());
    serde_json::from_value(fields.into()).map_err(|error| Rejected::malformed_body(&error))
}
