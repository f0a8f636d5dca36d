//! Resumes a file after the origin broke off or stalled: requests the remaining bytes of the same
//! file.
//!
//! `body_source` calls it when a body breaks. Only a strong entity tag proves that two responses
//! are of one file (RFC 9110 §8.8.1). Without one, or if it has changed, the body ends with an
//! error. A body that breaks before [`USEFUL_BYTES`] is a failed attempt. It uses one of the
//! `resumes` and retry budget, and counts as a failure of the address.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_RANGE, ETAG};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::plan::length_of;
use super::range::Part;
use super::{conditions, fields};
use crate::origin::{self, ByteRange, FileRequest, Origin, USEFUL_BYTES};
use crate::path::FilePath;
use crate::telemetry::{Metrics, ResumeOutcome};

/// The pause before the second attempt in a row, and the maximum that it doubles up to. The first
/// attempt does not wait.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Cost of a request that uses no retry budget.
const FREE: origin::ResumeCost = origin::ResumeCost { progress: USEFUL_BYTES };

/// The result of one resume request.
pub(super) enum FetchOutcome {
    /// A body, and the number of its bytes to skip because they were delivered before.
    Found(origin::Body, u64),
    /// The attempt failed; another one may succeed.
    Failed,
    /// The origin now has another file.
    Changed,
}

/// A resume request in flight.
pub(super) type PendingFetch = Pin<Box<dyn Future<Output = FetchOutcome> + Send>>;

/// The remaining range of a file, and how to request it.
#[derive(Debug)]
pub(super) struct Remainder {
    origin: Arc<Origin>,
    path: FilePath,
    metrics: Metrics,
    /// The file's strong entity tag, and its complete length if known.
    validator: HeaderValue,
    complete: Option<u64>,
    /// Offset of the next byte.
    next: u64,
    /// Offset of the last byte; `None` if the file's length is unknown.
    last: Option<u64>,
    /// Bytes received since the last break.
    progress: u64,
    /// Number of the next or current attempt: 1 after a useful body; 0 before the first break.
    attempt: u32,
    /// What the next attempt costs.
    payment: origin::ResumeCost,
    /// Whether the current body used retry budget.
    is_paid: bool,
    /// Number of successful resumes.
    resumed: u32,
}

impl Remainder {
    /// Creates the range from `next` to `last` of this response. Returns `None` if the file has no
    /// strong entity tag, is encoded, or resuming is disabled.
    pub(super) fn of(
        origin: &Arc<Origin>,
        path: &FilePath,
        metrics: &Metrics,
        response: &HeaderMap,
        (next, last): (u64, Option<u64>),
    ) -> Option<Remainder> {
        let validator = response.get(ETAG).filter(|etag| conditions::is_strong(etag))?.clone();
        if origin.settings().resumes == 0 || fields::is_encoded(response) {
            return None;
        }
        let (origin, path, metrics) = (origin.clone(), path.clone(), metrics.clone());
        let file = (validator, complete_length(response));
        Some(Remainder::new(origin, path, metrics, file, (next, last)))
    }

    fn new(
        origin: Arc<Origin>,
        path: FilePath,
        metrics: Metrics,
        (validator, complete): (HeaderValue, Option<u64>),
        (next, last): (u64, Option<u64>),
    ) -> Remainder {
        Remainder {
            origin,
            path,
            metrics,
            validator,
            complete,
            next,
            last,
            progress: 0,
            attempt: 0,
            payment: FREE,
            is_paid: false,
            resumed: 0,
        }
    }

    /// Returns another part of the same file.
    pub(super) fn of_part(&self, part: Part) -> Remainder {
        let (origin, path, metrics) =
            (self.origin.clone(), self.path.clone(), self.metrics.clone());
        let file = (self.validator.clone(), self.complete);
        Remainder::new(origin, path, metrics, file, (part.first, Some(part.last)))
    }

