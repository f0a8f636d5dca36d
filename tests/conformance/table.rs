//! Reads the conformance table. The README beside it describes the format.
//!
//! The table uses no type of the crate, so that all players read it alike.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// Values that the table itself contains for kept names.
pub(crate) const LITERALS: [(&str, &str); 4] = [
    ("token", "literal-token"),
    ("ticket", "TGT-literal"),
    ("loan", "BL00000001"),
    ("next", "literal-cursor"),
];

/// Time at the start of every exchange.
pub(crate) const START: &str = "2026-01-15T12:00:00Z";

/// A request, its response, and the steps before it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Exchange {
    pub(crate) name: String,
    pub(crate) source: String,
    #[serde(default)]
    pub(crate) given: Vec<Step>,
    pub(crate) request: Request,
    /// `None` closes the connection without a response.
    pub(crate) answer: Option<Answer>,
    #[serde(default)]
    pub(crate) varies: Vec<String>,
    #[serde(default)]
    pub(crate) keep: BTreeMap<String, String>,
}

/// A step that precedes an exchange.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    Play(String),
    Control { line: String, body: Value },
    AdvanceSeconds(u64),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) headers: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) body: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) body: Option<Value>,
}

/// Returns every exchange of the table.
pub(crate) fn all() -> Vec<Exchange> {
    [
        include_str!("login.json"),
        include_str!("loans.json"),
        include_str!("listing.json"),
        include_str!("ends.json"),
        include_str!("titles.json"),
        include_str!("reports.json"),
        include_str!("trouble.json"),
    ]
    .iter()
    .flat_map(|text| serde_json::from_str::<Vec<Exchange>>(text).unwrap())
    .collect()
}

/// Returns a body as sent over the wire.
pub(crate) fn bytes(body: Option<&Value>) -> String {
    match body {
        None => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(json) => json.to_string(),
    }
}

/// Replaces the names in braces by their kept values.
pub(crate) fn filled(text: &str, kept: &BTreeMap<String, String>) -> String {
    kept.iter()
        .fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}
