//! An origin address in an object storage: S3 and compatible storages, Google Cloud Storage, Azure
//! Blob Storage.
//!
//! The crate `object_store` builds the requests: credentials, signatures, addresses. The HTTP
//! client below it is the gate's own (`object_store_connector`). It intercepts each file's response
//! before `object_store` reads it. So all kinds of origins share one code path for bodies and
//! resuming.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt as _;
use http::header::{CONTENT_LENGTH, ETAG};
use http::{Response, StatusCode};
use object_store::{GetOptions, GetRange, ObjectStore};

use super::body::{Body, not_satisfiable};
use super::exchange::Failure;
use super::file_request::{ByteRange, FileRequest};
use super::object_store_connector::ResponseSlot;
use super::object_store_kinds::Bucket;
use super::reachability::Outcome;
use super::{MAX_LENGTH, object_store_error};
use crate::http_calls::innermost;
use crate::path::FilePath;

/// Marks a failed response for which a second request was already sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repeated;

#[derive(Debug)]
pub(super) struct Store {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    /// Whether the storage supports suffix ranges (the last bytes of a file). Azure Blob Storage
    /// does not. The others are assumed to, until a response shows that they do not.
    supports_suffix_ranges: AtomicBool,
}

impl Store {
    pub(super) fn new(
        built: object_store::Result<impl ObjectStore>,
        bucket: &Bucket,
        supports_suffix_ranges: bool,
    ) -> Result<Store, String> {
        let store = built.map_err(|error| innermost(&error))?;
        let prefix =
            if bucket.prefix.is_empty() { String::new() } else { format!("{}/", bucket.prefix) };
        Ok(Store {
            store: Arc::new(store),
            prefix,
            supports_suffix_ranges: AtomicBool::new(supports_suffix_ranges),
        })
    }

    /// Checks by a listing, which distinguishes a wrong key from a missing file.
    pub(super) async fn probe(&self) -> Outcome {
        let below = object_store::path::Path::from(self.prefix.as_str());
        match self.store.list(Some(&below)).next().await {
            Some(Ok(_)) => Outcome::Reached("the bucket can be listed".to_owned()),
            None => Outcome::Doubtful(
                "the bucket can be listed, and no file is below this path".to_owned(),
            ),
            Some(Err(error)) => object_store_error::explain(&causes(&error)),
        }
    }

    pub(super) async fn send(
        &self,
        path: &FilePath,
        request: &FileRequest,
    ) -> Result<Response<Body>, Failure> {
        match request.range {
            // A retry uses the form that every storage supports.
            Some(ByteRange::Last(_))
                if request.fresh || !self.supports_suffix_ranges.load(Ordering::Relaxed) =>
            {
                self.send_by_length(path, request).await
            }
            Some(ByteRange::Last(_)) => match self.get(path, request).await {
                Ok(response) if !may_lack_suffix_ranges(response.status()) => Ok(response),
                refused @ (Ok(_) | Err(Failure::Broken(_))) => {
                    self.retry_by_length(refused, path, request).await
                }
                failed => failed,
            },
            Some(ByteRange::From(first) | ByteRange::Between(first, _)) if first > MAX_LENGTH => {
                self.send_by_length(path, request).await
            }
            _ => self.get(path, request).await,
        }
    }

    /// Requests the last bytes by their offsets. If that fails too, the request counts as repeated.
    async fn retry_by_length(
        &self,
        refused: Result<Response<Body>, Failure>,
        path: &FilePath,
        request: &FileRequest,
    ) -> Result<Response<Body>, Failure> {
        let is_unknown =
            refused.as_ref().is_ok_and(|response| response.status() == StatusCode::NOT_IMPLEMENTED);
        match self.send_by_length(path, request).await {
            Ok(response) if !response.status().is_server_error() => {
                if is_unknown {
                    self.supports_suffix_ranges.store(false, Ordering::Relaxed);
                }
                Ok(response)
            }
            _ => match refused {
                Ok(mut response) => {
                    response.extensions_mut().insert(Repeated);
                    Ok(response)
                }
                Err(failure) => Err(Failure::Repeated(failure.to_string())),
            },
        }
    }

    /// Queries the file's length first, and requests the range by its offsets. This is for ranges
    /// that the storage does not support.
    async fn send_by_length(
        &self,
        path: &FilePath,
        request: &FileRequest,
    ) -> Result<Response<Body>, Failure> {
        let answer =
            self.get(path, &FileRequest { head: true, range: None, ..request.clone() }).await?;
        let length = answer
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok());
        let (true, Some(complete)) = (answer.status().is_success(), length) else {
            return Ok(answer);
        };
        match request.range.and_then(|range| range.within(complete)) {
            Some((first, last)) => {
                let range = Some(ByteRange::Between(first, last));
                // The offsets are valid only for the file with this length.
                let only_if = answer.headers().get(ETAG).cloned();
                self.get(path, &FileRequest { range, only_if, ..request.clone() }).await
            }
            None => Ok(not_satisfiable(complete)),
        }
    }

    async fn get(&self, path: &FilePath, request: &FileRequest) -> Result<Response<Body>, Failure> {
        let location =
            object_store::path::Path::from_url_path(format!("{}{}", self.prefix, path.as_str()))
                .map_err(|error| Failure::Broken(error.to_string()))?;
        let slot = ResponseSlot::new(request.fresh);
        let mut options = GetOptions {
            head: request.head,
            range: request.range.map(get_range),
            ..GetOptions::default()
        };
        options.if_match =
            request.only_if.as_ref().and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        options.extensions.insert(slot.clone());
        let got = self.store.get_opts(&location, options).await;
        match (slot.take(), got) {
            (Some(fetched), _) => fetched.map(|answer| answer.map(Body::from)),
            // No request was sent, so there is no credential.
            (None, Err(error)) => {
                Err(Failure::Unreachable(format!("cannot get a credential: {}", innermost(&error))))
            }
            (None, Ok(_)) => Err(Failure::Broken("no request was sent to the storage".to_owned())),
        }
    }
}

/// Returns whether a status may mean that the storage does not support this suffix range.
fn may_lack_suffix_ranges(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::NOT_IMPLEMENTED
            | StatusCode::RANGE_NOT_SATISFIABLE
            | StatusCode::INTERNAL_SERVER_ERROR
    )
}

fn get_range(range: ByteRange) -> GetRange {
    match range {
        ByteRange::From(first) => GetRange::Offset(first),
        ByteRange::Between(first, last) if last >= MAX_LENGTH => GetRange::Offset(first),
        ByteRange::Between(first, last) => GetRange::Bounded(first..last.saturating_add(1)),
        ByteRange::Last(count) => GetRange::Suffix(count),
    }
}

/// Formats an error with all its causes.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut error = error;
    while let Some(source) = error.source() {
        text = format!("{text}: {source}");
        error = source;
    }
    text
}
