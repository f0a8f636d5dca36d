//! One request for a file: performs its [`Plan`] at the origin, and builds the response.
//!
//! [`Delivery`](super::Delivery) creates a [`Transfer`] for each request. `plan` decides what to
//! request and to send. `origin_fetch` sends the requests.

use std::sync::Arc;
use std::time::Instant;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::body::Body;
use super::body_end::{Delivered, OnEnd};
use super::body_source::{BodySource, FileSegment, Segment};
use super::borrower_limits::StreamAllowance;
use super::fields::{self, Kind};
use super::multipart::Multipart;
use super::origin_fetch::OriginFile;
use super::outgoing::{Accounting, Outgoing};
use super::plan::{self, Judgement, MetadataUse, Plan, Planner, Refusal, Selection};
use super::range::Part;
use super::resume::Remainder;
use super::stall_monitor::StallMonitor;
use crate::connection_handle::Connection;
use crate::gate::Permit;
use crate::metering::Metered;
use crate::origin::{self, ByteRange};
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

/// A request for a file, with the rules by which it is answered.
pub(super) struct Transfer<'a> {
    pub(super) file: OriginFile<'a>,
    pub(super) kind: Kind,
    pub(super) planner: Planner<'a>,
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

impl Transfer<'_> {
    /// Answers HEAD: like GET, without the body.
    pub(super) async fn head(&self, on_end: OnEnd) -> Result<Response<Body>, Problem> {
        let file = self.file.metadata().await?;
        let status = self.planner.plan_head(&file)?;
        Ok(self.without_body(status, &file, on_end))
    }

    /// Answers GET.
    pub(super) async fn get(&self, to: Destination<'_>) -> Result<Response<Body>, Problem> {
        let file = match self.planner.metadata_use() {
            MetadataUse::Required => Some(self.file.metadata().await?),
            MetadataUse::IfCached => self.file.cached_metadata(),
            MetadataUse::Unused => None,
        };
        match self.planner.plan(file.as_deref())? {
            Plan::NotModified => {
                let file = file.unwrap_or_default();
                Ok(self.without_body(StatusCode::NOT_MODIFIED, &file, to.on_end))
            }
            Plan::Whole => self.one(None, to).await,
            Plan::Range(range) => self.one(Some(range), to).await,
            // Boxed here and below, since it is rare and would enlarge the future of every request.
            Plan::Parts(parts) => Box::pin(self.several(&parts, to)).await,
        }
    }

    /// Answers with one part of the file, or with the whole file.
    async fn one(
        &self,
        range: Option<ByteRange>,
        to: Destination<'_>,
    ) -> Result<Response<Body>, Problem> {
        let upstream = match (self.file.get(range).await, range) {
            // All of an empty file: a 206 cannot describe an empty part.
            (Err(Problem::RangeNotSatisfiable { complete_length }), Some(range))
                if range.is_satisfiable(complete_length) =>
            {
                return Box::pin(self.whole(to)).await;
            }
            (upstream, _) => upstream?,
        };
        match self.planner.judge(upstream.status(), upstream.headers(), range) {
            Ok(Judgement::Send(selection)) => self.send(upstream, selection, to),
            Ok(Judgement::RequestWhole) => {
                self.file.forget_metadata();
                drop(upstream);
                Box::pin(self.whole(to)).await
            }
            Err(refusal) => Err(self.problem(refusal)),
        }
    }

    /// Answers with the whole file, whatever the request's conditions are.
    async fn whole(&self, to: Destination<'_>) -> Result<Response<Body>, Problem> {
        let upstream = self.file.get(None).await?;
        self.send_whole(upstream, to)
    }

    fn send_whole(
        &self,
        upstream: Response<origin::Body>,
        to: Destination<'_>,
    ) -> Result<Response<Body>, Problem> {
        let selection = self.planner.select(upstream.status(), upstream.headers(), None);
        self.send(upstream, selection.map_err(|refusal| self.problem(refusal))?, to)
    }

    /// Sends the selected bytes of the origin's response.
    fn send(
        &self,
        upstream: Response<origin::Body>,
        selection: Selection,
        to: Destination<'_>,
    ) -> Result<Response<Body>, Problem> {
        let (head, incoming) = upstream.into_parts();
        let status = selection.status();
        let outgoing = to.open(status, selection.is_encoded)?;
        let (bounds, length) = (selection.bounds(), selection.length);
        let (origin, path) = (self.file.origin, self.file.path);
        let rest = Remainder::of(origin, path, outgoing.metrics(), &head.headers, bounds);
        let idle = origin.settings().idle;
        let segment =
            FileSegment::started(incoming, selection.skip, (bounds.0, length), idle, rest);
        let source = BodySource::of([Segment::File(segment)]);
        let mut response = Response::new(Body::measured(source, length, outgoing));
        *response.status_mut() = status;
        selection.add_fields(head.headers, self.kind, path, response.headers_mut());
        Ok(response)
    }

    /// Answers with several parts (RFC 9110 §14.6). The gate assembles them, since few storages
    /// support it. It sends the whole file instead if no strong entity tag proves that all parts
    /// are of one file.
    async fn several(
        &self,
        parts: &[Part],
        to: Destination<'_>,
    ) -> Result<Response<Body>, Problem> {
        let Some(first) = parts.first() else {
            return Err(self.file.failed("no part was requested"));
        };
        let range = ByteRange::Between(first.first, first.last);
        let upstream = self.file.get(Some(range)).await?;
        let fields = upstream.headers();
        self.planner.recheck(fields).map_err(|refusal| self.problem(refusal))?;
        if upstream.status() == StatusCode::OK {
            return self.send_whole(upstream, to);
        }
        let bounds = (first.first, Some(first.last));
        let rest = Remainder::of(self.file.origin, self.file.path, to.metrics, fields, bounds);
        let rest = rest.filter(|_| self.planner.range_applies(fields));
        let is_part = plan::part_of(fields, range) == Some(*first);
        if !is_part {
            let _ = self.file.failed(plan::OTHER_PART);
        }
        match rest {
            Some(rest) if is_part => self.send_parts(upstream, parts, &rest, to),
            _ => {
                self.file.forget_metadata();
                drop(upstream);
                self.whole(to).await
            }
        }
    }

    /// Sends several parts, of which the origin has sent the first. `rest` requests the others.
    fn send_parts(
        &self,
        upstream: Response<origin::Body>,
        parts: &[Part],
        rest: &Remainder,
        to: Destination<'_>,
    ) -> Result<Response<Body>, Problem> {
        let status = StatusCode::PARTIAL_CONTENT;
        let outgoing = to.open(status, false)?;
        let (head, incoming) = upstream.into_parts();
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        fields::pass(head.headers, self.kind, self.file.path, response.headers_mut());
        let multipart = Multipart::new(response.headers().get(CONTENT_TYPE));
        let segments = self.segments(&multipart, parts, incoming, rest);
        let texts = segments
            .iter()
            .map(|segment| if let Segment::Text(text) = segment { text.len() as u64 } else { 0 });
        let mut lengths = texts.chain(parts.iter().map(|part| part.length()));
        let length = lengths
            .try_fold(0_u64, u64::checked_add)
            .ok_or_else(|| self.file.failed("its parts are longer than any file can be"))?;
        let fields = response.headers_mut();
        fields.insert(CONTENT_TYPE, multipart.content_type());
        fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
        *response.body_mut() = Body::measured(BodySource::of(segments), Some(length), outgoing);
        Ok(response)
    }

    /// Returns the parts with the multipart text around them. `incoming` has the first part.
    fn segments(
        &self,
        multipart: &Multipart,
        parts: &[Part],
        incoming: origin::Body,
        rest: &Remainder,
    ) -> Vec<Segment> {
        let idle = self.file.origin.settings().idle;
        let mut incoming = Some(incoming);
        let mut segments = Vec::with_capacity(2 * parts.len() + 1);
        for part in parts {
            segments.push(Segment::Text(multipart.part_header(*part)));
            let rest = rest.of_part(*part);
            let bounds = (part.first, Some(part.length()));
            segments.push(Segment::File(match incoming.take() {
                Some(incoming) => FileSegment::started(incoming, 0, bounds, idle, Some(rest)),
                None => FileSegment::deferred(rest, *part, idle),
            }));
        }
        segments.push(Segment::Text(multipart.closing()));
        segments
    }

    fn without_body(&self, status: StatusCode, file: &HeaderMap, on_end: OnEnd) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        fields::pass(file.clone(), self.kind, self.file.path, response.headers_mut());
        if let Some(length) = plan::length_of(file).filter(|_| status == StatusCode::OK) {
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

    /// Returns the problem of a refusal, and forgets cached metadata that it proves outdated.
    fn problem(&self, refusal: Refusal) -> Problem {
        match refusal {
            Refusal::Problem(problem) => problem,
            Refusal::Changed(problem) => {
                self.file.forget_metadata();
                problem
            }
            Refusal::Unusable(why) => self.file.failed(why),
        }
    }
}
