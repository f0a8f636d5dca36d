//! Explanations of requests: one that was made, by its id, or one that a reader would make.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use http::{HeaderMap, Method};
use maud::{Markup, html};

use super::Console;
use super::failure::Failure;
use super::find::MAX_ISIL;
use super::format::time;
use super::page::{Field, Page, Place, field, notice, page, token};
use super::sign_in::{purpose_field, store_purpose};
use super::text::step;
use super::trail::{To, look, what};
use super::visit::{Form, Visit};
use crate::ledger::AccessTarget;
use crate::loan::LibraryId;
use crate::server::{Asking, Explanation, NotExplained, Question, RecordedView};
use crate::telemetry::RequestId;

/// The longest borrower's own id in bytes, as in a reader token, and the longest path.
const MAX_BORROWER: usize = 256;
const MAX_PATH: usize = 4096;
/// The longest id of a request, in characters: with `urn:uuid:`.
const MAX_REQUEST: usize = 64;

/// Shows the forms.
pub(super) async fn forms(Extension(visit): Extension<Visit>) -> Response {
    why_page(&visit, &html! {})
}

/// Returns the page with the forms. It never shows what was typed, which may be a borrower's own
/// id or a link.
fn why_page(visit: &Visit, result: &Markup) -> Response {
    let (texts, find) = (&visit.texts.why, &visit.texts.find);
    let body = html! {
        p.lead { (texts.lead) }
        (result)
        section.card aria-labelledby="by-request" {
            h2 #by-request { (texts.by_request) }
            form method="post" action="/why" {
                (token(visit))
                (field(visit, &Field {
                    name: "request", label: texts.request, hint: texts.request_hint,
                    required: true, length: MAX_REQUEST, ..Field::default()
                }))
                (field(visit, &Field { id: "request-purpose", ..purpose_field(visit) }))
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
                button { (texts.submit) }
            }
        }
    };
    let place = Some(Place::Why);
    page(visit, &Page { title: texts.title, place, ..Page::default() }, &body)
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
    let borrower = console.parts.readers.pseudonym(library, borrower);
    look(&console, &visit, what::EXPLAIN, To::new(Some(library), borrower)).await?;
    let question = Question {
        reader: Asking::Borrower(library, borrower, console.parts.clock.now()),
        method: Method::GET,
        target: target.to_owned(),
        headers: HeaderMap::new(),
    };
    match console.parts.explainer.explain(question).await {
        Ok(explained) => {
            let explanation = explained.in_language(visit.language);
            let of = (library.to_string(), borrower.to_string());
            Ok(why_page(&visit, &explanation_of(&visit, &explanation, Some(of))))
        }
        Err(NotExplained::NoRequest) => wrong(texts.bad_path),
        Err(NotExplained::LoansApi) => wrong(texts.loans_api),
    }
}

/// Explains a request that was made.
pub(super) async fn recorded(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let id = RequestId::parse(&id).ok_or(Failure::NotFound)?;
    let Some(explained) = console.parts.explainer.recorded(id) else {
        return Ok(why_page(&visit, &notice("note", visit.texts.why.unknown_request)));
    };
    let explanation = explained.in_language(visit.language);
    let request = explanation.request.as_ref();
    let of = request.and_then(|request| request.library.clone().zip(request.borrower.clone()));
    let library = of.as_ref().and_then(|(library, _)| library.parse().ok());
    let to = To::new(library, AccessTarget::Request(id.to_string()));
    look(&console, &visit, what::EXPLAIN, to).await?;
    Ok(why_page(&visit, &explanation_of(&visit, &explanation, of)))
}

/// Returns an explanation. `of` are the library and the pseudonym of its borrower.
fn explanation_of(visit: &Visit, explained: &Explanation, of: Option<(String, String)>) -> Markup {
    let (texts, is_refused) = (&visit.texts.why, explained.kind.is_some());
    let title = match (is_refused, explained.request.is_some()) {
        (true, true) => texts.was_refused,
        (true, false) => texts.would_be_refused,
        (false, true) => texts.was_sent,
        (false, false) => texts.would_be_sent,
    };
    let last = explained.steps.last().map_or("", |step| step.why.as_str());
    html! {
        section class={ "notice " (if is_refused { "bad" } else { "good" }) }
            aria-labelledby="result" {
            h2 #result { (title) }
            @if is_refused { p { strong { (last) } } }
            @if explained.assumes.is_some() { p { (texts.assumes) } }
            @if explained.would_begin && explained.request.is_none() { p { (texts.begins) } }
            dl.facts {
                dt { (texts.status) } dd { (explained.status) }
                @if let Some(kind) = explained.kind { dt { (texts.problem) } dd { code { (kind) } } }
                @if let Some(reason) = &explained.reason {
                    dt { (texts.reason) } dd { code { (reason) } }
                }
            }
        }
        section.card aria-labelledby="advice" {
            h2 #advice { (texts.advice) }
            p { (with_code(&explained.advice)) }
            @if let Some((library, borrower)) = of {
                p.links {
                    a href={ "/loans?borrower=" (borrower) "&library=" (encoded(&library)) } {
                        (visit.texts.loan.all_of_borrower)
                    }
                }
            }
        }
        section.card aria-labelledby="steps" {
            h2 #steps { (texts.steps) }
            ol.steps {
                @for (number, each) in explained.steps.iter().enumerate() {
                    @let is_stop = is_refused && number + 1 == explained.steps.len();
                    li class=[is_stop.then_some("stop")] {
                        strong { (step(each.step, visit.language)) } " "
                        span class={ "badge " (if is_stop { "refused" } else { "passed" }) } {
                            (each.decision)
                        }
                        p.detail { (each.why) }
                    }
                }
            }
        }
        @if let Some(request) = &explained.request { (request_of(visit, request)) }
    }
}

fn request_of(visit: &Visit, request: &RecordedView) -> Markup {
    let (texts, loan) = (&visit.texts.why, &visit.texts.loan);
    html! {
        section.card aria-labelledby="request-facts" {
            h2 #request-facts { (texts.facts) }
            dl.facts {
                dt { (texts.request) } dd { code { (request.id) } }
                dt { (texts.at) } dd { (time(request.at)) }
                dt { (texts.method) } dd { code { (request.method) } }
                @if let Some(path) = &request.path { dt { (texts.path) } dd { code { (path) } } }
                @if let Some(isbn) = &request.isbn {
                    dt { (visit.texts.find.title_column) } dd { code { (isbn) } }
                }
                @if let Some(library) = &request.library {
                    dt { (visit.texts.find.library) } dd { (library) }
                }
                @if let Some(borrower) = &request.borrower {
                    dt { (loan.pseudonym) } dd { code { (borrower) } }
                }
                @if let Some(issued) = request.issued { dt { (texts.issued) } dd { (time(issued)) } }
            }
        }
    }
}

/// Returns Markdown with its code in elements.
fn with_code(text: &str) -> Markup {
    html! {
        @for (number, part) in text.split('`').enumerate() {
            @if number % 2 == 0 { (part) } @else { code { (part) } }
        }
    }
}

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
