//! The line of a request in the access log, filled while it is processed and written when its body
//! ends.
//!
//! It names the route and the title, but never the borrower, the token, the requested path or the
//! query. Method and range are logged only if they are valid: a client could put a token there.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Version};

use super::access_log::{self, AccessLine, micros};
use super::metrics::Exemplar;
use super::trace::{TraceEnd, TraceId};
use super::{RequestId, StreamEnd, Trace, Via};
use crate::clock::Clock;
use crate::loan::Isbn;

/// The target of request lines, for filters.
pub(super) const TARGET: &str = "loangate::request";
/// The maximum logged length of a Range field, in bytes.
const MAX_RANGE_LENGTH: usize = 64;
/// Replaces a value that is not logged.
const OTHER: &str = "other";

/// The log line of one request.
#[derive(Clone, Debug)]
pub struct RequestLine {
    id: RequestId,
    began: Instant,
    enabled: bool,
    client: Option<IpAddr>,
    method: Method,
    version: Version,
    route: Option<Box<str>>,
    isbn: Option<Isbn>,
    via: Via,
    status: u16,
    outcome: &'static str,
    range: Option<Box<str>>,
    /// The trace of the request, which ends with the line.
    trace: Option<Arc<Trace>>,
}

impl RequestLine {
    /// Creates the line of a request from this client that starts now.
    pub fn start(
        id: RequestId,
        client: Option<IpAddr>,
        method: &Method,
        version: Version,
    ) -> RequestLine {
        let is_log_enabled = tracing::enabled!(target: TARGET, tracing::Level::INFO);
        RequestLine {
            id,
            began: Instant::now(),
            enabled: access_log::is_enabled(is_log_enabled),
            client,
            method: method.clone(),
            version,
            route: None,
            isbn: None,
            via: Via::None,
            status: 0,
            outcome: "ok",
            range: None,
            trace: None,
        }
    }

    /// Sets the trace of the request.
    pub(crate) fn trace(&mut self, trace: Option<Arc<Trace>>) -> &mut RequestLine {
        self.trace = trace;
        self
    }

    /// Returns the trace of the request if it is sampled.
    pub fn trace_id(&self) -> Option<TraceId> {
        self.trace.as_ref().and_then(|trace| trace.sampled_id())
    }

    /// Returns the request as an exemplar of this time; none if it is not sampled.
    pub(crate) fn exemplar(&self, took: Duration) -> Option<Exemplar> {
        self.trace.as_ref().and_then(|trace| trace.exemplar(took))
    }

    /// Begins a step of the request, for its trace.
    pub(crate) fn enter(&self, step: &'static str) {
        if let Some(trace) = &self.trace {
            trace.enter(step);
        }
    }

    /// Returns when the request started.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Sets the configured pattern of the route.
    pub fn route(&mut self, pattern: &str) -> &mut RequestLine {
        self.route = (self.enabled || self.trace.is_some()).then(|| pattern.into());
        self
    }

    /// Sets the title that the path names.
    pub fn isbn(&mut self, isbn: Isbn) -> &mut RequestLine {
        self.isbn = Some(isbn);
        self
    }

    /// Returns the source of the permission.
    pub fn permitted_via(&self) -> Via {
        self.via
    }

    /// Sets the source of the permission.
    pub fn via(&mut self, via: Via) -> &mut RequestLine {
        self.via = via;
        if let Some(trace) = &self.trace {
            trace.note("loangate.via", via.name());
        }
        self
    }

    /// Sets the status, and the slug of the problem or `ok`.
    pub fn outcome(&mut self, status: u16, outcome: &'static str) -> &mut RequestLine {
        self.status = status;
        self.outcome = outcome;
        self
    }

    /// Sets the requested range, shortened to 64 bytes.
    pub fn range(&mut self, range: Option<&HeaderValue>) -> &mut RequestLine {
        if self.enabled {
            self.range = range.map(|range| logged_range(range.as_bytes()).into());
        }
        self
    }

