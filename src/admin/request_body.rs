//! The body of a request, which handlers get as a whole.

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::Request;
use serde::Deserialize;
use tokio::time::timeout;

use super::problems::AdminProblem;

/// The timeout for a request body, and its maximum length in bytes.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_BODY: usize = 64 * 1024;

/// Reads the whole body into memory, within the timeout.
pub(super) async fn read(request: Request) -> Result<Request, AdminProblem> {
    let (parts, body) = request.into_parts();
    match timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => Ok(Request::from_parts(parts, body.into())),
        Ok(Err(_)) => Err(AdminProblem::malformed(
            "The body cannot be read, or is larger than 64 KiB. Send a smaller one.",
        )),
        Err(_) => Err(AdminProblem::malformed(
            "The body did not arrive within 10 seconds. Send it at once.",
        )),
    }
}

/// Parses a JSON body. The message of an error names a field or a position, and repeats no string
/// value.
pub(super) fn parse<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<T, AdminProblem> {
    serde_json::from_slice(body)
        .map_err(|error| AdminProblem::malformed(format!("The body cannot be read: {error}.")))
}
