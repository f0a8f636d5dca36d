//! The server's certificates: loading, validation, selection by SNI, and reload.
//!
//! `app` calls it at the start and on a reload. rustls provides TLS 1.2 and 1.3 with
//! aws-lc-rs. Early data is disabled, since a replayed request could begin a loan.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use super::session_tickets::{TicketKeys, Tickets};
use super::{Certificate, Settings};
use crate::clock::{self, Clock};
use crate::reload::Reload;

/// How long before its expiry a certificate is reported.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 86_400);

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read, or is not PEM.
    #[error("{file} cannot be read as PEM: {why}")]
    File {
        /// The file that cannot be read.
        file: PathBuf,
        /// The reason, as part of a sentence.
        why: String,
    },
    /// The key is encrypted with a passphrase, which the gate does not support.
    #[error(
        "{key} is encrypted with a passphrase, and the gate has none. Remove it: \
         openssl pkey -in {key} -out NEW.key && chmod 600 NEW.key, and name NEW.key here"
    )]
    Encrypted {
        /// The file of the private key.
        key: PathBuf,
    },
    /// The key does not belong to the certificate.
    #[error(
        "{key} is not the key of {certificate}. These two commands must print the same: \
         openssl x509 -in {certificate} -noout -pubkey and openssl pkey -in {key} -pubout. \
         In a chain the server's own certificate is the first"
    )]
    OtherKey {
        /// The file of the certificate chain.
        certificate: PathBuf,
        /// The file of the private key.
        key: PathBuf,
    },
    /// The certificate and the key cannot be used together for another reason.
    #[error("{certificate} and {key} cannot be used together: {why}")]
    Unusable {
        /// The file of the certificate chain.
        certificate: PathBuf,
        /// The file of the private key.
        key: PathBuf,
        /// The reason, as part of a sentence.
        why: String,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    SetUp(#[from] rustls::Error),
}

/// The certificates in use, and the TLS configuration that selects among them.
#[derive(Debug)]
pub struct Certificates {
    resolver: Arc<Resolver>,
    tickets: Arc<Tickets>,
    config: Arc<ServerConfig>,
}

impl Certificates {
    /// Loads all certificates of the settings.
    ///
    /// # Errors
    /// [`TlsError`], for the first certificate that cannot be used.
    pub fn load(settings: &Settings, clock: Clock) -> Result<Certificates, TlsError> {
        let resolver = Arc::new(Resolver { names: ArcSwap::from_pointee(load_all(settings)?) });
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
                .with_no_client_auth()
                .with_cert_resolver(resolver.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // The client's cipher order counts: it knows which ciphers are fast on its device.
        let tickets = Arc::new(Tickets::new(&settings.ticket_keys, clock)?);
        config.ticketer = tickets.clone();
        Ok(Certificates { resolver, tickets, config: Arc::new(config) })
    }

    /// Loads one certificate and its key without using them, and returns the validity period.
    ///
    /// # Errors
    /// [`TlsError`], if they cannot be used.
    pub fn try_load(files: &Certificate) -> Result<Validity, TlsError> {
        load(files).map(|loaded| loaded.validity)
    }

    /// Returns the certificates in use that are invalid at `now` or expire soon, with their files.
    pub fn date_problems(&self, now: Timestamp) -> Vec<(PathBuf, DateProblem)> {
        let loaded_certificates = self.resolver.names.load();
        loaded_certificates
            .iter()
            .filter_map(|loaded| Some((loaded.file.clone(), loaded.validity.problem(now)?)))
            .collect()
    }

    /// The first name of the default certificate, which readers may connect to.
    pub fn name(&self) -> Option<String> {
        self.resolver.names.load().first()?.names.first().cloned()
    }

    /// The TLS configuration, which offers both HTTP versions by ALPN.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }
}

/// Certificates and ticket keys that are validated but not in use.
pub(crate) struct LoadedKeys {
    certificates: Vec<LoadedCertificate>,
    ticket_keys: TicketKeys,
}

/// New connections use the reloaded certificates and ticket keys.
impl Reload for Certificates {
    type Settings = Settings;
    type Version = LoadedKeys;
    type Error = TlsError;

    const KEPT: &str = "the certificates were not reloaded; the old ones stay";

    fn validate(&self, settings: &Settings) -> Result<LoadedKeys, Vec<TlsError>> {
        let certificates = load_all(settings).map_err(|error| vec![error])?;
        let ticket_keys = self.tickets.derive(&settings.ticket_keys);
        let ticket_keys = ticket_keys.map_err(|error| vec![error.into()])?;
        Ok(LoadedKeys { certificates, ticket_keys })
    }

    fn apply(&self, loaded: LoadedKeys) {
        self.tickets.replace(loaded.ticket_keys);
        self.resolver.names.store(Arc::new(loaded.certificates));
        tracing::info!("the certificates and the ticket keys were reloaded");
    }
}

/// The validity period of a certificate, both ends included (RFC 5280 §4.1.2.5).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Validity {
    from: Timestamp,
    until: Timestamp,
}

/// A problem with the validity period of a certificate. Its text ends with what to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DateProblem {
    /// The certificate has expired, and clients refuse it.
    #[error(
        "the certificate expired at {0}, so that clients refuse the connection. Renew it; \
         a running gate loads it on SIGHUP"
    )]
    Expired(Timestamp),
    /// The certificate is not valid yet, and clients refuse it.
    #[error(
        "the certificate is not valid before {0}, so that clients refuse the connection. \
         Check this machine's clock, or use the previous certificate until then"
    )]
    NotYetValid(Timestamp),
    /// The certificate expires within 14 days.
    #[error("the certificate expires at {0}. Renew it before; a running gate loads it on SIGHUP")]
    ExpiresSoon(Timestamp),
}

