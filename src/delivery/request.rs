//! One request for a file: applies the reader's conditions and ranges (RFC 9110 §13 and §14) and
//! builds the response.
//!
//! [`Delivery`](super::Delivery) creates it. It queries the origin through `origin_fetch`.

use std::sync::Arc;
use std::time::Instant;

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::body::{Body, Delivered, OnEnd};
use super::body_source::{BodySource, FileSegment, Segment};
use super::borrower_limits::StreamAllowance;
use super::conditions::{self, Verdict};
use super::fields::{self, Kind};
use super::multipart::Multipart;
use super::origin_fetch::{MetadataCache, length_of};
use super::outgoing::{Accounting, Outgoing};
use super::range::{self, Part, Parts, RequestedRanges};
use super::resume::Remainder;
use super::stall_monitor::StallMonitor;
use crate::connection_handle::Connection;
use crate::gate::Permit;
use crate::metering::Metered;
use crate::origin::{self, ByteRange, Origin, Repetition};
use crate::path::FilePath;
use crate::problem::Problem;
use crate::telemetry::{Metrics, StreamEnd};

/// What a body is sent with: permit, connection, limits and the end callback.
pub(super) struct Destination<'a> {
    pub(super) permit: Option<Permit>,
    /// Meter of the loan; `None` for an open file.
    pub(super) metered: Option<Metered>,
    pub(super) connection: &'a Connection,
    pub(super) on_end: OnEnd,
    pub(super) metrics: &'a Metrics,
    pub(super) monitor: &'a StallMonitor,
    pub(super) allowance: Option<StreamAllowance>,
}

/// A request for a file, and the cached metadata of its origin.
pub(super) struct Request<'a> {
    pub(super) origin: &'a Arc<Origin>,
    pub(super) metadata: &'a MetadataCache,
    pub(super) path: &'a FilePath,
    pub(super) kind: Kind,
    pub(super) headers: &'a HeaderMap,
    pub(super) max_ranges: usize,
    /// Only a single part after the first byte may be sent ([`Pass::Rest`](super::Pass::Rest));
    /// anything else fails the precondition.
    pub(super) only_rest: bool,
    pub(super) repetition: Repetition,
}

impl Destination<'_> {
    /// Begins the stream. Fails if the loan has ended during the request to the origin.
    fn open(self, status: StatusCode, is_encoded: bool) -> Result<Arc<Outgoing>, Problem> {
        let Destination { permit, mut metered, allowance, .. } = self;
        if is_encoded {
            metered.iter_mut().for_each(Metered::count_bytes_only);
        }
        let accounting = Accounting { metered, allowance };
        let (metrics, monitor) = (self.metrics.clone(), self.monitor.clone());
        let outgoing =
            Arc::new(Outgoing::new(self.connection, permit, accounting, metrics, monitor, status));
        if outgoing.begin(self.on_end) { Ok(outgoing) } else { Err(Problem::LoanEnded) }
    }
}

