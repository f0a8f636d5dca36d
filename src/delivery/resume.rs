//! Going on with a file whose origin broke off or stood still: it is asked for the rest, of the very same file.
//!
//! `body` asks for it when a body breaks. Only a strong entity tag says that two answers are of one file (RFC 9110 §8.8.1);
//! without one, or where it has changed, nothing is put together that may not belong together, and the body breaks.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::ETAG;
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::range::Part;
use super::{conditions, fields};
use crate::origin::{self, Ask, Asked, Origin};
use crate::path::FilePath;
use crate::telemetry::Metrics;

/// How long the second attempt in a row waits, and the longest that it doubles up to; the first does not wait.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What came of asking for the rest.
pub(super) enum Answer {
    /// It comes, after so many bytes that were delivered already.
    Rest(origin::Body, u64),
    /// Nothing came of it this time.
    Failed,
    /// It is another file now.
    Changed,
}

/// Asking for the rest, once.
pub(super) type Asking = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What of a file is still to come, and of whom.
#[derive(Debug)]
pub(super) struct Rest {
    origin: Arc<Origin>,
    path: FilePath,
    metrics: Metrics,
    /// The strong entity tag of the file.
    validator: HeaderValue,
    /// The byte that comes next.
    next: u64,
    /// The last byte; none where the file's end is not known.
    last: Option<u64>,
    /// How often in a row nothing came of asking.
    vain: u32,
    /// How often the rest came.
    resumed: u32,
}

impl Rest {
    /// The rest of an answer that begins at byte `next` and ends with `last`; none where nothing says which file it is.
    pub(super) fn of(
        origin: &Arc<Origin>,
        path: &FilePath,
        metrics: &Metrics,
        answer: &HeaderMap,
        (next, last): (u64, Option<u64>),
    ) -> Option<Rest> {
        let validator = answer.get(ETAG).filter(|etag| conditions::is_strong(etag))?.clone();
        if origin.settings().resumes == 0 || fields::is_encoded(answer) {
            return None;
        }
        let (origin, path, metrics) = (origin.clone(), path.clone(), metrics.clone());
        Some(Rest { origin, path, metrics, validator, next, last, vain: 0, resumed: 0 })
    }

    /// Another part of the same file.
    pub(super) fn of_part(&self, part: Part) -> Rest {
        let (origin, path, metrics) = (self.origin.clone(), self.path.clone(), self.metrics.clone());
        let (validator, next, last) = (self.validator.clone(), part.first, Some(part.last));
        Rest { origin, path, metrics, validator, next, last, vain: 0, resumed: 0 }
    }

    /// Bytes have been delivered.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.next += bytes as u64;
        self.vain = 0;
    }

    /// How often the origin was gone on with.
    pub(super) fn resumed(&self) -> u32 {
        self.resumed
    }

    /// Notes what came of asking, and says whether to ask again where it was nothing.
    pub(super) fn note(&mut self, answer: &Answer) {
        let outcome = match answer {
            Answer::Rest(..) => {
                self.resumed += 1;
                "resumed"
            }
            Answer::Failed => "failed",
            Answer::Changed => "changed",
        };
        self.metrics.origin_resume(&self.origin.settings().name, outcome);
    }

    /// Asks for the rest; none where it was asked in vain too often.
    pub(super) fn ask(&mut self) -> Option<Asking> {
        if self.vain >= self.origin.settings().resumes {
            return None;
        }
        let wait = wait(self.vain);
        self.vain += 1;
        let (origin, path) = (self.origin.clone(), self.path.clone());
        let (validator, next, last) = (self.validator.clone(), self.next, self.last);
        Some(Box::pin(async move {
            tokio::time::sleep(wait).await;
            let range = last.map_or(Asked::From(next), |last| Asked::Between(next, last));
            let ask = Ask { head: false, range: Some(range), only_if: Some(validator.clone()) };
            match origin.fetch(&path, &ask).await {
                Ok(answer) => read(answer, &validator, next, last),
                Err(_) => Answer::Failed,
            }
        }))
    }
}

/// How long to wait before asking again, after so many times in vain.
pub(super) fn wait(vain: u32) -> Duration {
    match vain {
        0 => Duration::ZERO,
        vain => FIRST_WAIT.saturating_mul(1 << (vain - 1).min(10)).min(LONGEST_WAIT),
    }
}

/// What an origin's answer is that was asked for the rest of a file.
fn read(answer: Response<origin::Body>, validator: &HeaderValue, next: u64, last: Option<u64>) -> Answer {
    let (head, incoming) = answer.into_parts();
    let is_a_file = matches!(head.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT);
    if !is_a_file {
        // A 404 is a file that is gone, a 412 is another one; what it answers besides may be otherwise in a moment.
        let is_another = matches!(head.status, StatusCode::NOT_FOUND | StatusCode::PRECONDITION_FAILED);
        return if is_another { Answer::Changed } else { Answer::Failed };
    }
    if head.headers.get(ETAG) != Some(validator) || fields::is_encoded(&head.headers) {
        return Answer::Changed;
    }
    // An origin without ranges sends all of it again.
    if head.status == StatusCode::OK {
        return Answer::Rest(incoming, next);
    }
    let part = head.headers.get(http::header::CONTENT_RANGE).and_then(Part::read);
    match part {
        Some(part) if part.first == next && last.is_none_or(|last| part.last == last) => {
            Answer::Rest(incoming, 0)
        }
        _ => Answer::Failed,
    }
}
