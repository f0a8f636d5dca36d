//! The runbook, from the program itself: a console without the internet shows it, too.
//!
//! Its Markdown has headings, paragraphs, code in lines and links. A link within the runbook stays
//! one, and another one becomes the name of its document.

use axum::Extension;
use axum::response::Response;
use maud::{Markup, html};

use super::format::with_code;
use super::page::{Page, Place, page};
use super::text::problems;
use super::visit::Visit;
use crate::language::Language;

const RUNBOOK: &str = include_str!("../../docs/runbook.md");

/// Shows the runbook.
pub(super) async fn show(Extension(visit): Extension<Visit>) -> Response {
    let texts = problems(visit.language);
    let is_foreign = visit.language != Language::English;
    let (lead, sections) = sections(RUNBOOK);
    let body = html! {
        @if !texts.runbook_lead.is_empty() { p.lead { (texts.runbook_lead) } }
        div.runbook lang=[is_foreign.then_some("en")] {
            (paragraphs(lead))
            ul.columns-of-links {
                @for (name, _) in &sections { li { a href={ "#" (name) } { (name) } } }
            }
            @for (name, text) in &sections {
                section.card aria-labelledby=(name) { h2 id=(name) { (name) } (paragraphs(text)) }
            }
        }
    };
    let place = Some(Place::Problems);
    page(&visit, &Page { title: texts.runbook, place, ..Page::default() }, &body)
}

/// Returns what is before the first section, and the sections by their headings.
fn sections(text: &str) -> (&str, Vec<(&str, &str)>) {
    let mut parts = text.split("\n## ");
    let lead = parts.next().unwrap_or_default();
    let lead = lead.split_once('\n').map_or("", |(_, lead)| lead);
    (lead, parts.filter_map(|part| part.split_once('\n')).collect())
}

fn paragraphs(text: &str) -> Markup {
    html! {
        @for paragraph in text.split("\n\n").map(str::trim).filter(|text| !text.is_empty()) {
            p { (with_links(paragraph)) }
        }
    }
}

/// Returns text with its links: `[words](target)`.
fn with_links(text: &str) -> Markup {
    let Some((before, words, target, after)) = first_link(text) else { return with_code(text) };
    html! {
        (with_code(before))
        @match target.strip_prefix('#') {
            Some(heading) => a href={ "#" (heading) } { (words) },
            None => { (with_code(words)) " (" code { "docs/" (target) } ")" }
        }
        (with_links(after))
    }
}

fn first_link(text: &str) -> Option<(&str, &str, &str, &str)> {
    let (before, rest) = text.split_once('[')?;
    let (words, rest) = rest.split_once("](")?;
    let (target, after) = rest.split_once(')')?;
    Some((before, words, target, after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Code;

    #[test]
    fn every_problem_has_a_section_with_text() {
        let (lead, sections) = sections(RUNBOOK);
        assert!(!lead.trim().is_empty() && !lead.contains('#'));
        let names: Vec<&str> = sections.iter().map(|(name, _)| *name).collect();
        let codes: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert!(codes.iter().all(|code| names.contains(code)), "{names:?}");
        for (name, text) in sections {
            let shown = paragraphs(text).into_string();
            assert!(shown.len() > 50, "{name}");
            // Markdown that this renderer does not know.
            for unknown in ["\n- ", "\n1. ", "\n|", "```", "**", "](", "\n#"] {
                assert!(!shown.contains(unknown), "{name}: {shown}");
            }
        }
    }

    #[test]
    fn links_lead_to_headings_and_name_other_documents() {
        let shown = with_links("See [a `b`](x.md#y), and [c](#d). <e>").into_string();
        assert_eq!(
            shown,
            "See a <code>b</code> (<code>docs/x.md#y</code>), and <a href=\"#d\">c</a>. &lt;e&gt;"
        );
    }
}
