//! The calls of the page. Each answers with 200 and JSON, and `{"error": …}` if it fails: to the
//! gate, another status would be a failure of the origin.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CACHE_CONTROL;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Behind, Shared};
use crate::cli::demo::people::{PEOPLE, Person};
use crate::cli::{CliError, token};
use crate::reader::Scope;
use crate::telemetry::RequestId;

/// The lifetime of the tokens and links of a sign-in.
const LIFETIME: Duration = Duration::from_secs(3600);

fn answer(value: Result<Value, String>) -> Response {
    let value = value.unwrap_or_else(|error| json!({ "error": error }));
    ([(CACHE_CONTROL, "no-store")], Json(value)).into_response()
}

fn not_found() -> Response {
    StatusCode::NOT_FOUND.into_response()
}

fn behind(shared: &Shared) -> Result<&Behind, String> {
    shared.behind.get().ok_or_else(|| "The demo is starting. Try again.".to_owned())
}

fn person(name: &str) -> Option<&'static Person> {
    PEOPLE.iter().find(|person| person.name == name)
}

/// The demo's readers and titles.
pub(super) async fn world(State(shared): State<Arc<Shared>>) -> Response {
    answer(behind(&shared).map(|behind| {
        let readers = PEOPLE
            .iter()
            .map(|person| json!({ "name": person.name, "library": person.library }))
            .collect::<Vec<_>>();
        let titles = behind.collection.titles().iter().map(|title| {
            json!({
                "isbn": title.isbn.to_string(),
                "name": title.name,
                "creator": title.creator,
                "kind": title.kind.name(),
                "path": title.path,
                "bytes": title.bytes,
                "licences": title.licences,
            })
        });
        json!({ "readers": readers, "titles": titles.collect::<Vec<_>>() })
    }))
}

/// Signs a reader in: a new token, and a new link to each title. The demo's readers are invented,
/// so nobody has to prove who they are.
pub(super) async fn sign_in(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Response {
    let Some(person) = person(&name) else { return not_found() };
    answer(behind(&shared).and_then(|behind| {
        credentials(behind, person).map_err(|error| {
            tracing::error!(%error, "the demo cannot sign a reader in");
            "The demo cannot sign this reader in. Its log says why.".to_owned()
        })
    }))
}

fn credentials(behind: &Behind, person: &Person) -> Result<Value, CliError> {
    let library = behind.library(person)?;
    let issued = behind.clock.now().as_second();
    let token = token::reader(&behind.jwt, &library, person.name, LIFETIME)?;
    let borrower = behind.readers.pseudonym(library, person.name);
    let titles = behind.collection.titles().iter();
    let links = titles.filter_map(|title| {
        let scope = Scope::Title(title.isbn);
        let (link, _) = behind.readers.mint_link(library, borrower, &scope, LIFETIME)?;
        Some((title.isbn.to_string(), Value::String(link)))
    });
    let links: serde_json::Map<_, _> = links.collect();
    Ok(json!({ "name": person.name, "token": token, "issued": issued, "links": links }))
}

/// What the gate, Bokbasen's stand-in and the storage have of a reader and a title, and what a
/// request for it with a credential issued at this time would get.
pub(super) async fn live(
    State(shared): State<Arc<Shared>>,
    Path((name, isbn, issued)): Path<(String, String, String)>,
) -> Response {
    let Some(person) = person(&name) else { return not_found() };
    let behind = match behind(&shared) {
        Ok(behind) => behind,
        Err(error) => return answer(Err(error)),
    };
    let titles = behind.collection.titles();
    let Some(title) = titles.iter().find(|title| title.isbn.to_string() == isbn) else {
        return not_found();
    };
    let issued = issued.parse().ok().and_then(|second| Timestamp::from_second(second).ok());
    let Some(issued) = issued else { return not_found() };
    answer(behind.live(person, title, issued).await)
}

/// The path of a request that was made. Its borrower must be one of the demo's readers.
pub(super) async fn recorded(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
) -> Response {
    if RequestId::parse(&id).is_none() {
        return not_found();
    }
    match behind(&shared) {
        Ok(behind) => answer(behind.recorded(&id).await),
        Err(error) => answer(Err(error)),
    }
}
