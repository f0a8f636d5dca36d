//! What the address of a page says. The handlers take it, so that a wrong address has a page too.

use axum::extract::FromRequestParts;
use http::request::Parts;

use super::failure::Failure;

/// A part of the address, or the failure that it has a wrong value or is there twice.
pub(super) struct Address<E>(pub(super) E);

impl<E: FromRequestParts<S>, S: Send + Sync> FromRequestParts<S> for Address<E> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let part = E::from_request_parts(parts, state).await;
        part.map(Address).map_err(|_| Failure::UnreadableAddress)
    }
}
