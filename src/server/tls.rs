//! The server's certificates: loaded, checked, chosen by name, and changed while running.
//!
//! Called by the command line at the start and on a reload. TLS 1.2 and 1.3 by rustls with aws-lc-rs; no early
//! data, since a request that can be replayed could begin a loan.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::tickets::Tickets;
use super::{Certificate, Settings};
use crate::clock::Clock;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read as PEM.
    #[error("{file} cannot be read: {why}; it must be PEM")]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The two do not belong together.
    #[error("{certificate} and {key} do not belong together: {why}")]
    Mismatch {
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
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(chosen.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // The order of ciphers is the reader's: it knows what its machine does fast.
        let tickets = Arc::new(Tickets::new(&settings.ticket_keys, clock)?);
        config.ticketer = tickets.clone();
        Ok(Certificates { chosen, tickets, config: Arc::new(config) })
    }

    /// Tries one certificate and its key, as a start would.
    ///
    /// # Errors
    /// [`TlsError`], where they cannot be used.
    pub fn try_load(files: &Certificate) -> Result<(), TlsError> {
        load(files).map(drop)
    }

    /// Takes the certificates up anew from their files, and the keys of tickets; new connections get them.
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

/// A certificate with the names that it is good for.
#[derive(Debug)]
struct Named {
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
    /// Whether a certificate is good for this name (RFC 9525 §6.3: a wildcard stands for one whole label).
    fn covers(&self, asked: &str) -> bool {
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(domain) => asked.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)),
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
        .map_err(|error| unreadable(&files.certificate, error.to_string()))?;
    let Some(own) = chain.first() else {
        return Err(unreadable(&files.certificate, "there is no certificate in it".to_owned()));
    };
    let names = names_of(own).map_err(|why| unreadable(&files.certificate, why))?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| unreadable(&files.key, error.to_string()))?;
    let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(|error| {
        TlsError::Mismatch {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            why: error.to_string(),
        }
    })?;
    Ok(Named { names, certified: Arc::new(certified) })
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
        assert!(matches!(load(&files), Err(TlsError::Mismatch { .. })));
        std::fs::write(&files.certificate, "nothing").unwrap();
        assert!(matches!(load(&files), Err(TlsError::File { .. })));
    }
}
