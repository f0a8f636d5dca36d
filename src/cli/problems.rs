//! `loangate problems`: lists what needs a person now, as a running gate sees it.

use std::fmt::Write as _;

use reqwest::Method;
use serde_json::Value;

use super::admin_client::{CHECK_PEER, GateArgs, LOOK_TIMEOUT, call, read_list};
use super::{CliError, printable, show};

/// Prints the problems. Fails if there is a critical one.
pub(super) async fn run(gate: GateArgs) -> Result<(), CliError> {
    let response =
        call(&gate, Method::GET, &["problems"], |request| request.timeout(LOOK_TIMEOUT)).await?;
    let members = ["severity", "code", "node", "since", "what", "advice"];
    let list = read_list(response, "problems", &members).await?;
    if list.get("nodes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        return Err(CliError::new(format!("the response names no gate. {CHECK_PEER}")));
    }
    show(gate.json, &list, lines)?;
    let is_critical = |problem: &Value| problem.get("severity") == Some(&"critical".into());
    match problems(&list).any(is_critical) {
        true => Err(CliError::new("a critical problem needs a person now")),
        false => Ok(()),
    }
}

fn problems(list: &Value) -> impl Iterator<Item = &Value> {
    list.get("problems").and_then(Value::as_array).into_iter().flatten()
}

fn lines(list: &Value) -> String {
    let mut lines = String::new();
    for problem in problems(list) {
        let text = |name| problem.get(name).and_then(Value::as_str).unwrap_or_default();
        let subject = match text("subject") {
            "" => String::new(),
            subject => format!(" ({})", printable(subject)),
        };
        let _ = writeln!(
            lines,
            "{} {}{subject} on {} since {}\n  {}\n  {}\n  {}",
            text("severity").to_uppercase(),
            text("code"),
            printable(text("node")),
            text("since"),
            printable(text("what")),
            text("advice"),
            text("runbook"),
        );
    }
    for node in list.get("nodes").and_then(Value::as_array).into_iter().flatten() {
        let name = node.get("node").and_then(Value::as_str).unwrap_or_default();
        let unlisted = node.get("unlisted").and_then(Value::as_u64).unwrap_or_default();
        if unlisted > 0 {
            let name = printable(name);
            let _ = writeln!(lines, "{unlisted} more on {name}: ask that gate for them");
        }
    }
    if lines.is_empty() { "no problems".to_owned() } else { lines.trim_end().to_owned() }
}
