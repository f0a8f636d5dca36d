//! What the provider publishes about itself (OpenID Connect Discovery §3).

use serde::Deserialize;
use url::Url;

use crate::loopback::is_loopback;

/// The metadata of the provider.
#[derive(Deserialize)]
pub(super) struct ProviderMetadata {
    issuer: String,
    pub(super) authorization_endpoint: Url,
    pub(super) token_endpoint: Url,
    pub(super) jwks_uri: Url,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    /// Whether each response names the issuer (RFC 9207).
    #[serde(default)]
    pub(super) authorization_response_iss_parameter_supported: bool,
}

impl ProviderMetadata {
    /// Checks that the metadata are the issuer's own, and that no secret is sent in the clear.
    pub(super) fn check(&self, issuer: &str) -> Result<(), String> {
        if self.issuer != issuer {
            return Err("the description is of another issuer than console.oidc.issuer".to_owned());
        }
        let may_be_plain = issuer.starts_with("http://");
        for url in [&self.authorization_endpoint, &self.token_endpoint, &self.jwks_uri] {
            let is_safe = match url.scheme() {
                "https" => true,
                "http" => may_be_plain && is_loopback(url),
                _ => false,
            };
            if !is_safe || !url.username().is_empty() || url.password().is_some() {
                return Err("an endpoint of the provider is not HTTPS".to_owned());
            }
        }
        Ok(())
    }

    /// Returns whether the client's secret is sent in the body; none if no method fits.
    pub(super) fn sends_secret_in_body(&self) -> Option<bool> {
        let Some(methods) = &self.token_endpoint_auth_methods_supported else {
            return Some(false); // OpenID Connect Discovery §3: the default
        };
        let has = |name: &str| methods.iter().any(|method| method == name);
        match (has("client_secret_basic"), has("client_secret_post")) {
            (true, _) => Some(false),
            (false, true) => Some(true),
            (false, false) => None,
        }
    }
}
