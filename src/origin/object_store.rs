//! An origin address in an object storage: S3 and compatible storages, Google Cloud Storage, Azure
//! Blob Storage.
//!
//! The crate `object_store` builds the requests: credentials, signatures, addresses. The HTTP
//! client below it is the gate's own. It intercepts each file's response before `object_store`
//! reads it. So all kinds of origins share one code path for bodies and resuming.

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use http::header::{CONTENT_LENGTH, ETAG};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{ClientOptions, GetOptions, GetRange, ObjectStore, RetryConfig};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::body::{Body, not_satisfiable};
use super::connection_limit::ConnectionLimits;
use super::connections::{Connections, innermost};
use super::exchange::{Failure, Incoming};
use super::file_request::{ByteRange, FileRequest};
use super::reachability::Outcome;
use super::{MAX_LENGTH, Settings, object_store_error};
use crate::buffer_budget::Buffers;
use crate::path::FilePath;

/// Marks a failed response for which a second request was already sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repeated;

/// A bucket, or a container as Azure calls it, and the path in it under which the files are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bucket {
    /// Name of the bucket or container.
    pub name: String,
    /// The path, without a slash at either end; empty for the root.
    pub prefix: String,
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.prefix)
    }
}

/// Access to a bucket of an S3-compatible storage.
#[derive(Clone, Debug)]
pub struct S3 {
    /// The region for which requests are signed.
    pub region: Option<String>,
    /// URL of the storage, if it is not Amazon's own.
    pub endpoint: Option<Url>,
    /// Whether the bucket is named in the path and not in the host.
    pub path_style: bool,
    /// ID and secret of the access key; without it, this machine's own credentials are used.
    pub keys: Option<(String, SecretString)>,
}

/// Access to a bucket of Google Cloud Storage.
#[derive(Clone, Debug)]
pub struct Google {
    /// Key of a service account as JSON; without it, this machine's own credentials are used.
    pub service_account: Option<SecretString>,
    /// URL of the storage, if it is not Google's own.
    pub endpoint: Option<Url>,
}

/// Access to a container of Azure Blob Storage.
#[derive(Clone, Debug)]
pub struct Azure {
    /// Name of the storage account.
    pub account: String,
    /// Key of the account; without it, this machine's own credentials are used.
    pub access_key: Option<SecretString>,
    /// URL of the storage, if it is not Azure's own.
    pub endpoint: Option<Url>,
}

#[derive(Debug)]
pub(super) struct Store {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    /// Whether the storage supports suffix ranges (the last bytes of a file). Azure Blob Storage
    /// does not. The others are assumed to, until a response shows that they do not.
    supports_suffix_ranges: AtomicBool,
}

impl Store {
    pub(super) fn s3(
        settings: &Settings,
        bucket: &Bucket,
        s3: &S3,
        shared: (&Buffers, &ConnectionLimits),
    ) -> Result<Store, String> {
        let mut builder = match &s3.keys {
            Some((id, secret)) => AmazonS3Builder::new()
                .with_access_key_id(id)
                .with_secret_access_key(secret.expose_secret()),
            None => AmazonS3Builder::from_env(),
        };
        builder = builder
            .with_bucket_name(&bucket.name)
            .with_virtual_hosted_style_request(!s3.path_style)
            .with_retry(retry(settings))
            .with_http_connector(connector(
                settings,
                s3.endpoint.as_ref(),
                s3.keys.is_some(),
                shared,
            )?);
        if let Some(region) = &s3.region {
            builder = builder.with_region(region);
        }
        if let Some(endpoint) = &s3.endpoint {
            builder =
                builder.with_endpoint(plain(endpoint)).with_allow_http(endpoint.scheme() == "http");
        }
        Store::new(builder.build(), bucket, true)
    }

