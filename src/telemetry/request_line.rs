//! The one line that is logged for a request, filled along the way and written when its body is
//! over.
//!
//! It names the route and the title, and never the borrower, the token, the path as asked, or the
//! query. What a reader may write freely, method and range, is shown only where it is one: else a
//! token that was put there would be shown.

use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Version};

use super::Via;
use crate::loan::Isbn;

/// The target of request lines, for filters.
const TARGET: &str = "loangate::request";
/// How much of a Range field is shown.
const RANGE_SHOWN: usize = 64;
/// Stands for what is not shown.
const OTHER: &str = "other";

/// What is known of a request so far.
#[derive(Clone, Debug)]
pub struct RequestLine {
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
    /// A line for a request that begins now.
    pub fn start(method: &Method, version: Version) -> RequestLine {
        RequestLine {
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

    /// When the request began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// The route's pattern, as configured.
    pub fn route(&mut self, pattern: &str) -> &mut RequestLine {
        self.route = self.enabled.then(|| pattern.into());
        self
    }

    /// The title.
    pub fn isbn(&mut self, isbn: Isbn) -> &mut RequestLine {
        self.isbn = Some(isbn);
        self
    }

    /// Where the permission came from.
    pub fn via(&mut self, via: Via) -> &mut RequestLine {
        self.via = via;
        self
    }

    /// The status, and the slug of the problem or `ok`.
    pub fn outcome(&mut self, status: u16, outcome: &'static str) -> &mut RequestLine {
        self.status = status;
        self.outcome = outcome;
        self
    }

    /// The range that was asked for, shortened.
    pub fn range(&mut self, range: Option<&HeaderValue>) -> &mut RequestLine {
        if self.enabled {
            self.range = range.map(|range| shown_range(range.as_bytes()).into());
        }
        self
    }

    /// Writes the line: the bytes of the body that left, how often the origin was gone on with, how
    /// the body ended, and when its head was ready.
    pub fn finish(self, bytes: u64, resumes: u32, end: &'static str, head: Duration) {
        if !self.enabled {
            return;
        }
        tracing::info!(
            target: TARGET,
            id = %uuid::Uuid::now_v7().simple(),
            method = shown_method(&self.method),
            version = ?self.version,
            route = self.route.as_deref(),
            isbn = self.isbn.map(tracing::field::display),
            status = self.status,
            outcome = self.outcome,
            via = self.via.name(),
            range = self.range.as_deref(),
            bytes,
            resumes = (resumes > 0).then_some(resumes),
            end,
            head_us = u64::try_from(head.as_micros()).unwrap_or(u64::MAX),
            total_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX),
            "request"
        );
    }
}

/// A method that HTTP defines, and no other word.
fn shown_method(method: &Method) -> &str {
    let methods = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::OPTIONS,
        Method::PATCH,
        Method::CONNECT,
        Method::TRACE,
    ];
    if methods.contains(method) { method.as_str() } else { OTHER }
}

/// A range of bytes, shortened, and no other text.
fn shown_range(range: &[u8]) -> String {
    let set = range.split_at_checked(6).filter(|(unit, _)| unit.eq_ignore_ascii_case(b"bytes="));
    let allowed = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'-' | b',' | b' ');
    match set {
        Some((_, set)) if set.iter().all(allowed) => {
            range.iter().take(RANGE_SHOWN).copied().map(char::from).collect()
        }
        _ => OTHER.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_a_method_or_a_range_is_shown() {
        assert_eq!(shown_method(&Method::PATCH), "PATCH");
        assert_eq!(shown_method(&"ey.a.token".parse().unwrap()), "other");
        for (range, shown) in [
            ("bytes=0-", "bytes=0-"),
            ("bytes=0-1, 5-9", "bytes=0-1, 5-9"),
            ("Bytes=-500", "Bytes=-500"),
            ("chapters=1-2", "other"),
            ("bytes=ey.a.token", "other"),
            ("ey.a.token", "other"),
            ("", "other"),
        ] {
            assert_eq!(shown_range(range.as_bytes()), shown);
        }
        assert_eq!(
            shown_range(format!("bytes={}", "1-2,".repeat(99)).as_bytes()).len(),
            RANGE_SHOWN
        );
    }
}
