//! Resumes a file whose origin broke off or stalled: it requests the rest of the very same file.
//!
//! `body_source` calls it when a body breaks. Only a strong entity tag says that two responses are
//! of one file (RFC 9110 §8.8.1); without one, or where it has changed, the body breaks. A body
//! that broke after less than [`USEFUL_BYTES`] is a failed attempt: it costs one of the `resumes`,
//! a part of the origin's retry budget, and counts against its address.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_RANGE, ETAG};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::origin_fetch::length_of;
use super::range::Part;
use super::{conditions, fields};
use crate::origin::{self, ByteRange, FileRequest, Origin, USEFUL_BYTES};
use crate::path::FilePath;
use crate::telemetry::Metrics;

/// The pause before the second attempt in a row, and the longest that it doubles up to; the first
/// does not wait.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The first request for a part costs no retry.
const FREE: origin::ResumeCost = origin::ResumeCost { progress: USEFUL_BYTES };

/// What came of asking for the rest.
pub(super) enum FetchOutcome {
    /// It comes, after so many bytes that were delivered already.
    Found(origin::Body, u64),
    /// Nothing came of it this time.
    Failed,
    /// It is another file now.
    Changed,
}

/// Asking for the rest, once.
pub(super) type PendingFetch = Pin<Box<dyn Future<Output = FetchOutcome> + Send>>;

/// What of a file is still to come, and of whom.
#[derive(Debug)]
pub(super) struct Remainder {
    origin: Arc<Origin>,
    path: FilePath,
    metrics: Metrics,
    /// The strong entity tag of the file, and its complete length where that is known.
    validator: HeaderValue,
    complete: Option<u64>,
    /// The byte that comes next.
    next: u64,
    /// The last byte; none where the file's end is not known.
    last: Option<u64>,
    /// Bytes that have arrived since the last break.
    progress: u64,
    /// The attempt that is next, or under way: 1 after a body that was of use; 0 while none broke.
    attempt: u32,
    /// How the next attempt is paid for.
    payment: origin::ResumeCost,
    /// Whether the body that is read now was paid for out of the retry budget.
    is_paid: bool,
    /// How often the rest arrived.
    resumed: u32,
}

impl Remainder {
    /// The rest of an answer that begins at byte `next` and ends with `last`; none where nothing
    /// says which file it is.
    pub(super) fn of(
        origin: &Arc<Origin>,
        path: &FilePath,
        metrics: &Metrics,
        answer: &HeaderMap,
        (next, last): (u64, Option<u64>),
    ) -> Option<Remainder> {
        let validator = answer.get(ETAG).filter(|etag| conditions::is_strong(etag))?.clone();
        if origin.settings().resumes == 0 || fields::is_encoded(answer) {
            return None;
        }
        let (origin, path, metrics) = (origin.clone(), path.clone(), metrics.clone());
        let file = (validator, complete_length(answer));
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

    /// Another part of the same file.
    pub(super) fn of_part(&self, part: Part) -> Remainder {
        let (origin, path, metrics) =
            (self.origin.clone(), self.path.clone(), self.metrics.clone());
        let file = (self.validator.clone(), self.complete);
        Remainder::new(origin, path, metrics, file, (part.first, Some(part.last)))
    }

    /// Bytes have been delivered.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.next += bytes as u64;
        self.progress += bytes as u64;
        if self.is_paid && self.last.is_some_and(|last| self.next > last) {
            self.is_paid = false;
            self.origin.resume_completed();
        }
    }

    /// This body broke or stalled: what [`Rest::ask`] requests next is another attempt. A body that
    /// was dropped for another reason costs none.
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

    /// Bytes that were delivered were not sent.
    pub(super) fn rewind(&mut self, bytes: u64) {
        self.next = self.next.saturating_sub(bytes);
    }

    /// How often the origin was gone on with.
    pub(super) fn resumed(&self) -> u32 {
        self.resumed
    }

    /// Records what came of an attempt.
    pub(super) fn note(&mut self, answer: &FetchOutcome) {
        let outcome = match answer {
            FetchOutcome::Found(..) => {
                self.resumed += 1;
                self.payment = FREE;
                "resumed"
            }
            FetchOutcome::Failed => {
                self.attempt += 1;
                self.payment = origin::ResumeCost { progress: 0 };
                self.is_paid = false;
                "failed"
            }
            FetchOutcome::Changed => "changed",
        };
        self.metrics.origin_resume(&self.origin.settings().name, outcome);
    }

    /// Requests the rest; none after too many failed attempts in a row.
    pub(super) fn retry(&mut self) -> Option<PendingFetch> {
        if self.attempt > self.origin.settings().resumes {
            return None;
        }
        let (wait, payment) = (wait(self.attempt), self.payment);
        self.is_paid = !payment.is_free();
        Some(self.request(wait, payment))
    }

    /// Requests the rest, whatever failed before: it was dropped for the reader's sake, not for a
    /// fault of the origin.
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
                Ok(answer) => read(answer, (&validator, complete), (next, last)),
                Err(_) => FetchOutcome::Failed,
            }
        })
    }
}

/// The pause before an attempt: exponential, and a random part of it, at least half, so that
/// streams that broke together do not return together.
fn wait(attempt: u32) -> Duration {
    match attempt.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => {
            let longest = FIRST_WAIT.saturating_mul(1 << doublings.min(10)).min(LONGEST_WAIT);
            longest.mul_f64(0.5 + 0.5 * fastrand::f64())
        }
    }
}

/// The length of the whole file that an answer has, or has a part of.
fn complete_length(answer: &HeaderMap) -> Option<u64> {
    match answer.get(CONTENT_RANGE) {
        Some(range) => Part::read(range).map(|part| part.complete),
        None => length_of(answer),
    }
}

/// What an origin's answer is that was asked for the rest of this file.
fn read(
    answer: Response<origin::Body>,
    (validator, complete): (&HeaderValue, Option<u64>),
    (next, last): (u64, Option<u64>),
) -> FetchOutcome {
    let (head, incoming) = answer.into_parts();
    let is_a_file = matches!(head.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT);
    if !is_a_file {
        // A 404 is a file that is gone, a 412 is another one; what it answers besides may be
        // otherwise in a moment.
        let is_another =
            matches!(head.status, StatusCode::NOT_FOUND | StatusCode::PRECONDITION_FAILED);
        return if is_another { FetchOutcome::Changed } else { FetchOutcome::Failed };
    }
    if head.headers.get(ETAG) != Some(validator) || fields::is_encoded(&head.headers) {
        return FetchOutcome::Changed;
    }
    // A storage that gives two files one tag shows it by their lengths.
    let named = complete_length(&head.headers);
    if named.zip(complete).is_some_and(|(named, before)| named != before) {
        return FetchOutcome::Changed;
    }
    // An origin without ranges sends all of it again.
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
