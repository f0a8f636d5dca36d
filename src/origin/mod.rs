//! Where the files are: HTTP and HTTPS origins.
//!
//! Delivery calls it and nobody else; it calls nothing of ours but the vocabulary. It sends the few fields
//! that delivery names and no field of the reader's, and gives back an answer whose head has come and whose
//! body has not been read. Each worker has connections of its own.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::crypto::aws_lc_rs;
use url::Url;

use crate::path::FilePath;
use crate::problem::Problem;
use crate::telemetry::Metrics;

/// How much of an answer is read at once, at most; hyper grows up to it while the reader takes all it gets.
const READ_BUFFER: usize = 256 * 1024;
/// How long a connection is kept that nobody uses.
const KEPT: Duration = Duration::from_secs(30);

/// One `[[origins]]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name by which routes call it.
    pub name: String,
    /// Its address; paths are added to it.
    pub url: Url,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long the head of an answer may take.
    pub first_byte: Duration,
    /// How long a body may stand still on the origin's side.
    pub idle: Duration,
    /// How often in a row a body that broke is asked for again without a byte of it coming; 0 is never.
    pub resumes: u32,
    /// How long a file's size, type and validator are believed.
    pub metadata_ttl: Duration,
}

/// Why there is no way to an origin.
#[derive(Debug, thiserror::Error)]
#[error("origin {name} cannot be used: {why}")]
pub struct SetUpError {
    name: String,
    why: String,
}

/// Why an origin gave no answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OriginError {
    /// It could not be reached, or broke off.
    Failed,
    /// It took too long.
    TimedOut,
}

impl From<OriginError> for Problem {
    fn from(error: OriginError) -> Problem {
        match error {
            OriginError::Failed => Problem::OriginFailed,
            OriginError::TimedOut => Problem::OriginTimeout,
        }
    }
}

/// One origin, with one worker's connections to it.
#[derive(Clone, Debug)]
pub struct Origin {
    settings: Settings,
    base: Box<str>,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    metrics: Metrics,
}

impl Origin {
    /// A way to an origin; nothing is sent yet.
    ///
    /// # Errors
    /// Where the address cannot be a base, or this machine's root certificates cannot be read.
    pub fn new(settings: &Settings, metrics: Metrics) -> Result<Origin, SetUpError> {
        let mut base = settings.url.as_str().trim_end_matches('/').to_owned();
        base.push('/');
        let client = client(settings).map_err(|why| SetUpError { name: settings.name.clone(), why })?;
        Ok(Origin { settings: settings.clone(), base: base.into(), client, metrics })
    }

    /// The same origin, with connections of its own.
    ///
    /// # Errors
    /// As [`Origin::new`].
    pub fn for_worker(&self) -> Result<Origin, SetUpError> {
        Origin::new(&self.settings, self.metrics.clone())
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Asks for a file, and gives the answer as soon as its head is there, whatever its status.
    ///
    /// # Errors
    /// [`OriginError`]; the reason is logged here, since no reader may see it.
    pub async fn fetch(
        &self,
        method: &Method,
        path: &FilePath,
        fields: &HeaderMap,
    ) -> Result<Response<Incoming>, OriginError> {
        let began = Instant::now();
        let asking = tokio::time::timeout(self.settings.first_byte, self.ask(method, path, fields));
        let result = match asking.await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(why)) => {
                tracing::warn!(origin = self.settings.name, why, "an origin failed");
                Err(OriginError::Failed)
            }
            Err(_) => {
                tracing::warn!(origin = self.settings.name, "an origin did not answer in time");
                Err(OriginError::TimedOut)
            }
        };
        let outcome = match &result {
            Ok(response) => status_class(response.status()),
            Err(OriginError::Failed) => "failed",
            Err(OriginError::TimedOut) => "timed_out",
        };
        self.metrics.origin_request(&self.settings.name, outcome, began.elapsed());
        result
    }

    /// Once, and once more where a kept connection broke before an answer: what is asked changes nothing.
    async fn ask(
        &self,
        method: &Method,
        path: &FilePath,
        fields: &HeaderMap,
    ) -> Result<Response<Incoming>, String> {
        match self.client.request(self.request(method, path, fields)?).await {
            Ok(response) => Ok(response),
            Err(error) if error.is_connect() => Err(innermost(&error)),
            Err(_) => {
                let again = self.client.request(self.request(method, path, fields)?).await;
                again.map_err(|error| innermost(&error))
            }
        }
    }

    fn request(
        &self,
        method: &Method,
        path: &FilePath,
        fields: &HeaderMap,
    ) -> Result<Request<Empty<Bytes>>, String> {
        let mut address = String::with_capacity(self.base.len() + path.as_str().len());
        address.push_str(&self.base);
        address.push_str(path.as_str());
        let mut request = Request::new(Empty::new());
        *request.method_mut() = method.clone();
        *request.uri_mut() = Uri::try_from(address).map_err(|error| error.to_string())?;
        let sent = request.headers_mut();
        sent.clone_from(fields);
        sent.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        sent.insert(USER_AGENT, HeaderValue::from_static(concat!("loangate/", env!("CARGO_PKG_VERSION"))));
        Ok(request)
    }
}

fn client(settings: &Settings) -> Result<Client<HttpsConnector<HttpConnector>, Empty<Bytes>>, String> {
    if !matches!(settings.url.scheme(), "http" | "https") || settings.url.cannot_be_a_base() {
        return Err("its url must start with http:// or https://".to_owned());
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(settings.connect_timeout));
    let provider = aws_lc_rs::default_provider();
    let builder = if settings.url.scheme() == "https" {
        HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(provider)
            .map_err(|error| error.to_string())?
    } else {
        let config = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let nobody = rustls::RootCertStore::empty();
        HttpsConnectorBuilder::new()
            .with_tls_config(config.with_root_certificates(nobody).with_no_client_auth())
    };
    let connector = builder.https_or_http().enable_http1().wrap_connector(connector);
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(KEPT)
        .http1_max_buf_size(READ_BUFFER)
        .build(connector))
}

fn status_class(status: http::StatusCode) -> &'static str {
    match status.as_u16() {
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        _ => "5xx",
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
