//! The page of an explanation: the result, who can do what, and the steps.

use axum::response::Response;
use maud::{Markup, html};

use super::format::{time, with_code};
use super::page::{Page, Place, page};
use super::text::step;
use super::visit::Visit;
use super::why::question_forms;
use crate::server::{Explained, ExplainedProblem, Explanation, RecordedView};

/// Returns the page of an explanation, with the forms for another one folded.
pub(super) fn explanation_page(
    visit: &Visit,
    explained: Explained,
    of: Option<(String, String)>,
) -> Response {
    let texts = &visit.texts.why;
    let problem = explained.problem().cloned();
    let explanation = explained.in_language(visit.language);
    let body = html! {
        (result_of(visit, &explanation))
        (advice_of(visit, &explanation, problem.as_ref(), of))
        div.columns {
            (steps_of(visit, &explanation))
            @if let Some(request) = &explanation.request { (request_of(visit, request)) }
        }
        details.again { summary { (texts.another) } (question_forms(visit)) }
    };
    let place = Some(Place::Why);
    page(visit, &Page { title: texts.title, place, ..Page::default() }, &body)
}

fn result_of(visit: &Visit, explained: &Explanation) -> Markup {
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
                @if let Some(kind) = explained.kind {
                    dt { (texts.problem) } dd { code { (kind) } }
                }
                @if let Some(reason) = &explained.reason {
                    dt { (texts.reason) } dd { code { (reason) } }
                }
            }
        }
    }
}

/// Returns who can do what. `of` are the library and the pseudonym of the request's borrower.
fn advice_of(
    visit: &Visit,
    explained: &Explanation,
    problem: Option<&ExplainedProblem>,
    of: Option<(String, String)>,
) -> Markup {
    let texts = &visit.texts.why;
    html! {
        section.card aria-labelledby="advice" {
            h2 #advice { (texts.advice) }
            @if let Some(problem) = problem {
                @let guidance = problem.problem_type().guidance();
                dl.facts {
                    dt { (texts.for_reader) } dd { (problem.sentence(visit.language)) }
                    dt { (texts.for_app) } dd { (with_code(guidance.app.text(visit.language))) }
                    @if let Some(operator) = guidance.operator {
                        dt { (texts.for_operator) }
                        dd { (with_code(operator.text(visit.language))) }
                    }
                }
            } @else {
                p { (explained.advice) }
            }
            @if let Some((library, borrower)) = of {
                p.links {
                    a href={ "/loans?borrower=" (borrower) "&library=" (encoded(&library)) } {
                        (visit.texts.loan.all_of_borrower)
                    }
                }
            }
        }
    }
}

fn steps_of(visit: &Visit, explained: &Explanation) -> Markup {
    let (texts, is_refused) = (&visit.texts.why, explained.kind.is_some());
    html! {
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
                @if let Some(issued) = request.issued {
                    dt { (texts.issued) } dd { (time(issued)) }
                }
            }
        }
    }
}

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