impl DateProblem {
    /// Whether clients refuse the certificate now.
    pub fn is_fatal(self) -> bool {
        !matches!(self, DateProblem::ExpiresSoon(_))
    }

    /// The name of the problem in logs.
    pub fn name(self) -> &'static str {
        match self {
            DateProblem::Expired(_) => "expired",
            DateProblem::NotYetValid(_) => "not_yet_valid",
            DateProblem::ExpiresSoon(_) => "expires_soon",
        }
    }
}

impl Validity {
    /// Reads the validity period of the server's own certificate. An expired intermediate is not
    /// checked: clients may build another chain, as with cross-signed roots.
    fn of(own: &CertificateDer<'_>) -> Result<Validity, String> {
        let (_, parsed) = X509Certificate::from_der(own).map_err(|error| error.to_string())?;
        let moment = |at: ASN1Time| {
            Timestamp::from_second(at.timestamp()).map_err(|error| error.to_string())
        };
        Ok(Validity {
            from: moment(parsed.validity.not_before)?,
            until: moment(parsed.validity.not_after)?,
        })
    }

    /// Returns the problem at `now`, or the expiry within 14 days after it.
    pub fn problem(self, now: Timestamp) -> Option<DateProblem> {
        if now > self.until {
            Some(DateProblem::Expired(self.until))
        } else if now < self.from {
            Some(DateProblem::NotYetValid(self.from))
        } else if clock::after(now, EXPIRES_SOON) > self.until {
            Some(DateProblem::ExpiresSoon(self.until))
        } else {
            None
        }
    }
}

/// A certificate with the names that it covers.
#[derive(Debug)]
struct LoadedCertificate {
    /// The certificate's file, for logs.
    file: PathBuf,
    validity: Validity,
    names: Vec<String>,
    certified: Arc<CertifiedKey>,
}

#[derive(Debug)]
struct Resolver {
    /// The certificates in order. The first is the default.
    names: ArcSwap<Vec<LoadedCertificate>>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let loaded_certificates = self.names.load();
        let requested = hello.server_name();
        let by_name = requested.and_then(|requested| {
            loaded_certificates.iter().find(|loaded| loaded.covers(requested))
        });
        by_name.or_else(|| loaded_certificates.first()).map(|loaded| loaded.certified.clone())
    }
}

impl LoadedCertificate {
    /// Whether the certificate covers this name. A wildcard matches exactly one label (RFC 9525
    /// §6.3).
    fn covers(&self, requested: &str) -> bool {
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(domain) => {
                requested.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain))
            }
            None => name.eq_ignore_ascii_case(requested),
        })
    }
}

fn load_all(settings: &Settings) -> Result<Vec<LoadedCertificate>, TlsError> {
    std::iter::once(&settings.certificate).chain(&settings.extra).map(load).collect()
}

