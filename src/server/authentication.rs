//! The authentication of a request for a file, at once or after new keys were fetched.

use std::sync::Arc;

use http::request::Parts;

use super::download_continuation;
use crate::problem::Problem;
use crate::reader::{Reader, Readers};

/// Authenticates the request for a file. Also returns whether its link has expired, and is in the
/// grace that only the continuation of a download has.
pub(super) fn authenticate(
    readers: &Readers,
    request: &Parts,
    token: Option<&str>,
) -> Result<(Arc<Reader>, bool), Problem> {
    let (headers, query) = (&request.headers, request.uri.query());
    if download_continuation::proves_partial_download(&request.method, headers) {
        return readers.authenticate_with_grace(headers, query, token);
    }
    Ok((readers.authenticate(headers, query, token)?, false))
}

/// As [`authenticate`], after a fetch has looked for the key of the request's token.
pub(super) async fn authenticate_with_new_keys(
    readers: &Readers,
    request: &Parts,
    token: Option<&str>,
) -> Result<(Arc<Reader>, bool), Problem> {
    readers.until_keys_fetched(&request.headers).await;
    authenticate(readers, request, token)
}
