//! The server's certificates: loaded, checked, chosen by name, and changed while running.
//!
//! Called by the command line at the start and on a reload. TLS 1.2 and 1.3 by rustls with
//! aws-lc-rs; no early data, since a request that can be replayed could begin a loan.

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

use super::session_tickets::Tickets;
use super::{Certificate, Settings};
use crate::clock::{self, Clock};

/// How long before its end a certificate is reported.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 86_400);

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read as PEM.
    #[error("{file} cannot be read as PEM: {why}")]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The key is encrypted with a passphrase, which the gate never has.
    #[error(
        "{key} is encrypted with a passphrase, and the gate has none. Remove it: \
         openssl pkey -in {key} -out NEW.key && chmod 600 NEW.key, and name NEW.key here"
    )]
    Encrypted {
        /// The key's file.
        key: PathBuf,
    },
    /// The key is not the one of the certificate.
    #[error(
        "{key} is not the key of {certificate}. These two commands must print the same: \
         openssl x509 -in {certificate} -noout -pubkey and openssl pkey -in {key} -pubout. \
         In a chain the server's own certificate is the first"
    )]
    OtherKey {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The certificate and the key cannot be used together for another reason.
    #[error("{certificate} and {key} cannot be used together: {why}")]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    SetUp(#[from] rustls::Error),
}

/// The certificates that are served, and the TLS settings that serve them.
#[derive(Debug)]
pub struct Certificates {
    chosen: Arc<Chosen>,
    tickets: Arc<Tickets>,
    config: Arc<ServerConfig>,
}

impl Certificates {
    /// Loads every certificate of the settings.
    ///
    /// # Errors
    /// [`TlsError`], for the first that cannot be used.
    pub fn load(settings: &Settings, clock: Clock) -> Result<Certificates, TlsError> {
        let chosen = Arc::new(Chosen { names: ArcSwap::from_pointee(load_all(settings)?) });
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
                .with_no_client_auth()
                .with_cert_resolver(chosen.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // The order of ciphers is the reader's: it knows what its machine does fast.
        let tickets = Arc::new(Tickets::new(&settings.ticket_keys, clock)?);
        config.ticketer = tickets.clone();
        Ok(Certificates { chosen, tickets, config: Arc::new(config) })
    }

    /// Loads one certificate and its key as a start does, and returns when the certificate is
    /// valid.
    ///
    /// # Errors
    /// [`TlsError`], if they cannot be used.
    pub fn try_load(files: &Certificate) -> Result<Validity, TlsError> {
        load(files).map(|named| named.validity)
    }

    /// Returns what a client or an operator has to know at `now` about the dates of the
    /// certificates in use: one entry for each that is not valid or expires soon.
    pub fn date_problems(&self, now: Timestamp) -> Vec<(PathBuf, DateProblem)> {
        let served = self.chosen.names.load();
        served
            .iter()
            .filter_map(|named| Some((named.file.clone(), named.validity.problem(now)?)))
            .collect()
    }

    /// Takes the certificates up anew from their files, and the keys of tickets; new connections
    /// get them.
    ///
    /// # Errors
    /// [`TlsError`]; the old ones then stay.
    pub fn reload(&self, settings: &Settings) -> Result<(), TlsError> {
        let names = load_all(settings)?;
        self.tickets.change(&settings.ticket_keys)?;
        self.chosen.names.store(Arc::new(names));
        Ok(())
    }

    /// The first name of the first certificate, by which readers may ask for this server.
    pub fn name(&self) -> Option<String> {
        self.chosen.names.load().first()?.names.first().cloned()
    }

    /// The TLS settings, with both HTTP versions by ALPN.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }
}

/// When a certificate is valid, both moments included (RFC 5280 §4.1.2.5).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Validity {
    from: Timestamp,
    until: Timestamp,
}