    /// Advances the start by the bytes that were delivered.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.next += bytes as u64;
        self.progress += bytes as u64;
        if self.is_paid && self.last.is_some_and(|last| self.next > last) {
            self.is_paid = false;
            self.origin.resume_completed();
        }
    }

    /// Records that this body broke or stalled, so the next request is another attempt. Do not call
    /// it for a body that was dropped for another reason.
    pub(super) fn record_break(&mut self, body: &origin::Body) {
        self.payment = origin::ResumeCost { progress: self.progress };
        self.progress = 0;
        if self.payment.is_free() {
            self.attempt = 1;
        } else {
            self.attempt += 1;
            self.origin.record_useless_body(&self.path, body.address());
        }
    }

    /// Moves the start back by bytes that were delivered but not sent.
    pub(super) fn rewind(&mut self, bytes: u64) {
        self.next = self.next.saturating_sub(bytes);
    }

    /// Returns the number of successful resumes.
    pub(super) fn resumed(&self) -> u32 {
        self.resumed
    }

    /// Records the result of an attempt.
    pub(super) fn record_outcome(&mut self, fetched: &FetchOutcome) {
        let outcome = match fetched {
            FetchOutcome::Found(..) => {
                self.resumed += 1;
                self.payment = FREE;
                ResumeOutcome::Resumed
            }
            FetchOutcome::Failed => {
                self.attempt += 1;
                self.payment = origin::ResumeCost { progress: 0 };
                self.is_paid = false;
                ResumeOutcome::Failed
            }
            FetchOutcome::Changed => ResumeOutcome::Changed,
        };
        self.metrics.origin_resume(&self.origin.settings().name, outcome);
    }

    /// Requests the remaining range. Returns `None` after too many failed attempts in a row.
    pub(super) fn retry(&mut self) -> Option<PendingFetch> {
        if self.attempt > self.origin.settings().resumes {
            return None;
        }
        let (wait, payment) = (wait(self.attempt), self.payment);
        self.is_paid = !payment.is_free();
        Some(self.request(wait, payment))
    }

    /// Requests the remaining range after a suspension. This is not limited by failed attempts,
    /// since the origin was not at fault.
    pub(super) fn refetch(&mut self) -> PendingFetch {
        self.is_paid = false;
        self.request(Duration::ZERO, FREE)
    }

    fn request(&self, wait: Duration, payment: origin::ResumeCost) -> PendingFetch {
        let (origin, path) = (self.origin.clone(), self.path.clone());
        let (validator, complete) = (self.validator.clone(), self.complete);
        let (next, last) = (self.next, self.last);
        Box::pin(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let range = last.map_or(ByteRange::From(next), |last| ByteRange::Between(next, last));
            let request =
                FileRequest { only_if: Some(validator.clone()), ..FileRequest::get(Some(range)) };
            match origin.fetch_rest(&path, &request, payment).await {
                Ok(response) => interpret(response, (&validator, complete), (next, last)),
                Err(_) => FetchOutcome::Failed,
            }
        })
    }
}

/// Returns the pause before an attempt: exponential backoff with jitter of up to half, so that
/// streams that broke together do not retry together.
fn wait(attempt: u32) -> Duration {
    match attempt.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => {
            let longest = FIRST_WAIT.saturating_mul(1 << doublings.min(10)).min(LONGEST_WAIT);
            longest.mul_f64(0.5 + 0.5 * fastrand::f64())
        }
    }
}

/// Returns the length of the whole file, from a full or partial response.
fn complete_length(response: &HeaderMap) -> Option<u64> {
    match response.get(CONTENT_RANGE) {
        Some(range) => Part::read(range).map(|part| part.complete),
        None => length_of(response),
    }
}

/// Interprets the response to a resume request.
fn interpret(
    response: Response<origin::Body>,
    (validator, complete): (&HeaderValue, Option<u64>),
    (next, last): (u64, Option<u64>),
) -> FetchOutcome {
    let (head, incoming) = response.into_parts();
    let is_a_file = matches!(head.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT);
    if !is_a_file {
        // 404: the file is gone. 412: it was replaced. Any other status may be temporary.
        let is_another =
            matches!(head.status, StatusCode::NOT_FOUND | StatusCode::PRECONDITION_FAILED);
        return if is_another { FetchOutcome::Changed } else { FetchOutcome::Failed };
    }
    if head.headers.get(ETAG) != Some(validator) || fields::is_encoded(&head.headers) {
        return FetchOutcome::Changed;
    }
    // Catches a storage that gives two files the same entity tag.
    let named = complete_length(&head.headers);
    if named.zip(complete).is_some_and(|(named, before)| named != before) {
        return FetchOutcome::Changed;
    }
    // An origin without range support sends the whole file again.
    if head.status == StatusCode::OK {
        return FetchOutcome::Found(incoming, next);
    }
    let part = head.headers.get(CONTENT_RANGE).and_then(Part::read);
    match part {
        Some(part) if part.first == next && last.is_none_or(|last| part.last == last) => {
            FetchOutcome::Found(incoming, 0)
        }
        _ => FetchOutcome::Failed,
    }
}
