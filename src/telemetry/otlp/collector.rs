//! The HTTP client of the collector. It trusts nothing that the collector answers.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use prost::Message;
use secrecy::ExposeSecret;
use url::Url;

use super::super::{LogLimit, Metrics, OtlpSettings, Signal, SignalOutcome};
use crate::http_calls::{self, BodyError, innermost, read_body};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The most bytes of a response that are read.
const MAX_RESPONSE: usize = 16 * 1024;

static FAILURES: LogLimit = LogLimit::per_minute();

/// The collector.
#[derive(Debug)]
pub(super) struct Collector {
    client: reqwest::Client,
    endpoint: Url,
    metrics: Metrics,
}

impl Collector {
    pub(super) fn new(settings: &OtlpSettings, metrics: Metrics) -> Result<Collector, String> {
        let mut headers = HeaderMap::new();
        for (name, secret) in &settings.headers {
            let value = HeaderValue::try_from(secret.expose_secret());
            let mut value = value.map_err(|_| format!("its header {name} has no valid value"))?;
            value.set_sensitive(true);
            headers.insert(name.clone(), value);
        }
        let mut client = http_calls::client()
            .http1_only()
            .connect_timeout(CONNECT_TIMEOUT.min(settings.timeout))
            .timeout(settings.timeout)
            .pool_max_idle_per_host(1)
            .default_headers(headers);
        if !settings.ca.is_empty() {
            client = client.tls_certs_only(settings.ca.iter().cloned());
        }
        let client = client.build().map_err(|error| innermost(&error))?;
        Ok(Collector { client, endpoint: settings.endpoint.clone(), metrics })
    }

    /// Sends a message once, and counts what became of the `count` items in it.
    pub(super) async fn export(&self, signal: Signal, count: u64, message: &impl Message) {
        match self.send(signal, message.encode_to_vec()).await {
            Ok(rejected) => {
                let rejected = rejected.min(count);
                self.metrics.otlp(signal, SignalOutcome::Exported, count - rejected);
                if rejected > 0 {
                    self.metrics.otlp(signal, SignalOutcome::Rejected, rejected);
                }
            }
            Err(why) => {
                self.metrics.otlp(signal, SignalOutcome::Failed, count);
                if let Some(suppressed) = FAILURES.permit(signal.name()) {
                    let signal = signal.name();
                    tracing::warn!(signal, why, suppressed, "cannot export telemetry");
                }
            }
        }
    }

    /// Returns how many items the collector refuses.
    async fn send(&self, signal: Signal, body: Vec<u8>) -> Result<u64, String> {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["v1", signal.name()]);
        }
        let request = self.client.post(url).header(CONTENT_TYPE, "application/x-protobuf");
        let response = request.body(body).send().await;
        let mut response = response.map_err(|error| innermost(&error.without_url()))?;
        if response.status() != StatusCode::OK {
            return Err(format!("the collector answered {}", response.status()));
        }
        let body = read_body(&mut response, MAX_RESPONSE).await.map_err(|error| match error {
            BodyError::Failed(error) => innermost(&error.without_url()),
            BodyError::TooLarge => "the response of the collector is too large".to_owned(),
        })?;
        // The three responses have the same fields, apart from their names.
        let response = ExportTraceServiceResponse::decode(body.as_slice()).unwrap_or_default();
        let rejected = response.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(u64::try_from(rejected).unwrap_or(0))
    }
}
