//! `loangate loans balance`: runs a balance at a running gate, and shows how far it is.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use super::admin_client::{AdminClient, GateArgs, read};
use super::loans::text;
use super::progress::{showing, time_left};
use super::{CliError, printable, show};
use crate::lock::lock;

/// The timeout of a balance, which asks Bokbasen for every loan.
const BALANCE_TIMEOUT: Duration = Duration::from_secs(6 * 3600);
/// The interval of status queries.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Runs a balance. Fails if a person must check something.
pub(super) async fn run(gate: &GateArgs, since: Option<String>) -> Result<(), CliError> {
    let client = AdminClient::new(gate)?;
    let running = Mutex::new(Value::Null);
    let work = async {
        tokio::select! {
            report = balance(&client, since) => report,
            never = watch(&client, &running) => match never {},
        }
    };
    let state = |elapsed| progress_text(&lock(&running), elapsed);
    let report = showing(state, gate.json, work).await?;
    show(gate.json, &report, report_text)?;
    match report.get("balanced").and_then(Value::as_bool) {
        Some(true) => Ok(()),
        _ => Err(CliError::new(
            "the books do not balance: check every finding that was only reported",
        )),
    }
}

async fn balance(client: &AdminClient, since: Option<String>) -> Result<Value, CliError> {
    let since: Vec<_> = since.map(|since| ("since", since)).into_iter().collect();
    let response = client
        .call(Method::POST, &["balance"], |request| request.query(&since).timeout(BALANCE_TIMEOUT));
    read(response.await?, &["balanced", "libraries", "findings"]).await
}

/// Keeps how far the balance is in `running`. A gate that does not say so delays nothing.
async fn watch(client: &AdminClient, running: &Mutex<Value>) -> Infallible {
    loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        if let Ok(response) = client.status(false).await
            && let Ok(status) = read(response, &["balance"]).await
        {
            *lock(running) = status.get("balance").cloned().unwrap_or_default();
        }
    }
}

/// Formats how far a balance is.
fn progress_text(running: &Value, elapsed: Duration) -> String {
    let number = |name: &str| running.get(name).and_then(Value::as_u64).unwrap_or_default();
    let (compared, libraries, loans) = (number("compared"), number("libraries"), number("loans"));
    match libraries {
        0 => "comparing the ledger with Bokbasen's loans".to_owned(),
        _ => {
            let left = time_left(compared, libraries, elapsed);
            // Short enough for one line of a terminal.
            format!("comparing: {compared} of {libraries} libraries, {loans} loans{left}")
        }
    }
}

/// Formats a balance report: a line per library, then a line per difference.
fn report_text(report: &Value) -> String {
    let all = |name: &str| report.get(name).and_then(Value::as_array).into_iter().flatten();
    let number = |of: &Value, name: &str| of.get(name).and_then(Value::as_u64).unwrap_or_default();
    let mut lines = String::new();
    for library in all("libraries") {
        let (there, here) = (number(library, "listed"), number(library, "accepted_here"));
        let (foreign, young) = (number(library, "foreign"), number(library, "too_recent"));
        let (name, since) = (text(library, "library"), text(library, "since"));
        let _ = writeln!(
            lines,
            "{name}: since {since} Bokbasen lists {there} loans ({foreign} of others, {young} too \
             new to compare); {here} are accepted here"
        );
        if let Some(failed) = library.get("failed").and_then(Value::as_str) {
            let failed = printable(failed);
            let _ = writeln!(lines, "{name}: the comparison failed partway: {failed}");
        }
    }
    for finding in all("findings") {
        let [kind, done, isbn] = ["kind", "done", "isbn"].map(|name| text(finding, name));
        let [loan, lending_id, detail] =
            ["loan", "lending_id", "detail"].map(|name| text(finding, name));
        let _ = writeln!(
            lines,
            "{kind:14} {done:11} {isbn} loan {loan}, at Bokbasen {lending_id}: {detail}"
        );
    }
    match (all("findings").count(), number(report, "more")) {
        (0, _) => lines.push_str("nothing differs"),
        (_, 0) => {}
        (_, more) => drop(writeln!(lines, "… and {more} more")),
    }
    lines.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn progress_says_what_is_known() {
        let second = Duration::from_secs(1);
        let unknown = progress_text(&Value::Null, second);
        assert_eq!(unknown, "comparing the ledger with Bokbasen's loans");
        let running = json!({ "libraries": 12, "compared": 3, "loans": 4200 });
        assert_eq!(
            progress_text(&running, 20 * second),
            "comparing: 3 of 12 libraries, 4200 loans, 1m left"
        );
    }
}
