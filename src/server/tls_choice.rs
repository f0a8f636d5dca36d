//! The TLS versions and cipher suites that the operator allows, out of those of rustls.
//!
//! `config` reads them, and `tls` builds the TLS configuration. rustls has only suites with forward
//! secrecy and authenticated encryption, so no choice is an unsafe one.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::{
    CipherSuite, ServerConfig, SignatureAlgorithm, SupportedCipherSuite, SupportedProtocolVersion,
};

static ONLY_TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// `tls.minimum_version`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum MinimumTlsVersion {
    /// TLS 1.2 and 1.3.
    #[default]
    Tls12,
    /// Only TLS 1.3.
    Tls13,
}

/// `tls.minimum_version` and `tls.cipher_suites`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TlsChoice {
    /// The oldest version that clients may use.
    pub minimum_version: MinimumTlsVersion,
    /// The cipher suites that clients may use; all if there are none.
    pub cipher_suites: Vec<CipherSuite>,
}

impl TlsChoice {
    /// Parses the name of a cipher suite, as the registry of IANA spells it.
    ///
    /// # Errors
    /// A sentence with the names that there are.
    pub fn parse_suite(name: &str) -> Result<CipherSuite, String> {
        let suites = aws_lc_rs::DEFAULT_CIPHER_SUITES;
        let found = suites.iter().find(|suite| name_of(suite) == name);
        found.map(SupportedCipherSuite::suite).ok_or_else(|| {
            let known: Vec<String> = suites.iter().map(name_of).collect();
            format!(
                "{name:?} is no cipher suite of this version. Write some of {}",
                known.join(", ")
            )
        })
    }

    /// Whether there is a suite for a version that is allowed.
    pub(crate) fn is_possible(&self) -> bool {
        let versions = self.versions();
        self.suites().iter().any(|suite| versions.contains(&suite.version()))
    }

    /// Whether there is such a suite for a certificate with an ECDSA key. Those of TLS 1.3 are for
    /// every key.
    pub(crate) fn is_possible_for_ecdsa(&self) -> bool {
        let versions = self.versions();
        self.suites().iter().any(|suite| {
            versions.contains(&suite.version())
                && suite.usable_for_signature_algorithm(SignatureAlgorithm::ECDSA)
        })
    }

    /// Returns the configuration of a server.
    pub(super) fn server_config(
        &self,
        resolver: Arc<dyn ResolvesServerCert>,
        tickets: Arc<dyn ProducesTickets>,
    ) -> Result<ServerConfig, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(Arc::new(self.provider()));
        let builder = builder.with_protocol_versions(self.versions())?.with_no_client_auth();
        let mut config = builder.with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // The client's cipher order counts: it knows which ciphers are fast on its device.
        config.ticketer = tickets;
        Ok(config)
    }

    /// Returns the configuration of the admin listener. Clients must have a certificate if there is
    /// a verifier of them.
    pub(super) fn admin_config(
        &self,
        resolver: Arc<dyn ResolvesServerCert>,
        clients: Option<Arc<dyn ClientCertVerifier>>,
    ) -> Result<ServerConfig, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(Arc::new(self.provider()));
        let builder = builder.with_protocol_versions(self.versions())?;
        let builder = match clients {
            Some(clients) => builder.with_client_cert_verifier(clients),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(resolver);
        // A resumed session skips the certificate of the client, and readers get tickets without.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    fn provider(&self) -> CryptoProvider {
        CryptoProvider { cipher_suites: self.suites(), ..aws_lc_rs::default_provider() }
    }

    fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        match self.minimum_version {
            MinimumTlsVersion::Tls12 => rustls::DEFAULT_VERSIONS,
            MinimumTlsVersion::Tls13 => ONLY_TLS13,
        }
    }

    fn suites(&self) -> Vec<SupportedCipherSuite> {
        let mut suites = aws_lc_rs::DEFAULT_CIPHER_SUITES.to_vec();
        if !self.cipher_suites.is_empty() {
            suites.retain(|suite| self.cipher_suites.contains(&suite.suite()));
        }
        suites
    }
}

/// Returns the name in the registry of IANA. rustls names the version in those of TLS 1.3.
fn name_of(suite: &SupportedCipherSuite) -> String {
    suite.suite().as_str().unwrap_or_default().replacen("TLS13_", "TLS_", 1)
}
