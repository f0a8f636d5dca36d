//! Explanations of requests: one that was made, by its id, or one that a reader would make.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use http::{HeaderMap, Method};
use jiff::Timestamp;
use maud::{Markup, html};

use super::Console;
use super::address::Address;
use super::explanation::explanation_page;
use super::failure::Failure;
use super::find::{MAX_ISIL, failed};
use super::page::{Field, Page, Place, field, notice, page, token};
use super::sign_in::{purpose_field, store_purpose};
use super::text::why_fields;
use super::trail::{To, look, what};
use super::visit::{Form, Visit};
use crate::ledger::AccessTarget;
use crate::loan::LibraryId;
use crate::reader::is_issued_ahead;
use crate::server::{Asking, NotExplained, Question, parse_fields};
use crate::telemetry::RequestId;

/// The longest borrower's own id in bytes, as in a reader token, and the longest path.
const MAX_BORROWER: usize = 256;
const MAX_PATH: usize = 4096;
/// The longest method and the longest time, in characters.
const MAX_METHOD: usize = 32;
const MAX_TIME: usize = 40;
/// The longest id of a request, in characters: with `urn:uuid:`.
const MAX_REQUEST: usize = 64;

/// Shows the forms.
pub(super) async fn forms(Extension(visit): Extension<Visit>) -> Response {
    why_page(&visit, &html! {})
}

/// Returns the page with the forms. It never shows what was typed, which may be a borrower's own
/// id or a link.
fn why_page(visit: &Visit, result: &Markup) -> Response {
    let texts = &visit.texts.why;
    let body = html! { p.lead { (texts.lead) } (result) (question_forms(visit)) };
    let place = Some(Place::Why);
    page(visit, &Page { title: texts.title, place, ..Page::default() }, &body)
}

/// Returns the forms: for a request that was made, and for one that a reader would make.
pub(super) fn question_forms(visit: &Visit) -> Markup {
    let (texts, find) = (&visit.texts.why, &visit.texts.find);
    html! {
        section.card aria-labelledby="by-request" {
            h2 #by-request { (texts.by_request) }
            form method="post" action="/why" {
                (token(visit))
                div.pair {
                    (field(visit, &Field {
                        name: "request", label: texts.request, hint: texts.request_hint,
                        required: true, length: MAX_REQUEST, ..Field::default()
                    }))
                    (field(visit, &Field { id: "request-purpose", ..purpose_field(visit) }))
                }
                button { (texts.submit) }
            }
        }
        section.card aria-labelledby="by-reader" {
            h2 #by-reader { (texts.by_reader) }
            form method="post" action="/why" {
                (token(visit))
                div.pair {
                    (field(visit, &Field {
                        name: "library", label: find.library, required: true, length: MAX_ISIL,
                        hint: texts.library_hint, ..Field::default()
                    }))
                    (field(visit, &Field {
                        name: "borrower", label: texts.borrower, hint: texts.borrower_hint,
                        required: true, length: MAX_BORROWER, ..Field::default()
                    }))
                    (field(visit, &Field {
                        name: "path", label: texts.path, hint: texts.path_hint, required: true,
                        length: MAX_PATH, ..Field::default()
                    }))
                    (field(visit, &Field { id: "reader-purpose", ..purpose_field(visit) }))
                }
                (request_fields(visit))
                button { (texts.submit) }
            }
        }
    }
}

/// Returns the folded fields for what a request can carry.
fn request_fields(visit: &Visit) -> Markup {
    let texts = why_fields(visit.language);
    html! {
        details.again {
            summary { (texts.more) }
            div.pair {
                (field(visit, &Field {
                    name: "method", label: texts.method, hint: texts.method_hint,
                    length: MAX_METHOD, ..Field::default()
                }))
                (field(visit, &Field {
                    name: "issued", label: texts.issued, hint: texts.issued_hint,
                    length: MAX_TIME, ..Field::default()
                }))
            }
            div.field {
                label for="headers" {
                    (texts.headers) span.mark { " (" (visit.texts.common.optional) ")" }
                }
                textarea #headers name="headers" rows="3" autocomplete="off" spellcheck="false"
                    autocapitalize="none" aria-describedby="headers-hint" {}
                p.hint #headers-hint { (texts.headers_hint) }
            }
        }
    }
}

