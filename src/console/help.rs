//! The help page: shortcuts, the states of a loan, and privacy.

use axum::Extension;
use axum::response::Response;
use maud::html;

use super::page::{Page, Place, page, token};
use super::text::{state, state_meaning};
use super::visit::Visit;
use crate::loan::LoanState;

/// Shows the page.
pub(super) async fn show(Extension(visit): Extension<Visit>) -> Response {
    let texts = &visit.texts.help;
    let (switch, value) =
        if visit.has_keys { (texts.turn_off, "off") } else { (texts.turn_on, "on") };
    let body = html! {
        section aria-labelledby="shortcuts" {
            h2 #shortcuts { (texts.shortcuts) }
            p { (texts.shortcuts_hint) }
            @if !visit.has_keys { p { strong { (texts.are_off) } } }
            table.plain {
                thead { tr { th scope="col" { (texts.key) } th scope="col" { (texts.does) } } }
                tbody {
                    tr { td { kbd { "/" } } td { (texts.search_field) } }
                    @for place in Place::ALL.into_iter().filter(|place| visit.may_open(*place)) {
                        tr { td { kbd { (place.key()) } } td { (place.name(&visit)) } }
                    }
                }
            }
            form method="post" action="/preferences" {
                (token(&visit))
                input type="hidden" name="back" value="/help";
                button.quiet name="keys" value=(value) { (switch) }
            }
        }
        section aria-labelledby="states" {
            h2 #states { (texts.states) }
            dl.meanings {
                @for each in LoanState::ALL {
                    dt { span class={ "badge " (each.name()) } { (state(each, visit.language)) } }
                    dd { (state_meaning(each, visit.language)) }
                }
            }
        }
        section aria-labelledby="privacy" {
            h2 #privacy { (texts.privacy) }
            p { (texts.privacy_text) }
        }
    };
    let place = Some(Place::Help);
    page(&visit, &Page { title: texts.title, place, ..Page::default() }, &body)
}
