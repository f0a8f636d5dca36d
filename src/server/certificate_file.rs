//! A certificate and its key as files in PEM.
//!
//! `tls` loads them at the start and on a reload. Each error names its file and what to do.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Certificate;
use super::validity::Validity;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
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

/// A certificate with the names that it covers.
#[derive(Clone, Debug)]
pub(super) struct LoadedCertificate {
    /// The certificate's file, for logs.
    pub(super) file: PathBuf,
    pub(super) validity: Validity,
    pub(super) names: Vec<String>,
    pub(super) certified: Arc<CertifiedKey>,
}

impl LoadedCertificate {
    /// Whether the certificate covers this name. A wildcard matches exactly one label (RFC 9525
    /// §6.3).
    pub(super) fn covers(&self, requested: &str) -> bool {
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(domain) => {
                requested.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain))
            }
            None => name.eq_ignore_ascii_case(requested),
        })
    }
}

/// Loads a certificate and its key, and checks that they belong together.
pub(super) fn load(files: &Certificate) -> Result<LoadedCertificate, TlsError> {
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

/// Returns a verifier of the certificates of clients, with the roots in a file.
pub(super) fn client_verifier(file: &Path) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let unreadable = |why: String| TlsError::File { file: file.to_owned(), why };
    let certificates = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let certificates: Vec<CertificateDer<'static>> = certificates.map_err(|error| {
        unreadable(match error {
            pem::Error::Io(error) => error.to_string(),
            error => error.to_string(),
        })
    })?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| unreadable(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unreadable(describe_missing_item(file, "certificate")));
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let verifier = verifier.map_err(|error| unreadable(error.to_string()))?;
    Ok(verifier)
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