/// Reads the fields for what a request can carry. An error is a sentence for the person.
fn carried(
    console: &Console,
    visit: &Visit,
    form: &Form,
) -> Result<(Method, Timestamp, HeaderMap), &'static str> {
    let texts = why_fields(visit.language);
    let method = match form.field("method") {
        "" => Method::GET,
        text => Method::from_bytes(text.as_bytes()).map_err(|_| texts.bad_method)?,
    };
    // A credential counts as issued when it is first seen, at the latest.
    let now = console.parts.clock.now();
    let issued = match form.field("issued") {
        "" => now,
        text => {
            let issued =
                text.parse::<Timestamp>().ok().filter(|issued| !is_issued_ahead(*issued, now));
            issued.ok_or(texts.bad_issued)?
        }
    };
    let lines = form.field("headers").lines().filter(|line| !line.trim().is_empty());
    let headers = parse_fields(lines).map_err(|_| texts.bad_headers)?;
    Ok((method, issued, headers))
}

/// Explains what a form describes.
pub(super) async fn explain(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Extension(form): Extension<Form>,
) -> Result<Response, Failure> {
    let visit = store_purpose(&console, visit, &form)?;
    let texts = &visit.texts.why;
    let wrong = |text: &str| Ok(why_page(&visit, &notice("bad", text)));
    match form.field("request") {
        "" => {}
        text => {
            return match RequestId::parse(text) {
                Some(id) => Ok(Redirect::to(&format!("/why/{id}")).into_response()),
                None => wrong(texts.bad_request_id),
            };
        }
    }
    let Ok(library) = form.field("library").parse::<LibraryId>() else {
        return wrong(visit.texts.find.bad_library);
    };
    let (borrower, target) = (form.field("borrower"), form.field("path"));
    if borrower.is_empty() || borrower.len() > MAX_BORROWER {
        return wrong(texts.bad_borrower);
    }
    if !target.starts_with('/') {
        return wrong(texts.bad_path);
    }
    let (method, issued, headers) = match carried(&console, &visit, &form) {
        Ok(carried) => carried,
        Err(sentence) => return wrong(sentence),
    };
    let borrower = console.parts.readers.pseudonym_to_look_up(library, borrower);
    look(&console, &visit, what::EXPLAIN, To::new(Some(library), borrower)).await?;
    let question = Question {
        reader: Asking::Borrower(library, borrower, issued),
        method,
        target: target.to_owned(),
        headers,
    };
    match console.parts.explainer.explain(question).await {
        Ok(explained) => {
            let of = (library.to_string(), borrower.to_string());
            Ok(explanation_page(&visit, explained, Some(of)))
        }
        Err(NotExplained::NoRequest) => wrong(texts.bad_path),
        Err(NotExplained::LoansApi) => wrong(texts.loans_api),
    }
}

/// Explains a request that was made.
pub(super) async fn recorded(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Address(Path(id)): Address<Path<String>>,
) -> Result<Response, Failure> {
    let id = RequestId::parse(&id).ok_or(Failure::NotFound)?;
    let found = console.parts.explainer.recorded(id).await.map_err(failed)?;
    let Some(explained) = found else {
        return Ok(why_page(&visit, &notice("note", visit.texts.why.unknown_request)));
    };
    let request = explained.request();
    let of = request.and_then(|request| request.library.clone().zip(request.borrower.clone()));
    let library = of.as_ref().and_then(|(library, _)| library.parse().ok());
    let to = To::new(library, AccessTarget::Request(id.to_string()));
    look(&console, &visit, what::EXPLAIN, to).await?;
    Ok(explanation_page(&visit, explained, of))
}