/// What is wrong, or soon will be, with the dates of a certificate. The text ends in what to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DateProblem {
    /// Clients refuse it already.
    #[error(
        "the certificate expired at {0}, so that clients refuse the connection. Renew it; a running gate \
         loads it on SIGHUP"
    )]
    Expired(Timestamp),
    /// Clients do not accept it yet.
    #[error(
        "the certificate is not valid before {0}, so that clients refuse the connection. Check this \
         machine's clock, or use the certificate that it replaces until then"
    )]
    NotYetValid(Timestamp),
    /// It expires within 14 days.
    #[error("the certificate expires at {0}. Renew it before; a running gate loads it on SIGHUP")]
    ExpiresSoon(Timestamp),
}

impl DateProblem {
    /// Whether clients refuse the certificate now.
    pub fn is_fatal(self) -> bool {
        !matches!(self, DateProblem::ExpiresSoon(_))
    }

    /// The kind, as logs name it.
    pub fn name(self) -> &'static str {
        match self {
            DateProblem::Expired(_) => "expired",
            DateProblem::NotYetValid(_) => "not_yet_valid",
            DateProblem::ExpiresSoon(_) => "expires_soon",
        }
    }
}

impl Validity {
    /// Of the server's own certificate. Clients find another way around an expired intermediate, as
    /// around a cross-signed root.
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

    /// What is wrong at `now`, or will be within 14 days.
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

/// A certificate with the names that it is good for.
#[derive(Debug)]
struct Named {
    /// The certificate's file, as logs name it.
    file: PathBuf,
    validity: Validity,
    names: Vec<String>,
    certified: Arc<CertifiedKey>,
}

#[derive(Debug)]
struct Chosen {
    /// The first is for names that no other has.
    names: ArcSwap<Vec<Named>>,
}

impl ResolvesServerCert for Chosen {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let served = self.names.load();
        let asked = hello.server_name();
        let by_name = asked.and_then(|asked| served.iter().find(|named| named.covers(asked)));
        by_name.or_else(|| served.first()).map(|named| named.certified.clone())
    }
}

impl Named {
    /// Whether a certificate is good for this name (RFC 9525 §6.3: a wildcard stands for one whole
    /// label).
    fn covers(&self, asked: &str) -> bool {
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(domain) => {
                asked.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain))
            }
            None => name.eq_ignore_ascii_case(asked),
        })
    }
}

fn load_all(settings: &Settings) -> Result<Vec<Named>, TlsError> {
    std::iter::once(&settings.certificate).chain(&settings.extra).map(load).collect()
}

fn load(files: &Certificate) -> Result<Named, TlsError> {
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
        return Err(unreadable(&files.certificate, no_item(&files.certificate, "certificate")));
    };
    let names = names_of(own).map_err(|why| unreadable(&files.certificate, why))?;
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
    Ok(Named { file: files.certificate.clone(), validity, names, certified: Arc::new(certified) })
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
            pem::Error::NoItemsFound => no_item(file, "private key"),
            error => error.to_string(),
        })
    })
}

/// Why a file has none of what is wanted: what it has instead, where that is known.
fn no_item(file: &Path, wanted: &str) -> String {
    let text = std::fs::read(file).unwrap_or_default();
    let contains = |words: &[u8]| text.windows(words.len()).any(|window| window == words);
    // ASN.1 begins with a sequence, whose length takes more than a byte.
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

/// Whether a PEM file has a key under a passphrase: PKCS#8 says so in its label, PKCS#1 and SEC1 in
/// a header of RFC 1421.
fn is_encrypted(pem: &[u8]) -> bool {
    pem.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).any(|line| {
        line == b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
            || (line.starts_with(b"Proc-Type:") && line.ends_with(b"ENCRYPTED"))
    })
}

fn names_of(own: &CertificateDer<'_>) -> Result<Vec<String>, String> {
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
    fn a_wildcard_stands_for_one_label() {
        let key = rcgen::generate_simple_self_signed(vec!["*.example.no".to_owned()]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let files = Certificate {
            certificate: directory.path().join("server.pem"),
            key: directory.path().join("server.key"),
        };
        std::fs::write(&files.certificate, key.cert.pem()).unwrap();
        std::fs::write(&files.key, key.signing_key.serialize_pem()).unwrap();
        let named = load(&files).unwrap();
        assert!(named.covers("files.Example.no"));
        assert!(!named.covers("a.b.example.no") && !named.covers("example.no"));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
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
