//! The search: one field for every id that support gets.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use uuid::Uuid;

use super::Console;
use super::failure::Failure;
use super::page::{Field, Page, Place, field, notice, page, token};
use super::sign_in::{purpose_field, store_purpose};
use super::trail::{To, look, what};
use super::visit::{Form, Visit};
use crate::ledger::LedgerError;
use crate::loan::{Borrower, Isbn, LibraryId, Loan};
use crate::telemetry::RequestId;

/// The longest text, in characters: a borrower's own id of 256 bytes fits.
const MAX_QUERY: usize = 256;
/// The longest ISIL, in characters.
pub(super) const MAX_ISIL: usize = 16;

/// Shows the form.
pub(super) async fn form(Extension(visit): Extension<Visit>) -> Response {
    find_page(&visit, &html! {})
}

/// Returns the page with the form. It never shows what was searched for, which may be a borrower's
/// own id.
fn find_page(visit: &Visit, result: &Markup) -> Response {
    let texts = &visit.texts.find;
    let query = Field {
        name: "query",
        label: texts.query,
        hint: texts.query_hint,
        required: true,
        length: MAX_QUERY,
        ..Field::default()
    };
    let library = Field {
        name: "library",
        label: texts.library,
        hint: texts.library_hint,
        length: MAX_ISIL,
        ..Field::default()
    };
    let body = html! {
        p.lead { (texts.lead) }
        (result)
        form.card method="post" action="/find" role="search" {
            (token(visit))
            (field(visit, &query))
            div.pair {
                (field(visit, &library))
                (field(visit, &purpose_field(visit)))
            }
            button { (texts.submit) }
        }
    };
    let place = Some(Place::Find);
    page(visit, &Page { title: texts.title, place, ..Page::default() }, &body)
}

/// What a text in the field of the search is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Query {
    Isbn(Isbn),
    Uuid(Uuid),
    Pseudonym(Borrower),
    /// A borrower's own id, with the library.
    BorrowerId(LibraryId),
    /// An id of Bokbasen, which a person has marked as one.
    LendingId,
    /// Nothing that can be searched for without a library.
    Unknown,
}

/// What marks an id of Bokbasen, whose form is not known: it could be a borrower's card number.
const LENDING_MARK: &str = "bokbasen:";

/// Returns a marked id of Bokbasen.
fn lending_id(text: &str) -> Option<&str> {
    let (mark, id) = text.split_at_checked(LENDING_MARK.len())?;
    let id = id.trim();
    (mark.eq_ignore_ascii_case(LENDING_MARK) && !id.is_empty()).then_some(id)
}

impl Query {
    /// Only a text of a known form, and one that is marked as an id of Bokbasen, is searched for in
    /// the ledger as it is. A borrower's own id is not: a database may log its queries.
    ///
    /// Returns none for a text that nothing can have: PostgreSQL takes no zero byte, for example.
    fn of(text: &str, library: Option<LibraryId>) -> Option<Query> {
        if text.is_empty() || text.len() > MAX_QUERY || text.contains(char::is_control) {
            return None;
        }
        Some(match (text.parse(), Uuid::try_parse(text), text.parse(), library) {
            (Ok(pseudonym), ..) => Query::Pseudonym(pseudonym),
            (_, _, _, Some(library)) => Query::BorrowerId(library),
            (_, Ok(uuid), ..) => Query::Uuid(uuid),
            (_, _, Ok(isbn), _) => Query::Isbn(isbn),
            _ if lending_id(text).is_some() => Query::LendingId,
            _ => Query::Unknown,
        })
    }
}

/// Returns whether a purpose has the text of the search in it, which may be a borrower's own id: it
/// would be stored with the purpose. An ISBN or an id of the gate is none.
fn has_own_id(purpose: &str, query: &str) -> bool {
    let is_own_id = matches!(Query::of(query, None), Some(Query::Unknown));
    // The id of a group follows a slash.
    let id = query.split_once('/').map_or(query, |(_, id)| id).to_lowercase();
    is_own_id && !id.is_empty() && purpose.to_lowercase().contains(&id)
}

