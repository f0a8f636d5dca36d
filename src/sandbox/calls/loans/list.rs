//! The listing of loans, by reference or by library.
//!
//! The router in `calls` sends requests here. A loan appears in listings with a lag, as assumed. A
//! loan that is still hidden also hides all later ones, so that no cursor skips a loan.

use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use http::HeaderMap;
use jiff::{SignedDuration, Timestamp};

use super::super::super::api_types::ShownLoan;
use super::super::super::context::App;
use super::super::super::error_response::Rejected;
use super::super::super::faults::{Call, Plan, Subject};
use super::super::super::loan::Loan;
use super::super::super::paging::{self, Cursor, Listing};
use super::super::super::state::State as SandboxState;
use crate::loan::LibraryId;

/// `GET /v1/loans?reference=…`, `?library=…&after=…` or `?next=…`.
pub(in super::super::super) async fn list(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Rejected> {
    app.authenticate(&headers)?;
    let cursor = {
        let state = app.state();
        listing(query.as_deref(), &state, app.now(&state))?
    };
    let subject = match &cursor.listing {
        Listing::Reference(reference) => app.state().subject_of_reference(reference),
        Listing::Library { isil, .. } | Listing::Inventory { isil, .. } => {
            Subject { library: isil.parse().ok(), isbns: Vec::new() }
        }
    };
    let act = move |app: &App, plan: &Plan| {
        let mut state = app.state();
        let now = app.now(&state);
        let loans = page(&mut state, &cursor, plan.lag, now)?;
        let shown = loans.iter().map(|loan| {
            let shown = ShownLoan::of(loan, plan.unknown_status);
            if plan.no_reference { shown.without_reference() } else { shown }
        });
        let shown: Vec<_> = shown.collect();
        let json = serde_json::to_string(&shown).unwrap_or_default();
        Ok(cursor.page("/v1/loans", loans.len(), json, now))
    };
    app.answer(Call::List, &headers, subject, act).await
}

/// Returns the requested listing, and where it continues.
fn listing(query: Option<&str>, state: &SandboxState, now: Timestamp) -> Result<Cursor, Rejected> {
    let parameters = paging::parameters(query, &["reference", "library", "after", "next"])?;
    let one = |name| paging::single(&parameters, name);
    match (one("reference")?, one("library")?, one("after")?, one("next")?) {
        (Some(reference), None, None, None) => {
            Ok(Cursor::start(Listing::Reference(reference.to_owned()), now))
        }
        (None, Some(isil), Some(after), None) => {
            let library: LibraryId = isil
                .parse()
                .map_err(|error| Rejected::malformed(format!("library=\"{isil}\": {error}.")))?;
            state.world_index.library(library)?;
            let listing = Listing::Library { isil: isil.to_owned(), after: paging::after(after)? };
            Ok(Cursor::start(listing, now))
        }
        (None, None, None, Some(next)) => {
            let cursor = Cursor::read(next, now)?;
            match cursor.listing {
                Listing::Reference(_) | Listing::Library { .. } => Ok(cursor),
                Listing::Inventory { .. } => {
                    Err(Rejected::malformed("The cursor belongs to an inventory."))
                }
            }
        }
        _ => Err(Rejected::malformed("Give reference, or library and after, or next alone.")),
    }
}

/// Returns the loans of one page.
fn page(
    state: &mut SandboxState,
    cursor: &Cursor,
    lag: Duration,
    now: Timestamp,
) -> Result<Vec<Loan>, Rejected> {
    let lag = lag.max(Duration::from_millis(state.bounds.list_lag_ms));
    let lag = SignedDuration::try_from(lag).unwrap_or(SignedDuration::MAX);
    let made = |place: &usize| state.books.at(*place).map(|loan| loan.made);
    let places = match &cursor.listing {
        Listing::Reference(reference) => state.books.of_reference(reference),
        Listing::Library { isil, after } | Listing::Inventory { isil, after } => {
            let all = isil.parse().map_or(&[][..], |isil| state.books.of_library(isil));
            let first = all.partition_point(|place| made(place).is_some_and(|made| made < *after));
            all.get(first..).unwrap_or_default()
        }
    };
    let places: Vec<usize> = places
        .get(cursor.offset..)
        .unwrap_or_default()
        .iter()
        .copied()
        .take(state.bounds.page_size.max(1))
        .take_while(|place| made(place).is_some_and(|made| now.duration_since(made) >= lag))
        .collect();
    let mut loans = Vec::with_capacity(places.len());
    for place in places {
        loans.extend(state.loan_at(place, now)?);
    }
    Ok(loans)
}
