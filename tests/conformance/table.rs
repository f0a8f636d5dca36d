//! Reads the conformance table, for whoever plays it. The README beside it says what everything
//! means.
//!
//! It uses none of the crate's types, so that the table says the same to all who read it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// The values that the table itself uses for what is kept.
pub(crate) const LITERALS: [(&str, &str); 4] = [
    ("token", "literal-token"),
    ("ticket", "TGT-literal"),
    ("loan", "BL00000001"),
    ("next", "literal-cursor"),
];

/// When every exchange starts.
pub(crate) const START: &str = "2026-01-15T12:00:00Z";

/// A request and its answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Exchange {
    pub(crate) name: String,
    pub(crate) source: String,
    #[serde(default)]
    pub(crate) given: Vec<Step>,
    pub(crate) request: Request,
    /// None: the connection is cut without a byte.
    pub(crate) answer: Option<Answer>,
    #[serde(default)]
    pub(crate) varies: Vec<String>,
    #[serde(default)]
    pub(crate) keep: BTreeMap<String, String>,
}

/// Something that comes before.
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

/// Every exchange.
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

/// A body as it goes over the wire.
pub(crate) fn bytes(body: Option<&Value>) -> String {
    match body {
        None => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(json) => json.to_string(),
    }
}

/// A text with the names in braces replaced by what was kept for them.
pub(crate) fn filled(text: &str, kept: &BTreeMap<String, String>) -> String {
    kept.iter()
        .fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}
