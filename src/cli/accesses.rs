//! `loangate audit accesses`: lists who of the staff looked at loans or acted on them.

use std::fmt::Write as _;

use reqwest::Method;
use serde_json::Value;

use super::admin_client::{GateArgs, call, read_list};
use super::{CliError, printable, show};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    gate: GateArgs,
    /// Only accesses that concern this library (ISIL).
    #[arg(long)]
    library: Option<String>,
    /// Only accesses since this time, like 2026-01-31T00:00:00Z.
    #[arg(long)]
    since: Option<String>,
    /// Maximum number of accesses.
    #[arg(long, default_value_t = 100)]
    limit: u32,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let Args { gate, library, since, limit } = args;
    let mut query = vec![("limit", limit.to_string())];
    query.extend(library.map(|library| ("library", library)));
    query.extend(since.map(|since| ("since", since)));
    let response = call(&gate, Method::GET, &["accesses"], |request| request.query(&query)).await?;
    let list = read_list(response, "accesses", &["at", "who", "what"]).await?;
    show(gate.json, &list, lines)
}

/// Formats a line for each access. Who wrote a name or a reason may have meant it for a terminal.
fn lines(list: &Value) -> String {
    let accesses = list.get("accesses").and_then(Value::as_array).into_iter().flatten();
    let mut lines = String::new();
    for access in accesses {
        let text = |name| printable(access.get(name).and_then(Value::as_str).unwrap_or("–"));
        let target = access.get("target").and_then(Value::as_object);
        let target = target.and_then(|target| target.iter().next()).map_or_else(
            || "–".to_owned(),
            |(kind, id)| format!("{kind} {}", printable(id.as_str().unwrap_or("–"))),
        );
        let _ = writeln!(
            lines,
            "{:27} {} ({}) {} {}, {target}: {}",
            text("at"),
            text("who"),
            text("role"),
            text("what"),
            text("library"),
            text("why")
        );
    }
    if lines.is_empty() { "no accesses".to_owned() } else { lines.trim_end().to_owned() }
}
