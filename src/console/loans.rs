//! Lists of loans: of a borrower or of a title, the newest first.

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
use super::find::failed;
use super::format::time;
use super::page::{Page, Place, page};
use super::text::state;
use super::trail::{To, look, what};
use super::visit::Visit;
use crate::ledger::Filter;
use crate::loan::{Borrower, Isbn, LibraryId, Loan};

/// The number of loans on a page.
const PAGE_SIZE: u32 = 25;

/// Which loans to list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Listing {
    library: Option<String>,
    borrower: Option<String>,
    isbn: Option<String>,
    after: Option<String>,
}

/// The loans of a listing.
struct Wanted {
    library: Option<LibraryId>,
    of: Of,
}

/// Whose loans they are.
#[derive(Clone, Copy)]
enum Of {
    Borrower(Borrower),
    Title(Isbn),
}

impl Wanted {
    fn of(listing: &Listing) -> Option<Wanted> {
        let library = listing.library.as_deref().map(str::parse).transpose().ok()?;
        let of = match (&listing.borrower, &listing.isbn) {
            (Some(borrower), None) => Of::Borrower(borrower.parse().ok()?),
            (None, Some(isbn)) => Of::Title(isbn.parse().ok()?),
            _ => return None,
        };
        Some(Wanted { library, of })
    }

    fn filter(&self) -> Filter {
        let filter = Filter { library: self.library, limit: PAGE_SIZE + 1, ..Filter::default() };
        match self.of {
            Of::Borrower(borrower) => Filter { borrower: Some(borrower), ..filter },
            Of::Title(isbn) => Filter { isbn: Some(isbn), ..filter },
        }
    }

    fn to(&self) -> To {
        match self.of {
            Of::Borrower(borrower) => To::new(self.library, borrower),
            Of::Title(isbn) => To::new(self.library, isbn),
        }
    }

    fn path(&self, after: Option<&str>) -> String {
        let mut query = Serializer::new(String::new());
        match self.of {
            Of::Borrower(borrower) => query.append_pair("borrower", &borrower.to_string()),
            Of::Title(isbn) => query.append_pair("isbn", &isbn.to_string()),
        };
        if let Some(library) = &self.library {
            query.append_pair("library", library.as_str());
        }
        if let Some(after) = after {
            query.append_pair("after", after);
        }
        format!("/loans?{}", query.finish())
    }
}

/// Lists the loans of a borrower or of a title.
pub(super) async fn list(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Address(Query(listing)): Address<Query<Listing>>,
) -> Result<Response, Failure> {
    let wanted = Wanted::of(&listing).ok_or(Failure::NotFound)?;
    let after = listing.after.as_deref().map(str::parse).transpose();
    let after = after.map_err(|_| Failure::NotFound)?;
    look(&console, &visit, what::LIST_LOANS, wanted.to()).await?;
    let filter = Filter { after, ..wanted.filter() };
    let mut loans = console.parts.ledger.page(&filter).await.map_err(failed)?;
    let has_more = loans.len() > PAGE_SIZE as usize;
    loans.truncate(PAGE_SIZE as usize);
    let next = loans.last().filter(|_| has_more).map(|loan| loan.id.to_string());
    let texts = &visit.texts.find;
    let title = match wanted.of {
        Of::Borrower(_) => texts.loans_of_borrower,
        Of::Title(_) => texts.loans_of_title,
    };
    let body = html! {
        p.lead {
            @match wanted.of {
                Of::Borrower(borrower) => code { (borrower) },
                Of::Title(isbn) => code { (isbn) },
            }
            @if let Some(library) = &wanted.library { " · " (library) }
        }
        @if loans.is_empty() {
            div.empty { p { strong { (texts.no_loans) } } p { (texts.no_loans_hint) } }
        } @else {
            (table(&visit, &loans))
        }
        nav.paging aria-label=(title) {
            @if after.is_some() { a href=(wanted.path(None)) { (texts.newest) } }
            @if let Some(next) = &next {
                a href=(wanted.path(Some(next))) rel="next" { (texts.older) }
            }
        }
    };
    let place = Some(Place::Find);
    Ok(page(&visit, &Page { title, place, ..Page::default() }, &body))
}

/// Returns a table of loans. Its roles stay when a narrow screen shows each row as a card.
fn table(visit: &Visit, loans: &[Loan]) -> Markup {
    let texts = &visit.texts.find;
    html! {
        table.loans role="table" {
            thead role="rowgroup" {
                tr role="row" {
                    @for name in [texts.state, texts.title_column, texts.begun,
                        texts.due_or_ended, texts.library, texts.borrower, texts.loan] {
                        th role="columnheader" scope="col" { (name) }
                    }
                }
            }
            tbody role="rowgroup" {
                @for loan in loans { (row(visit, loan)) }
            }
        }
    }
}

fn row(visit: &Visit, loan: &Loan) -> Markup {
    let texts = &visit.texts.find;
    html! {
        tr role="row" {
            td role="cell" data-label=(texts.state) { (badge(visit, loan)) }
            td role="cell" data-label=(texts.title_column) { code { (loan.key.isbn) } }
            td role="cell" data-label=(texts.begun) { (time(loan.begun)) }
            td role="cell" data-label=(texts.due_or_ended) {
                // One element: a narrow screen shows the label and the content side by side.
                span {
                    @if let Some(ended) = loan.ended { (texts.ended) " " (time(ended)) }
                    @else if let Some(terms) = &loan.terms { (texts.due) " " (time(terms.due)) }
                    @else { "–" }
                }
            }
            td role="cell" data-label=(texts.library) { (loan.key.library) }
            td role="cell" data-label=(texts.borrower) { code { (loan.key.borrower) } }
            td role="cell" data-label=(texts.loan) {
                a href={ "/loans/" (loan.id) } {
                    (texts.open) span.hidden { " " (loan.key.isbn) ", " (time(loan.begun)) }
                }
            }
        }
    }
}

/// Returns the state of a loan as a badge.
pub(super) fn badge(visit: &Visit, loan: &Loan) -> Markup {
    html! {
        span class={ "badge " (loan.state.name()) } { (state(loan.state, visit.language)) }
    }
}
