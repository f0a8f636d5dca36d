//! Reads `[otlp]`: which telemetry goes to an OpenTelemetry collector.

use std::time::Duration;

use http::HeaderName;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use toml::de::DeValue;

use super::limits::proxy_network;
use super::table::Table;
use super::values::{self, boolean, fraction, list, nonzero_duration};
use crate::loopback::is_loopback;
use crate::telemetry::OtlpSettings;

/// The shortest time between two exports of metrics, each of which renders all of them.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// The fields that the request has already.
const OWN_HEADERS: [HeaderName; 4] = [CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING];
/// The longest attribute of the resource, in bytes.
const MAX_ATTRIBUTE: usize = 1024;

pub(super) fn otlp(root: &mut Table<'_>) -> Option<OtlpSettings> {
    let mut table = root.table("otlp")?;
    if !cfg!(feature = "otlp") {
        let sentence = "this program was built without the feature otlp. Remove the table, or use \
                        a program that was built with it";
        table.mistake("endpoint", sentence);
    }
    let endpoint =
        table.required("endpoint", "endpoint = \"https://collector.example.no:4318\"", values::url);
    let mut headers = Vec::new();
    for mut entry in table.tables("headers") {
        let name = entry.required("name", "name = \"authorization\"", header_name);
        let value = entry.secret("value", "value = { file = \"certs/collector.key\" }");
        entry.finish();
        headers.extend(name.zip(value));
    }
    let source = table.source();
    let ca = table.optional("ca", |value| certificates(&source.path(&values::text(value)?)));
    let resource = table.table("resource").map_or_else(Vec::new, |table| table.all(attribute));
    let timeout = table.or("timeout", Duration::from_secs(10), nonzero_duration);
    let traces = table.or("traces", true, boolean);
    let metrics = table.or("metrics", true, boolean);
    let logs = table.or("logs", false, boolean);
    let sample = table.or("sample", 0.01, fraction);
    let trust_parent = table.or("trust_parent", Vec::new(), list(proxy_network));
    let interval = table.or("interval", Duration::from_secs(30), nonzero_duration);
    if interval < MIN_INTERVAL {
        table.mistake("interval", "it is shorter than 1 s. Write one like \"30s\"");
    }
    if endpoint.as_ref().is_some_and(|url| url.scheme() == "http" && !is_loopback(url)) {
        match headers.is_empty() {
            true => table.warn("endpoint", "telemetry travels in the clear. Write https://"),
            false => table.mistake(
                "endpoint",
                "the secret headers would be sent in the clear. Write https://",
            ),
        }
    }
    table.finish();
    Some(OtlpSettings {
        endpoint: endpoint?,
        headers,
        ca: ca.unwrap_or_default(),
        timeout,
        traces,
        metrics,
        logs,
        sample,
        trust_parent,
        interval,
        resource,
    })
}

fn header_name(value: &DeValue<'_>) -> Result<HeaderName, String> {
    let text = values::text(value)?;
    let name = HeaderName::try_from(text.as_str());
    name.ok().filter(|name| !OWN_HEADERS.contains(name)).ok_or_else(|| {
        format!("{text:?} is no header that can be added. Write one like \"authorization\"")
    })
}

fn certificates(file: &std::path::Path) -> Result<Vec<reqwest::Certificate>, String> {
    let shown = file.display();
    let text = std::fs::read(file)
        .map_err(|error| format!("the file {shown} cannot be read: {error}. Name another"))?;
    match reqwest::Certificate::from_pem_bundle(&text) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(format!("the file {shown} has no certificate in PEM. Name another")),
    }
}

fn attribute(value: &DeValue<'_>) -> Result<String, String> {
    let text = values::text(value)?;
    match text.len() {
        ..=MAX_ATTRIBUTE => Ok(text),
        _ => Err("the text is too long. Write at most 1024 bytes".to_owned()),
    }
}
