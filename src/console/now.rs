//! The page Now: what the gates do, as charts that are drawn here, of one gate or of all together.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, State};
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;
use url::form_urlencoded::Serializer;

use super::Console;
use super::address::Address;
use super::chart::card;
use super::format::time;
use super::live::{bar, updated};
use super::now_charts::charts;
use super::page::{Page, Place, page};
use super::plot::Unit;
use super::text::{level, now, problems};
use super::visit::Visit;
use crate::monitor::{Activity, Code, Gate, Level, Overview, Problem, Window};

/// What to show.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Shown {
    window: String,
    gate: String,
}

impl Shown {
    fn window(&self) -> Window {
        if self.window == "day" { Window::Day } else { Window::Hour }
    }
}

/// Shows the page.
pub(super) async fn show(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Address(Query(shown)): Address<Query<Shown>>,
) -> Response {
    let texts = now(visit.language);
    let overview = overview(&console, &shown);
    let stream = address("/now/stream", shown.window(), overview.gate.as_deref());
    let body = html! {
        p.lead { (texts.lead) }
        (choices(&visit, &overview, shown.window()))
        (bar(&visit, overview.at, &stream))
        (content(&visit, &overview, shown.window(), &problems_of(&console, &overview)))
    };
    let place = Some(Place::Now);
    page(&visit, &Page { title: texts.title, place, ..Page::default() }, &body)
}

/// Returns what the stream of the page sends: its changing parts.
pub(super) fn fragment(console: &Console, visit: &Visit, shown: &Shown) -> Markup {
    let overview = overview(console, shown);
    html! {
        (updated(visit, overview.at))
        (content(visit, &overview, shown.window(), &problems_of(console, &overview)))
    }
}

fn overview(console: &Console, shown: &Shown) -> Overview {
    let gate = Some(shown.gate.as_str()).filter(|gate| !gate.is_empty());
    console.parts.monitor.overview(shown.window(), gate)
}

fn address(path: &str, window: Window, gate: Option<&str>) -> String {
    let mut query = Serializer::new(String::new());
    let window = match window {
        Window::Hour => "hour",
        Window::Day => "day",
    };
    query.append_pair("window", window);
    if let Some(gate) = gate {
        query.append_pair("gate", gate);
    }
    format!("{path}?{}", query.finish())
}

/// Returns the links to another window and to other gates.
fn choices(visit: &Visit, overview: &Overview, window: Window) -> Markup {
    let (texts, gate) = (now(visit.language), overview.gate.as_deref());
    let windows = [(Window::Hour, texts.hour), (Window::Day, texts.day)];
    html! {
        div.choices {
            nav aria-label=(texts.windows) {
                @for (each, name) in windows {
                    a href=(address("/now", each, gate))
                        aria-current=[(each == window).then_some("true")] { (name) }
                }
            }
            @if overview.gates.len() > 1 {
                nav aria-label=(texts.gates) {
                    a href=(address("/now", window, None))
                        aria-current=[gate.is_none().then_some("true")] { (texts.all_gates) }
                    @for each in &overview.gates {
                        a href=(address("/now", window, Some(&each.id)))
                            aria-current=[(gate == Some(&each.id)).then_some("true")] {
                            (each.node)
                        }
                    }
                }
            }
        }
    }
}

/// Returns the problems of the gates that are shown.
fn problems_of(console: &Console, overview: &Overview) -> Vec<(Code, Problem)> {
    let gate = overview.gates.iter().find(|gate| Some(&gate.id) == overview.gate.as_ref());
    let is_shown = |problem: &Problem| gate.is_none_or(|gate| gate.node == problem.node);
    let found = console.parts.monitor.problems().problems.into_iter();
    found.filter(|(_, problem)| is_shown(problem)).collect()
}

