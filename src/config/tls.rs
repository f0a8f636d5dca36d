//! Reads `[tls]`: the certificates, as files or ordered by ACME, and what TLS may use.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use http::Uri;
use rustls::CipherSuite;
use secrecy::SecretString;
use toml::de::DeValue;
use url::Url;

use super::table::Table;
use super::values::{self, boolean, list, one_of, text};
use crate::ledger::StoreSettings;
use crate::{acme, server};

/// The most names of an ordered certificate: authorities allow no more.
const MAX_NAMES: usize = 100;
/// The longest name, in bytes. DNS allows 253, but the name is also that of a file.
const MAX_NAME: usize = 240;
/// The longest label of a name, in bytes (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;
/// The directory of an ordered certificate, beside the ledger.
const DATA: &str = "acme";

/// The keys of `[tls]`.
#[derive(Debug)]
pub(super) struct Tls {
    pub(super) certificate: server::Certificate,
    pub(super) ordered: Option<server::OrderedCertificate>,
    pub(super) extra: Vec<server::Certificate>,
    pub(super) ticket_keys: Vec<SecretString>,
    pub(super) choice: server::TlsChoice,
    pub(super) acme: Option<acme::Settings>,
}

/// Reads the table. `ledger` is where the default of `tls.acme.data` is.
pub(super) fn tls(root: &mut Table<'_>, ledger: Option<&StoreSettings>) -> Option<Tls> {
    let mut table = root.required_table(
        "tls",
        "certificate = \"certs/server.pem\" and key = \"certs/server.key\"",
    )?;
    let is_ordered = table.has("acme");
    let acme = table.table("acme").and_then(|table| acme(table, ledger));
    let files = match is_ordered {
        false => certificate(&mut table),
        true => {
            for key in ["certificate", "key"] {
                if table.has(key) {
                    let sentence = "[tls.acme] orders the certificate. Remove certificate and key, \
                                    or remove that table";
                    table.mistake(key, sentence);
                }
            }
            acme.as_ref().map(ordered_files)
        }
    };
    let ticket_keys = table.keys("ticket_keys");
    let choice = choice(&mut table);
    if is_ordered && choice.is_possible() && !choice.is_possible_for_ecdsa() {
        let sentence = "[tls.acme] orders certificates with ECDSA keys, and none of them is for \
                        these. Add \"TLS_AES_256_GCM_SHA384\"";
        table.mistake("cipher_suites", sentence);
    }
    let mut extra = Vec::new();
    for mut table in table.tables("extra") {
        extra.extend(certificate(&mut table));
        table.finish();
    }
    table.finish();
    let ordered = acme.as_ref().map(|settings| server::OrderedCertificate {
        names: settings.names.clone(),
        challenges: acme::Settings::challenges(&settings.data),
    });
    Some(Tls { certificate: files?, ordered, extra, ticket_keys, choice, acme })
}

/// Reads what differs in the TLS of the admin listener.
pub(super) fn admin_tls(table: &mut Table<'_>) -> server::AdminTls {
    let is_own = table.has("certificate") || table.has("key");
    let certificate = is_own.then(|| certificate(table)).flatten();
    let source = table.source();
    let client_ca = table.optional("client_ca", |value| Ok(source.path(&text(value)?)));
    server::AdminTls { certificate, client_ca }
}

fn certificate(table: &mut Table<'_>) -> Option<server::Certificate> {
    let certificate = table.path("certificate", "certificate = \"certs/server.pem\"");
    let key = table.path("key", "key = \"certs/server.key\"");
    Some(server::Certificate { certificate: certificate?, key: key? })
}

/// Returns the file of the ordered certificate, which also has its key.
fn ordered_files(settings: &acme::Settings) -> server::Certificate {
    let file = settings.certificate_file();
    server::Certificate { certificate: file.clone(), key: file }
}

/// Reads which versions and cipher suites clients may use.
fn choice(table: &mut Table<'_>) -> server::TlsChoice {
    use server::MinimumTlsVersion::{Tls12, Tls13};
    let minimum_version =
        table.or("minimum_version", Tls12, one_of(&[("1.2", Tls12), ("1.3", Tls13)]));
    let suite = |value: &DeValue<'_>| -> Result<CipherSuite, String> {
        server::TlsChoice::parse_suite(&text(value)?)
    };
    let cipher_suites = table.or("cipher_suites", Vec::new(), list(suite));
    let choice = server::TlsChoice { minimum_version, cipher_suites };
    if !choice.is_possible() {
        let sentence = "none of them is one of TLS 1.3, which minimum_version demands. Add \
                        \"TLS_AES_256_GCM_SHA384\"";
        table.mistake("cipher_suites", sentence);
    }
    choice
}