impl Request<'_> {
    /// Answers HEAD: like GET, without the body. RFC 9110 §14.2 defines no ranges for HEAD.
    pub(super) async fn head(&self, on_end: OnEnd) -> Result<Response<Body>, Problem> {
        let file = self.file().await?;
        let status = match conditions::judge(self.headers, &file) {
            Verdict::Proceed => StatusCode::OK,
            Verdict::NotModified => StatusCode::NOT_MODIFIED,
            Verdict::Failed => return Err(Problem::PreconditionFailed),
        };
        Ok(self.bodiless(status, &file, on_end))
    }

    pub(super) async fn get(&self, to: Destination<'_>) -> Result<Response<Body>, Problem> {
        let mut wanted = RequestedRanges::of(self.headers);
        // Conditions can only be judged with the file's own fields.
        if conditions::any(self.headers) {
            let file = self.file().await?;
            match conditions::judge(self.headers, &file) {
                Verdict::Proceed => {}
                Verdict::NotModified if self.only_rest => return Err(Problem::PreconditionFailed),
                Verdict::NotModified => {
                    return Ok(self.bodiless(StatusCode::NOT_MODIFIED, &file, to.on_end));
                }
                Verdict::Failed => return Err(Problem::PreconditionFailed),
            }
            if !conditions::range_applies(self.headers, &file) {
                wanted = RequestedRanges::Whole;
            }
        }
        if self.only_rest && !matches!(wanted, RequestedRanges::One(_)) {
            return Err(Problem::PreconditionFailed);
        }
        let range = match wanted {
            RequestedRanges::Whole => None,
            RequestedRanges::One(range) => Some(range),
            RequestedRanges::Several(ranges) => match self.parts(&ranges).await? {
                Some(parts) if parts.len() > 1 => return self.several(&parts, to).await,
                parts => parts.and_then(|parts| {
                    parts.first().map(|part| ByteRange::Between(part.first, part.last))
                }),
            },
        };
        if let Some(outside) = range.and_then(|range| self.is_outside(range)) {
            return Err(outside);
        }
        let upstream = match (self.get_checked(range).await, range) {
            // All of an empty file: a 206 cannot describe an empty part.
            (Err(Problem::RangeNotSatisfiable { complete_length }), Some(range))
                if range.is_satisfiable(complete_length) =>
            {
                let whole = self.get_file(None).await?;
                return self.stream(whole, None, to);
            }
            (upstream, _) => upstream?,
        };
        let ranged = range.is_some() && conditions::range_applies(self.headers, upstream.headers());
        if upstream.status() == StatusCode::PARTIAL_CONTENT && !ranged {
            // The file has changed since the one that If-Range names.
            self.metadata.invalidate(self.path);
            let whole = self.get_file(None).await?;
            return self.stream(whole, None, to);
        }
        self.stream(upstream, range.filter(|_| ranged), to)
    }

    /// Like [`Request::get_file`], and judges the reader's conditions again by the response: the
    /// file may have changed since the first check.
    async fn get_checked(
        &self,
        range: Option<ByteRange>,
    ) -> Result<Response<origin::Body>, Problem> {
        let upstream = self.get_file(range).await?;
        match conditions::judge(self.headers, upstream.headers()) {
            Verdict::Failed => {
                self.metadata.invalidate(self.path);
                Err(Problem::PreconditionFailed)
            }
            // The file has changed since the first check: the reader gets the new one.
            Verdict::Proceed | Verdict::NotModified => Ok(upstream),
        }
    }

    fn stream(
        &self,
        upstream: Response<origin::Body>,
        range: Option<ByteRange>,
        to: Destination<'_>,
    ) -> Result<Response<Body>, Problem> {
        let (head, incoming) = upstream.into_parts();
        let length = length_of(&head.headers);
        if length.is_none() && !fields::is_framed(&head.headers) {
            return Err(
                self.failed("its response has no length, so a truncated body could look complete")
            );
        }
        if range.is_some() && fields::is_encoded(&head.headers) {
            return Err(self.failed(
                "it encoded a file of which a part was requested; the gate does not forward ranges \
                 of encoded bytes",
            ));
        }
        let (part, skip) = match (head.status, range) {
            (StatusCode::PARTIAL_CONTENT, Some(range)) => {
                (Some(self.checked(&head.headers, range)?), 0)
            }
            // The origin does not support ranges: extract the part here, if the length is known.
            (_, Some(range)) => match length {
                Some(complete_length) => match Part::of(range, complete_length) {
                    Some(part) => (Some(part), part.first),
                    None if range.is_satisfiable(complete_length) => (None, 0),
                    None => return Err(Problem::RangeNotSatisfiable { complete_length }),
                },
                None => (None, 0),
            },
            (_, None) => (None, 0),
        };
        // Checked on the final response: the file may have changed since the first check.
        if self.only_rest && part.is_none_or(|part| part.first == 0) {
            return Err(Problem::PreconditionFailed);
        }
        let status = if part.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        let take = part.map(Part::length).or(length);
        let outgoing = to.open(status, fields::is_encoded(&head.headers))?;
        let first = part.map_or(0, |part| part.first);
        let last = take.and_then(|take| first.checked_add(take)?.checked_sub(1));
        let rest =
            Remainder::of(self.origin, self.path, outgoing.metrics(), &head.headers, (first, last));
        let file_segment =
            FileSegment::started(incoming, skip, (first, take), self.origin.settings().idle, rest);
        let source = BodySource::of([Segment::File(file_segment)]);
        let mut response = Response::new(Body::measured(source, take, outgoing));
        *response.status_mut() = status;
        let fields = response.headers_mut();
        fields::pass(&head.headers, self.kind, self.path, fields);
        if let Some(take) = take {
            fields.insert(CONTENT_LENGTH, HeaderValue::from(take));
        }
        if let Some(field) = part.and_then(Part::field) {
            fields.insert(CONTENT_RANGE, field);
        }
        Ok(response)
    }

    /// Resolves several ranges. Returns `None` if the whole file must be sent.
    async fn parts(&self, ranges: &[ByteRange]) -> Result<Option<Vec<Part>>, Problem> {
        let file = self.file().await?;
        let Some(complete_length) = length_of(&file) else { return Ok(None) };
        match range::parts(ranges, complete_length, self.max_ranges) {
            Parts::These(parts) => Ok(Some(parts)),
            Parts::Whole => Ok(None),
            Parts::None => Err(Problem::RangeNotSatisfiable { complete_length }),
        }
    }

    /// Answers with several parts (RFC 9110 §14.6). The gate assembles them, since few storages
    /// support it. It sends the whole file instead if no strong entity tag proves that all parts
    /// are of one file.
    async fn several(
        &self,
        parts: &[Part],
        to: Destination<'_>,
    ) -> Result<Response<Body>, Problem> {
        let Some(first) = parts.first() else { return Err(self.failed("no part was requested")) };
        let range = ByteRange::Between(first.first, first.last);
        let upstream = self.get_checked(Some(range)).await?;
        if upstream.status() == StatusCode::OK {
            return self.stream(upstream, None, to);
        }
        let bounds = (first.first, Some(first.last));
        let rest = Remainder::of(self.origin, self.path, to.metrics, upstream.headers(), bounds);
        let rest = rest.filter(|_| conditions::range_applies(self.headers, upstream.headers()));
        let is_part = self.checked(upstream.headers(), range).is_ok_and(|part| part == *first);
        let (Some(rest), true) = (rest, is_part) else {
            self.metadata.invalidate(self.path);
            drop(upstream);
            let whole = self.get_file(None).await?;
            return self.stream(whole, None, to);
        };
        let status = StatusCode::PARTIAL_CONTENT;
        let outgoing = to.open(status, false)?;
        let (head, incoming) = upstream.into_parts();
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        fields::pass(&head.headers, self.kind, self.path, response.headers_mut());
        let multipart = Multipart::new(response.headers().get(CONTENT_TYPE));
        let idle = self.origin.settings().idle;
        let mut incoming = Some(incoming);
        let mut segments = Vec::with_capacity(2 * parts.len() + 1);
        for part in parts {
            segments.push(Segment::Text(multipart.part_header(*part)));
            let rest = rest.of_part(*part);
            segments.push(Segment::File(match incoming.take() {
                Some(incoming) => FileSegment::started(
                    incoming,
                    0,
                    (part.first, Some(part.length())),
                    idle,
                    Some(rest),
                ),
                None => FileSegment::deferred(rest, *part, idle),
            }));
        }
        segments.push(Segment::Text(multipart.closing()));
        let texts = segments
            .iter()
            .map(|segment| if let Segment::Text(text) = segment { text.len() as u64 } else { 0 });
        let mut lengths = texts.chain(parts.iter().map(|part| part.length()));
        let take = lengths.try_fold(0_u64, u64::checked_add);
        let take = take.ok_or_else(|| self.failed("its parts are longer than any file can be"))?;
        let fields = response.headers_mut();
        fields.insert(CONTENT_TYPE, multipart.content_type());
        fields.insert(CONTENT_LENGTH, HeaderValue::from(take));
        *response.body_mut() = Body::measured(BodySource::of(segments), Some(take), outgoing);
        Ok(response)
    }

    /// Returns the part in a 206, which must be the requested one.
    fn checked(&self, upstream: &HeaderMap, range: ByteRange) -> Result<Part, Problem> {
        let part = upstream.get(CONTENT_RANGE).and_then(Part::read);
        let part = part.filter(|part| Part::of(range, part.complete) == Some(*part));
        match part {
            Some(part) if length_of(upstream).is_none_or(|length| length == part.length()) => {
                Ok(part)
            }
            _ => Err(self.failed("it answered with another part than the requested one")),
        }
    }

    fn bodiless(&self, status: StatusCode, file: &HeaderMap, on_end: OnEnd) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        fields::pass(file, self.kind, self.path, response.headers_mut());
        if let Some(length) = length_of(file).filter(|_| status == StatusCode::OK) {
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        on_end(Delivered {
            bytes: 0,
            end: StreamEnd::Complete,
            status,
            opened: Instant::now(),
            resumes: 0,
        });
        response
    }
}
