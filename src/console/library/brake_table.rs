//! The use of the brake's limits.

use maud::{Markup, html};

use super::page::{Shown, table};
use crate::console::format::count;
use crate::console::visit::Visit;
use crate::ledger::{BrakeMode, BrakeUse};

/// Returns the section of the brake: its state, and the use of each limit.
pub(super) fn brake(visit: &Visit, shown: &Shown<'_>) -> Markup {
    let texts = &visit.texts.library;
    let state = match shown.mode {
        BrakeMode::Off => texts.brake_off,
        BrakeMode::Shadow => texts.brake_shadow,
        BrakeMode::Enforce => texts.brake_enforced,
    };
    let names = [texts.per_hour, texts.per_day, texts.attempts, texts.failed_attempts];
    html! {
        section.card aria-labelledby="brake" {
            h2 #brake { (texts.brake) }
            p { (state) }
            (table("brake", &[texts.limit, texts.used, texts.maximum], 2..=2, &html! {
                @for (name, used) in names.into_iter().zip(&shown.uses) {
                    (limit(visit, name, used))
                }
            }))
        }
    }
}

/// Returns a key that a narrow column divides only behind an underscore.
fn breakable(key: &str) -> Markup {
    html! { @for part in key.split_inclusive('_') { (part) wbr; } }
}

fn limit(visit: &Visit, name: &str, used: &BrakeUse) -> Markup {
    let texts = &visit.texts.library;
    let has_limit = used.maximum > 0;
    let is_reached = has_limit && used.used >= used.maximum.into();
    html! {
        tr role="row" {
            td role="cell" data-label=(texts.limit) {
                span { (name) " " code.key { (breakable(used.limit.name())) } }
            }
            td role="cell" data-label=(texts.used) {
                span {
                    (count(used.used, visit.language))
                    @if used.is_capped { " " (texts.or_more) }
                    @if is_reached { " " span.badge.refused { (texts.reached) } }
                    @if has_limit {
                        " "
                        meter min="0" max=(used.maximum) value=(used.used)
                            aria-label=(name) {}
                    }
                }
            }
            td.number role="cell" data-label=(texts.maximum) {
                @if has_limit { (count(used.maximum.into(), visit.language)) }
                @else { span.hint { (texts.no_limit) } }
            }
        }
    }
}