/// Reads `[tls.acme]`.
fn acme(mut table: Table<'_>, ledger: Option<&StoreSettings>) -> Option<acme::Settings> {
    const DIRECTORY: &str = "directory = \"https://acme-v02.api.letsencrypt.org/directory\"";
    const NAMES: &str = "names = [\"files.example.no\"]";
    let directory = table.required("directory", DIRECTORY, directory_url);
    let names = table.required("names", NAMES, list(dns_name));
    if let Some(names) = &names {
        check_names(&mut table, names);
    }
    let contact = table.or("contact", Vec::new(), list(contact));
    if !table.or("terms_agreed", false, boolean) {
        let sentence = "the authority issues certificates only to those who agree to its terms. \
                        Read them, and write terms_agreed = true";
        table.mistake("terms_agreed", sentence);
    }
    let source = table.source();
    let path = |value: &DeValue<'_>| Ok(source.path(&text(value)?));
    let data = table.optional("data", path);
    let ca = table.optional("ca", path);
    let external_account = external_account(&mut table);
    table.finish();
    Some(acme::Settings {
        directory: directory?,
        names: names?,
        contact,
        data: data.unwrap_or_else(|| beside(ledger)),
        ca,
        external_account,
    })
}

/// Returns the directory beside the ledger.
fn beside(ledger: Option<&StoreSettings>) -> PathBuf {
    let file = match ledger {
        Some(StoreSettings::Sqlite(file)) => file,
        Some(StoreSettings::Postgres(settings)) => &settings.heads,
        None => return PathBuf::from(DATA),
    };
    file.parent().unwrap_or(Path::new("")).join(DATA)
}

fn external_account(table: &mut Table<'_>) -> Option<acme::ExternalAccount> {
    let key_id = table.optional("eab_key_id", text);
    let hmac_key = table.optional_secret("eab_hmac_key");
    if table.has("eab_key_id") != table.has("eab_hmac_key") {
        let sentence = "the authority gives a key id and a key. Write eab_key_id and eab_hmac_key, \
                        or none of them";
        table.mistake("eab_key_id", sentence);
    }
    Some(acme::ExternalAccount { key_id: key_id?, hmac_key: hmac_key? })
}

fn directory_url(value: &DeValue<'_>) -> Result<Url, String> {
    let url = values::url(value)?;
    if url.scheme() != "https" || url.as_str().parse::<Uri>().is_err() {
        return Err(
            "ACME needs HTTPS. Write the directory URL of the authority, which starts with \
                    https://"
                .to_owned(),
        );
    }
    Ok(url)
}

fn check_names(table: &mut Table<'_>, names: &[String]) {
    if names.is_empty() || names.len() > MAX_NAMES {
        let count = names.len();
        let sentence = format!("this has {count} names. Write 1 to {MAX_NAMES}");
        return table.mistake("names", sentence);
    }
    let repeated = names
        .iter()
        .enumerate()
        .find(|(number, name)| names.iter().take(*number).any(|earlier| earlier == *name));
    if let Some((_, name)) = repeated {
        table.mistake("names", format!("{name:?} is there twice. Remove one of the two"));
    }
}

/// Reads a DNS name that can be validated by a connection to it.
fn dns_name(value: &DeValue<'_>) -> Result<String, String> {
    let name = text(value)?.to_ascii_lowercase();
    if name.starts_with("*.") {
        return Err(format!(
            "{name:?} is a wildcard, which no authority validates by a connection. Write each name"
        ));
    }
    if name.len() > MAX_NAME {
        return Err(format!("a name has {MAX_NAME} bytes at most, this has {}", name.len()));
    }
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(is_letter)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_name = name.split('.').all(is_label);
    match is_name && name.parse::<IpAddr>().is_err() {
        true => Ok(name),
        false => Err(format!(
            "{name:?} is not a DNS name. Write one like \"files.example.no\", and letters such as \
             ø in the form xn--…"
        )),
    }
}

/// Reads a mail address, with or without `mailto:`.
fn contact(value: &DeValue<'_>) -> Result<String, String> {
    let text = text(value)?;
    let address = text.strip_prefix("mailto:").unwrap_or(&text);
    let is_printable = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b',' | b'?');
    match address.split_once('@') {
        Some((user, host))
            if !user.is_empty() && !host.is_empty() && address.bytes().all(is_printable) =>
        {
            Ok(format!("mailto:{address}"))
        }
        _ => Err(format!("{text:?} is not a mail address. Write one like \"drift@example.no\"")),
    }
}
