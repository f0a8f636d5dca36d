//! Error responses of the admin listener, as problem documents (RFC 9457).

use std::borrow::Cow;

use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};

use crate::problem::{Document, Problem};

/// An error response: its problem type, title, status and detail.
#[derive(Clone, Debug)]
pub(super) struct AdminProblem {
    kind: &'static str,
    title: &'static str,
    status: StatusCode,
    detail: Cow<'static, str>,
}

impl AdminProblem {
    pub(super) const UNAUTHENTICATED: AdminProblem = AdminProblem::fixed(
        "operator-unauthenticated",
        "Operator unauthenticated",
        StatusCode::UNAUTHORIZED,
        "This needs the admin token. Send it as Authorization: Bearer TOKEN.",
    );
    pub(super) const WRONG_TOKEN: AdminProblem = AdminProblem::fixed(
        "operator-token-wrong",
        "Operator token wrong",
        StatusCode::UNAUTHORIZED,
        "This is not the admin token. Send the one that [admin] token names in the running \
         gate's configuration. A changed token takes effect after a restart.",
    );
    pub(super) const HOST: AdminProblem = AdminProblem::fixed(
        "misdirected-request",
        "Misdirected request",
        StatusCode::MISDIRECTED_REQUEST,
        "The admin listener does not answer to this name. Use its address or localhost, or add \
         the name to hosts in [admin].",
    );
    pub(super) const NOT_FOUND: AdminProblem = AdminProblem::fixed(
        "not-found",
        "Not found",
        StatusCode::NOT_FOUND,
        "There is nothing at this address. Check the path.",
    );
    pub(super) const NO_SUCH_LOAN: AdminProblem = AdminProblem::fixed(
        "loan-not-found",
        "Loan not found",
        StatusCode::NOT_FOUND,
        "There is no loan of this id in the ledger. Search for it in /api/v1/loans.",
    );
    pub(super) const NO_SUCH_REQUEST: AdminProblem = AdminProblem::fixed(
        "request-not-found",
        "Request not found",
        StatusCode::NOT_FOUND,
        "This gate does not know a request of this id: it stores its last requests in memory \
         ([server] recent_requests). Ask the gate that answered it, or describe the request.",
    );
    pub(super) const NO_SUCH_REPORT: AdminProblem = AdminProblem::fixed(
        "report-not-found",
        "Report not found",
        StatusCode::NOT_FOUND,
        "No usage report belongs to this loan. Search for it in /api/v1/reports.",
    );
    pub(super) const RELOADING: AdminProblem = AdminProblem::fixed(
        "reload-under-way",
        "Reload under way",
        StatusCode::CONFLICT,
        "Another reload of the configuration is under way. Try again when it has ended.",
    );
    pub(super) const NOT_RESOLVABLE: AdminProblem = AdminProblem::fixed(
        "report-not-resolvable",
        "Report not resolvable",
        StatusCode::CONFLICT,
        "The report is not in a state from which this is possible. Read it again: it is being \
         sent, or it is settled. Only a rejected report can be sent again.",
    );
    pub(super) const BEFORE_RESTORE: AdminProblem = AdminProblem::fixed(
        "report-before-restore",
        "Report of before a restore",
        StatusCode::CONFLICT,
        "The report became due before the ledger was restored, so it may have been sent in the \
         lost time and is not sent again. Settle it with Bokbasen, and write reported or \
         not-reported.",
    );
    pub(super) const METHOD: AdminProblem = AdminProblem::fixed(
        "method-not-allowed",
        "Method not allowed",
        StatusCode::METHOD_NOT_ALLOWED,
        "This path does not allow this method. docs/operations.md lists the methods.",
    );
    pub(super) const UNDER_WAY: AdminProblem = AdminProblem::fixed(
        "balance-under-way",
        "Balance under way",
        StatusCode::CONFLICT,
        "A balance is already running. Wait until it is done and try again.",
    );
    pub(super) const NO_BALANCE: AdminProblem = AdminProblem::fixed(
        "balance-not-found",
        "Balance not found",
        StatusCode::NOT_FOUND,
        "This process has run no balance since its start. Run one with POST.",
    );
    pub(super) const LEDGER: AdminProblem = AdminProblem::fixed(
        "ledger-unavailable",
        "Ledger unavailable",
        StatusCode::SERVICE_UNAVAILABLE,
        "The ledger cannot be read; the log says why. Try again in a while.",
    );

    pub(super) const UNRECORDED: AdminProblem = AdminProblem::fixed(
        "access-not-recorded",
        "Access not recorded",
        StatusCode::SERVICE_UNAVAILABLE,
        "Who looks at loans is recorded, and the ledger cannot be written or is too busy, so \
         nothing was shown or done. The log says why. Try again in a while.",
    );

    const fn fixed(
        kind: &'static str,
        title: &'static str,
        status: StatusCode,
        detail: &'static str,
    ) -> AdminProblem {
        AdminProblem { kind, title, status, detail: Cow::Borrowed(detail) }
    }

    /// Returns a 400 with this detail.
    pub(super) fn malformed(detail: impl Into<Cow<'static, str>>) -> AdminProblem {
        AdminProblem {
            kind: "request-malformed",
            title: "Request malformed",
            status: StatusCode::BAD_REQUEST,
            detail: detail.into(),
        }
    }
}

impl From<Problem> for AdminProblem {
    fn from(problem: Problem) -> AdminProblem {
        let document = problem.document();
        AdminProblem {
            kind: document.kind,
            title: document.title,
            status: problem.status(),
            detail: document.detail.to_owned().into(),
        }
    }
}

impl IntoResponse for AdminProblem {
    fn into_response(self) -> Response {
        let document = Document {
            kind: self.kind,
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            instance: None,
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
            let challenge = match self.kind == AdminProblem::WRONG_TOKEN.kind {
                true => HeaderValue::from_static("Bearer error=\"invalid_token\""),
                false => HeaderValue::from_static("Bearer"),
            };
            fields.insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
