//! The page of a library: its frame, its sums and its days.

use std::ops::RangeInclusive;
use std::sync::Arc;

use axum::response::Response;
use maud::{Markup, html};

use super::brake_table::brake;
use super::counts::Counted;
use super::month::Month;
use super::request::Wanted;
use super::sums::Sum;
use super::title_table::titles;
use crate::circulation::Circulation;
use crate::console::find::MAX_ISIL;
use crate::console::format::{count, nok, time};
use crate::console::page::{Field, Page, Place, field, notice, page};
use crate::console::text::Library;
use crate::console::visit::Visit;
use crate::ledger::{BrakeMode, BrakeUse};
use crate::loan::LibraryId;

/// The most libraries that the page lists.
const MAX_LIBRARIES: usize = 500;

/// What the page shows.
pub(super) struct Shown<'a> {
    pub(super) wanted: Wanted,
    /// The present month.
    pub(super) now: Month,
    pub(super) counted: Option<Arc<Counted>>,
    pub(super) uses: Vec<BrakeUse>,
    pub(super) mode: BrakeMode,
    pub(super) has_prices: bool,
    pub(super) circulation: &'a Circulation,
}

/// Returns the page to choose a library.
pub(super) fn choice(visit: &Visit, libraries: &[LibraryId], is_wrong: bool) -> Response {
    let texts = &visit.texts.library;
    let body = html! {
        p.lead { (texts.lead) }
        @if is_wrong { (notice("bad", texts.wrong)) }
        div.card { (form(visit, "", "")) }
        @if !is_wrong {
            section aria-labelledby="libraries" {
                h2 #libraries { (texts.libraries) }
                @if libraries.is_empty() { p.hint { (texts.no_libraries) } }
                ul.names {
                    @for library in libraries.iter().take(MAX_LIBRARIES) {
                        li { a href={ "/library?" (query_of(*library)) } { (library) } }
                    }
                }
                @if libraries.len() > MAX_LIBRARIES { p.hint { (texts.more_libraries) } }
            }
        }
    };
    framed(visit, &body)
}

pub(super) fn query_of(library: LibraryId) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("library", library.as_str());
    query.finish()
}

fn framed(visit: &Visit, body: &Markup) -> Response {
    let place = Some(Place::Library);
    page(visit, &Page { title: visit.texts.library.title, place, ..Page::default() }, body)
}

fn form(visit: &Visit, library: &str, month: &str) -> Markup {
    let (texts, find) = (&visit.texts.library, &visit.texts.find);
    html! {
        form method="get" action="/library" {
            div.pair {
                (field(visit, &Field {
                    name: "library", label: find.library, required: true, value: library,
                    hint: visit.texts.why.library_hint, length: MAX_ISIL, ..Field::default()
                }))
                (field(visit, &Field {
                    name: "month", label: texts.month, value: month, hint: texts.month_hint,
                    length: 7, ..Field::default()
                }))
            }
            button { (texts.submit) }
        }
    }
}

/// Returns the page of a library.
pub(super) fn library(visit: &Visit, shown: &Shown<'_>) -> Response {
    let (texts, wanted) = (&visit.texts.library, &shown.wanted);
    let body = html! {
        p.lead { (wanted.library) " · " (wanted.month) }
        (months(visit, shown))
        @match &shown.counted {
            Some(counted) => {
                div.columns { (summary(visit, shown, counted)) (brake(visit, shown)) }
                (titles(visit, shown, counted))
                (days(visit, shown, counted))
            }
            None => {
                div.notice.note role="status" {
                    p { (texts.counting) }
                    p { a href=(wanted.path("/library")) { (texts.reload) } }
                }
                (brake(visit, shown))
            }
        }
        details.again {
            summary { (texts.another) }
            div.card { (form(visit, wanted.library.as_str(), &wanted.month.to_string())) }
        }
    };
    framed(visit, &body)
}

fn months(visit: &Visit, shown: &Shown<'_>) -> Markup {
    let wanted = &shown.wanted;
    let (previous, next) = (wanted.month.previous(), wanted.month.next());
    let address = |month| Wanted { month, page: 0, ..*wanted }.path("/library");
    html! {
        nav.paging.first aria-label=(visit.texts.library.months) {
            a href=(address(previous)) rel="prev" { span aria-hidden="true" { "← " } (previous) }
            @if next <= shown.now {
                a href=(address(next)) rel="next" { (next) span aria-hidden="true" { " →" } }
            }
        }
    }
}

