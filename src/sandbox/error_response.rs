//! The error response of a call: a status and `{"code","message"}`.
//!
//! Every call returns [`Rejected`], and this module converts it into a response. The codes are
//! assumed, except those that Bokbasen's pages document.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};

/// The error of a call.
#[derive(Clone, Debug)]
pub(super) struct Rejected {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) retry_after: Option<u64>,
}

impl Rejected {
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
    ) -> Rejected {
        Rejected { status, code, message: message.into(), retry_after: None }
    }

    pub(super) fn malformed(message: impl Into<String>) -> Rejected {
        Rejected::new(StatusCode::BAD_REQUEST, "MALFORMED", message)
    }

    /// Rejects a JSON body that the call does not accept.
    pub(super) fn malformed_body(error: &serde_json::Error) -> Rejected {
        Rejected::malformed(format!("The body is malformed: {error}."))
    }

    pub(super) fn unauthorized(code: &'static str, message: impl Into<String>) -> Rejected {
        Rejected::new(StatusCode::UNAUTHORIZED, code, message)
    }

    pub(super) fn not_found(code: &'static str, message: impl Into<String>) -> Rejected {
        Rejected::new(StatusCode::NOT_FOUND, code, message)
    }

    pub(super) fn conflict(code: &'static str, message: impl Into<String>) -> Rejected {
        Rejected::new(StatusCode::CONFLICT, code, message)
    }

    /// Returns the status that a fault names.
    pub(super) fn by_fault(status: u16, retry_after: Option<u64>) -> Rejected {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let code = match status {
            StatusCode::TOO_MANY_REQUESTS => "TOO_MANY_REQUESTS",
            StatusCode::SERVICE_UNAVAILABLE => "UNAVAILABLE",
            _ => "ERROR",
        };
        Rejected {
            retry_after,
            ..Rejected::new(status, code, "A fault of the sandbox set this status.")
        }
    }
}

impl From<std::io::Error> for Rejected {
    fn from(error: std::io::Error) -> Rejected {
        tracing::error!(
            %error,
            "the sandbox cannot write its books; check whether its disk is full"
        );
        Rejected::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "BOOKS_NOT_WRITTEN",
            "The sandbox could not write its books.",
        )
    }
}

impl IntoResponse for Rejected {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "code": self.code, "message": self.message });
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