fn load(files: &Certificate) -> Result<LoadedCertificate, TlsError> {
    let unreadable = |file: &PathBuf, why: String| TlsError::File { file: file.clone(), why };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect)
        .map_err(|error| {
            let why = match error {
                pem::Error::Io(error) => error.to_string(),
                error => error.to_string(),
            };
            unreadable(&files.certificate, why)
        })?;
    let Some(own) = chain.first() else {
        return Err(unreadable(
            &files.certificate,
            describe_missing_item(&files.certificate, "certificate"),
        ));
    };
    let names = dns_names_of(own).map_err(|why| unreadable(&files.certificate, why))?;
    let validity = Validity::of(own).map_err(|why| unreadable(&files.certificate, why))?;
    let key = read_key(&files.key)?;
    let (certificate, key_file) = (files.certificate.clone(), files.key.clone());
    let certified =
        CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(|error| {
            match error {
                rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch) => {
                    TlsError::OtherKey { certificate, key: key_file }
                }
                error => TlsError::Unusable { certificate, key: key_file, why: error.to_string() },
            }
        })?;
    Ok(LoadedCertificate {
        file: files.certificate.clone(),
        validity,
        names,
        certified: Arc::new(certified),
    })
}

/// Reads a private key in PKCS#1, PKCS#8 or SEC1.
fn read_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let unreadable = |why: String| TlsError::File { file: file.to_owned(), why };
    let text = std::fs::read(file).map_err(|error| unreadable(error.to_string()))?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        if is_encrypted(&text) {
            return TlsError::Encrypted { key: file.to_owned() };
        }
        unreadable(match error {
            pem::Error::NoItemsFound => describe_missing_item(file, "private key"),
            error => error.to_string(),
        })
    })
}

/// Describes a file without the expected PEM item, with what it contains instead if that is known.
fn describe_missing_item(file: &Path, wanted: &str) -> String {
    let text = std::fs::read(file).unwrap_or_default();
    let contains = |words: &[u8]| text.windows(words.len()).any(|window| window == words);
    // DER starts with a sequence whose length takes two bytes.
    let has = if text.starts_with(&[0x30, 0x82]) {
        "it is binary, DER or PKCS#12; convert it with openssl x509, pkey or pkcs12"
    } else if contains(b" PRIVATE KEY-----") {
        "it has a private key; are certificate and key exchanged?"
    } else if contains(b"-----BEGIN CERTIFICATE-----") {
        "it has a certificate; are certificate and key exchanged?"
    } else {
        return format!("there is no {wanted} in it");
    };
    format!("there is no {wanted} in it: {has}")
}

/// Whether a PEM file contains an encrypted key. PKCS#8 marks it in the label, PKCS#1 and SEC1 in a
/// header of RFC 1421.
fn is_encrypted(pem: &[u8]) -> bool {
    pem.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).any(|line| {
        line == b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
            || (line.starts_with(b"Proc-Type:") && line.ends_with(b"ENCRYPTED"))
    })
}

fn dns_names_of(own: &CertificateDer<'_>) -> Result<Vec<String>, String> {
    let (_, parsed) = X509Certificate::from_der(own).map_err(|error| error.to_string())?;
    let alternatives = parsed.subject_alternative_name().map_err(|error| error.to_string())?;
    Ok(alternatives
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcard_matches_exactly_one_label_of_a_name() {
        let key = rcgen::generate_simple_self_signed(vec!["*.example.no".to_owned()]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let files = Certificate {
            certificate: directory.path().join("server.pem"),
            key: directory.path().join("server.key"),
        };
        std::fs::write(&files.certificate, key.cert.pem()).unwrap();
        std::fs::write(&files.key, key.signing_key.serialize_pem()).unwrap();
        let loaded = load(&files).unwrap();
        assert!(loaded.covers("files.Example.no"));
        assert!(!loaded.covers("a.b.example.no") && !loaded.covers("example.no"));
    }

    #[test]
    fn key_of_another_certificate_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let make = || rcgen::generate_simple_self_signed(vec!["example.no".to_owned()]).unwrap();
        let files = Certificate {
            certificate: directory.path().join("server.pem"),
            key: directory.path().join("server.key"),
        };
        std::fs::write(&files.certificate, make().cert.pem()).unwrap();
        std::fs::write(&files.key, make().signing_key.serialize_pem()).unwrap();
        assert!(matches!(load(&files), Err(TlsError::OtherKey { .. })));
        std::fs::write(&files.certificate, "nothing").unwrap();
        assert!(matches!(load(&files), Err(TlsError::File { .. })));
    }
}
