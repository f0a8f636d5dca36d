//! Reads one TOML value: returns it parsed, or a sentence that says what to write.
//!
//! `table` calls these functions.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use secrecy::{ExposeSecret, SecretString};
use toml::de::DeValue;
use url::Url;

use super::source::Source;
use crate::loopback::is_loopback;

/// Returns the name of a value's type, for use in a sentence.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn string<'v>(value: &'v DeValue<'_>, example: &str) -> Result<&'v str, String> {
    match value {
        DeValue::String(text) => Ok(text),
        other => Err(format!("this is {}. Write a string like {example}", kind(other))),
    }
}

/// Reads a string that is not empty.
pub(super) fn text(value: &DeValue<'_>) -> Result<String, String> {
    match string(value, "\"…\"")? {
        "" => Err("the text is empty. Write one, or remove the key".to_owned()),
        text => Ok(text.to_owned()),
    }
}

pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    match value {
        DeValue::Boolean(value) => Ok(*value),
        other => Err(format!("this is {}. Write true or false, without quotes", kind(other))),
    }
}

/// Reads an integer from `least` to `most`, inclusive.
pub(super) fn number(least: u64, most: u64) -> impl FnOnce(&DeValue<'_>) -> Result<u64, String> {
    move |value| match value {
        DeValue::Integer(written) => u64::from_str_radix(written.as_str(), written.radix())
            .ok()
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| {
                format!("{written} is out of bounds. Write a number from {least} to {most}")
            }),
        other => Err(format!("this is {}. Write a number from {least} to {most}", kind(other))),
    }
}

/// Reads a share, from 0 to 1. A variable of the environment has it as text.
pub(super) fn fraction(value: &DeValue<'_>) -> Result<f64, String> {
    const EXAMPLE: &str = "0.01";
    let text = match value {
        DeValue::Float(written) => written.as_str(),
        DeValue::Integer(written) => written.as_str(),
        DeValue::String(text) => text.as_ref(),
        other => return Err(format!("this is {}. Write a share like {EXAMPLE}", kind(other))),
    };
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("{text} is no share. Write a number from 0 to 1, like {EXAMPLE}"))
}

/// Reads a duration such as `"15s"`, which may be zero.
pub(super) fn duration(value: &DeValue<'_>) -> Result<Duration, String> {
    const EXAMPLE: &str = "\"15s\", \"10m\" or \"400d\"";
    let text = string(value, EXAMPLE)?;
    humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is not a duration. Write one like {EXAMPLE}"))
}

/// Reads a duration longer than zero.
pub(super) fn nonzero_duration(value: &DeValue<'_>) -> Result<Duration, String> {
    match duration(value)? {
        Duration::ZERO => {
            Err("it must be longer than zero. Write a duration like \"15s\"".to_owned())
        }
        duration => Ok(duration),
    }
}

/// Reads a size in bytes.
pub(super) fn size(value: &DeValue<'_>) -> Result<u64, String> {
    const EXAMPLE: &str = "\"64KiB\" or \"256MiB\"";
    let text = string(value, EXAMPLE)?;
    let size = ByteSize::from_str(text);
    size.map(|size| size.as_u64())
        .map_err(|_| format!("{text:?} is not a size. Write one like {EXAMPLE}"))
}

/// Reads an address to listen on.
pub(super) fn address(value: &DeValue<'_>) -> Result<SocketAddr, String> {
    const EXAMPLE: &str = "\"0.0.0.0:8443\" or \"[::1]:9443\"";
    let text = string(value, EXAMPLE)?;
    text.parse()
        .map_err(|_| format!("{text:?} is not an address with a port. Write one like {EXAMPLE}"))
}

/// Reads one of several words.
pub(super) fn one_of<T: Copy>(choices: &[(&str, T)]) -> impl Fn(&DeValue<'_>) -> Result<T, String> {
    move |value| {
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
        let words = words.join(" or ");
        let text = match value {
            DeValue::String(text) => text.as_ref(),
            other => return Err(format!("this is {}. Write {words}", kind(other))),
        };
        let chosen = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        chosen.ok_or_else(|| format!("{text:?} is not known. Write {words}"))
    }
}

