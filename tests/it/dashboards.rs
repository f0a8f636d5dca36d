//! The dashboard and the alerts of `deploy`, against a gate and a real Prometheus.
//!
//! `LOANGATE_WRITE_DOCS=1` draws `docs/dashboard.svg` from a longer run.

mod expression;
mod load;
mod picture;

use std::collections::BTreeSet;
use std::fs;

use loangate::telemetry::definitions;
use serde_json::Value;

use crate::support::prometheus::{Prometheus, deployed, promtool};
use crate::support::{Scene, metric, program};
use expression::{metrics_of, with_variables};
use load::Load;

/// The package of Debian.
const PACKAGE: &str = "prometheus";
/// The panels that show nothing for one gate with SQLite and a fixed key for tokens.
const EMPTY: [&str; 4] =
    ["Lease and members", "Clock of the database", "Login services", "Resumed bodies"];

/// A panel of the dashboard.
struct Panel {
    title: String,
    expressions: Vec<String>,
}

fn dashboard() -> Value {
    let text = fs::read_to_string(deployed("grafana/loangate.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Returns the panels, and the expressions beside them as panels of their own.
fn panels(dashboard: &Value) -> Vec<Panel> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all = dashboard["panels"].as_array().unwrap();
    let mut panels: Vec<Panel> = all
        .iter()
        .filter(|panel| panel["type"] != "row")
        .map(|panel| {
            let targets = panel["targets"].as_array().unwrap().iter();
            let expressions = targets.map(|target| text(&target["expr"])).collect();
            Panel { title: text(&panel["title"]), expressions }
        })
        .collect();
    let marks = dashboard["annotations"]["list"].as_array().unwrap().iter();
    panels.extend(
        marks.map(|mark| Panel {
            title: text(&mark["name"]),
            expressions: vec![text(&mark["expr"])],
        }),
    );
    panels
}

/// Asserts that each metric of an expression has a definition, or is Prometheus' own.
fn assert_known(place: &str, expression: &str, recorded: &BTreeSet<String>) {
    for name in metrics_of(expression) {
        let is_defined = definitions().any(|definition| {
            let rest = name.strip_prefix(definition.name);
            let is_histogram = definition.unit() == "seconds" && !name.ends_with("_total");
            let parts: &[&str] =
                if is_histogram { &["", "_bucket", "_sum", "_count"] } else { &[""] };
            rest.is_some_and(|rest| parts.contains(&rest))
        });
        let is_known = is_defined || ["up"].contains(&name.as_str()) || recorded.contains(&name);
        assert!(is_known, "{place}: there is no metric {name}");
    }
}

#[test]
fn every_metric_of_the_dashboard_exists() {
    let dashboard = dashboard();
    let panels = panels(&dashboard);
    assert!(panels.len() > 50);
    for Panel { title, expressions } in &panels {
        for expression in expressions {
            assert!(!metrics_of(expression).is_empty(), "{title}: no metric in {expression}");
            assert_known(title, expression, &BTreeSet::new());
        }
    }
    let titles: BTreeSet<_> = panels.iter().map(|panel| panel.title.as_str()).collect();
    assert_eq!(titles.len(), panels.len(), "two panels have one title");
    assert!(EMPTY.iter().all(|title| titles.contains(title)));
    // The dashboard must work with any data source, and for any gate.
    let text = dashboard.to_string();
    let sources = text.matches("\"uid\":").count() - 1;
    assert_eq!(text.matches("\"uid\":\"${datasource}\"").count(), sources);
    for expression in panels.iter().flat_map(|panel| &panel.expressions) {
        assert!(expression.contains("instance=~\"$instance\""), "{expression}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_evaluates_every_expression() {
    let Some(server) = program("prometheus", PACKAGE) else { return };
    let scene = load::scene().await;
    let prometheus = Prometheus::start(&server, &scene).await;
    let load = Load::new(&scene);
    load.every_kind().await;
    let has_rates = async || {
        load.next_reader().await;
        // The series of refusals and of durations begin with the first one, and a rate needs two
        // samples.
        let refusals = "rate(loangate_requests_total{outcome=\"title-not-found\"}[30s])";
        let begins = "rate(loangate_lending_call_seconds_count{call=\"begin\"}[30s]) > 0";
        let rates = prometheus.query(&format!("{begins} and on (instance) {refusals}")).await;
        rates.is_ok_and(|series| !series.is_empty())
    };
    scene.until("Prometheus has scraped twice under load", has_rates).await;
    assert_alerts(&scene, &prometheus).await;
    let picture = std::env::var("LOANGATE_WRITE_DOCS").is_ok_and(|write| write == "1");
    if picture {
        load.vary(picture::SECONDS).await;
    }
    let dashboard = dashboard();
    for Panel { title, expressions } in panels(&dashboard) {
        let mut is_empty = true;
        for expression in expressions {
            let result = prometheus.query(&with_variables(&expression)).await;
            let series = result.unwrap_or_else(|why| panic!("{title}: {expression}: {why}"));
            is_empty &= series.iter().all(|series| series["value"][1] == "NaN");
        }
        let may_be_empty = EMPTY.contains(&title.as_str()) || title == "Reloads";
        assert!(!is_empty || may_be_empty, "{title} shows nothing under load");
    }
    if picture {
        let svg = picture::draw(&dashboard, &prometheus).await;
        fs::write("docs/dashboard.svg", svg).unwrap();
    }
    scene.end().await;
}

/// Asserts that each alert can be evaluated, names metrics that exist and a section of the runbook,
/// and that no problem of the gate's own watch is without an alert.
async fn assert_alerts(scene: &Scene, prometheus: &Prometheus) {
    let evaluated = async || {
        let rules = prometheus.rules().await;
        rules.iter().all(|rule| rule["health"] != "unknown")
    };
    scene.until("each rule was evaluated", evaluated).await;
    let rules = prometheus.rules().await;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let recorded =
        rules.iter().filter(|rule| rule["type"] == "recording").map(|rule| text(&rule["name"]));
    let recorded: BTreeSet<String> = recorded.collect();
    let runbook = fs::read_to_string("docs/runbook.md").unwrap();
    let sections: BTreeSet<&str> =
        runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let mut anchors = BTreeSet::new();
    let mut excluded = BTreeSet::new();
    for rule in &rules {
        let (name, query) = (text(&rule["name"]), text(&rule["query"]));
        assert_eq!(rule["health"], "ok", "{name}: {}", rule["lastError"]);
        assert_known(&name, &query, &recorded);
        if rule["type"] != "alerting" {
            continue;
        }
        let severity = text(&rule["labels"]["severity"]);
        assert!(["page", "ticket"].contains(&severity.as_str()), "{name}: {severity}");
        let notes = &rule["annotations"];
        assert!(!text(&notes["summary"]).is_empty() && !text(&notes["description"]).is_empty());
        let place = text(&notes["runbook"]);
        let anchor = place.strip_prefix("docs/runbook.md#").unwrap_or_else(|| panic!("{name}"));
        if anchor == "{{ $labels.code }}" {
            let (_, rest) = query.split_once("code!~\"").unwrap();
            let codes = rest.split_once('"').unwrap().0.split('|').map(str::to_owned);
            excluded.extend(codes);
            continue;
        }
        assert!(sections.contains(anchor), "{name}: the runbook has no section {anchor}");
        anchors.insert(anchor.to_owned());
    }
    let codes = prometheus.query("count by (code) (loangate_problems)").await.unwrap();
    let codes: BTreeSet<String> = codes.iter().map(|it| text(&it["metric"]["code"])).collect();
    assert!(codes.len() > 20, "{codes:?}");
    assert!(excluded.is_subset(&codes), "no such problem: {excluded:?}");
    assert!(excluded.is_subset(&anchors), "left out, and without an alert: {excluded:?}");
    let explained = |section: &&str| codes.contains(*section) || anchors.contains(*section);
    assert!(sections.iter().all(explained), "no alert leads to a section: {sections:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promtool_accepts_the_rules_and_the_metrics() {
    let Some(tool) = program("promtool", PACKAGE) else { return };
    let file = |name: &str| deployed(&format!("prometheus/{name}")).display().to_string();
    let rules = [file("alerts.yml"), file("recording.yml")];
    promtool(&tool, &["check", "rules", &rules[0], &rules[1]], "").await;
    promtool(&tool, &["test", "rules", &file("alerts_test.yml")], "").await;
    let tests = fs::read_to_string(file("alerts_test.yml")).unwrap();
    for line in fs::read_to_string(&rules[0]).unwrap().lines() {
        let Some((_, alert)) = line.split_once("- alert: ") else { continue };
        for case in ["fires", "is quiet"] {
            let name = format!("- name: {alert} {case}\n");
            assert!(tests.contains(&name), "alerts_test.yml has no test: {name}");
        }
    }
    let scene = load::scene().await;
    Load::new(&scene).every_kind().await;
    promtool(&tool, &["check", "metrics"], &scene.metrics().await).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn titles_and_readers_add_no_series() {
    let scene = load::scene().await;
    let load = Load::new(&scene);
    load.every_kind().await;
    load.many_titles(0..5, 0..5).await;
    let series = async || {
        let text = scene.metrics().await;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let names = lines.filter_map(|line| line.rsplit_once(' ')).map(|(name, _)| name.to_owned());
        names.collect::<BTreeSet<_>>()
    };
    // The first reading of the watch adds its own.
    let watched = async || series().await.iter().any(|name| name.starts_with("loangate_problems"));
    scene.until("the gate looked for problems", watched).await;
    let before = series().await;
    load.many_titles(5..10_000, 5..500).await;
    let answered = metric(&scene.metrics().await, "loangate_requests_total", "");
    assert!(answered >= 10_500.0, "{answered}");
    let added: Vec<String> = series().await.difference(&before).cloned().collect();
    assert!(added.is_empty(), "{added:?}");
    assert!(before.len() < 1500, "{}", before.len());
    scene.end().await;
}
