//! The keys of `[otlp]`.

use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;
use url::Url;

/// Which telemetry is exported, and where to.
#[derive(Clone, Debug)]
pub struct OtlpSettings {
    /// The base URL of the collector, to which `v1/traces` and so on are added.
    pub endpoint: Url,
    /// More fields of each request, such as a key of the collector.
    pub headers: Vec<(http::HeaderName, SecretString)>,
    /// The only certificates that may sign that of the collector; empty for those of the machine.
    pub ca: Vec<reqwest::Certificate>,
    /// The deadline of one export, with its response.
    pub timeout: Duration,
    /// Whether traces are exported.
    pub traces: bool,
    /// Whether metrics are exported.
    pub metrics: bool,
    /// Whether log lines are exported.
    pub logs: bool,
    /// The share of requests whose traces are exported, from 0 to 1.
    pub sample: f64,
    /// The networks of clients that decide for their own requests whether they are sampled.
    pub trust_parent: Vec<IpNet>,
    /// How often metrics are exported.
    pub interval: Duration,
    /// Attributes of this gate, beyond or in place of those that it has.
    pub resource: Vec<(String, String)>,
}

impl OtlpSettings {
    /// Returns whether requests to origins and Bokbasen name their trace.
    pub fn propagates(&self) -> bool {
        self.traces
    }
}
