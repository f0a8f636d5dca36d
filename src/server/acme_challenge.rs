//! Answers to the challenges of a certificate authority: TLS-ALPN-01 (RFC 8737).
//!
//! `acme` writes a file for each name that is being validated, into a directory that several gates
//! may share. A connection of the authority gets the certificate in it, and is closed after its
//! handshake, so it never reaches HTTP. `connection` calls [`Challenges::accept`] for every
//! connection of a gate that orders certificates.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{Acceptor, ClientHello};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::OrderedCertificate;
use crate::telemetry::Handshake;

/// The only protocol that the authority offers by ALPN.
const PROTOCOL: &[u8] = b"acme-tls/1";
/// The largest file of a challenge, in bytes.
const MAX_FILE: u64 = 16 * 1024;
/// The most files that are read at once: anybody can request them. Others wait, within the time of
/// a handshake.
const MAX_READS: usize = 4;

/// Returns the file with the challenge of a name that the configuration has.
pub(crate) fn challenge_file(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.pem"))
}

/// The challenges that this gate can answer.
#[derive(Debug)]
pub(super) struct Challenges {
    ordered: OrderedCertificate,
    reads: Arc<Semaphore>,
}

impl Challenges {
    pub(super) fn new(ordered: OrderedCertificate) -> Challenges {
        Challenges { ordered, reads: Arc::new(Semaphore::new(MAX_READS)) }
    }

    /// Performs the handshake of a connection, with `config` unless it is one of a certificate
    /// authority that validates a name.
    ///
    /// # Errors
    /// [`Handshake::Challenge`] after the handshake of an authority, and [`Handshake::Failed`].
    pub(super) async fn accept(
        &self,
        socket: TcpStream,
        config: Arc<ServerConfig>,
    ) -> Result<TlsStream<TcpStream>, Handshake> {
        let failed = |_| Handshake::Failed;
        let start = LazyConfigAcceptor::new(Acceptor::default(), socket).await.map_err(failed)?;
        if let Some(name) = self.validated_name(&start.client_hello())
            && let Some(config) = self.read(name).await
        {
            let mut stream = start.into_stream(Arc::new(config)).await.map_err(failed)?;
            let _ = stream.shutdown().await;
            return Err(Handshake::Challenge);
        }
        let accepted = start.into_stream_with(config, |session| session.set_buffer_limit(None));
        accepted.await.map_err(failed)
    }

    /// Returns the name that an authority validates, as the configuration has it.
    fn validated_name(&self, hello: &ClientHello<'_>) -> Option<&str> {
        let mut protocols = hello.alpn()?;
        if (protocols.next(), protocols.next()) != (Some(PROTOCOL), None) {
            return None;
        }
        let requested = hello.server_name()?;
        let names = &self.ordered.names;
        names.iter().find(|name| name.eq_ignore_ascii_case(requested)).map(String::as_str)
    }

    /// Reads the challenge of a name; none if there is none. The file system may be slow, so it
    /// reads off the runtime.
    async fn read(&self, name: &str) -> Option<ServerConfig> {
        let permit = self.reads.clone().acquire_owned().await.ok()?;
        let file = challenge_file(&self.ordered.challenges, name);
        let reading = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut pem = Vec::new();
            File::open(file).ok()?.take(MAX_FILE).read_to_end(&mut pem).ok()?;
            config_of(&pem)
        });
        reading.await.ok().flatten()
    }
}

/// Returns the configuration that presents the certificate of a challenge.
fn config_of(pem: &[u8]) -> Option<ServerConfig> {
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().ok()?;
    let key = PrivateKeyDer::from_pem_slice(pem).ok()?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let key = provider.key_provider.load_private_key(key).ok()?;
    // Its critical extension is unknown to rustls, which could not compare it with the key.
    let certified = SingleCertAndKey::from(CertifiedKey::new(chain, key));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certified));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.send_tls13_tickets = 0;
    Some(config)
}