/// Searches, and leads to the page of what was found. Its address never has a borrower's own id.
pub(super) async fn search(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Extension(form): Extension<Form>,
) -> Result<Response, Failure> {
    let texts = &visit.texts.find;
    if has_own_id(form.field("purpose"), form.field("query")) {
        return Ok(find_page(&visit, &notice("bad", texts.id_in_purpose)));
    }
    let visit = store_purpose(&console, visit, &form)?;
    let texts = &visit.texts.find;
    let library = match form.field("library") {
        "" => None,
        text => match text.parse() {
            Ok(library) => Some(library),
            Err(_) => return Ok(find_page(&visit, &notice("bad", texts.bad_library))),
        },
    };
    let text = form.field("query");
    let found = match Query::of(text, library) {
        None | Some(Query::Unknown) => None,
        Some(Query::Isbn(isbn)) => Some(format!("/loans?isbn={isbn}")),
        Some(Query::Pseudonym(borrower)) => Some(loans_of(library, borrower)),
        Some(Query::BorrowerId(library)) => {
            let borrower = console.parts.readers.pseudonym_to_look_up(library, text);
            // The address tells the pseudonym, also if nobody follows it.
            look(&console, &visit, what::FIND, To::new(Some(library), borrower)).await?;
            Some(loans_of(Some(library), borrower))
        }
        Some(Query::Uuid(uuid)) => by_uuid(&console, &visit, uuid).await?,
        Some(Query::LendingId) => {
            let id = lending_id(text).unwrap_or_default();
            let loan = console.parts.ledger.by_lending_id(id, None).await.map_err(failed)?;
            match loan {
                Some(loan) => Some(loan_found(&console, &visit, &loan).await?),
                None => None,
            }
        }
    };
    Ok(match found {
        Some(path) => Redirect::to(&path).into_response(),
        None => find_page(
            &visit,
            &html! {
                div.notice.note role="status" {
                    p { strong { (texts.nothing) } }
                    p { (texts.nothing_hint) " " (texts.borrower_needs_library) }
                }
            },
        ),
    })
}

fn loans_of(library: Option<LibraryId>, borrower: Borrower) -> String {
    match library {
        Some(library) => {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.append_pair("borrower", &borrower.to_string());
            query.append_pair("library", library.as_str());
            format!("/loans?{}", query.finish())
        }
        None => format!("/loans?borrower={borrower}"),
    }
}

/// Returns the page of a loan or of a request with this id.
async fn by_uuid(console: &Console, visit: &Visit, uuid: Uuid) -> Result<Option<String>, Failure> {
    if let Some(loan) = console.parts.ledger.find(uuid).await.map_err(failed)? {
        return loan_found(console, visit, &loan).await.map(Some);
    }
    let id = RequestId::of_uuid(uuid);
    let is_recorded = console.parts.explainer.recorded(id).await.map_err(failed)?.is_some();
    Ok(is_recorded.then(|| format!("/why/{id}")))
}

/// Records that a loan was found, which its address tells. Returns the address of its page.
async fn loan_found(console: &Console, visit: &Visit, loan: &Loan) -> Result<String, Failure> {
    look(console, visit, what::FIND, To::new(Some(loan.key.library), loan.id)).await?;
    Ok(format!("/loans/{}", loan.id))
}

/// Logs a failure of the ledger.
pub(super) fn failed(error: LedgerError) -> Failure {
    tracing::error!(%error, "the ledger could not be read for the console");
    Failure::Ledger
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_with_a_library_is_a_borrowers_own_id() {
        let library: LibraryId = "NO-0301000".parse().unwrap();
        let (isbn, uuid) = ("9788299999014", "f81d4fae-7dec-41d0-a765-00a0c91e6bf6");
        let pseudonym = Borrower::from_bytes([7; 16]);
        for (text, alone) in [
            (isbn, Query::Isbn(isbn.parse().unwrap())),
            (uuid, Query::Uuid(uuid.parse().unwrap())),
            ("12345678901", Query::Unknown),
            ("N001234567", Query::Unknown),
            ("BL00000001", Query::Unknown),
            ("bokbasen:", Query::Unknown),
            ("bokbasen:BL00000001", Query::LendingId),
            ("Bokbasen: BL00000001", Query::LendingId),
        ] {
            assert_eq!(Query::of(text, None), Some(alone), "{text}");
            assert_eq!(Query::of(text, Some(library)), Some(Query::BorrowerId(library)), "{text}");
        }
        for library in [None, Some(library)] {
            let found = Query::of(&pseudonym.to_string(), library);
            assert_eq!(found, Some(Query::Pseudonym(pseudonym)));
            for nothing in ["", "a\0b", &"a".repeat(MAX_QUERY + 1)] {
                assert_eq!(Query::of(nothing, library), None, "{nothing}");
            }
        }
    }

    #[test]
    fn purpose_without_a_borrowers_own_id_is_stored() {
        assert!(has_own_id("Asks about KARI-12345", "kari-12345"));
        assert!(has_own_id("12345678901 asks", "feide/12345678901"));
        assert!(!has_own_id("Asks about a book", "kari-12345"));
        let isbn = "9788299999014";
        assert!(!has_own_id(&format!("Asks about {isbn}"), isbn));
        assert!(!has_own_id("", ""));
    }
}
