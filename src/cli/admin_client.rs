//! Asking the admin API of a running gate. The address and the token come from its configuration.

use std::path::PathBuf;

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use secrecy::ExposeSecret;
use serde_json::Value;

use super::CliError;

#[derive(Debug, clap::Args)]
pub(super) struct Where {
    /// The configuration of the running gate.
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
    /// Print what the API answers, as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// Calls `/api/v1/` and these segments; a refusal is told in the words of its problem document.
pub(super) async fn call(
    gate: &Where,
    method: Method,
    segments: &[&str],
    with: impl FnOnce(RequestBuilder) -> RequestBuilder,
) -> Result<Response, CliError> {
    let config = super::load(&gate.config)?;
    let scheme = if config.admin.tls { "https" } else { "http" };
    let mut url = url::Url::parse(&format!("{scheme}://{}/api/v1", config.admin.listen))
        .map_err(CliError::new)?;
    if let Ok(mut path) = url.path_segments_mut() {
        path.extend(segments);
    }
    let client = reqwest::Client::builder().no_proxy().build().map_err(CliError::new)?;
    let request = with(client.request(method, url)).bearer_auth(config.admin.token.expose_secret());
    let answer = request.send().await.map_err(|error| {
        let address = config.admin.listen;
        CliError::new(format!(
            "no gate answers at {address}: {}; is it running?",
            error.without_url()
        ))
    })?;
    if answer.status().is_success() {
        return Ok(answer);
    }
    let status = answer.status();
    let document: Value = answer.json().await.unwrap_or_default();
    let detail = document
        .get("detail")
        .and_then(Value::as_str)
        .map_or_else(|| status.to_string(), str::to_owned);
    if status == StatusCode::UNAUTHORIZED {
        // The token was sent, so that this is about its value, whatever program answered.
        let (file, address) = (gate.config.display(), config.admin.listen);
        return Err(CliError::new(format!(
            "the gate at {address} refuses the admin token of {file}: {detail} Check that the gate runs with this \
             configuration"
        )));
    }
    Err(CliError::new(detail))
}

pub(super) async fn read(answer: Response) -> Result<Value, CliError> {
    answer.json().await.map_err(|error| CliError::new(error.without_url()))
}
