//! `loangate reload`: lets a running gate reload its configuration, and prints what changed.

use reqwest::Method;
use serde_json::Value;

use super::admin_client::{GateArgs, call, read};
use super::{CliError, printable, show};

/// Reloads. Fails if the configuration has a mistake, and nothing changes then.
pub(super) async fn run(gate: GateArgs) -> Result<(), CliError> {
    let response = call(&gate, Method::POST, &["reload"], |request| request).await?;
    let reloaded = read(response, &["changed", "needs_restart"]).await?;
    show(gate.json, &reloaded, lines)
}

fn lines(reloaded: &Value) -> String {
    let keys = |list: &str| -> Vec<String> {
        let keys = reloaded.get(list).and_then(Value::as_array).into_iter().flatten();
        keys.filter_map(|changed| Some(printable(changed.get("key")?.as_str()?))).collect()
    };
    let (changed, restart) = (keys("changed"), keys("needs_restart"));
    let mut lines = vec![match changed.is_empty() {
        true => "reloaded; no key that a reload applies has changed".to_owned(),
        false => format!("reloaded: {}", changed.join(", ")),
    }];
    if !restart.is_empty() {
        lines.push(format!("these need a restart: {}", restart.join(", ")));
    }
    lines.join("\n")
}
