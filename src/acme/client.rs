//! The HTTP client of the certificate authority.
//!
//! It sends requests only to the server of the configured directory, and by HTTPS: what the
//! authority answers may name other addresses. Requests and responses are bounded in size and time,
//! and no answer is followed to another place.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use serde_json::{Map, Value};
use url::Url;

use super::Settings;
use super::order::OrderFailure;
use crate::clock::Clock;
use crate::http_calls::{self, BodyError, innermost, read_body, retry_after};
use crate::lock::lock;

/// The deadline of a request, with its response.
const TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest response, in bytes.
const MAX_RESPONSE: usize = 256 * 1024;
/// The resources that a directory must name (RFC 8555 §7.1.1).
const RESOURCES: [&str; 3] = ["newNonce", "newAccount", "newOrder"];

/// Sends requests to one certificate authority. Clones share the last `Retry-After`.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    directory: Url,
    clock: Clock,
    retry_after: Arc<Mutex<Option<Duration>>>,
}

impl Client {
    /// Creates a client, with the roots that the settings name.
    pub(super) fn new(settings: &Settings, clock: Clock) -> Result<Client, OrderFailure> {
        let mut builder = http_calls::client()
            .https_only(true)
            .http1_only()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT);
        if let Some(file) = &settings.ca {
            builder = builder.tls_certs_only(roots(file)?);
        }
        let http = builder.build().map_err(|error| OrderFailure::new(innermost(&error)))?;
        let directory = settings.directory.clone();
        Ok(Client { http, directory, clock, retry_after: Arc::default() })
    }

    /// Returns how long the last response wants the next request to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        *lock(&self.retry_after)
    }

    /// Returns the URL of the directory.
    pub(super) fn directory(&self) -> &str {
        self.directory.as_str()
    }

    /// Sends a request, and reads the whole response.
    ///
    /// # Errors
    /// Why there is none that may be used, as a phrase.
    pub(super) async fn send(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Result<BytesResponse, String> {
        let (parts, body) = request.into_parts();
        let url = self.own_url(&parts.uri.to_string())?;
        let is_directory = url == self.directory;
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let sent = self.http.request(parts.method, url).headers(parts.headers).body(body);
        let mut response = sent.send().await.map_err(|error| innermost(&error))?;
        let body = read_body(&mut response, MAX_RESPONSE).await.map_err(|error| match error {
            BodyError::Failed(error) => innermost(&error),
            BodyError::TooLarge => "the response is larger than 256 KiB".to_owned(),
        })?;
        let (status, mut headers) = (response.status(), std::mem::take(response.headers_mut()));
        *lock(&self.retry_after) = retry_after(&headers, self.clock.now());
        // The library would add any number of seconds to the time, and panic.
        headers.remove(RETRY_AFTER);
        let is_problem = || serde_json::from_slice::<Map<String, Value>>(&body).is_ok();
        let is_refusal = (status.is_client_error() || status.is_server_error()) && is_problem();
        if !status.is_success() && !is_refusal {
            return Err(format!("it answers with the status {}", status.as_u16()));
        }
        if is_directory {
            self.check_resources(&body)?;
        }
        let mut response = Response::new(());
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        let (parts, ()) = response.into_parts();
        Ok(BytesResponse { parts, body: Box::new(Bytes::from(body)) })
    }

    /// Returns the URL, if it is one of the server of the directory.
    fn own_url(&self, text: &str) -> Result<Url, String> {
        let is_own = |url: &Url| {
            url.scheme() == "https"
                && url.origin() == self.directory.origin()
                && url.as_str().parse::<Uri>().is_ok()
        };
        let url = Url::parse(text).ok().filter(is_own);
        url.ok_or_else(|| format!("it names an address of another server, {text:?}"))
    }

    /// Checks the addresses of a directory. The library panics if that of nonces is no URL.
    fn check_resources(&self, body: &[u8]) -> Result<(), String> {
        let no_directory = || "the address is not that of an ACME directory".to_owned();
        let directory: Map<String, Value> =
            serde_json::from_slice(body).map_err(|_| no_directory())?;
        // Authorities add entries that are no resources, and may lead anywhere.
        RESOURCES.iter().try_for_each(|name| {
            let url = directory.get(*name).and_then(Value::as_str).ok_or_else(no_directory)?;
            self.own_url(url).map(drop)
        })
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.clone();
        Box::pin(async move { client.send(request).await.map_err(|why| Error::Other(why.into())) })
    }
}

/// Requests the directory of the authority, for `loangate check --online`.
///
/// # Errors
/// Why it cannot be used, as a phrase.
pub(crate) async fn check_directory(settings: &Settings) -> Result<(), String> {
    let client = Client::new(settings, Clock::system()).map_err(OrderFailure::into_why)?;
    let request = Request::get(settings.directory.as_str()).body(BodyWrapper::default());
    let request = request.map_err(|error| error.to_string())?;
    client.send(request).await.map(drop)
}

/// Checks the roots of the authority.
pub(super) fn check_roots(settings: &Settings) -> Result<(), String> {
    let read = settings.ca.as_deref().map(roots).transpose();
    read.map(drop).map_err(OrderFailure::into_why)
}

fn roots(file: &std::path::Path) -> Result<Vec<reqwest::Certificate>, OrderFailure> {
    let unusable = |why: String| OrderFailure::new(format!("{} {why}", file.display()));
    let pem = std::fs::read(file).map_err(|error| unusable(format!("cannot be read: {error}")))?;
    match reqwest::Certificate::from_pem_bundle(&pem) {
        Ok(roots) if !roots.is_empty() => Ok(roots),
        _ => Err(unusable("has no certificate in PEM".to_owned())),
    }
}
