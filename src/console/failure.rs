//! Failures of the console. A handler returns one, and `visit` makes its page, in the language of
//! the request.

use axum::response::{IntoResponse, Redirect, Response};
use http::StatusCode;
use maud::html;
use url::form_urlencoded::byte_serialize;

use super::oidc::SignInError;
use super::page::{Page, page};
use super::text::sign_in_error;
use super::visit::Visit;

/// Why a request gets no page of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// There is no such page or loan.
    NotFound,
    /// A page was requested without a session.
    SignInFirst,
    /// A form was sent without a session.
    SignedOut,
    /// A form came from another site, or without its token.
    Forged,
    /// A form cannot be read.
    Malformed,
    /// An address cannot be read.
    UnreadableAddress,
    /// The role does not allow it.
    NotAllowed,
    /// A look at loans has no purpose yet.
    NoPurpose,
    /// Another file is still written.
    Busy,
    /// The ledger cannot be read.
    Ledger,
    /// An access cannot be recorded.
    Trail,
    /// A sign-in by OpenID Connect has failed.
    SignIn(SignInError),
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl Failure {
    /// Returns the page of the failure.
    pub(super) fn page(self, visit: &Visit) -> Response {
        let texts = &visit.texts.failure;
        let ([title, sentence], status) = match self {
            Failure::SignInFirst => return go_to("/sign-in", visit),
            Failure::NoPurpose => return go_to("/purpose", visit),
            Failure::NotFound => (texts.not_found, StatusCode::NOT_FOUND),
            Failure::SignedOut => (texts.signed_out, StatusCode::UNAUTHORIZED),
            Failure::Forged => (texts.forged, StatusCode::FORBIDDEN),
            Failure::NotAllowed => (texts.not_allowed, StatusCode::FORBIDDEN),
            Failure::Malformed => (texts.malformed, StatusCode::BAD_REQUEST),
            Failure::UnreadableAddress => (texts.unreadable_address, StatusCode::BAD_REQUEST),
            Failure::Busy => (texts.busy, StatusCode::SERVICE_UNAVAILABLE),
            Failure::Ledger => (texts.ledger, StatusCode::SERVICE_UNAVAILABLE),
            Failure::Trail => (texts.trail, StatusCode::SERVICE_UNAVAILABLE),
            Failure::SignIn(error) => (sign_in_error(error, visit.language), status_of(error)),
        };
        let to_sign_in = visit.session.is_none();
        let body = html! {
            div.notice.bad { p { (sentence) } }
            p {
                @if to_sign_in { a.button href="/sign-in" { (visit.texts.sign_in.title) } }
                @else { a.button href="/" { (visit.texts.common.first_page) } }
            }
        };
        page(visit, &Page { title, status, ..Page::default() }, &body)
    }
}

fn status_of(error: SignInError) -> StatusCode {
    match error {
        SignInError::Provider | SignInError::Untrusted => StatusCode::BAD_GATEWAY,
        SignInError::Busy => StatusCode::SERVICE_UNAVAILABLE,
        SignInError::NotPending => StatusCode::BAD_REQUEST,
        SignInError::Refused | SignInError::NoRole => StatusCode::FORBIDDEN,
    }
}

/// Leads to a page that leads back here.
fn go_to(path: &str, visit: &Visit) -> Response {
    match visit.here.as_str() {
        "/" => Redirect::to(path).into_response(),
        here => {
            let next: String = byte_serialize(here.as_bytes()).collect();
            Redirect::to(&format!("{path}?next={next}")).into_response()
        }
    }
}
