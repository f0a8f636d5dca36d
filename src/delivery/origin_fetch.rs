//! Requests to the origin for one reader's request: a file, checked for a valid status, or its
//! fields.
//!
//! `transfer` calls it. The reason of a failure is logged here, since no reader may see it.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Response, StatusCode};
use moka::sync::Cache;

use super::plan::length_of;
use crate::origin::{self, ByteRange, FileRequest, Origin, Repetition};
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

/// A file of an origin, as one reader's request sees it.
pub(super) struct OriginFile<'a> {
    pub(super) origin: &'a Arc<Origin>,
    pub(super) path: &'a FilePath,
    cache: &'a MetadataCache,
    /// Whether one of the requests to the origin was retried. All share one retry.
    repetition: Repetition,
}

impl<'a> OriginFile<'a> {
    pub(super) fn new(
        origin: &'a Arc<Origin>,
        cache: &'a MetadataCache,
        path: &'a FilePath,
    ) -> OriginFile<'a> {
        OriginFile { origin, path, cache, repetition: Repetition::default() }
    }

    /// Sends a GET. Returns a 200, or a 206 if a range was requested.
    pub(super) async fn get(
        &self,
        range: Option<ByteRange>,
    ) -> Result<Response<origin::Body>, Problem> {
        let response = self.fetch(&FileRequest::get(range)).await?;
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::PARTIAL_CONTENT if range.is_some() => Ok(response),
            StatusCode::RANGE_NOT_SATISFIABLE if range.is_some() => {
                Err(Box::pin(self.not_satisfiable()).await)
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(Problem::TitleNotFound),
            status => Err(self.unexpected(status, response.headers())),
        }
    }

    /// Returns the problem for a 416, with the file's length. The length is cached.
    async fn not_satisfiable(&self) -> Problem {
        match self.metadata().await.map(|file| length_of(&file)) {
            Ok(Some(complete_length)) => Problem::RangeNotSatisfiable { complete_length },
            Ok(None) => self.failed("its response to HEAD has no length"),
            Err(problem) => problem,
        }
    }

    /// Returns the file's fields, from the cache or by HEAD.
    pub(super) async fn metadata(&self) -> Result<Arc<HeaderMap>, Problem> {
        if let Some(file) = self.cached_metadata() {
            return Ok(file);
        }
        let response = self.fetch(&FileRequest::head()).await?;
        match response.status() {
            StatusCode::OK => {
                let file = Arc::new(response.into_parts().0.headers);
                self.cache.insert(self.path.clone(), file.clone());
                Ok(file)
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(Problem::TitleNotFound),
            status => Err(self.unexpected(status, response.headers())),
        }
    }

    /// Returns the file's fields if they are cached.
    pub(super) fn cached_metadata(&self) -> Option<Arc<HeaderMap>> {
        self.cache.get(self.path)
    }

    /// Drops the file's fields from the cache, since the file has changed.
    pub(super) fn forget_metadata(&self) {
        self.cache.invalidate(self.path);
    }

    /// Sends a request to the origin.
    async fn fetch(&self, request: &FileRequest) -> Result<Response<origin::Body>, Problem> {
        Ok(self.origin.fetch(self.path, request, &self.repetition).await?)
    }

    /// Returns the problem for a response without a file. It forwards Retry-After.
    fn unexpected(&self, status: StatusCode, fields: &HeaderMap) -> Problem {
        self.failed(&unexpected(status));
        Problem::OriginFailed { retry_after: origin::retry_after(fields) }
    }

    /// Returns the problem for a response that cannot be forwarded, and logs why.
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
