//! `loangate explain`: says what a request for a file would get from a running gate, and why.

use std::fmt::Write as _;

use reqwest::Method;
use serde_json::{Value, json};

use super::admin_client::{GateArgs, call, read};
use super::{CliError, show};

/// The options that describe a request.
const DESCRIPTION: [&str; 6] = ["path", "library", "borrower", "issued", "method", "headers"];

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    gate: GateArgs,
    /// Path of the file, such as /files/9788299999014/book.epub.
    #[arg(long, required_unless_present = "request")]
    path: Option<String>,
    /// Id of a request that was made, as its error message has it, instead of all others.
    #[arg(long, conflicts_with_all = DESCRIPTION)]
    request: Option<String>,
    /// Library's ISIL, such as NO-0301000.
    #[arg(long, requires = "borrower")]
    library: Option<String>,
    /// Borrower's id in the login service. Without it, the link in the path or a --header
    /// "Authorization: Bearer TOKEN" says who asks.
    #[arg(long, requires = "library")]
    borrower: Option<String>,
    /// When the borrower's credential was issued, like 2026-01-31T00:00:00Z; the default is now.
    #[arg(long, requires = "borrower")]
    issued: Option<String>,
    /// Method of the request; the default is GET.
    #[arg(long)]
    method: Option<String>,
    /// Header field of the request, like "Range: bytes=0-"; repeatable.
    #[arg(long = "header", value_name = "FIELD")]
    headers: Vec<String>,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let Args { gate, path, request, library, borrower, issued, method, headers } = args;
    let question = json!({
        "path": path,
        "request": request,
        "library": library,
        "borrower": borrower,
        "issued": issued,
        "method": method,
        "headers": headers,
    });
    let response =
        call(&gate, Method::POST, &["explain"], |request| request.json(&question)).await?;
    let explained = read(response, &["steps"]).await?;
    show(gate.json, &explained, explained_text)
}

/// Formats an explanation: a line per step, then the result and the advice.
fn explained_text(explained: &Value) -> String {
    let text = |of: &Value, name: &str| {
        of.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let mut lines = String::new();
    if let Some(request) = explained.get("request") {
        for name in ["at", "method", "path", "library", "borrower", "isbn", "issued"] {
            let _ = writeln!(lines, "{name:10} {}", text(request, name));
        }
        lines.push('\n');
    }
    for step in explained.get("steps").and_then(Value::as_array).into_iter().flatten() {
        let [step, decision, why] = ["step", "decision", "why"].map(|name| text(step, name));
        // Writing to a string does not fail.
        let _ = writeln!(lines, "{step:10} {decision:14} {why}");
    }
    let status = explained.get("status").and_then(Value::as_u64).unwrap_or_default();
    let [kind, reason, assumes] = ["type", "reason", "assumes"].map(|name| text(explained, name));
    let _ = write!(lines, "\nstatus {status}");
    for (before, word) in [(" ", kind), (", reason ", reason), (", if the loan is ", assumes)] {
        if !word.is_empty() {
            let _ = write!(lines, "{before}{word}");
        }
    }
    let _ = write!(lines, "\n{}", text(explained, "advice"));
    lines
}