fn summary(visit: &Visit, shown: &Shown<'_>, counted: &Counted) -> Markup {
    let (texts, wanted) = (&visit.texts.library, &shown.wanted);
    let number = |number| count(number, visit.language);
    let total = &counted.sums.total;
    html! {
        section.card aria-labelledby="summary" {
            h2 #summary { (texts.summary) }
            dl.facts {
                dt { (texts.loans) } dd { strong { (number(total.lent)) } }
                dt { (texts.refused) } dd { (number(total.refused)) }
                dt { (texts.over_budget) } dd { (number(total.over_budget)) }
                @if shown.has_prices {
                    dt { (texts.cost) } dd { strong { (nok(total.cost, visit.language)) } }
                }
                dt { (texts.counted_at) } dd { (time(counted.at)) }
            }
            @if shown.has_prices && total.open > 0 {
                p.hint { ((texts.open_reports)(total.open, &number(total.open))) }
            }
            @if shown.has_prices { p.hint { (texts.cost_hint) } }
            p.hint { (texts.counted_hint) }
            p.links {
                a href=(wanted.path("/library.xlsx")) download { (texts.download_xlsx) }
                a href=(wanted.path("/library.csv")) download { (texts.download_csv) }
            }
            @if !counted.sums.types.is_empty() {
                h3 #types { (texts.types) }
                (table("types", &types_head(texts, shown), 1..=4, &html! {
                    @for (name, sum) in &counted.sums.types {
                        tr role="row" {
                            td role="cell" data-label=(texts.licence_type) {
                                (licence(texts, name))
                            }
                            (sums(visit, shown, sum))
                        }
                    }
                }))
            }
        }
    }
}

pub(super) fn licence(texts: &Library, name: &str) -> Markup {
    html! { @if name.is_empty() { span.hint { (texts.no_type) } } @else { code { (name) } } }
}

/// The names of the columns of [`sums`].
pub(super) fn sum_names(texts: &Library, shown: &Shown<'_>) -> Vec<&'static str> {
    let mut names = vec![texts.loans, texts.refused, texts.over_budget];
    names.extend(shown.has_prices.then_some(texts.cost));
    names
}

fn types_head(texts: &Library, shown: &Shown<'_>) -> Vec<&'static str> {
    let mut names = vec![texts.licence_type];
    names.extend(sum_names(texts, shown));
    names
}

/// Returns the cells of a sum.
pub(super) fn sums(visit: &Visit, shown: &Shown<'_>, sum: &Sum) -> Markup {
    let texts = &visit.texts.library;
    let mut cells: Vec<String> =
        [sum.lent, sum.refused, sum.over_budget].map(|each| count(each, visit.language)).into();
    cells.extend(shown.has_prices.then(|| nok(sum.cost, visit.language)));
    html! {
        @for (name, cell) in sum_names(texts, shown).into_iter().zip(cells) {
            td.number role="cell" data-label=(name) { (cell) }
        }
    }
}

/// Returns a table, whose columns from the first to the last of `numbers` have numbers. Its roles
/// stay when a narrow screen shows each row as a card.
pub(super) fn table(
    labelled_by: &str,
    names: &[&str],
    numbers: RangeInclusive<usize>,
    rows: &Markup,
) -> Markup {
    let class = |place| numbers.contains(&place).then_some("number");
    html! {
        table.loans role="table" aria-labelledby=(labelled_by) {
            thead role="rowgroup" {
                tr role="row" {
                    @for (place, name) in names.iter().enumerate() {
                        th class=[class(place)] role="columnheader" scope="col" { (name) }
                    }
                }
            }
            tbody role="rowgroup" { (rows) }
        }
    }
}

fn days(visit: &Visit, shown: &Shown<'_>, counted: &Counted) -> Markup {
    let texts = &visit.texts.library;
    let mut names = vec![texts.day];
    names.extend(sum_names(texts, shown));
    html! {
        section aria-labelledby="days" {
            h2 #days { (texts.days) }
            p.hint { (texts.days_hint) }
            @if counted.sums.days.is_empty() { p.hint { (texts.no_loans) } }
            @else {
                (table("days", &names, 1..=4, &html! {
                    @for (day, sum) in &counted.sums.days {
                        tr role="row" {
                            td role="cell" data-label=(texts.day) { (day) }
                            (sums(visit, shown, sum))
                        }
                    }
                }))
            }
        }
    }
}
