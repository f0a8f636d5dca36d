//! The table of a library's titles, with their availability.

use maud::{Markup, html};

use super::counts::Counted;
use super::page::{Shown, licence, query_of, sum_names, sums, table};
use super::request::{Sort, Wanted};
use super::sums::TitleRow;
use crate::circulation::FreeLicence;
use crate::console::format::time;
use crate::console::page::token;
use crate::console::roles::Action;
use crate::console::visit::Visit;
use crate::loan::Isbn;

/// Returns the section of the titles: one page of them.
pub(super) fn titles(visit: &Visit, shown: &Shown<'_>, counted: &Counted) -> Markup {
    let (texts, wanted) = (&visit.texts.library, &shown.wanted);
    let (titles, pages) = wanted.titles(&counted.rows);
    let mut names = vec![texts.title_column, texts.licence_type];
    names.extend(sum_names(texts, shown));
    names.push(texts.availability);
    html! {
        section aria-labelledby="titles" {
            h2 #titles { (texts.titles) }
            @if counted.rows.is_empty() {
                div.empty { p { strong { (texts.no_loans) } } p { (texts.no_loans_hint) } }
            } @else {
                @if counted.sums.other_titles.is_some() { p.hint { (texts.truncated) } }
                (orders(visit, shown))
                (table("titles", &names, 2..=names.len() - 2, &html! {
                    @for title in &titles { (title_row(visit, shown, title)) }
                }))
                (paging(visit, wanted, pages))
                @if visit.may(Action::Act) { (query(visit, wanted)) }
            }
        }
    }
}

/// The form that queries Bokbasen for the titles of the page.
fn query(visit: &Visit, wanted: &Wanted) -> Markup {
    let texts = &visit.texts.library;
    html! {
        form method="post" action="/library/availability" {
            (token(visit))
            @for (name, value) in wanted.fields() {
                input type="hidden" name=(name) value=(value);
            }
            button.quiet { (texts.query) }
            p.hint { (texts.query_hint) }
        }
    }
}

fn orders(visit: &Visit, shown: &Shown<'_>) -> Markup {
    let (texts, wanted) = (&visit.texts.library, &shown.wanted);
    let mut orders = vec![(Sort::Loans, texts.by_loans), (Sort::Title, texts.by_title)];
    orders.extend(shown.has_prices.then_some((Sort::Cost, texts.by_cost)));
    html! {
        nav.paging.first aria-label=(texts.order) {
            @for (sort, name) in orders {
                a href={ (Wanted { sort, page: 0, ..*wanted }.path("/library")) "#titles" }
                    aria-current=[(sort == wanted.sort).then_some("true")] { (name) }
            }
        }
    }
}

fn paging(visit: &Visit, wanted: &Wanted, pages: usize) -> Markup {
    let texts = &visit.texts.library;
    let address = |page| format!("{}#titles", Wanted { page, ..*wanted }.path("/library"));
    html! {
        @if pages > 1 {
            nav.paging aria-label=(texts.pages) {
                @if wanted.page > 0 {
                    a href=(address(wanted.page.min(pages) - 1)) rel="prev" { (texts.previous) }
                }
                span.hint { ((texts.page_of)(wanted.page.saturating_add(1).min(pages), pages)) }
                @if wanted.page.saturating_add(1) < pages {
                    a href=(address(wanted.page + 1)) rel="next" { (texts.next) }
                }
            }
        }
    }
}

fn title_row(visit: &Visit, shown: &Shown<'_>, title: &TitleRow) -> Markup {
    let texts = &visit.texts.library;
    let library = query_of(shown.wanted.library);
    html! {
        tr role="row" {
            td role="cell" data-label=(texts.title_column) {
                @if visit.may(Action::Look) {
                    a href={ "/loans?isbn=" (title.isbn) "&" (library) } { code { (title.isbn) } }
                } @else {
                    code { (title.isbn) }
                }
            }
            td role="cell" data-label=(texts.licence_type) { (licence(texts, &title.licence_type)) }
            (sums(visit, shown, &title.sum))
            td role="cell" data-label=(texts.availability) {
                (availability(visit, shown, title.isbn))
            }
        }
    }
}

/// Returns what Bokbasen last answered about a title, without a query.
fn availability(visit: &Visit, shown: &Shown<'_>, isbn: Isbn) -> Markup {
    let texts = &visit.texts.library;
    let known = shown.circulation.known_availability(shown.wanted.library, isbn);
    let free = |licences: &[FreeLicence]| {
        licences.iter().fold(0_u64, |sum, licence| sum.saturating_add(licence.free.into()))
    };
    html! {
        @match known {
            None => span.hint { (texts.not_queried) },
            Some(known) if known.available => {
                @match free(&known.licences) {
                    0 => (texts.available),
                    number => ((texts.free)(number)),
                }
            }
            Some(known) => {
                // One element: a narrow screen shows the label and the content side by side.
                span {
                    @match known.next_free() {
                        Some(at) => { (texts.free_from) " " (time(at)) }
                        None => (texts.none_free),
                    }
                }
            }
        }
    }
}