/// Reads a list whose entries have one type.
pub(super) fn list<T>(
    read: impl Fn(&DeValue<'_>) -> Result<T, String>,
) -> impl Fn(&DeValue<'_>) -> Result<Vec<T>, String> {
    move |value| match value {
        DeValue::Array(list) => list.iter().map(|entry| read(entry.get_ref())).collect(),
        other => Err(format!("this is {}. Write a list: [ … ]", kind(other))),
    }
}

/// Reads the URL of an HTTP service, without user, query or fragment.
pub(super) fn url(value: &DeValue<'_>) -> Result<Url, String> {
    const EXAMPLE: &str = "\"https://files.example.no/\"";
    let text = string(value, EXAMPLE)?;
    let url = Url::parse(text)
        .map_err(|error| format!("{text:?} is not a URL: {error}. Write one like {EXAMPLE}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        let scheme = url.scheme();
        return Err(format!(
            "this version does not support {scheme}. Write a URL that starts with https:// \
             or http://"
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL must not contain a user or a password. Remove them".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("this URL cannot have a query or a fragment. Remove everything from ? or # on"
            .to_owned());
    }
    Ok(url)
}

/// Reads a URL to which secrets are sent: HTTPS, or HTTP on loopback.
pub(super) fn confidential_url(value: &DeValue<'_>) -> Result<Url, String> {
    let url = url(value)?;
    if url.scheme() == "http" && !is_loopback(&url) {
        return Err("a secret would be sent in the clear. Write https://".to_owned());
    }
    Ok(url)
}

/// Reads a URL whose answers must be genuine: HTTPS, or HTTP on loopback.
pub(super) fn authentic_url(value: &DeValue<'_>) -> Result<Url, String> {
    let url = url(value)?;
    if url.scheme() == "http" && !is_loopback(&url) {
        return Err("without TLS, others could send keys of their own. Write https://".to_owned());
    }
    Ok(url)
}

/// A secret, with the place that it was read from.
pub(super) enum Secret {
    Environment(SecretString),
    File(SecretString, PathBuf),
    /// The text in the configuration itself.
    Literal(SecretString),
}

impl Secret {
    pub(super) fn inner(&self) -> &SecretString {
        match self {
            Secret::Environment(secret) | Secret::File(secret, _) | Secret::Literal(secret) => {
                secret
            }
        }
    }
}

/// The minimum length of a key, in bytes.
const MIN_KEY_BYTES: usize = 32;

/// Checks that a key is long enough to resist guessing.
pub(super) fn long_enough(key: &SecretString) -> Result<(), String> {
    match key.expose_secret().len() {
        MIN_KEY_BYTES.. => Ok(()),
        length => Err(format!(
            "the key has {length} bytes and needs {MIN_KEY_BYTES}. Make one with \
             `openssl rand -hex 32`"
        )),
    }
}

/// Whether a secret starts or ends with white space, which an editor or a shell may have added.
pub(super) fn has_outer_whitespace(secret: &SecretString) -> bool {
    secret.expose_secret().trim().len() != secret.expose_secret().len()
}

/// Reads a secret from its file, the environment or the value. Error sentences never contain it.
pub(super) fn secret(value: &DeValue<'_>, source: &Source<'_>) -> Result<Secret, String> {
    const FORM: &str = "{ file = \"certs/…\" } or { env = \"NAME\" }";
    match value {
        DeValue::String(text) if text.is_empty() => {
            Err(format!("the secret is empty. Write {FORM}"))
        }
        DeValue::String(text) => Ok(Secret::Literal(text.as_ref().into())),
        DeValue::Table(table) => {
            let mut entries = table.iter();
            let (Some((key, value)), None) = (entries.next(), entries.next()) else {
                return Err(format!("a secret needs exactly one source. Write {FORM}"));
            };
            let name = text(value.get_ref())?;
            match key.get_ref().as_ref() {
                "file" => from_file(source.path(&name)),
                "env" => from_environment(&name),
                other => Err(format!("a secret cannot come from {other:?}. Write {FORM}")),
            }
        }
        other => Err(format!("this is {}. Write {FORM}", kind(other))),
    }
}

fn from_file(file: PathBuf) -> Result<Secret, String> {
    let shown = file.display();
    let text = std::fs::read_to_string(&file).map_err(|error| {
        format!(
            "the file {shown} cannot be read: {error}. Create it, or name another; \
             `loangate init` creates keys for development"
        )
    })?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(format!("the file {shown} is empty. Write the secret into it")),
        secret => Ok(Secret::File(secret.into(), file)),
    }
}

fn from_environment(name: &str) -> Result<Secret, String> {
    match std::env::var(name) {
        Ok(secret) if !secret.is_empty() => Ok(Secret::Environment(secret.into())),
        Ok(_) | Err(_) => {
            Err(format!("the environment has no {name}, or it is empty. Set it before the start"))
        }
    }
}
