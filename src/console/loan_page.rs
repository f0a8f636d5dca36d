//! The page of a loan: its facts, its life with Bokbasen's own words, what was delivered under it,
//! and what can be done.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use super::Console;
use super::actions;
use super::address::Address;
use super::done::Done;
use super::failure::Failure;
use super::find::failed;
use super::format::{percent, size, time};
use super::loans::badge;
use super::page::{Page, Place, notice, page};
use super::text::{cause, end_reason, state};
use super::trail::{To, look, what};
use super::visit::Visit;
use crate::ledger::HistoryRow;
use crate::loan::{Loan, Tally};
use crate::problem::refusal_sentence;

/// The most steps of a loan on its page: a life has about ten.
const MAX_STEPS: usize = 200;
/// The most files with a bar.
const MAX_FILES: usize = 200;
/// The width of a bar, in its own units.
const BAR_WIDTH: u64 = 1000;

/// What an action reports.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Reported {
    done: String,
}

/// Returns the loan that a path names.
///
/// # Errors
/// [`Failure::NotFound`], or [`Failure::Ledger`].
pub(super) async fn find(console: &Console, id: &str) -> Result<Loan, Failure> {
    let uuid = id.parse().map_err(|_| Failure::NotFound)?;
    console.parts.ledger.find(uuid).await.map_err(failed)?.ok_or(Failure::NotFound)
}

/// Shows a loan.
pub(super) async fn show(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Address(Path(id)): Address<Path<String>>,
    Address(Query(reported)): Address<Query<Reported>>,
) -> Result<Response, Failure> {
    let loan = find(&console, &id).await?;
    let to = To::new(Some(loan.key.library), loan.id);
    look(&console, &visit, what::SHOW_LOAN, to).await?;
    let ledger = &console.parts.ledger;
    let history = ledger.history(loan.id).await.map_err(failed)?;
    let delivered = ledger.delivered(&[loan.id]).await.map_err(failed)?;
    let delivered = delivered.into_values().next().unwrap_or_default();
    let waits = ledger.waits_for_examination(loan.id).await.map_err(failed)?;
    let files = console.parts.requests.catalog().files_of(loan.key.isbn);
    let texts = &visit.texts.loan;
    let body = html! {
        p.lead { code { (loan.key.isbn) } " " (badge(&visit, &loan)) }
        @if let Some(done) = Done::of(&reported.done) {
            (notice(done.kind(), done.text(&visit.texts.actions)))
        }
        @if loan.end_is_overdue(console.parts.clock.now()) { (notice("bad", texts.overdue)) }
        @if waits { (notice("note", visit.texts.actions.waits)) }
        (refusal(&visit, &loan))
        div.columns.side {
            (facts(&visit, &loan))
            (actions::panel(&visit, &loan))
            div {
                (timeline(&visit, &history))
                (deliveries(&visit, &delivered))
                (files_of_title(&visit, &console.parts.public_base, &files))
            }
        }
    };
    let place = Some(Place::Find);
    Ok(page(&visit, &Page { title: texts.title, place, ..Page::default() }, &body))
}

fn facts(visit: &Visit, loan: &Loan) -> Markup {
    let (texts, find) = (&visit.texts.loan, &visit.texts.find);
    let terms = loan.terms.as_ref();
    let licence = terms.and_then(|terms| terms.licence_type.as_deref());
    html! {
        section.card aria-labelledby="facts" {
            h2 #facts { (texts.facts) }
            dl.facts {
                dt { (find.begun) } dd { (time(loan.begun)) }
                @if let Some(terms) = terms { dt { (texts.due) } dd { (time(terms.due)) } }
                @if let Some(ended) = loan.ended { dt { (texts.ended) } dd { (time(ended)) } }
                @if let Some(reason) = loan.end_reason {
                    dt { (texts.end_reason) } dd { (end_reason(reason, visit.language)) }
                }
                dt { (texts.progress) } dd { (progress(visit, loan)) }
                @if let Some(licence) = licence { dt { (texts.licence) } dd { code { (licence) } } }
                dt { (find.library) } dd { (loan.key.library) }
                dt { (texts.pseudonym) } dd { code { (loan.key.borrower) } }
                @if let Some(at) = loan.forgotten { dt { (texts.forgotten) } dd { (time(at)) } }
                dt { (texts.id) } dd { code { (loan.id) } }
                @if let Some(id) = &loan.lending_id {
                    dt { (texts.bokbasen_id) } dd { code { (id) } }
                }
                dt { (texts.reference) } dd { code { (loan.reference) } }
            }
            p.links {
                @if loan.forgotten.is_none() {
                    a href={ "/loans?borrower=" (loan.key.borrower) } { (texts.all_of_borrower) }
                }
                a href={ "/loans?isbn=" (loan.key.isbn) } { (texts.all_of_title) }
            }
        }
    }
}

