//! A client of the admin API of a running gate. The configuration has the address and the token.

use std::path::PathBuf;

use reqwest::header::HeaderValue;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use secrecy::ExposeSecret;
use serde_json::Value;

use super::CliError;
use super::client_tls::ClientTls;
use crate::config::reachable;
use crate::http_calls::innermost;

#[derive(Debug, clap::Args)]
pub(super) struct GateArgs {
    /// Configuration of the running gate.
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
    /// Print the API's response as JSON.
    #[arg(long)]
    pub(super) json: bool,
    /// Why you ask, for the access trail.
    #[arg(long, value_parser = access_reason)]
    why: Option<HeaderValue>,
    #[command(flatten)]
    tls: ClientTls,
}

fn access_reason(text: &str) -> Result<HeaderValue, &'static str> {
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| "a reason has no control characters")
}

impl GateArgs {
    /// Creates the arguments of a command that has no `--json`.
    pub(super) fn of(config: PathBuf, tls: ClientTls) -> GateArgs {
        GateArgs { config, json: false, why: None, tls }
    }
}

/// Calls the path `/api/v1/` plus `segments`. Errors carry the detail of the problem document.
pub(super) async fn call(
    gate: &GateArgs,
    method: Method,
    segments: &[&str],
    with: impl FnOnce(RequestBuilder) -> RequestBuilder,
) -> Result<Response, CliError> {
    let config = super::load(&gate.config)?;
    let scheme = if config.admin.tls { "https" } else { "http" };
    let address = reachable(config.admin.listen);
    let mut url =
        url::Url::parse(&format!("{scheme}://{address}/api/v1")).map_err(CliError::new)?;
    if let Ok(mut path) = url.path_segments_mut() {
        path.extend(segments);
    }
    if config.server.admin.client_ca.is_some() && !gate.tls.has_certificate() {
        return Err(CliError::new(
            "the gate accepts only operators with a certificate (admin.client_ca). Add \
             --client-cert and --client-key",
        ));
    }
    let client = gate.tls.apply(reqwest::Client::builder().no_proxy())?;
    let client = client.build().map_err(CliError::new)?;
    let mut request =
        with(client.request(method, url)).bearer_auth(config.admin.token.expose_secret());
    if let Some(why) = &gate.why {
        request = request.header("access-reason", why);
    }
    let response = request.send().await.map_err(|error| {
        CliError::new(format!(
            "no gate answers at {address}: {}; is it running?",
            innermost(&error)
        ))
    })?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let document: Value = response.json().await.unwrap_or_default();
    let detail = document
        .get("detail")
        .and_then(Value::as_str)
        .map_or_else(|| status.to_string(), str::to_owned);
    if status == StatusCode::UNAUTHORIZED {
        // The client sent a token, so it must have the wrong value, whatever program responded.
        let file = gate.config.display();
        return Err(CliError::new(format!(
            "the gate at {address} refuses the admin token of {file}: {detail} Check that the gate \
             runs with this configuration"
        )));
    }
    let mistakes = document.get("mistakes").and_then(Value::as_array).into_iter().flatten();
    Err(CliError::all(std::iter::once(detail).chain(mistakes.map(mistake))))
}

/// Formats a mistake in a configuration as `loangate check` does.
fn mistake(mistake: &Value) -> String {
    let text = |name| mistake.get(name).and_then(Value::as_str).unwrap_or_default();
    let line = mistake.get("line").and_then(Value::as_u64).unwrap_or_default();
    let (file, key, sentence) = (text("file"), text("key"), text("sentence"));
    let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
    match line {
        0 => format!("{file}: {key}{sentence}"),
        line => format!("{file}:{line}: {key}{sentence}"),
    }
}

pub(super) async fn read(response: Response) -> Result<Value, CliError> {
    response.json().await.map_err(|error| CliError::new(error.without_url()))
}
