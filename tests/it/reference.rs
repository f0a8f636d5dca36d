//! Generates `docs/metrics.md` and `docs/problems.md` from the definitions in the code, and fails
//! where the committed page differs.
//!
//! To write the pages: `LOANGATE_WRITE_DOCS=1 cargo it reference`.

use std::collections::BTreeSet;
use std::fs;

use loangate::problem::{ProblemType, RetryAfter};
use loangate::telemetry::{Definition, LabelValues, MetricKind, definitions};

const METRICS_HEAD: &str = "\
# Metrics

`/metrics` of the admin listener has these metrics, in the text format of Prometheus.
[`operations.md`](operations.md#alarms) lists those to alert on.

This page is generated from [`src/telemetry/metrics`](../src/telemetry/metrics/mod.rs). Write it by
`LOANGATE_WRITE_DOCS=1 cargo it reference`.

| metric | type | unit | labels | meaning |
|---|---|---|---|---|
";

const PROBLEMS_HEAD: &str = "\
# Problems

A refusal of a reader's request is `application/problem+json` (RFC 9457) with one of these types.
[`apps.md`](apps.md#refusals) has an example.

This page is generated from [`src/problem.rs`](../src/problem.rs). Write it by
`LOANGATE_WRITE_DOCS=1 cargo it reference`.

| status | `type` | when it occurs | what the app does | what the operator does | `Retry-After` |
|---|---|---|---|---|---|
";

/// Compares a page with its generated text, or writes it if the environment demands it.
fn check_page(path: &str, text: &str) {
    if std::env::var_os("LOANGATE_WRITE_DOCS").is_some() {
        fs::write(path, text).unwrap();
    }
    let committed = fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == text,
        "{path} differs from the code. Write it by `LOANGATE_WRITE_DOCS=1 cargo it reference`, and \
         commit it. It should be:\n{text}"
    );
}

fn kind_name(kind: MetricKind) -> &'static str {
    match kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram => "histogram",
    }
}

fn labels(definition: &Definition) -> String {
    let describe = |(key, values): (&str, LabelValues)| match values {
        LabelValues::Fixed(names) => format!("`{key}`: `{}`", names.join("`, `")),
        LabelValues::Configured(meaning) => format!("`{key}`: {meaning}"),
    };
    let described: Vec<String> = definition.labels().into_iter().map(describe).collect();
    described.join("; ")
}

#[test]
fn metrics_page_matches_the_definitions() {
    let row = |definition: &Definition| {
        let (name, kind, unit) = (definition.name, kind_name(definition.kind), definition.unit());
        format!("| `{name}` | {kind} | {unit} | {} | {} |\n", labels(definition), definition.help)
    };
    let rows: String = definitions().map(row).collect();
    check_page("docs/metrics.md", &format!("{METRICS_HEAD}{rows}"));
}

#[test]
fn every_metric_has_a_definition() {
    let mut named = BTreeSet::new();
    for file in fs::read_dir("src/telemetry/metrics").unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let literals = code.split('"').skip(1).step_by(2);
        let is_name = |name: &&str| name.starts_with("loangate_") || name.starts_with("process_");
        named.extend(literals.filter(is_name).map(str::to_owned));
    }
    let defined: Vec<String> = definitions().map(|metric| metric.name.to_owned()).collect();
    assert_eq!(named, defined.iter().cloned().collect(), "add it to DEFINITIONS of its file");
    assert_eq!(named.len(), defined.len(), "a metric is defined twice");
}

#[test]
fn problems_page_matches_the_types() {
    let row = |problem: ProblemType| {
        let guidance = problem.guidance();
        let retry_after = match problem.retry_after() {
            RetryAfter::Always => "yes",
            RetryAfter::IfKnown => "if a time is known",
            RetryAfter::Never => "no",
        };
        format!(
            "| {} | `{}` | {} | {} | {} | {retry_after} |\n",
            problem.status().as_u16(),
            problem.slug(),
            guidance.occurs,
            guidance.app.english,
            guidance.operator.map_or("–", |sentence| sentence.english),
        )
    };
    let rows: String = ProblemType::ALL.into_iter().map(row).collect();
    check_page("docs/problems.md", &format!("{PROBLEMS_HEAD}{rows}"));
}
