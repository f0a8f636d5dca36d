//! What an origin says of a file that is asked for: its answer, checked to be one, or its fields
//! alone.
//!
//! `request` asks. Why an answer is none is logged here, since no reader may see it.

use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Response, StatusCode};
use moka::sync::Cache;

use super::request::Request;
use crate::origin::{self, ByteRange, FileRequest};
use crate::path::FilePath;
use crate::problem::Problem;

/// How many files' fields are kept.
const KNOWN_FILES: u64 = 100_000;

/// The fields of an origin's files, as its answers to HEAD gave them.
pub(super) type Known = Cache<FilePath, Arc<HeaderMap>>;

/// Room for them, of an origin whose files' fields are believed for so long.
pub(super) fn known(believed: Duration) -> Known {
    Cache::builder().max_capacity(KNOWN_FILES).time_to_live(believed).build()
}

impl Request<'_> {
    /// The answer to a GET: 200 or 206, checked to be what was asked.
    pub(super) async fn get_file(
        &self,
        range: Option<ByteRange>,
    ) -> Result<Response<origin::Body>, Problem> {
        let answer = self.fetch(&FileRequest::get(range)).await?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            StatusCode::PARTIAL_CONTENT if range.is_some() => Ok(answer),
            StatusCode::RANGE_NOT_SATISFIABLE if range.is_some() => {
                Err(self.not_satisfiable().await)
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(Problem::TitleNotFound),
            status => Err(self.unexpected(status, answer.headers())),
        }
    }

    /// Whether a range is known to lie outside of the file: then the origin need not be asked to
    /// say so.
    pub(super) fn is_outside(&self, range: ByteRange) -> Option<Problem> {
        if matches!(range, ByteRange::From(0) | ByteRange::Between(0, _) | ByteRange::Last(1..)) {
            return None; // hardly ever, and range most
        }
        let complete_length = length_of(&*self.known.get(self.path)?)?;
        (!range.is_satisfiable(complete_length))
            .then_some(Problem::RangeNotSatisfiable { complete_length })
    }

    /// A 416 needs the file's length, which is known from then on.
    async fn not_satisfiable(&self) -> Problem {
        match self.file().await.map(|file| length_of(&file)) {
            Ok(Some(complete_length)) => Problem::RangeNotSatisfiable { complete_length },
            Ok(None) => self.failed("it does not tell the length of a file"),
            Err(problem) => problem,
        }
    }

    /// The file's fields, as known or as the origin answers HEAD.
    pub(super) async fn file(&self) -> Result<Arc<HeaderMap>, Problem> {
        if let Some(file) = self.known.get(self.path) {
            return Ok(file);
        }
        let answer = self.fetch(&FileRequest::head()).await?;
        match answer.status() {
            StatusCode::OK => {
                let file = Arc::new(answer.into_parts().0.headers);
                self.known.insert(self.path.clone(), file.clone());
                Ok(file)
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(Problem::TitleNotFound),
            status => Err(self.unexpected(status, answer.headers())),
        }
    }

    /// Sends a request to the origin, and repeats it at most once for all that this reader's
    /// request needs.
    async fn fetch(&self, request: &FileRequest) -> Result<Response<origin::Body>, Problem> {
        Ok(self.origin.fetch(self.path, request, &self.repetition).await?)
    }

    /// The problem of a response that gives no file; the reader is told what its Retry-After says.
    fn unexpected(&self, status: StatusCode, fields: &HeaderMap) -> Problem {
        self.failed(&unexpected(status));
        Problem::OriginFailed { retry_after: origin::retry_after(fields) }
    }

    pub(super) fn failed(&self, why: &str) -> Problem {
        tracing::warn!(
            origin = self.origin.settings().name,
            why,
            "an origin's answer cannot be passed on"
        );
        Problem::OriginFailed { retry_after: None }
    }
}

/// What an origin answers that gives no file, in words for whoever runs the gate.
fn unexpected(status: StatusCode) -> String {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => format!(
            "it answered {status}: it does not know our credentials, or they do not open this file. \
             Look at the keys in [[origins]], and at what they may read"
        ),
        status => format!("it answered {status}"),
    }
}

pub(super) fn length_of(headers: &HeaderMap) -> Option<u64> {
    let length = headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
    length.filter(|length| *length <= origin::MAX_LENGTH)
}
