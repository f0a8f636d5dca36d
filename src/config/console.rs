//! Reads `[console]`: the console's address, and sign-in by OpenID Connect.

use toml::de::DeValue;
use url::Url;

use super::table::Table;
use super::values::{confidential_url, list, text};
use crate::console::{OidcSettings, Role, Settings};

/// The most values that mean a role, and the most names of nested members.
const MAX_VALUES: usize = 100;

pub(super) fn console(root: &mut Table<'_>) -> Settings {
    let mut table = root.optional_table("console");
    let url = table.optional("url", address);
    let has_oidc = table.has("oidc");
    let oidc = oidc(&mut table);
    if has_oidc && url.is_none() && !table.has("url") {
        table.mistake(
            "oidc",
            "the provider must know where to send the browser back to. Write [console] url = \
             \"https://gate.example.no:9443\"",
        );
    }
    table.finish();
    Settings { url, oidc }
}

/// Reads the address at which browsers reach the console.
fn address(value: &DeValue<'_>) -> Result<Url, String> {
    let url = confidential_url(value)?;
    match url.path() {
        "/" => Ok(url),
        _ => {
            Err("the console has no path. Remove everything after the host and the port".to_owned())
        }
    }
}

fn oidc(console: &mut Table<'_>) -> Option<OidcSettings> {
    let mut table = console.table("oidc")?;
    let issuer = table.required("issuer", "issuer = \"https://login.example.no\"", issuer);
    let client_id = table.required("client_id", "the client_id that the provider gave you", text);
    let client_secret =
        table.secret("client_secret", "client_secret = { file = \"certs/oidc.secret\" }");
    let scopes = table.or("scopes", vec!["openid".into(), "profile".into()], list(text));
    if !scopes.iter().any(|scope| scope == "openid") {
        table.mistake("scopes", "without openid the provider sends no ID token. Add \"openid\"");
    }
    let role_claim = table.or("role_claim", vec!["roles".to_owned()], names);
    let roles = roles(&mut table);
    table.finish();
    Some(OidcSettings {
        issuer: issuer?,
        client_id: client_id?,
        client_secret: client_secret?,
        scopes: scopes.join(" "),
        role_claim,
        roles: roles?,
    })
}

/// Reads the issuer as the provider writes it: `https://a` and `https://a/` are different ones.
fn issuer(value: &DeValue<'_>) -> Result<String, String> {
    confidential_url(value)?;
    text(value)
}

/// Reads the name of a claim, or the names of nested members.
fn names(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let names = match value {
        DeValue::String(_) => vec![text(value)?],
        _ => list(text)(value)?,
    };
    match names.len() {
        1..=MAX_VALUES => Ok(names),
        _ => Err("this names no claim. Write \"roles\", or [\"realm_access\", \"roles\"]".into()),
    }
}

fn roles(oidc: &mut Table<'_>) -> Option<[(Role, Vec<String>); 3]> {
    let mut table = oidc.required_table("roles", "support = [\"loangate-support\"]")?;
    let mut values = |key| table.or(key, Vec::new(), list(text));
    // Of several roles of a person, the first one counts.
    let roles = [
        (Role::Operator, values("operator")),
        (Role::Support, values("support")),
        (Role::Auditor, values("auditor")),
    ];
    if roles.iter().all(|(_, values)| values.is_empty()) {
        table
            .mistake("support", "nobody would have a role. Write support = [\"loangate-support\"]");
    }
    table.finish();
    Some(roles)
}
