//! The access trail: who of the staff did what, the newest first.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, State};
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;
use url::form_urlencoded::Serializer;

use super::Console;
use super::address::Address;
use super::failure::Failure;
use super::find::{MAX_ISIL, failed};
use super::format::time;
use super::page::{Field, Page, Place, field, page};
use super::text::access_name;
use super::trail::{To, look, what};
use super::visit::Visit;
use crate::ledger::{AccessFilter, AccessPosition, AccessTarget, RecordedAccess};
use crate::loan::LibraryId;

/// The number of accesses on a page.
const PAGE_SIZE: usize = 50;

/// Which accesses to list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Listing {
    library: String,
    /// The last access of the page before.
    after: Option<String>,
}

/// Lists accesses.
pub(super) async fn list(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Address(Query(listing)): Address<Query<Listing>>,
) -> Result<Response, Failure> {
    let library: Option<LibraryId> = match listing.library.trim() {
        "" => None,
        text => Some(text.parse().map_err(|_| Failure::NotFound)?),
    };
    let after = listing.after.as_deref().map(str::parse).transpose();
    let after: Option<AccessPosition> = after.map_err(|_| Failure::NotFound)?;
    let is_first = after.is_none();
    look(&console, &visit, what::LIST_ACCESSES, To::accesses(library)).await?;
    let limit = u32::try_from(PAGE_SIZE + 1).unwrap_or(u32::MAX);
    let filter = AccessFilter { library, since: None, before: None, after, limit };
    let mut accesses = console.parts.ledger.accesses(&filter).await.map_err(failed)?;
    let has_more = accesses.len() > PAGE_SIZE;
    accesses.truncate(PAGE_SIZE);
    let next = accesses.last().filter(|_| has_more).map(|last| &last.position);
    let texts = visit.trail_texts();
    let body = html! {
        p.lead { (texts.lead) }
        (form(&visit, &listing.library))
        @if accesses.is_empty() {
            div.empty { p { strong { (texts.none) } } }
        } @else {
            (table(&visit, &accesses))
        }
        nav.paging aria-label=(texts.title) {
            @if !is_first { a href=(path(library, None)) { (texts.newest) } }
            @if let Some(next) = next {
                a href=(path(library, Some(next))) rel="next" { (texts.older) }
            }
        }
    };
    let place = Some(Place::Trail);
    Ok(page(&visit, &Page { title: texts.title, place, ..Page::default() }, &body))
}

fn path(library: Option<LibraryId>, after: Option<&AccessPosition>) -> String {
    let mut query = Serializer::new(String::new());
    if let Some(library) = &library {
        query.append_pair("library", library.as_str());
    }
    if let Some(after) = after {
        query.append_pair("after", &after.to_string());
    }
    format!("/trail?{}", query.finish())
}

fn form(visit: &Visit, library: &str) -> Markup {
    let texts = visit.trail_texts();
    let field_of_library = Field {
        name: "library",
        label: visit.texts.find.library,
        hint: texts.library,
        value: library,
        length: MAX_ISIL,
        ..Field::default()
    };
    html! {
        form.card.narrow method="get" action="/trail" {
            (field(visit, &field_of_library))
            button { (texts.show) }
        }
    }
}

fn table(visit: &Visit, accesses: &[RecordedAccess]) -> Markup {
    let texts = visit.trail_texts();
    html! {
        table.loans role="table" {
            thead role="rowgroup" {
                tr role="row" {
                    @for name in [texts.at, texts.who, texts.what, visit.texts.find.library,
                        texts.of, texts.why] {
                        th role="columnheader" scope="col" { (name) }
                    }
                }
            }
            tbody role="rowgroup" { @for access in accesses { (row(visit, access)) } }
        }
    }
}

fn row(visit: &Visit, RecordedAccess { at, access, .. }: &RecordedAccess) -> Markup {
    let texts = visit.trail_texts();
    html! {
        tr role="row" {
            td role="cell" data-label=(texts.at) { (time(*at)) }
            td role="cell" data-label=(texts.who) { span { (access.who) " · " (access.role) } }
            td role="cell" data-label=(texts.what) { (access_name(visit.language, &access.what)) }
            td role="cell" data-label=(visit.texts.find.library) {
                span.whole { (access.library().unwrap_or("–")) }
            }
            td role="cell" data-label=(texts.of) { (target(visit, access.target.as_ref())) }
            td role="cell" data-label=(texts.why) { (access.why.as_deref().unwrap_or("–")) }
        }
    }
}

fn target(visit: &Visit, target: Option<&AccessTarget>) -> Markup {
    let (find, why) = (&visit.texts.find, &visit.texts.why);
    let (kind, id) = match target {
        Some(AccessTarget::Borrower(id)) => (find.borrower, id),
        Some(AccessTarget::Loan(id)) => (find.loan, id),
        Some(AccessTarget::Isbn(id)) => (find.title_column, id),
        Some(AccessTarget::Request(id)) => (why.request, id),
        None => return html! { "–" },
    };
    html! { span { (kind) " " code { (id) } } }
}
