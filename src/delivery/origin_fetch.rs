//! Requests to the origin for one reader's request: a file, checked for a valid status, or its
//! fields.
//!
//! `request` calls it. The reason of a failure is logged here, since no reader may see it.

use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Response, StatusCode};
use moka::sync::Cache;

use super::request::Request;
use crate::origin::{self, ByteRange, FileRequest};
use crate::path::FilePath;
use crate::problem::Problem;

/// Most files in the metadata cache of one origin.
const MAX_CACHED_FILES: u64 = 100_000;

/// The metadata cache of one origin: fields of its files, from its responses to HEAD.
pub(super) type MetadataCache = Cache<FilePath, Arc<HeaderMap>>;

/// Creates a metadata cache whose entries live for `ttl`.
pub(super) fn metadata(ttl: Duration) -> MetadataCache {
    Cache::builder().max_capacity(MAX_CACHED_FILES).time_to_live(ttl).build()
}

impl Request<'_> {
    /// Sends a GET. Returns a 200, or a 206 if a range was requested.
    pub(super) async fn get_file(
        &self,
        range: Option<ByteRange>,
    ) -> Result<Response<origin::Body>, Problem> {
        let response = self.fetch(&FileRequest::get(range)).await?;
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::PARTIAL_CONTENT if range.is_some() => Ok(response),
            StatusCode::RANGE_NOT_SATISFIABLE if range.is_some() => {
                Err(self.not_satisfiable().await)
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(Problem::TitleNotFound),
            status => Err(self.unexpected(status, response.headers())),
        }
    }

    /// Returns the problem if cached metadata shows that a range lies outside the file. This saves
    /// a request to the origin.
    pub(super) fn is_outside(&self, range: ByteRange) -> Option<Problem> {
        if matches!(range, ByteRange::From(0) | ByteRange::Between(0, _) | ByteRange::Last(1..)) {
            return None; // The most common ranges; they lie outside empty files only.
        }
        let complete_length = length_of(&*self.metadata.get(self.path)?)?;
        (!range.is_satisfiable(complete_length))
            .then_some(Problem::RangeNotSatisfiable { complete_length })
    }

    /// Returns the problem for a 416, with the file's length. The length is cached.
    async fn not_satisfiable(&self) -> Problem {
        match self.file().await.map(|file| length_of(&file)) {
            Ok(Some(complete_length)) => Problem::RangeNotSatisfiable { complete_length },
            Ok(None) => self.failed("its response to HEAD has no length"),
            Err(problem) => problem,
        }
    }

    /// Returns the file's fields, from the cache or by HEAD.
    pub(super) async fn file(&self) -> Result<Arc<HeaderMap>, Problem> {
        if let Some(file) = self.metadata.get(self.path) {
            return Ok(file);
        }
        let response = self.fetch(&FileRequest::head()).await?;
        match response.status() {
            StatusCode::OK => {
                let file = Arc::new(response.into_parts().0.headers);
                self.metadata.insert(self.path.clone(), file.clone());
                Ok(file)
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(Problem::TitleNotFound),
            status => Err(self.unexpected(status, response.headers())),
        }
    }

    /// Sends a request to the origin. All requests for one reader's request share one retry.
    async fn fetch(&self, request: &FileRequest) -> Result<Response<origin::Body>, Problem> {
        Ok(self.origin.fetch(self.path, request, &self.repetition).await?)
    }

    /// Returns the problem for a response without a file. It forwards Retry-After.
    fn unexpected(&self, status: StatusCode, fields: &HeaderMap) -> Problem {
        self.failed(&unexpected(status));
        Problem::OriginFailed { retry_after: origin::retry_after(fields) }
    }

    pub(super) fn failed(&self, why: &str) -> Problem {
        tracing::warn!(
            origin = self.origin.settings().name,
            why,
            "an origin's response cannot be forwarded"
        );
        Problem::OriginFailed { retry_after: None }
    }
}

/// Describes a status without a file, for the operator.
fn unexpected(status: StatusCode) -> String {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => format!(
            "it answered {status}: the credentials are unknown, or may not read this file. Check \
             the keys in [[origins]] and their permissions"
        ),
        status => format!("it answered {status}"),
    }
}

pub(super) fn length_of(headers: &HeaderMap) -> Option<u64> {
    let length = headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
    length.filter(|length| *length <= origin::MAX_LENGTH)
}
