//! The server's certificates in use: selection by SNI, and reload.
//!
//! `app` calls it at the start and on a reload, and `certificate_watch` if files have changed.
//! `certificate_file` loads and checks the files, and `validity` reports expired certificates.
//! rustls provides TLS 1.2 and 1.3 with aws-lc-rs. Early data is disabled, since a replayed request
//! could begin a loan.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certificate_file::{LoadedCertificate, TlsError, load};
use super::session_tickets::{TicketKeys, Tickets};
use super::validity::{DateProblem, Validity};
use super::{Certificate, Settings};
use crate::clock::Clock;
use crate::lock::lock;
use crate::reload::{Current, Reload};

/// The certificates in use, and the TLS configuration that selects among them.
#[derive(Debug)]
pub(crate) struct Certificates {
    /// The files that the certificates in use were loaded from.
    files: Current<Vec<Certificate>>,
    resolver: Arc<Resolver>,
    /// Why newer files are not in use.
    unusable: Mutex<Option<String>>,
    tickets: Arc<Tickets>,
    config: Arc<ServerConfig>,
}

impl Certificates {
    /// Loads all certificates of the settings.
    ///
    /// # Errors
    /// [`TlsError`], for the first certificate that cannot be used.
    pub(crate) fn load(settings: &Settings, clock: Clock) -> Result<Certificates, TlsError> {
        let files = files_of(settings);
        let resolver = Arc::new(Resolver { names: ArcSwap::from_pointee(load_all(&files)?) });
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
                .with_no_client_auth()
                .with_cert_resolver(resolver.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // The client's cipher order counts: it knows which ciphers are fast on its device.
        let tickets = Arc::new(Tickets::new(&settings.ticket_keys, clock)?);
        config.ticketer = tickets.clone();
        let (files, unusable) = (Current::new(files), Mutex::default());
        Ok(Certificates { files, resolver, unusable, tickets, config: Arc::new(config) })
    }

    /// Loads one certificate and its key without using them, and returns the validity period.
    ///
    /// # Errors
    /// [`TlsError`], if they cannot be used.
    pub(crate) fn try_load(files: &Certificate) -> Result<Validity, TlsError> {
        load(files).map(|loaded| loaded.validity)
    }

    /// Returns the certificates in use that are invalid at `now` or expire soon, with their files.
    pub(crate) fn date_problems(&self, now: Timestamp) -> Vec<(PathBuf, DateProblem)> {
        let loaded_certificates = self.resolver.names.load();
        loaded_certificates
            .iter()
            .filter_map(|loaded| Some((loaded.file.clone(), loaded.validity.problem(now)?)))
            .collect()
    }

    /// Returns the files that the certificates in use were loaded from.
    pub(super) fn files(&self) -> Arc<Vec<Certificate>> {
        self.files.get()
    }

    /// Loads the certificates again from their files, for new connections. Returns whether they are
    /// other ones.
    ///
    /// # Errors
    /// [`TlsError`], for the first that cannot be used. The old ones stay.
    pub(super) fn load_again(&self) -> Result<bool, TlsError> {
        let loaded = load_all(&self.files.get());
        *lock(&self.unusable) = loaded.as_ref().err().map(ToString::to_string);
        let old = self.resolver.names.swap(Arc::new(loaded?));
        let own = |all: &[LoadedCertificate]| -> Vec<_> {
            all.iter().map(|loaded| loaded.certified.cert.clone()).collect()
        };
        Ok(own(&old) != own(&self.resolver.names.load()))
    }

    /// Returns why newer files are not in use, if that is so.
    pub(crate) fn unusable(&self) -> Option<String> {
        lock(&self.unusable).clone()
    }

    /// Returns when the first of the certificates in use expires.
    pub(crate) fn first_expiry(&self) -> Option<Timestamp> {
        self.resolver.names.load().iter().map(|loaded| loaded.validity.until()).min()
    }

    /// The first name of the default certificate, which readers may connect to.
    pub(crate) fn name(&self) -> Option<String> {
        self.resolver.names.load().first()?.names.first().cloned()
    }

    /// The TLS configuration, which offers both HTTP versions by ALPN.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }
}

/// Certificates and ticket keys that are validated but not in use.
pub(crate) struct LoadedKeys {
    files: Vec<Certificate>,
    certificates: Vec<LoadedCertificate>,
    ticket_keys: TicketKeys,
}

/// New connections use the reloaded certificates and ticket keys.
impl Reload for Certificates {
    type Settings = Settings;
    type Version = LoadedKeys;
    type Error = TlsError;

    fn validate(&self, settings: &Settings) -> Result<LoadedKeys, Vec<TlsError>> {
        let files = files_of(settings);
        let certificates = load_all(&files).map_err(|error| vec![error])?;
        let ticket_keys = self.tickets.derive(&settings.ticket_keys);
        let ticket_keys = ticket_keys.map_err(|error| vec![error.into()])?;
        Ok(LoadedKeys { files, certificates, ticket_keys })
    }

    fn apply(&self, loaded: LoadedKeys) {
        self.tickets.replace(loaded.ticket_keys);
        self.files.replace(loaded.files);
        *lock(&self.unusable) = None;
        self.resolver.names.store(Arc::new(loaded.certificates));
    }
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

fn files_of(settings: &Settings) -> Vec<Certificate> {
    std::iter::once(&settings.certificate).chain(&settings.extra).cloned().collect()
}

fn load_all(files: &[Certificate]) -> Result<Vec<LoadedCertificate>, TlsError> {
    files.iter().map(load).collect()
}