/// Returns the changing parts. If its state differs from that of the open page, all is replaced.
fn content(
    visit: &Visit,
    overview: &Overview,
    window: Window,
    found: &[(Code, Problem)],
) -> Markup {
    let texts = now(visit.language);
    let is_empty = overview.slots.iter().all(Option::is_none) && overview.recent.is_none();
    let gates: Vec<&str> = overview.gates.iter().map(|gate| gate.id.as_str()).collect();
    let state = if is_empty { "empty".to_owned() } else { gates.join(" ") };
    html! {
        div data-state=(state) {
            div data-live="service" { (service(visit, overview, visit.problems)) }
            @if is_empty {
                div.empty { p { strong { (texts.empty) } } p { (texts.empty_hint) } }
            } @else {
                div data-live="missing" { (missing(visit, overview)) }
                div.charts {
                    @for chart in charts(visit, overview, found) {
                        (card(visit, (overview, window), &chart))
                    }
                }
                (gates_table(visit, overview, window))
            }
        }
    }
}

/// Returns how well readers are served, with a link to the problems.
fn service(visit: &Visit, overview: &Overview, count: usize) -> Markup {
    let texts = now(visit.language);
    let components = overview.status.components();
    html! {
        section.card.service aria-labelledby="service" {
            h2 #service { (texts.service) }
            ul.health {
                @for (name, component) in texts.components.iter().zip(components) {
                    @let class = match component.status {
                        Level::Ok => "passed",
                        Level::Degraded => "pending",
                        Level::Down => "refused",
                    };
                    li {
                        span { (name) } " "
                        span class={ "badge " (class) } {
                            (level(component.status, visit.language))
                        }
                        " " span.hint { (texts.since) " " (time(component.since)) }
                    }
                }
            }
            @if count > 0 {
                p.links { a href="/problems" { ((problems(visit.language).count)(count)) } }
            }
        }
    }
}

fn missing(visit: &Visit, overview: &Overview) -> Markup {
    let texts = now(visit.language);
    let own = overview.gates.iter().find(|gate| gate.is_own);
    let all = own.and_then(|gate| gate.recent.as_ref()).map_or(0, |activity| activity.nodes);
    let here = overview.gates.len();
    html! {
        @if u64::try_from(here).is_ok_and(|here| here < all) {
            div.notice.note { p { ((texts.missing_gates)(here, all)) } }
        }
    }
}

/// Returns a table of the gates. Its roles stay when a narrow screen shows each row as a card.
fn gates_table(visit: &Visit, overview: &Overview, window: Window) -> Markup {
    let texts = now(visit.language);
    html! {
        section aria-labelledby="gates" {
            h2 #gates { (texts.gates) }
            table.loans role="table" {
                thead role="rowgroup" {
                    tr role="row" {
                        @for name in [texts.gate, texts.problems, texts.loans, texts.requests,
                            texts.hit_rate, texts.latency, texts.streams] {
                            th role="columnheader" scope="col" { (name) }
                        }
                    }
                }
                tbody role="rowgroup" data-live="gates" {
                    @for gate in &overview.gates { (row(visit, gate, window)) }
                }
            }
        }
    }
}

