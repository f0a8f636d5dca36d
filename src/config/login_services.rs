//! Reads the login services whose tokens readers have: `[readers.jwt]`, the form for one, or
//! `[[readers.issuers]]`.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::de::DeValue;
use url::Url;

use super::table::Table;
use super::values::{authentic_url, duration, list, one_of, text};
use crate::loan::LibraryId;
use crate::loopback::is_loopback;
use crate::reader::{Algorithm, JwtSettings, KeySource, LibraryRule, metadata_url};

/// The most login services: each has a task and connections of its own.
const MAX_SERVICES: usize = 50;
/// How long stale keys are used: the default, and the bounds. With less than the least, each fetch
/// that is a little late would refuse readers.
const DEFAULT_KEEP_KEYS: Duration = Duration::from_secs(86_400);
const MIN_KEEP_KEYS: Duration = Duration::from_secs(60);
const MAX_KEEP_KEYS: Duration = Duration::from_secs(30 * 86_400);
/// The group of borrower ids of links, and of `[readers.jwt]` unless it says otherwise.
const DEFAULT_GROUP: &str = "default";
/// The longest name of a group, in bytes.
const MAX_GROUP: usize = 64;

/// Reads the login services; none if one of them has a mistake.
pub(super) fn login_services(readers: &mut Table<'_>) -> Option<Vec<JwtSettings>> {
    if !readers.has("issuers") {
        let has_jwt = readers.has("jwt");
        let service = readers.table("jwt").and_then(|table| login_service(table, false));
        return (!has_jwt || service.is_some()).then(|| service.into_iter().collect());
    }
    if readers.has("jwt") {
        let sentence = "[readers.jwt] is the form for one login service. Move it into \
                        [[readers.issuers]], with borrowers = \"default\"";
        readers.mistake("jwt", sentence);
        // Its own mistakes are reported, too.
        let _ = readers.table("jwt").and_then(|table| login_service(table, false));
    }
    let entries = readers.tables("issuers");
    let count = entries.len();
    if count == 0 || count > MAX_SERVICES {
        let sentence = format!("this has {count} login services. Write 1 to {MAX_SERVICES}");
        readers.mistake("issuers", sentence);
    }
    let mut services: Vec<JwtSettings> = Vec::new();
    for mut table in entries {
        let issuer = table.optional("issuer", text);
        let is_known = |issuer| services.iter().any(|service| service.issuer == issuer);
        if issuer.is_some_and(is_known) {
            let sentence = "another entry has this issuer. A token's issuer chooses its entry, so \
                            write one entry for each";
            table.mistake("issuer", sentence);
        }
        services.extend(login_service(table, true));
    }
    (services.len() == count).then_some(services)
}

/// Reads one login service. Of several, each must name its group of borrower ids.
fn login_service(mut table: Table<'_>, is_one_of_several: bool) -> Option<JwtSettings> {
    let issuer = table.required("issuer", "issuer = \"https://login.example.no\"", text);
    let keys = key_source(&mut table, issuer.as_deref());
    let keep_keys = table.or("keep_keys", DEFAULT_KEEP_KEYS, keep_keys);
    let algorithm = one_of(&[
        ("EdDSA", Algorithm::EdDSA),
        ("ES256", Algorithm::ES256),
        ("RS256", Algorithm::RS256),
    ]);
    let algorithms = table.required("algorithms", "algorithms = [\"EdDSA\"]", list(algorithm));
    if algorithms.as_ref().is_some_and(Vec::is_empty) {
        table.mistake("algorithms", "without an algorithm, no token is valid. Write [\"EdDSA\"]");
    }
    let audience = table.required("audience", "audience = \"loangate\"", text);
    let (library, borrower_claim) = claims(&mut table);
    const EXAMPLE: &str = "borrowers = \"default\" for the login service that was in \
         [readers.jwt], so that its borrowers stay who they are, and a new name for each other \
         one, so that the same id at two of them is two persons";
    let borrowers = match is_one_of_several {
        true => table.required("borrowers", EXAMPLE, group),
        false => Some(table.or("borrowers", DEFAULT_GROUP.to_owned(), group)),
    };
    table.finish();
    Some(JwtSettings {
        keys: keys?,
        keep_keys,
        algorithms: algorithms?,
        issuer: issuer?,
        audience: audience?,
        library: library?,
        borrower_claim,
        borrower_group: Some(borrowers?).filter(|name| name != DEFAULT_GROUP),
    })
}