fn progress(visit: &Visit, loan: &Loan) -> Markup {
    let texts = &visit.texts.loan;
    html! {
        @match loan.progress {
            Some(progress) => {
                meter min="0" max="10000" value=(progress.hundredths())
                    aria-label=(texts.progress) {}
                " " (percent(progress.hundredths(), visit.language))
            }
            None => (texts.no_progress),
        }
    }
}

/// Explains a refusal in the language of the page; Bokbasen's message stays as it is.
fn refusal(visit: &Visit, loan: &Loan) -> Markup {
    let texts = &visit.texts.loan;
    let Some(refusal) = &loan.refusal else { return html! {} };
    html! {
        section.notice.bad aria-labelledby="refused" {
            h2 #refused { (texts.refused) }
            p { (refusal_sentence(&refusal.code).text(visit.language)) }
            dl.facts {
                dt { (texts.code) } dd { code { (refusal.code) } }
                @if !refusal.message.is_empty() {
                    dt { (texts.bokbasen_says) } dd { q translate="no" { (refusal.message) } }
                }
                @if let Some(at) = refusal.retry_at { dt { (texts.retry_at) } dd { (time(at)) } }
            }
        }
    }
}

fn timeline(visit: &Visit, history: &[HistoryRow]) -> Markup {
    let texts = &visit.texts.loan;
    html! {
        section.card aria-labelledby="timeline" {
            h2 #timeline { (texts.timeline) }
            ol.timeline {
                @for step in history.iter().take(MAX_STEPS) {
                    li {
                        div.when { (time(step.at)) }
                        div {
                            span class={ "badge " (step.to.name()) } {
                                (state(step.to, visit.language))
                            }
                            " " (cause(&step.cause, visit.language))
                            @if let Some(detail) = &step.detail {
                                p.detail { q translate="no" { (detail) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn deliveries(visit: &Visit, delivered: &BTreeMap<String, Tally>) -> Markup {
    let texts = &visit.texts.loan;
    html! {
        section.card aria-labelledby="delivered" {
            h2 #delivered { (texts.delivered) }
            @if delivered.is_empty() { p.hint { (texts.nothing_delivered) } }
            @else {
                p.hint { (texts.delivered_hint) }
                @for (file, tally) in delivered.iter().take(MAX_FILES) {
                    (delivery(visit, file, tally))
                }
            }
        }
    }
}

fn delivery(visit: &Visit, file: &str, tally: &Tally) -> Markup {
    let texts = &visit.texts.loan;
    let count = tally.ranges.pairs().count();
    let covered = size(tally.ranges.length(), visit.language);
    let end = tally.ranges.pairs().last().map_or(1, |[_, last]| last.saturating_add(1));
    let ranges = (texts.ranges)(count, &covered);
    let sent = (texts.sent)(&size(tally.bytes, visit.language));
    html! {
        figure.delivery {
            figcaption { code { (file) } }
            svg.bar viewBox={ "0 0 " (BAR_WIDTH) " 10" } preserveAspectRatio="none" role="img"
                aria-label={ (file) ": " (ranges) } {
                @for [first, last] in tally.ranges.pairs() {
                    @let (from, to) = (place(first, end), place(last.saturating_add(1), end));
                    rect x=(from) y="0" width=((to - from).max(2)) height="10" {}
                }
            }
            p { (ranges) " · " (sent) }
        }
    }
}

/// Returns where a byte is on a bar of a file that ends at `end`.
fn place(byte: u64, end: u64) -> u64 {
    let place = u128::from(byte) * u128::from(BAR_WIDTH) / u128::from(end.max(1));
    u64::try_from(place).unwrap_or(BAR_WIDTH).min(BAR_WIDTH)
}

fn files_of_title(visit: &Visit, base: &str, files: &[String]) -> Markup {
    let texts = &visit.texts.loan;
    html! {
        section.card aria-labelledby="files" {
            h2 #files { (texts.files) }
            @if files.is_empty() { p.hint { (texts.no_files) } }
            @else {
                ul.files {
                    @for file in files.iter().take(MAX_FILES) { li { code { (base) (file) } } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_has_the_place_of_each_byte() {
        assert_eq!((place(0, 100), place(50, 100), place(100, 100)), (0, 500, 1000));
        assert_eq!(place(u64::MAX, u64::MAX), 1000);
        assert_eq!(place(7, 0), 1000);
    }
}
