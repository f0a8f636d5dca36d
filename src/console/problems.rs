//! The page Problems: what needs a person now, at any gate, with what to do.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};

use super::Console;
use super::format::{time, with_code};
use super::live::{bar, updated};
use super::page::{Page, Place, page};
use super::plot::Unit;
use super::text::{advice, problem_name, problems, severity};
use super::visit::Visit;
use crate::language::Language;
use crate::monitor::{Code, Problem, Problems, Severity};

/// Shows the page.
pub(super) async fn show(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
) -> Response {
    let found = console.parts.monitor.problems();
    let body = html! {
        (bar(&visit, found.at, "/problems/stream"))
        (content(&visit, &found))
        p.links { a href="/runbook" { (problems(visit.language).runbook) } }
    };
    let title = problems(visit.language).title;
    page(&visit, &Page { title, place: Some(Place::Problems), ..Page::default() }, &body)
}

/// Returns what the stream of the page sends: its changing parts.
pub(super) fn fragment(console: &Console, visit: &Visit) -> Markup {
    let found = console.parts.monitor.problems();
    html! { (updated(visit, found.at)) (content(visit, &found)) }
}

fn content(visit: &Visit, found: &Problems) -> Markup {
    let texts = problems(visit.language);
    let unlisted: Vec<_> = found.gates.iter().filter(|gate| gate.unlisted > 0).collect();
    let is_empty = found.problems.is_empty() && unlisted.is_empty();
    html! {
        div data-state="problems" {
            p.hidden role="status" data-live="sum" {
                @if is_empty { (texts.nothing) } @else { ((texts.count)(visit.problems)) }
            }
            div data-live="problems" {
                @if is_empty {
                    div.empty.fine {
                        p { strong { (texts.nothing) } }
                        p { (texts.nothing_hint) }
                        p.hint { ((texts.gates)(found.gates.len())) }
                    }
                } @else {
                    p.lead { ((texts.count)(visit.problems)) }
                }
                @for (number, (code, problem)) in found.problems.iter().enumerate() {
                    (card(visit, number, *code, problem, found.at))
                }
                @for gate in unlisted {
                    div.notice.note { p { ((texts.unlisted)(gate.unlisted, &gate.node)) } }
                }
            }
        }
    }
}

fn card(visit: &Visit, number: usize, code: Code, problem: &Problem, now: Timestamp) -> Markup {
    let (texts, language) = (problems(visit.language), visit.language);
    let (class, mark) = match problem.severity {
        Severity::Critical => ("bad", "refused"),
        Severity::Warning => ("note", "pending"),
    };
    let is_foreign = language != Language::English;
    html! {
        section class={ "notice problem " (class) } aria-labelledby={ "problem-" (number) } {
            h2 id={ "problem-" (number) } {
                span class={ "badge " (mark) } { (severity(problem.severity, language)) } " "
                (problem_name(code, language))
            }
            // The gate writes the sentence in English only.
            p lang=[is_foreign.then_some("en")] { (problem.what) }
            dl.facts {
                dt { (texts.advice) } dd { (with_code(advice(code, language))) }
                dt { (texts.since) }
                dd {
                    (time(problem.since)) " ("
                    ((texts.ago)(&age(problem.since, now, language))) ")"
                }
                dt { (texts.gate) } dd { (problem.node) }
                @if let Some(subject) = &problem.subject {
                    dt { (texts.subject) } dd { code { (subject) } }
                }
            }
            p.links {
                a href={ "/runbook#" (code.name()) } { (texts.in_runbook) ": " (code.name()) }
            }
        }
    }
}

/// Returns for how long there has been a problem, in whole minutes first.
fn age(since: Timestamp, now: Timestamp, language: Language) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    let rounded = if seconds < 60 { seconds } else { seconds - seconds % 60 };
    Unit::Seconds.text(rounded.max(1) as f64, language)
}
