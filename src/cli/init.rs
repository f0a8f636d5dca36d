//! `loangate init`: writes a development configuration, with keys, a local CA and a certificate.
//!
//! It never overwrites a file and reports the files that it keeps. It creates files that belong
//! together as one group.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use data_encoding::BASE64URL_NOPAD;
use data_encoding::HEXLOWER;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ED25519,
};
use secrecy::ExposeSecret;

use super::CliError;
use crate::clock::Clock;
use crate::sandbox;

/// The development key's id in the key set.
pub(super) const KEY_ID: &str = "development";
/// The configuration to write: short, and set up for the sandbox.
const CONFIG: &str = include_str!("init.toml");
/// The lifetime of the certificate, in years.
const CERTIFICATE_YEARS: i16 = 1;

/// A file to create.
struct NewFile {
    name: &'static str,
    text: String,
    secret: bool,
}

/// Creates the missing files, and returns one line per file.
pub(super) fn run(dir: &Path) -> Result<Vec<String>, CliError> {
    let mut lines = keys(dir)?;
    let config = NewFile { name: "config.toml", text: CONFIG.to_owned(), secret: false };
    lines.extend(create_group(dir, &["config.toml"], || Ok(vec![config]))?);
    Ok(lines)
}

/// Creates the missing keys and certificates in `certs`.
pub(super) fn keys(dir: &Path) -> Result<Vec<String>, CliError> {
    let certs = dir.join("certs");
    fs::create_dir_all(&certs).map_err(|error| failed(&certs, &error))?;
    let mut lines =
        create_group(dir, &["certs/ca.pem", "certs/server.pem", "certs/server.key"], certificate)?;
    lines.extend(create_group(dir, &["certs/jwks.json", "certs/jwt.key"], token_key)?);
    for name in ["certs/admin.token", "certs/pseudonym.key", "certs/link.key", "certs/ticket.key"] {
        lines.extend(create_group(dir, &[name], || {
            Ok(vec![NewFile { name, text: random_hex()?, secret: true }])
        })?);
    }
    let name = "certs/lending.secret";
    let secret = || {
        let known = sandbox::Settings::default().client_secret;
        Ok(vec![NewFile { name, text: known.expose_secret().to_owned(), secret: true }])
    };
    lines.extend(create_group(dir, &[name], secret)?);
    Ok(lines)
}

/// Creates a group of files, unless all of them exist. Fails if only some exist.
fn create_group(
    dir: &Path,
    names: &[&str],
    make: impl FnOnce() -> Result<Vec<NewFile>, CliError>,
) -> Result<Vec<String>, CliError> {
    let (present, missing): (Vec<PathBuf>, Vec<PathBuf>) =
        names.iter().map(|name| dir.join(name)).partition(|file| file.exists());
    if missing.is_empty() {
        return Ok(present.iter().map(|file| format!("kept  {}", file.display())).collect());
    }
    if let (Some(present), Some(missing)) = (present.first(), missing.first()) {
        return Err(CliError::new(format!(
            "{} exists without {}, which belongs to it. Restore the missing file, or move this one \
             away",
            present.display(),
            missing.display()
        )));
    }
    make()?.iter().map(|made| write(dir, made)).collect()
}

fn write(dir: &Path, made: &NewFile) -> Result<String, CliError> {
    let file = dir.join(made.name);
    let mode = if made.secret { 0o600 } else { 0o644 };
    let mut opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&file)
        .map_err(|error| failed(&file, &error))?;
    opened.write_all(made.text.as_bytes()).map_err(|error| failed(&file, &error))?;
    Ok(format!("made  {}", file.display()))
}

fn failed(file: &Path, error: &std::io::Error) -> CliError {
    CliError::new(format!("{} cannot be created: {error}", file.display()))
}

/// Returns 256 random bits, in hex.
fn random_hex() -> Result<String, CliError> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| CliError::new("this machine cannot generate random numbers"))?;
    Ok(HEXLOWER.encode(&bytes))
}

/// Creates a certificate for this machine. The CA's key is discarded, so it can sign nothing else.
fn certificate() -> Result<Vec<NewFile>, CliError> {
    let today = jiff::tz::TimeZone::UTC.to_datetime(Clock::system().now()).date();
    let day = |years: i16| {
        let (month, day) = (today.month().unsigned_abs(), today.day().unsigned_abs().min(28));
        rcgen::date_time_ymd(i32::from(today.year() + years), month, day)
    };
    let params = |names: &[&str], common: &str| -> Result<CertificateParams, CliError> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).map_err(CliError::new)?;
        params.distinguished_name.push(DnType::CommonName, common);
        (params.not_before, params.not_after) = (day(0), day(CERTIFICATE_YEARS));
        Ok(params)
    };
    let mut ca = params(&[], "loangate development CA")?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().map_err(CliError::new)?)
        .map_err(CliError::new)?;
    let mut own = params(&["localhost", "127.0.0.1", "::1"], "localhost")?;
    own.use_authority_key_identifier_extension = true;
    own.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().map_err(CliError::new)?;
    let own = own.signed_by(&key, &ca).map_err(CliError::new)?;
    Ok(vec![
        NewFile { name: "certs/ca.pem", text: ca.pem(), secret: false },
        NewFile { name: "certs/server.pem", text: own.pem(), secret: false },
        NewFile { name: "certs/server.key", text: key.serialize_pem(), secret: true },
    ])
}

/// Creates the development key that signs readers' tokens, and the key set that verifies them.
fn token_key() -> Result<Vec<NewFile>, CliError> {
    let key = KeyPair::generate_for(&PKCS_ED25519).map_err(CliError::new)?;
    let jwks = serde_json::json!({ "keys": [{
        "kty": "OKP",
        "crv": "Ed25519",
        "alg": "EdDSA",
        "use": "sig",
        "kid": KEY_ID,
        "x": BASE64URL_NOPAD.encode(key.public_key_raw()),
    }] });
    Ok(vec![
        NewFile { name: "certs/jwks.json", text: format!("{jwks:#}\n"), secret: false },
        NewFile { name: "certs/jwt.key", text: key.serialize_pem(), secret: true },
    ])
}
