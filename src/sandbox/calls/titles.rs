//! The calls about titles: licence types, availability, inventory and licences.
//!
//! The router in `calls` sends requests here. Paths and bodies are assumed. An availability shows
//! an unknown title as not available.

use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;

use super::super::api_types::{Availability, FreeLicence, InventoryEntry, ShownLicence};
use super::super::context::App;
use super::super::error_response::Rejected;
use super::super::faults::{Call, Plan, Subject};
use super::super::lookup::licences_of;
use super::super::paging::{self, Cursor, Listing};
use super::super::state::{State as SandboxState, unknown_title};
use crate::loan::{Isbn, LibraryId};

/// The maximum number of titles in one call.
const MAX_TITLES: usize = 100;

/// `GET /v1/license-types`: lists the licence types of the world.
pub(in super::super) async fn licence_types(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, Rejected> {
    app.authenticate(&headers)?;
    let act = |app: &App, _: &Plan| {
        Ok(super::json_response(StatusCode::OK, &app.state().world_index.licence_types()))
    };
    app.answer(Call::Licenses, &headers, Subject::default(), act).await
}

/// `GET /v1/libraries/{isil}/availability?isbn=…`: the free licences of titles.
pub(in super::super) async fn availability(
    State(app): State<App>,
    Path(isil): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Rejected> {
    app.authenticate(&headers)?;
    let library = read_library(&isil)?;
    let parameters = paging::parameters(query.as_deref(), &["isbn"])?;
    if parameters.is_empty() || parameters.len() > MAX_TITLES {
        let message = format!("Ask for 1 to {MAX_TITLES} titles, each with isbn=.");
        return Err(Rejected::malformed(message));
    }
    let isbns: Vec<Isbn> =
        parameters.iter().map(|(_, text)| read_isbn(text)).collect::<Result<_, _>>()?;
    let subject = Subject { library: Some(library), isbns: isbns.clone() };
    let act = move |app: &App, _: &Plan| {
        let mut state = app.state();
        let now = app.now(&state);
        state.world_index.library(library)?;
        let all: Vec<_> =
            isbns.iter().map(|isbn| available(&mut state, library, *isbn, now)).collect();
        Ok(super::json_response(StatusCode::OK, &all))
    };
    app.answer(Call::Availability, &headers, subject, act).await
}

fn available(
    state: &mut SandboxState,
    library: LibraryId,
    isbn: Isbn,
    now: Timestamp,
) -> Availability {
    let title = state.world_index.title(isbn);
    let licenses: Vec<FreeLicence> = title
        .iter()
        .flat_map(|title| licences_of(title, library))
        .map(|licence| {
            let pool_status = state.pools.status(library, isbn, licence, now);
            FreeLicence {
                license_id: licence.licence_id.clone(),
                kind: licence.kind.clone(),
                free: pool_status.free,
                next_free: pool_status.next_free,
            }
        })
        .collect();
    Availability { isbn, available: licenses.iter().any(|licence| licence.free > 0), licenses }
}

/// `GET /v1/libraries/{isil}/titles/{isbn}/licenses`: the licences of a title.
pub(in super::super) async fn licences(
    State(app): State<App>,
    Path((isil, isbn)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Rejected> {
    app.authenticate(&headers)?;
    let (library, isbn) = (read_library(&isil)?, read_isbn(&isbn)?);
    let subject = Subject { library: Some(library), isbns: vec![isbn] };
    let act = move |app: &App, _: &Plan| {
        let mut state = app.state();
        let now = app.now(&state);
        state.world_index.library(library)?;
        let licences = shown(&mut state, library, isbn, now).ok_or_else(|| unknown_title(isbn))?;
        Ok(super::json_response(StatusCode::OK, &licences))
    };
    app.answer(Call::Licenses, &headers, subject, act).await
}

/// `GET /v1/libraries/{isil}/inventory?after=…` or `?next=…`.
pub(in super::super) async fn inventory(
    State(app): State<App>,
    Path(isil): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Rejected> {
    app.authenticate(&headers)?;
    let library = read_library(&isil)?;
    let parameters = paging::parameters(query.as_deref(), &["after", "next"])?;
    let subject = Subject { library: Some(library), isbns: Vec::new() };
    let act = move |app: &App, _: &Plan| {
        let mut state = app.state();
        let now = app.now(&state);
        state.world_index.library(library)?;
        let (cursor, from) = inventory_from(&parameters, &isil, now)?;
        let isbns = state.world_index.changed_from(from);
        let mut entries = Vec::new();
        for isbn in isbns.iter().skip(cursor.offset).take(state.bounds.page_size.max(1)) {
            let licenses = shown(&mut state, library, *isbn, now).unwrap_or_default();
            entries.push(InventoryEntry { isbn: *isbn, licenses });
        }
        let json = serde_json::to_string(&entries).unwrap_or_default();
        let path = format!("/v1/libraries/{library}/inventory");
        Ok(cursor.page(&path, entries.len(), json, now))
    };
    app.answer(Call::Inventory, &headers, subject, act).await
}

fn inventory_from(
    parameters: &[(String, String)],
    isil: &str,
    now: Timestamp,
) -> Result<(Cursor, Timestamp), Rejected> {
    match (paging::single(parameters, "after")?, paging::single(parameters, "next")?) {
        (Some(text), None) => {
            let after = paging::after(text)?;
            let isil = isil.to_owned();
            let listing = Listing::Inventory { isil, after };
            Ok((Cursor::start(listing, now), after))
        }
        (None, Some(next)) => {
            let cursor = Cursor::read(next, now)?;
            match cursor.listing.clone() {
                Listing::Inventory { isil: of, after } if of == isil => Ok((cursor, after)),
                _ => Err(Rejected::malformed("The cursor belongs to another listing.")),
            }
        }
        _ => Err(Rejected::malformed("Give after, or next alone.")),
    }
}

fn shown(
    state: &mut SandboxState,
    library: LibraryId,
    isbn: Isbn,
    now: Timestamp,
) -> Option<Vec<ShownLicence>> {
    let title = state.world_index.title(isbn)?;
    let licences = licences_of(&title, library).map(|licence| {
        let pool_status = state.pools.status(library, isbn, licence, now);
        ShownLicence {
            license_id: licence.licence_id.clone(),
            kind: licence.kind.clone(),
            origin: licence.origin,
            loans_left: pool_status.loans_left,
            free: pool_status.free,
            expires: licence.expires,
        }
    });
    Some(licences.collect())
}

fn read_library(text: &str) -> Result<LibraryId, Rejected> {
    text.parse().map_err(|error| {
        Rejected::malformed(format!("The library \"{text}\" is malformed: {error}."))
    })
}

fn read_isbn(text: &str) -> Result<Isbn, Rejected> {
    text.parse().map_err(|error| {
        Rejected::malformed(format!("The title \"{text}\" is malformed: {error}."))
    })
}
