//! The tables `[readers]` and `[privacy]`: who readers are, and under which key they become pseudonyms.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::service;
use super::table::Table;
use super::values::{duration, list, one_of, text};
use crate::reader::{Algorithm, JwtSettings, LinkKey, Settings};

/// The shortest key, in bytes.
const KEY: usize = 32;

pub(super) fn readers(root: &mut Table<'_>) -> Option<Settings> {
    let pseudonym_key = privacy(root);
    let mut table = root.required_table("readers", "a table [readers.jwt] or [readers.links]")?;
    let (has_jwt, has_links) = (table.has("jwt"), table.has("links"));
    if !has_jwt && !has_links {
        table.mistake("jwt", "nobody could be told apart. Write [readers.jwt], [readers.links] or both");
    }
    let jwt = jwt(&mut table);
    let link_keys = links(&mut table);
    table.finish();
    if has_jwt && jwt.is_none() {
        return None;
    }
    Some(Settings { jwt, link_keys, pseudonym_key: pseudonym_key? })
}

fn privacy(root: &mut Table<'_>) -> Option<SecretString> {
    const EXAMPLE: &str = "pseudonym_key = { file = \"certs/pseudonym.key\" }";
    let mut table = root.required_table("privacy", EXAMPLE)?;
    let key = key(&mut table, "pseudonym_key", EXAMPLE);
    service::retention(&mut table);
    table.finish();
    key
}

/// A key that is long enough.
fn key(table: &mut Table<'_>, name: &'static str, example: &str) -> Option<SecretString> {
    let key = table.secret(name, example)?;
    let length = key.expose_secret().len();
    if length < KEY {
        let sentence =
            format!("the key has {length} bytes and needs {KEY}. Make one with `openssl rand -hex 32`");
        table.mistake(name, sentence);
        return None;
    }
    Some(key)
}

fn jwt(readers: &mut Table<'_>) -> Option<JwtSettings> {
    let mut table = readers.table("jwt")?;
    let jwks = if table.has("jwks_url") {
        table.mistake("jwks_url", "this version reads keys from a file. Write jwks = \"certs/jwks.json\"");
        let _ = table.has("jwks");
        None
    } else {
        table.path("jwks", "jwks = \"certs/jwks.json\"")
    };
    let algorithm =
        one_of(&[("EdDSA", Algorithm::EdDSA), ("ES256", Algorithm::ES256), ("RS256", Algorithm::RS256)]);
    let algorithms = table.required("algorithms", "algorithms = [\"EdDSA\"]", list(algorithm));
    if algorithms.as_ref().is_some_and(Vec::is_empty) {
        table.mistake("algorithms", "without an algorithm no token is good. Write [\"EdDSA\"]");
    }
    let issuer = table.required("issuer", "issuer = \"https://login.example.no\"", text);
    let audience = table.required("audience", "audience = \"loangate\"", text);
    let mut claims = table.optional_table("claims");
    let library_claim = claims.or("library", "library".to_owned(), text);
    let borrower_claim = claims.or("borrower", "sub".to_owned(), text);
    claims.finish();
    table.finish();
    Some(JwtSettings {
        jwks: jwks?,
        algorithms: algorithms?,
        issuer: issuer?,
        audience: audience?,
        library_claim,
        borrower_claim,
    })
}

fn links(readers: &mut Table<'_>) -> Vec<LinkKey> {
    let Some(mut table) = readers.table("links") else {
        return Vec::new();
    };
    let mut keys: Vec<LinkKey> = Vec::new();
    for mut entry in table.tables("keys") {
        let id = entry.required("id", "id = \"k1\"", text);
        let secret = key(&mut entry, "secret", "secret = { file = \"certs/link.key\" }");
        if id.as_ref().is_some_and(|id| keys.iter().any(|key| key.id == *id)) {
            entry.mistake("id", "another key has this id. Give each its own");
        }
        entry.finish();
        keys.extend(id.zip(secret).map(|(id, secret)| LinkKey { id, secret }));
    }
    if !table.has("keys") {
        let _: Option<()> = table.required(
            "keys",
            "keys = [{ id = \"k1\", secret = { file = \"certs/link.key\" } }]",
            |_| Ok(()),
        );
    }
    table.later("resume_grace", Duration::from_secs(600), duration);
    table.finish();
    keys
}