    /// Writes the line with the sent body bytes, the number of resumed origin bodies, how the body
    /// ended, and the time to the response head.
    pub fn finish(self, bytes: u64, resumes: u32, end: StreamEnd, head: Duration) {
        if let Some(trace) = &self.trace {
            trace.finish(self.trace_end(end));
        }
        if !self.enabled {
            return;
        }
        let line = AccessLine {
            time: Clock::system().now(),
            id: self.id,
            trace: self.trace_id(),
            client: self.client,
            method: logged_method(&self.method),
            version: self.version,
            route: self.route,
            isbn: self.isbn,
            status: self.status,
            outcome: self.outcome,
            via: self.via,
            range: self.range,
            bytes,
            resumes,
            end,
            head,
            total: self.began.elapsed(),
        };
        access_log::write(line).into_iter().for_each(|line| log(&line));
    }

    /// Describes the request for its trace. The range, the title and the number of bytes are left
    /// out: they would tell what somebody reads.
    fn trace_end(&self, end: StreamEnd) -> TraceEnd {
        let method = logged_method(&self.method);
        // A pattern without the parameter of a title may be made for one title.
        let is_of_all = |route: &&str| route.contains("{isbn}") || *route == "/loans";
        let route = self.route.as_deref().filter(is_of_all);
        let mut attributes = vec![
            ("http.request.method", method.into()),
            ("http.response.status_code", self.status.into()),
            ("url.scheme", "https".into()),
            ("network.protocol.version", version_number(self.version).into()),
            ("loangate.via", self.via.name().into()),
        ];
        attributes.extend(route.map(|route| ("http.route", route.to_owned().into())));
        let error = match (self.outcome, end) {
            ("ok", StreamEnd::Complete) => None,
            ("ok", end) => Some(end.name()),
            (problem, _) => Some(problem),
        };
        TraceEnd {
            name: Some(
                route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}")),
            ),
            attributes,
            error,
            is_failed: self.status >= 500 || end == StreamEnd::OriginFailed,
        }
    }
}

/// Returns the version of HTTP as OpenTelemetry writes it.
fn version_number(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    }
}

/// Writes a line to the process's log. It never names the client.
fn log(line: &AccessLine) {
    tracing::info!(
        target: TARGET,
        id = %line.id,
        trace_id = line.trace.map(tracing::field::display),
        method = line.method,
        version = ?line.version,
        route = line.route.as_deref(),
        isbn = line.isbn.map(tracing::field::display),
        status = line.status,
        outcome = line.outcome,
        via = line.via.name(),
        range = line.range.as_deref(),
        bytes = line.bytes,
        resumes = (line.resumes > 0).then_some(line.resumes),
        end = line.end.name(),
        head_us = micros(line.head),
        total_us = micros(line.total),
        "request"
    );
}

/// Returns the method if HTTP defines it, or [`OTHER`].
pub fn logged_method(method: &Method) -> &'static str {
    const METHODS: [&str; 9] =
        ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"];
    METHODS.into_iter().find(|defined| *defined == method.as_str()).unwrap_or(OTHER)
}

/// Returns a range of bytes, shortened, or [`OTHER`] for any other text.
fn logged_range(range: &[u8]) -> String {
    let set = range.split_at_checked(6).filter(|(unit, _)| unit.eq_ignore_ascii_case(b"bytes="));
    let allowed = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'-' | b',' | b' ');
    match set {
        Some((_, set)) if set.iter().all(allowed) => {
            range.iter().take(MAX_RANGE_LENGTH).copied().map(char::from).collect()
        }
        _ => OTHER.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_methods_and_byte_ranges_are_logged() {
        assert_eq!(logged_method(&Method::PATCH), "PATCH");
        assert_eq!(logged_method(&"ey.a.token".parse().unwrap()), "other");
        for (range, logged) in [
            ("bytes=0-", "bytes=0-"),
            ("bytes=0-1, 5-9", "bytes=0-1, 5-9"),
            ("Bytes=-500", "Bytes=-500"),
            ("chapters=1-2", "other"),
            ("bytes=ey.a.token", "other"),
            ("ey.a.token", "other"),
            ("", "other"),
        ] {
            assert_eq!(logged_range(range.as_bytes()), logged);
        }
        assert_eq!(
            logged_range(format!("bytes={}", "1-2,".repeat(99)).as_bytes()).len(),
            MAX_RANGE_LENGTH
        );
    }
}
