//! What the admin listener refuses, as problem documents (RFC 9457).

use std::borrow::Cow;

use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};

use crate::problem::{Document, Problem};

/// A refusal: its slug, its status, and a sentence.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    kind: &'static str,
    title: &'static str,
    status: StatusCode,
    detail: Cow<'static, str>,
}

impl Refused {
    pub(super) const UNAUTHENTICATED: Refused = Refused::fixed(
        "operator-unauthenticated",
        "Operator unauthenticated",
        StatusCode::UNAUTHORIZED,
        "This needs the admin token. Send it as Authorization: Bearer TOKEN.",
    );
    pub(super) const WRONG_TOKEN: Refused = Refused::fixed(
        "operator-token-wrong",
        "Operator token wrong",
        StatusCode::UNAUTHORIZED,
        "This is not the admin token. Send the one that [admin] token of the running gate's configuration names; \
         a token that was changed there counts after a restart.",
    );
    pub(super) const HOST: Refused = Refused::fixed(
        "misdirected-request",
        "Misdirected request",
        StatusCode::MISDIRECTED_REQUEST,
        "The admin listener does not answer to this name. Use its address or localhost, or add the name to hosts in [admin].",
    );
    pub(super) const NOT_FOUND: Refused = Refused::fixed(
        "not-found",
        "Not found",
        StatusCode::NOT_FOUND,
        "There is nothing at this address. Check the path.",
    );
    pub(super) const NO_SUCH_LOAN: Refused = Refused::fixed(
        "loan-not-found",
        "Loan not found",
        StatusCode::NOT_FOUND,
        "There is no loan of this id in the ledger. Look for it in /api/v1/loans.",
    );
    pub(super) const METHOD: Refused = Refused::fixed(
        "method-not-allowed",
        "Method not allowed",
        StatusCode::METHOD_NOT_ALLOWED,
        "This method has no meaning here. The API's table in the README says which has.",
    );
    pub(super) const UNDER_WAY: Refused = Refused::fixed(
        "balance-under-way",
        "Balance under way",
        StatusCode::CONFLICT,
        "The books are being balanced already. Wait until that is done and ask again.",
    );
    pub(super) const NO_BALANCE: Refused = Refused::fixed(
        "balance-not-found",
        "Balance not found",
        StatusCode::NOT_FOUND,
        "This process has not balanced the books since its start. Run a balance with POST.",
    );
    pub(super) const LEDGER: Refused = Refused::fixed(
        "ledger-unavailable",
        "Ledger unavailable",
        StatusCode::SERVICE_UNAVAILABLE,
        "The ledger cannot be read; the log says why. Try again in a while.",
    );

    const fn fixed(
        kind: &'static str,
        title: &'static str,
        status: StatusCode,
        detail: &'static str,
    ) -> Refused {
        Refused { kind, title, status, detail: Cow::Borrowed(detail) }
    }

    /// A request that cannot be read, for this reason.
    pub(super) fn malformed(detail: impl Into<Cow<'static, str>>) -> Refused {
        Refused {
            kind: "request-malformed",
            title: "Request malformed",
            status: StatusCode::BAD_REQUEST,
            detail: detail.into(),
        }
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Refused {
        let document = problem.document();
        Refused {
            kind: document.kind,
            title: document.title,
            status: problem.status(),
            detail: document.detail.to_owned().into(),
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let document = Document {
            kind: self.kind,
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            reason: None,
            retry_after: None,
        };
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let fields = response.headers_mut();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 6750 §3: a request without a token gets no error code.
            let challenge = match self.kind == Refused::WRONG_TOKEN.kind {
                true => HeaderValue::from_static("Bearer error=\"invalid_token\""),
                false => HeaderValue::from_static("Bearer"),
            };
            fields.insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