/// Reads where the keys are: in a file, at an address, or where the issuer publishes it.
fn key_source(table: &mut Table<'_>, issuer: Option<&str>) -> Option<KeySource> {
    let (has_file, has_url) = (table.has("jwks"), table.has("jwks_url"));
    if has_file && has_url {
        table.mistake("jwks_url", "jwks names a file with the keys already. Remove one of the two");
    }
    if has_file {
        return Some(KeySource::File(table.path("jwks", "jwks = \"certs/jwks.json\"")?));
    }
    if has_url {
        return table.optional("jwks_url", authentic_url).map(KeySource::Url);
    }
    if !issuer.is_some_and(publishes_keys) {
        if issuer.is_some() {
            let sentence = "it is no https:// address, at which the keys could be found. Write \
                            such an address, or jwks_url or jwks";
            table.mistake("issuer", sentence);
        }
        return None;
    }
    Some(KeySource::Discovery)
}

/// Whether discovery can find the keys of an issuer: it is HTTPS, or HTTP on loopback.
fn publishes_keys(issuer: &str) -> bool {
    let Ok(url) = Url::parse(issuer) else { return false };
    let is_genuine = url.scheme() == "https" || url.scheme() == "http" && is_loopback(&url);
    let is_plain = url.query().is_none() && url.fragment().is_none();
    let has_user = !url.username().is_empty() || url.password().is_some();
    is_genuine && is_plain && !has_user && metadata_url(issuer).is_ok()
}

fn keep_keys(value: &DeValue<'_>) -> Result<Duration, String> {
    match duration(value)? {
        keep if (MIN_KEEP_KEYS..=MAX_KEEP_KEYS).contains(&keep) => Ok(keep),
        _ => Err("it is out of bounds. Write a time from \"1m\" to \"30d\"".to_owned()),
    }
}

/// Reads the name of a group of borrower ids.
fn group(value: &DeValue<'_>) -> Result<String, String> {
    let name = text(value)?;
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match name.len() <= MAX_GROUP && name.bytes().all(is_allowed) {
        true => Ok(name),
        false => Err(format!(
            "{name:?} is no name. Write up to {MAX_GROUP} of a-z, 0-9 and -, such as \"feide\""
        )),
    }
}

/// Reads how the library is known, and the claim with the borrower's id.
fn claims(table: &mut Table<'_>) -> (Option<LibraryRule>, String) {
    let fixed = table.optional("library", library);
    let has_fixed = table.has("library");
    let values = libraries(table);
    let has_values = table.has("libraries");
    let mut claims = table.optional_table("claims");
    let claim = claims.or("library", "library".to_owned(), text);
    if has_fixed && claims.has("library") {
        let sentence = "library names the library of every token already. Remove one of the two";
        claims.mistake("library", sentence);
    }
    let borrower = claims.or("borrower", "sub".to_owned(), text);
    claims.finish();
    if has_fixed && has_values {
        let sentence = "library names the library of every token already. Remove one of the two";
        table.mistake("libraries", sentence);
    }
    let rule = match (has_fixed, has_values) {
        (true, _) => fixed.map(LibraryRule::Fixed),
        (false, true) => values.map(|values| LibraryRule::Table(claim, values)),
        (false, false) => Some(LibraryRule::Claim(claim)),
    };
    (rule, borrower)
}

/// Reads the library of each value of the claim.
fn libraries(table: &mut Table<'_>) -> Option<BTreeMap<String, LibraryId>> {
    let values: BTreeMap<_, _> = table.table("libraries")?.all(library).into_iter().collect();
    if values.is_empty() {
        let sentence = "without a library, no token is valid. Write { \"oslo\" = \"NO-0301000\" }";
        table.mistake("libraries", sentence);
    }
    Some(values)
}

fn library(value: &DeValue<'_>) -> Result<LibraryId, String> {
    let isil = text(value)?;
    isil.parse().map_err(|_| format!("{isil:?} is no ISIL. Write one like \"NO-0301000\""))
}
