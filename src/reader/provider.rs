//! Fetches the public keys of a login service, by its `jwks_url` or by OpenID Connect Discovery.
//!
//! `key_refresh` calls it in the background, and `loangate check --online` once. Nothing that a
//! response says leads to another issuer, to an address without TLS, or to more memory or time than
//! the constants here allow.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use reqwest::Client;
use serde::Deserialize;
use tokio::time::timeout;
use url::Url;

use super::jwks::{self, VerifyKey};
use super::key_lifetime::key_lifetime;
use super::provider_http::{ResponseError, send};
use crate::loopback::is_loopback;

/// The deadline of a fetch, with all its requests.
const DEADLINE: Duration = Duration::from_secs(10);

/// The keys of a login service.
pub(super) struct Fetched {
    pub(super) keys: Vec<VerifyKey>,
    /// How long they need not be fetched again.
    pub(super) fresh_for: Duration,
}

/// Why the keys were not fetched, as a phrase.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum FetchError {
    /// The login service cannot be reached, does not answer in time, or answers with an error.
    Failed(String),
    /// Its answer cannot be used.
    Invalid(String),
}

impl FetchError {
    pub(super) fn why(&self) -> &str {
        match self {
            FetchError::Failed(why) | FetchError::Invalid(why) => why,
        }
    }
}

impl From<ResponseError> for FetchError {
    fn from(error: ResponseError) -> FetchError {
        match error {
            ResponseError::Failed(why) => FetchError::Failed(why),
            too_large @ ResponseError::TooLarge => FetchError::Invalid(too_large.why()),
        }
    }
}

/// What a provider publishes about itself (OpenID Connect Discovery §3).
#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    jwks_uri: Url,
}

/// Fetches the keys of an issuer. Without `jwks_url`, discovery finds their address.
pub(super) async fn fetch(
    client: &Client,
    issuer: &str,
    jwks_url: Option<&Url>,
) -> Result<Fetched, FetchError> {
    let fetching = async {
        let url = match jwks_url {
            Some(url) => url.clone(),
            None => discover(client, issuer).await?,
        };
        let (head, body) = get(client, url).await?;
        let keys = jwks::parse_response(&body).map_err(FetchError::Invalid)?;
        Ok(Fetched { keys, fresh_for: key_lifetime(&head) })
    };
    timeout(DEADLINE, fetching).await.unwrap_or_else(|_| {
        Err(FetchError::Failed(format!("no answer within {} s", DEADLINE.as_secs())))
    })
}

/// Returns the address of an issuer's metadata (OpenID Connect Discovery §4.1).
pub(crate) fn metadata_url(issuer: &str) -> Result<Url, url::ParseError> {
    let issuer = issuer.strip_suffix('/').unwrap_or(issuer);
    Url::parse(&format!("{issuer}/.well-known/openid-configuration"))
}

async fn discover(client: &Client, issuer: &str) -> Result<Url, FetchError> {
    let invalid = |why: &str| FetchError::Invalid(why.to_owned());
    let url = metadata_url(issuer).map_err(|_| invalid("the issuer is not an address"))?;
    let may_be_plain = url.scheme() == "http" && is_loopback(&url);
    let (_, body) = get(client, url).await?;
    let metadata: Metadata = serde_json::from_slice(&body)
        .map_err(|_| invalid("its metadata are not those of OpenID Connect"))?;
    if metadata.issuer != issuer {
        return Err(invalid("its metadata are of another issuer"));
    }
    let keys = metadata.jwks_uri;
    let is_safe = match keys.scheme() {
        "https" => true,
        "http" => may_be_plain && is_loopback(&keys),
        _ => false,
    };
    if !is_safe || !keys.username().is_empty() || keys.password().is_some() {
        return Err(invalid("its jwks_uri is not HTTPS"));
    }
    Ok(keys)
}

async fn get(client: &Client, url: Url) -> Result<(HeaderMap, Vec<u8>), FetchError> {
    let (status, head, body) = send(client.get(url)).await?;
    match status {
        StatusCode::OK => Ok((head, body)),
        status => Err(FetchError::Failed(format!("it answered {status}"))),
    }
}
