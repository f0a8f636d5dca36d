//! The one line that is logged for a request, filled along the way and written when its body is over.
//!
//! It names the route and the title, and never the borrower, the token, the path as asked, or the query.

use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Version};

use super::Via;
use crate::loan::Isbn;

/// The target of request lines, for filters.
const TARGET: &str = "loangate::request";
/// How much of a Range field is shown.
const RANGE_SHOWN: usize = 64;

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
            let text = range.and_then(|range| range.to_str().ok());
            self.range = text.map(|text| text.chars().take(RANGE_SHOWN).collect::<String>().into());
        }
        self
    }

    /// Writes the line: the bytes of the body that left, how the body ended, and when its head was ready.
    pub fn finish(self, bytes: u64, end: &'static str, head: Duration) {
        if !self.enabled {
            return;
        }
        tracing::info!(
            target: TARGET,
            id = %uuid::Uuid::now_v7().simple(),
            method = %self.method,
            version = ?self.version,
            route = self.route.as_deref(),
            isbn = self.isbn.map(tracing::field::display),
            status = self.status,
            outcome = self.outcome,
            via = self.via.name(),
            range = self.range.as_deref(),
            bytes,
            end,
            head_us = u64::try_from(head.as_micros()).unwrap_or(u64::MAX),
            total_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX),
            "request"
        );
    }
}
