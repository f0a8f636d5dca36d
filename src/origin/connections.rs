//! Connections to an HTTP server, one worker's: for HTTP origins, and under object storages.

use std::time::Duration;

use bytes::Bytes;
use http::header::USER_AGENT;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::crypto::aws_lc_rs;

use super::reads::{Connector, MOST};

/// How long a connection is kept that nobody uses.
const KEPT: Duration = Duration::from_secs(30);

const OUR_NAME: HeaderValue = HeaderValue::from_static(concat!("loangate/", env!("CARGO_PKG_VERSION")));

#[derive(Clone, Debug)]
pub(super) struct Connections(Client<HttpsConnector<Connector>, Full<Bytes>>);

impl Connections {
    /// Connections, also under TLS where `secure`: only then are this machine's root certificates read.
    pub(super) fn new(connect_timeout: Duration, secure: bool) -> Result<Connections, String> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(connect_timeout));
        let provider = aws_lc_rs::default_provider();
        let builder = if secure {
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
        let connector = builder.https_or_http().enable_http1().wrap_connector(Connector(connector));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEPT)
            .http1_max_buf_size(MOST)
            .build(connector);
        Ok(Connections(client))
    }

    /// Once, and once more where a kept connection broke before an answer: for what changes nothing.
    pub(super) async fn ask(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
        request.headers_mut().insert(USER_AGENT, OUR_NAME);
        let again = request.clone();
        match self.0.request(request).await {
            Ok(response) => Ok(response),
            Err(error) if error.is_connect() => Err(innermost(&error)),
            Err(_) => self.0.request(again).await.map_err(|error| innermost(&error)),
        }
    }
}

/// The words of the innermost error, which say what happened.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
