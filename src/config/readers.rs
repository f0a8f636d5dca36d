//! Reads `[readers]` and `[privacy]`: how readers authenticate, and the key of their pseudonyms.

use std::time::Duration;

use secrecy::SecretString;

use super::login_services::login_services;
use super::table::Table;
use super::values::{duration, long_enough, nonzero_duration, text};
use crate::reader::{JwtSettings, LinkKey, Settings};

/// The default maximum lifetime of a token or a link.
const DEFAULT_MAX_LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// How long an expired link continues a download: the default and the maximum. It serves apps that
/// resume in the background. A link that must open files for longer needs a longer lifetime.
const DEFAULT_RESUME_GRACE: Duration = Duration::from_secs(600);
const MAX_RESUME_GRACE: Duration = Duration::from_secs(86_400);
/// The default time from a loan's end until its borrower is erased.
const DEFAULT_RETENTION: Duration = Duration::from_secs(400 * 86_400);

/// How readers authenticate, and how long their loans stay linked to them.
#[derive(Debug)]
pub(super) struct ReaderTables {
    pub(super) readers: Option<Settings>,
    pub(super) retention: Duration,
}

/// Reads the tables of readers. `stored` is how long requests are stored with their readers.
pub(super) fn readers(root: &mut Table<'_>, stored: Duration) -> ReaderTables {
    let credentials = credentials(root);
    let max_lifetime =
        credentials.as_ref().map_or(DEFAULT_MAX_LIFETIME, |credentials| credentials.max_lifetime);
    let (pseudonym_key, retention) = privacy(root, max_lifetime, stored);
    let readers = credentials.zip(pseudonym_key).map(|(credentials, pseudonym_key)| Settings {
        issuers: credentials.issuers,
        link_keys: credentials.link_keys,
        resume_grace: credentials.resume_grace,
        max_lifetime,
        pseudonym_key,
    });
    ReaderTables { readers, retention }
}

struct Credentials {
    issuers: Vec<JwtSettings>,
    link_keys: Vec<LinkKey>,
    resume_grace: Duration,
    max_lifetime: Duration,
}

fn credentials(root: &mut Table<'_>) -> Option<Credentials> {
    let mut table = root.required_table("readers", "a table [readers.jwt] or [readers.links]")?;
    let has_tokens = table.has("jwt") || table.has("issuers");
    if !has_tokens && !table.has("links") {
        table.mistake(
            "jwt",
            "readers could not authenticate. Write [readers.jwt], [readers.links] or both",
        );
    }
    let issuers = login_services(&mut table);
    let (link_keys, resume_grace) = links(&mut table);
    let max_lifetime = table.or("max_lifetime", DEFAULT_MAX_LIFETIME, nonzero_duration);
    table.finish();
    Some(Credentials { issuers: issuers?, link_keys, resume_grace, max_lifetime })
}

/// Reads `[privacy]`: the pseudonym key, and how long after a loan's end its borrower is erased.
fn privacy(
    root: &mut Table<'_>,
    max_lifetime: Duration,
    stored: Duration,
) -> (Option<SecretString>, Duration) {
    const EXAMPLE: &str = "pseudonym_key = { file = \"certs/pseudonym.key\" }";
    let Some(mut table) = root.required_table("privacy", EXAMPLE) else {
        return (None, DEFAULT_RETENTION);
    };
    let key = key(&mut table, "pseudonym_key", EXAMPLE);
    let retention = table.or("retention", DEFAULT_RETENTION, nonzero_duration);
    // The grace of links does not count: during it a link cannot begin a loan.
    if retention <= max_lifetime {
        let days = max_lifetime.as_secs().div_ceil(86_400);
        let sentence = format!(
            "a token or a link may live for {days} days. An old one could begin a new loan once \
             its borrower is erased. Write a longer time here, or a shorter max_lifetime in \
             [readers]"
        );
        table.mistake("retention", sentence);
    }
    if retention <= stored {
        let sentence = "server.store_requests keeps the borrower of a request for longer. Write a \
             longer time here, or a shorter one there";
        table.mistake("retention", sentence);
    }
    table.finish();
    (key, retention)
}

/// Reads a key and checks its length.
fn key(table: &mut Table<'_>, name: &'static str, example: &str) -> Option<SecretString> {
    let key = table.secret(name, example)?;
    if let Err(sentence) = long_enough(&key) {
        table.mistake(name, sentence);
        return None;
    }
    Some(key)
}

/// Reads the keys of links, and the grace after a link's expiry.
fn links(readers: &mut Table<'_>) -> (Vec<LinkKey>, Duration) {
    let Some(mut table) = readers.table("links") else {
        return (Vec::new(), DEFAULT_RESUME_GRACE);
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
    let grace = table.or("resume_grace", DEFAULT_RESUME_GRACE, duration);
    if grace > MAX_RESUME_GRACE {
        table.mistake(
            "resume_grace",
            "it is longer than a day. Write a shorter time, and mint links that live longer",
        );
    }
    table.finish();
    (keys, grace)
}
