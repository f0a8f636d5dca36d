//! One request to Bokbasen and its response, without login, limits or retries.
//!
//! Only the transport calls it.

use std::time::{Duration, SystemTime};

use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_TYPE, DATE};
use jiff::Timestamp;
use url::Url;

use super::Transport;
use crate::crash::{self, Edge};
use crate::lending::CallError;
use crate::lending::call::Call;
use crate::lending::outage_reason::OutageReason;
use crate::lending::response::{ApiResponse, cause, read_body, retry_after};
use crate::lending::wire::ErrorBody;
use crate::telemetry::{Span, TRACEPARENT, Trace, TraceParent, logged_method};

impl Transport {
    /// Sends a call, and returns the head of its response.
    pub(super) async fn send_once(
        &self,
        call: &Call,
        credential: http::HeaderValue,
    ) -> Result<reqwest::Response, CallError> {
        let mut span = Span::begin("bokbasen");
        if let Some(span) = &mut span {
            self.describe(span, call);
        }
        let client = if call.repeatable { &self.pooled } else { &self.unpooled };
        let mut request =
            client.request(call.method.clone(), self.url(call)).header(AUTHORIZATION, credential);
        if self.login.sends_date() {
            request = request.header(DATE, http_date(self.clock.now()));
        }
        // Neither `tracestate` nor `baggage` of a client is passed on.
        if let Some(parent) = Trace::outgoing_of_current().and_then(TraceParent::value) {
            request = request.header(TRACEPARENT, parent);
        }
        if let Some(body) = &call.body {
            request = request.header(CONTENT_TYPE, "application/json").body(match &call.guard {
                Some(guard) => guard.body(body.clone()),
                None => body.clone().into(),
            });
        }
        crash::point("send", call.operation.name(), Edge::Before);
        let sent = self.skew.sending();
        let answered = request.send().await;
        crash::point("send", call.operation.name(), Edge::After);
        let response = answered.map_err(|error| {
            if call.is_withheld() {
                return CallError::NotSent(cause(error));
            }
            let trouble = OutageReason::of(&error);
            if let Some(span) = &mut span {
                span.fail(trouble.name());
            }
            let is_connect = error.is_connect();
            let why = cause(error);
            self.health.failed(call.operation.name(), trouble, &why);
            // Without a connection nothing was sent; after any other error the call may have been.
            if is_connect { CallError::NotSent(why) } else { CallError::Unknown(why) }
        })?;
        self.skew.note(sent, response.headers());
        if let Some(span) = &mut span {
            span.set("http.response.status_code", response.status().as_u16());
            if response.status().is_server_error() {
                span.fail(OutageReason::ServerError.name());
            }
        }
        Ok(response)
    }

    /// Sets what a span shows of a call: neither its path nor its query, which name loans.
    fn describe(&self, span: &mut Span, call: &Call) {
        span.set("http.request.method", logged_method(&call.method));
        span.set("server.address", self.base.host_str().unwrap_or_default().to_owned());
        span.set("loangate.call", call.operation.name());
    }

    fn url(&self, call: &Call) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(&call.path);
        }
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        url
    }

    /// Reads the body of a response, and interprets its status.
    pub(super) async fn read(
        &self,
        call: &Call,
        response: reqwest::Response,
    ) -> Result<ApiResponse, CallError> {
        let status = response.status();
        let headers = response.headers();
        let retry_after = retry_after(headers, self.now());
        let next = headers.get("next").and_then(|next| next.to_str().ok()).map(str::to_owned);
        let body = read_body(response).await;
        if status.is_success() {
            let body = body.map_err(|why| {
                self.health.failed(call.operation.name(), OutageReason::Network, &why);
                CallError::Unknown(why)
            })?;
            self.health.answered();
            return Ok(ApiResponse { status, body, retry_after, next });
        }
        // A proxy may have sent a 408 while Bokbasen executes the call, so the outcome is unknown.
        if !status.is_client_error() || status == StatusCode::REQUEST_TIMEOUT {
            let why = format!("Bokbasen answered {status}");
            self.health.failed(call.operation.name(), OutageReason::ServerError, &why);
            return Err(CallError::Unknown(why));
        }
        if status != StatusCode::UNAUTHORIZED {
            self.health.answered();
        }
        let error: ErrorBody =
            body.ok().and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default();
        Err(CallError::Rejected {
            status: status.as_u16(),
            code: error.code,
            message: error.message,
            retry_after,
        })
    }
}

/// Formats a time as an HTTP date, in whole seconds.
fn http_date(at: Timestamp) -> String {
    let since = Duration::from_secs(u64::try_from(at.as_second()).unwrap_or(0));
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + since)
}
