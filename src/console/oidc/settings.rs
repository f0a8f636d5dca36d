//! The keys of `[console]`.

use secrecy::SecretString;
use url::Url;

use super::super::session::Role;

/// The keys of `[console]`.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The address at which browsers reach the console, without a path.
    pub(crate) url: Option<Url>,
    /// Sign-in by OpenID Connect; none if only the admin token signs in.
    pub(crate) oidc: Option<OidcSettings>,
}

impl Settings {
    /// Returns the host of the console's address, as in the field Host.
    pub(crate) fn host(&self) -> Option<String> {
        self.url.as_ref()?.host_str().map(str::to_ascii_lowercase)
    }
}

/// The keys of `[console.oidc]`.
#[derive(Clone, Debug)]
pub(crate) struct OidcSettings {
    /// The provider's name for itself, exactly as in its tokens.
    pub(crate) issuer: String,
    /// The id that the provider gave the console.
    pub(crate) client_id: String,
    /// The secret that the provider gave the console.
    pub(crate) client_secret: SecretString,
    /// The scopes to request, with `openid`.
    pub(crate) scopes: String,
    /// The claim with the roles, as the names of nested members.
    pub(crate) role_claim: Vec<String>,
    /// The values of the claim that mean each role. Of several roles, the first one counts.
    pub(crate) roles: [(Role, Vec<String>); 3],
}
