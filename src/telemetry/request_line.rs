//! The log line of a request, filled while it is processed and written when its body ends.
//!
//! It names the route and the title, but never the borrower, the token, the requested path or the
//! query. Method and range are logged only if they are valid: a client could put a token there.

use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Version};

use super::{RequestId, StreamEnd, Via};
use crate::loan::Isbn;

/// The target of request lines, for filters.
const TARGET: &str = "loangate::request";
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
    method: Method,
    version: Version,
    route: Option<Box<str>>,
    isbn: Option<Isbn>,
    via: Via,
    status: u16,
    outcome: &'static str,
    range: Option<Box<str>>,
}

impl RequestLine {
    /// Creates the line of a request that starts now.
    pub fn start(id: RequestId, method: &Method, version: Version) -> RequestLine {
        RequestLine {
            id,
            began: Instant::now(),
            enabled: tracing::enabled!(target: TARGET, tracing::Level::INFO),
            method: method.clone(),
            version,
            route: None,
            isbn: None,
            via: Via::None,
            status: 0,
            outcome: "ok",
            range: None,
        }
    }

    /// Returns when the request started.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Sets the configured pattern of the route.
    pub fn route(&mut self, pattern: &str) -> &mut RequestLine {
        self.route = self.enabled.then(|| pattern.into());
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
        if !self.enabled {
            return;
        }
        tracing::info!(
            target: TARGET,
            id = %self.id,
            method = logged_method(&self.method),
            version = ?self.version,
            route = self.route.as_deref(),
            isbn = self.isbn.map(tracing::field::display),
            status = self.status,
            outcome = self.outcome,
            via = self.via.name(),
            range = self.range.as_deref(),
            bytes,
            resumes = (resumes > 0).then_some(resumes),
            end = end.name(),
            head_us = u64::try_from(head.as_micros()).unwrap_or(u64::MAX),
            total_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX),
            "request"
        );
    }
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
