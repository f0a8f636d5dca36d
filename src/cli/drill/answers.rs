//! Checks of what a gate answered, against the books of the sandbox.

use reqwest::{Response, StatusCode};
use serde_json::Value;

use super::gate::DrillReader;
use super::sandbox::StagingSandbox;

/// Returns the status of a response and, if it is a refusal, its document.
pub(super) async fn refusal_of(answer: Response) -> Result<(StatusCode, Value), String> {
    let status = answer.status();
    let body = answer.bytes().await.map_err(|error| error.without_url().to_string())?;
    if status.is_success() {
        return Ok((status, Value::Null));
    }
    let document = serde_json::from_slice(&body)
        .map_err(|_| format!("a refusal ({status}) of {} bytes is no document", body.len()))?;
    Ok((status, document))
}

/// Checks that a reader who was served has an accepted loan in the books.
pub(super) async fn check_accepted(
    reader: &DrillReader,
    sandbox: &StagingSandbox,
) -> Result<(), String> {
    let loans = sandbox.loans(&reader.borrower).await?;
    let is_accepted = |loan: &&Value| loan.get("accepted").is_some();
    match loans.iter().filter(is_accepted).count() {
        0 => Err(format!("a reader was served without an accepted loan: {}", Value::from(loans))),
        _ => Ok(()),
    }
}
