//! The server's certificates in use: selection by SNI, and reload.
//!
//! `app` calls it at the start and on a reload, and `certificate_watch` if files have changed.
//! `certificate_file` loads and checks the files, and `validity` reports expired certificates.
//! rustls provides TLS 1.2 and 1.3 with aws-lc-rs. Early data is disabled, since a replayed request
//! could begin a loan.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::acme_challenge::Challenges;
use super::certificate_file::{LoadedCertificate, TlsError, client_verifier, load};
use super::session_tickets::{TicketKeys, Tickets};
use super::validity::{DateProblem, Validity};
use super::{AdminTls, Certificate, Settings};
use crate::clock::Clock;
use crate::lock::lock;
use crate::reload::{Current, Reload};

/// The certificates in use, and the TLS configuration that selects among them.
#[derive(Debug)]
pub(crate) struct Certificates {
    /// The files that the certificates in use were loaded from.
    files: Current<Files>,
    resolver: Arc<Resolver>,
    /// Why newer files are not in use.
    unusable: Mutex<Option<String>>,
    tickets: Arc<Tickets>,
    tls: Current<Tls>,
    /// What the admin listener has started with.
    admin: AdminTls,
}

/// How new connections are made.
#[derive(Debug)]
pub(super) struct Tls {
    pub(super) config: Arc<ServerConfig>,
    /// That of the admin listener.
    admin: Arc<ServerConfig>,
    /// The challenges of the certificate authority; none if certificates are not ordered.
    pub(super) challenges: Option<Challenges>,
}

/// The files of certificates.
#[derive(Clone, Debug)]
pub(super) struct Files {
    default: Certificate,
    /// The names of the default certificate, if the gate orders it. It may be absent then.
    ordered: Option<Vec<String>>,
    extra: Vec<Certificate>,
    /// The certificate of the admin listener, if it has one of its own.
    admin: Option<Certificate>,
}

impl Files {
    fn of(settings: &Settings) -> Files {
        let Settings { certificate, ordered, extra, admin, .. } = settings;
        let ordered = ordered.as_ref().map(|ordered| ordered.names.clone());
        let (default, extra) = (certificate.clone(), extra.clone());
        Files { default, ordered, extra, admin: admin.certificate.clone() }
    }

    /// Returns the files, the default first.
    pub(super) fn all(&self) -> impl Iterator<Item = &Certificate> {
        std::iter::once(&self.default).chain(&self.extra).chain(&self.admin)
    }

    /// Loads the certificates. An ordered one that is absent or damaged leaves the default as it
    /// is, since it is ordered again. Also returns what is wrong with it.
    fn load(&self, in_use: &InUse) -> Result<(InUse, Option<String>), TlsError> {
        let (default, unusable) = match self.load_default(in_use) {
            Err(error) if self.ordered.is_some() => {
                (in_use.default.clone(), Some(error.to_string()))
            }
            loaded => (loaded?, None),
        };
        Ok((InUse { default, extra: self.load_extra()?, admin: self.load_admin()? }, unusable))
    }

    fn load_default(&self, in_use: &InUse) -> Result<Option<Arc<LoadedCertificate>>, TlsError> {
        match self.ordered.is_some() && is_absent(&self.default) {
            true => Ok(in_use.default.clone()),
            false => Ok(Some(Arc::new(load(&self.default)?))),
        }
    }

    fn load_extra(&self) -> Result<Vec<LoadedCertificate>, TlsError> {
        self.extra.iter().map(load).collect()
    }

    fn load_admin(&self) -> Result<Option<LoadedCertificate>, TlsError> {
        self.admin.as_ref().map(load).transpose()
    }
}