fn row(visit: &Visit, gate: &Gate, window: Window) -> Markup {
    let (texts, language) = (now(visit.language), visit.language);
    let cell = |name: &str, unit: Unit, value: &dyn Fn(&Activity) -> Option<f64>| {
        let value = gate.recent.as_ref().and_then(value);
        let text = value.map(|value| unit.text(value, language));
        html! { td role="cell" data-label=(name) { span { (text.as_deref().unwrap_or("–")) } } }
    };
    html! {
        tr role="row" {
            td role="cell" data-label=(texts.gate) {
                span {
                    a href=(address("/now", window, Some(&gate.id))) {
                        span.hidden { (texts.show_only) ": " } (gate.node)
                    }
                    @if gate.is_own { " (" (texts.this_gate) ")" }
                }
            }
            td role="cell" data-label=(texts.problems) {
                @if gate.problems == 0 { span.badge.passed { "0" } }
                @else { span.badge.refused { (gate.problems) } }
            }
            (cell(texts.loans, Unit::Count, &|activity| Some(activity.loans)))
            (cell(texts.requests, Unit::Count, &|activity| Some(activity.requests)))
            (cell(texts.hit_rate, Unit::Share, &Activity::hit_rate))
            (cell(texts.latency, Unit::Seconds, &|activity| activity.head.quantile(0.99)))
            (cell(texts.streams, Unit::Count, &|activity| Some(activity.streams as f64)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::*;
    use crate::console::preferences::Theme;
    use crate::console::session::Secret;
    use crate::console::text::texts;
    use crate::language::Language;
    use crate::monitor::{CallRates, Status};
    use crate::telemetry::Durations;

    const HOSTILE: &str = "\"><script>alert(1)</script>";

    fn visit(language: Language) -> Visit {
        Visit {
            language,
            texts: texts(language),
            theme: Theme::System,
            has_keys: true,
            session: None,
            secret: Secret::generate().unwrap(),
            open_secret: None,
            here: "/now".to_owned(),
            tls: false,
            problems: 2,
        }
    }

    /// Returns what a busy gate does at this moment of a day.
    fn activity(slot: usize) -> Activity {
        let wave = 1.0 + (slot as f64 / 9.0).sin();
        let mut latency: Vec<u64> = vec![40, 30, 20, 10, 4, 2, 1, 0, 0, 0, 0, 0, 0];
        latency[8] = u64::from(slot % 17 == 3);
        let calls = CallRates { answered: 30.0 * wave, failed: if slot > 90 { 4.0 } else { 0.0 } };
        Activity {
            loans: 12.0 * wave,
            requests: 900.0 * wave,
            refusals: [("loan-refused", 3.0), ("title-not-found", 1.0), (HOSTILE, 0.5)]
                .into_iter()
                .chain([("overloaded", 0.2), ("loan-pending", 0.1)])
                .map(|(kind, rate)| (kind.to_owned(), rate * wave))
                .collect(),
            bytes: 2.4e6 * wave,
            head: Durations::of_counts(&latency).unwrap(),
            lending: calls,
            lending_seconds: Durations::of_counts(&latency).unwrap(),
            origins: BTreeMap::from([("files".to_owned(), calls), (HOSTILE.to_owned(), calls)]),
            ends_waiting: 3,
            oldest_end: 20 * slot as u64,
            streams: 40,
            nodes: 3,
            hits: 90 + slot as u64 % 7,
            misses: 4,
        }
    }

    fn overview(slots: Vec<Option<Activity>>) -> Overview {
        let at = Timestamp::from_second(1_790_000_000).unwrap();
        let gate = |number: usize| Gate {
            id: format!("{number:08x}"),
            node: format!("gate-{number}{HOSTILE}:8443"),
            is_own: number == 0,
            problems: number,
            unlisted: 0,
            recent: slots.last().cloned().flatten(),
        };
        Overview {
            at,
            gate: None,
            gates: (0..3).map(gate).collect(),
            start: at,
            step: 30,
            recent: slots.last().cloned().flatten(),
            slots,
            status: Status::new(at),
        }
    }

    #[test]
    fn full_hour_is_drawn_in_a_bounded_page_and_every_text_is_escaped() {
        let slots = (0..120).map(|slot| (!(40..52).contains(&slot)).then(|| activity(slot)));
        let overview = overview(slots.collect());
        for language in Language::ALL {
            let page = content(&visit(language), &overview, Window::Hour, &[]).into_string();
            assert!(page.len() < 150_000, "{} bytes", page.len());
            assert_eq!(page.matches("<svg role=\"img\"").count(), 9);
            assert_eq!(page.matches("class=\"gap\"").count(), 9, "the gap is in each chart");
            for wrong in ["<script", " style=", "NaN", ">inf"] {
                assert!(!page.contains(wrong), "{wrong}");
            }
            assert!(page.contains("&lt;script&gt;"));
        }
    }

    #[test]
    fn gate_that_has_just_started_says_so() {
        let page =
            content(&visit(Language::English), &overview(vec![None; 120]), Window::Hour, &[]);
        let page = page.into_string();
        assert!(page.contains("There are no figures yet.") && !page.contains("<svg"), "{page}");
    }
}