    pub(super) fn google(
        settings: &Settings,
        bucket: &Bucket,
        google: &Google,
        shared: (&Buffers, &ConnectionLimits),
    ) -> Result<Store, String> {
        let known = google.service_account.as_ref();
        let mut builder = match known {
            Some(key) => {
                GoogleCloudStorageBuilder::new().with_service_account_key(key.expose_secret())
            }
            None => GoogleCloudStorageBuilder::from_env(),
        };
        builder = builder
            .with_bucket_name(&bucket.name)
            .with_retry(retry(settings))
            // An emulator over plain HTTP needs no Google login, so it needs no TLS.
            .with_http_connector(connector(settings, google.endpoint.as_ref(), true, shared)?);
        if let Some(endpoint) = &google.endpoint {
            builder = builder.with_base_url(&plain(endpoint));
        }
        Store::new(builder.build(), bucket, true)
    }

    pub(super) fn azure(
        settings: &Settings,
        bucket: &Bucket,
        azure: &Azure,
        shared: (&Buffers, &ConnectionLimits),
    ) -> Result<Store, String> {
        let mut builder = match &azure.access_key {
            Some(key) => MicrosoftAzureBuilder::new().with_access_key(key.expose_secret()),
            None => MicrosoftAzureBuilder::from_env(),
        };
        builder = builder
            .with_account(&azure.account)
            .with_container_name(&bucket.name)
            .with_retry(retry(settings))
            .with_http_connector(connector(
                settings,
                azure.endpoint.as_ref(),
                azure.access_key.is_some(),
                shared,
            )?);
        if let Some(endpoint) = &azure.endpoint {
            builder =
                builder.with_endpoint(plain(endpoint)).with_allow_http(endpoint.scheme() == "http");
        }
        Store::new(builder.build(), bucket, false)
    }

    fn new(
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
        let slot = ResponseSlot { fresh: request.fresh, ..ResponseSlot::default() };
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

fn plain(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

/// Disables retries in `object_store`, also for credentials: only `Origin` retries, in its budget.
fn retry(settings: &Settings) -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: settings.first_byte, ..RetryConfig::default() }
}

/// Creates the HTTP client. It needs no TLS if the endpoint is plain HTTP and keys are configured.
fn connector(
    settings: &Settings,
    endpoint: Option<&Url>,
    has_keys: bool,
    (buffers, limits): (&Buffers, &ConnectionLimits),
) -> Result<Connector, String> {
    let in_the_clear = has_keys && endpoint.is_some_and(|endpoint| endpoint.scheme() == "http");
    Ok(Connector(Connections::new(settings, !in_the_clear, buffers, limits)?))
}

/// A response, or why there is none.
type FetchResult = Result<Response<Incoming>, Failure>;

/// Receives a file's response, bypassing `object_store`.
#[derive(Clone, Default)]
struct ResponseSlot {
    answer: Arc<Mutex<Option<FetchResult>>>,
    /// Whether to use a new connection, as in [`FileRequest::fresh`].
    fresh: bool,
}

impl ResponseSlot {
    fn put(&self, answer: FetchResult) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
    }

    fn take(&self) -> Option<FetchResult> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The error that `object_store` gets in place of a response that was intercepted.
#[derive(Debug)]
struct Intercepted;

impl fmt::Display for Intercepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the response was intercepted")
    }
}

impl Error for Intercepted {}

/// A request for a credential that failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

#[derive(Clone, Debug)]
struct Connector(Connections);

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait::async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (mut head, body) = request.into_parts();
        let slot = head.extensions.remove::<ResponseSlot>();
        let body = body.collect().await?.to_bytes();
        let fresh = slot.as_ref().is_some_and(|slot| slot.fresh);
        let fetched = self.0.send(Request::from_parts(head, body), fresh).await;
        if let Some(slot) = slot {
            slot.put(fetched);
            return Err(HttpError::new(HttpErrorKind::Unknown, Intercepted));
        }
        let answer = fetched.map_err(|failure| {
            HttpError::new(HttpErrorKind::Connect, Failed(failure.to_string()))
        })?;
        let unreadable = |error| HttpError::new(HttpErrorKind::Interrupted, error);
        Ok(answer.map(|body: Incoming| HttpResponseBody::new(body.map_err(unreadable))))
    }
}