/// Whether a certificate is not there yet. One that cannot be looked at is there.
fn is_absent(files: &Certificate) -> bool {
    let found = std::fs::metadata(&files.certificate);
    found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

impl Certificates {
    /// Loads all certificates of the settings. An ordered one may be absent or damaged.
    ///
    /// # Errors
    /// [`TlsError`], for the first certificate that cannot be used.
    pub(crate) fn load(settings: &Settings, clock: Clock) -> Result<Certificates, TlsError> {
        let files = Files::of(settings);
        let (loaded, unusable) = files.load(&InUse::default())?;
        let resolver = Arc::new(Resolver { names: ArcSwap::from_pointee(loaded) });
        let tickets = Arc::new(Tickets::new(&settings.ticket_keys, clock)?);
        let tls = Current::new(tls_of(settings, &resolver, &tickets)?);
        let (files, unusable) = (Current::new(files), Mutex::new(unusable));
        let admin = settings.admin.clone();
        Ok(Certificates { files, resolver, unusable, tickets, tls, admin })
    }

    /// Loads one certificate and its key without using them.
    ///
    /// # Errors
    /// [`TlsError`], if they cannot be used.
    pub(crate) fn try_load(files: &Certificate) -> Result<Candidate, TlsError> {
        load(files).map(Candidate)
    }

    /// Loads the roots of operators' certificates without using them.
    ///
    /// # Errors
    /// [`TlsError`], if they cannot be used.
    pub(crate) fn try_client_ca(file: &Path) -> Result<(), TlsError> {
        client_verifier(file).map(drop)
    }

    /// Returns the certificates in use that are invalid at `now` or expire soon, with their files.
    pub(crate) fn date_problems(&self, now: Timestamp) -> Vec<(PathBuf, DateProblem)> {
        let in_use = self.resolver.names.load();
        in_use
            .all()
            .filter_map(|loaded| Some((loaded.file.clone(), loaded.validity.problem(now)?)))
            .collect()
    }

    /// Returns the files that the certificates in use were loaded from.
    pub(super) fn files(&self) -> Arc<Files> {
        self.files.get()
    }

    /// Loads the certificates again from their files, for new connections. Returns whether they are
    /// other ones, and why an ordered one stays as it was.
    ///
    /// # Errors
    /// [`TlsError`], for the first that cannot be used. The old ones stay.
    pub(super) fn load_again(&self) -> Result<(bool, Option<String>), TlsError> {
        let in_use = self.resolver.names.load_full();
        let loaded = self.files.get().load(&in_use);
        *lock(&self.unusable) = match &loaded {
            Ok((_, unusable)) => unusable.clone(),
            Err(error) => Some(error.to_string()),
        };
        let (loaded, unusable) = loaded?;
        let are_others = in_use.chains() != loaded.chains();
        self.resolver.names.store(Arc::new(loaded));
        Ok((are_others, unusable))
    }

    /// Returns why newer files are not in use, if that is so.
    pub(crate) fn unusable(&self) -> Option<String> {
        lock(&self.unusable).clone()
    }

    /// Whether the gate has no default certificate, since it waits for the first one.
    pub(crate) fn awaits_first(&self) -> bool {
        self.resolver.names.load().default.is_none()
    }

    /// Returns when the first of the certificates in use expires.
    pub(crate) fn first_expiry(&self) -> Option<Timestamp> {
        self.resolver.names.load().all().map(|loaded| loaded.validity.until()).min()
    }

    /// The first name of the default certificate, which readers may connect to.
    pub(crate) fn name(&self) -> Option<String> {
        match &self.files.get().ordered {
            Some(names) => names.first().cloned(),
            None => self.resolver.names.load().default.as_ref()?.names.first().cloned(),
        }
    }

    /// The TLS configuration of the admin listener.
    pub(crate) fn admin_config(&self) -> Arc<ServerConfig> {
        self.tls.get().admin.clone()
    }

    /// How new connections are made.
    pub(super) fn tls(&self) -> Arc<Tls> {
        self.tls.get()
    }
}

/// A certificate that is not in use.
#[derive(Debug)]
pub(crate) struct Candidate(LoadedCertificate);

impl Candidate {
    /// Returns its validity period.
    pub(crate) fn validity(&self) -> Validity {
        self.0.validity
    }

    /// Whether it covers a name.
    pub(crate) fn covers(&self, name: &str) -> bool {
        self.0.covers(name)
    }

    /// Returns the certificate in DER, without its chain.
    pub(crate) fn der(&self) -> &[u8] {
        self.0.certified.cert.first().map(AsRef::as_ref).unwrap_or_default()
    }
}

/// Certificates and ticket keys that are validated but not in use.
pub(crate) struct LoadedKeys {
    files: Files,
    certificates: InUse,
    unusable: Option<String>,
    ticket_keys: TicketKeys,
    tls: Tls,
}

/// New connections use the reloaded certificates, ticket keys and TLS versions.
impl Reload for Certificates {
    type Settings = Settings;
    type Version = LoadedKeys;
    type Error = TlsError;

    fn validate(&self, settings: &Settings) -> Result<LoadedKeys, Vec<TlsError>> {
        // The admin listener cannot turn TLS on while it runs, so its files stay the same.
        let settings = &Settings { admin: self.admin.clone(), ..settings.clone() };
        let files = Files::of(settings);
        let in_use = self.resolver.names.load_full();
        let loaded = files.load(&in_use).map_err(|error| vec![error])?;
        let (certificates, unusable) = loaded;
        let ticket_keys = self.tickets.derive(&settings.ticket_keys);
        let ticket_keys = ticket_keys.map_err(|error| vec![error.into()])?;
        let tls = tls_of(settings, &self.resolver, &self.tickets);
        let tls = tls.map_err(|error| vec![error])?;
        Ok(LoadedKeys { files, certificates, unusable, ticket_keys, tls })
    }

    fn apply(&self, loaded: LoadedKeys) {
        self.tickets.replace(loaded.ticket_keys);
        self.files.replace(loaded.files);
        *lock(&self.unusable) = loaded.unusable;
        self.resolver.names.store(Arc::new(loaded.certificates));
        self.tls.replace(loaded.tls);
    }
}

fn tls_of(
    settings: &Settings,
    resolver: &Arc<Resolver>,
    tickets: &Arc<Tickets>,
) -> Result<Tls, TlsError> {
    let config = settings.tls.server_config(resolver.clone(), tickets.clone())?;
    let clients = settings.admin.client_ca.as_deref().map(client_verifier).transpose()?;
    let may_be_absent = settings.ordered.is_some() && settings.admin.certificate.is_none();
    let temporary = may_be_absent.then(self_signed).transpose()?;
    let of_admin = Arc::new(AdminResolver { certificates: resolver.clone(), temporary });
    let admin = settings.tls.admin_config(of_admin, clients)?;
    let challenges = settings.ordered.clone().map(Challenges::new);
    Ok(Tls { config: Arc::new(config), admin: Arc::new(admin), challenges })
}

/// The certificates that clients get.
#[derive(Clone, Debug, Default)]
struct InUse {
    /// For names that no other certificate covers; none until the first one is issued.
    default: Option<Arc<LoadedCertificate>>,
    extra: Vec<LoadedCertificate>,
    /// That of the admin listener, which readers do not get.
    admin: Option<LoadedCertificate>,
}

impl InUse {
    fn all(&self) -> impl Iterator<Item = &LoadedCertificate> {
        self.for_readers().chain(&self.admin)
    }

    fn for_readers(&self) -> impl Iterator<Item = &LoadedCertificate> {
        self.default.as_deref().into_iter().chain(&self.extra)
    }

    fn chains(&self) -> Vec<&[rustls::pki_types::CertificateDer<'static>]> {
        self.all().map(|loaded| loaded.certified.cert.as_slice()).collect()
    }
}

#[derive(Debug)]
struct Resolver {
    names: ArcSwap<InUse>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let in_use = self.names.load();
        let requested = hello.server_name();
        let by_name = requested
            .and_then(|requested| in_use.for_readers().find(|loaded| loaded.covers(requested)));
        by_name.or(in_use.default.as_deref()).map(|loaded| loaded.certified.clone())
    }
}

/// Creates a certificate for probes, which do not verify it.
fn self_signed() -> Result<Arc<CertifiedKey>, TlsError> {
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
    let signed = signed.map_err(|error| rustls::Error::General(error.to_string()))?;
    let key = PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der());
    let chain = vec![signed.cert.der().clone()];
    let certified = CertifiedKey::from_der(chain, key.into(), &aws_lc_rs::default_provider())?;
    Ok(Arc::new(certified))
}

/// Selects the certificate of the admin listener: its own, or else as for readers.
#[derive(Debug)]
struct AdminResolver {
    certificates: Arc<Resolver>,
    /// What probes get until the first certificate is issued.
    temporary: Option<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for AdminResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let in_use = self.certificates.names.load();
        let own = in_use.admin.as_ref().map(|loaded| loaded.certified.clone());
        let found = own.or_else(|| self.certificates.resolve(hello));
        found.or_else(|| self.temporary.clone())
    }
}
