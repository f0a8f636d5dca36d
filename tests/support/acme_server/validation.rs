//! Validates names by TLS-ALPN-01: connects, and looks at the certificate (RFC 8737 §3).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

const PROTOCOL: &str = "acme-tls/1";
/// id-pe-acmeIdentifier.
const IDENTIFIER: &str = "1.3.6.1.5.5.7.1.31";
const PATIENCE: Duration = Duration::from_secs(30);

/// Connects to the server of a name. Returns why it does not control the name.
pub(super) async fn validate(
    address: SocketAddr,
    name: &str,
    key_authorization: &str,
) -> Result<(), String> {
    match timeout(PATIENCE, connect(address, name, key_authorization)).await {
        Ok(validated) => validated,
        Err(_) => Err("the server did not answer in time".to_owned()),
    }
}

async fn connect(address: SocketAddr, name: &str, authorization: &str) -> Result<(), String> {
    let config = client(&[PROTOCOL]);
    let socket = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let server = ServerName::try_from(name.to_owned()).unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect(server, socket).await;
    let mut stream = connected.map_err(|error| error.to_string())?;
    let session = stream.get_ref().1;
    if session.alpn_protocol() != Some(PROTOCOL.as_bytes()) {
        return Err("the server did not choose acme-tls/1".to_owned());
    }
    let certificates = session.peer_certificates().unwrap_or_default();
    let [certificate] = certificates else {
        return Err(format!("the server presented {} certificates", certificates.len()));
    };
    check(certificate, name, authorization)?;
    let mut byte = [0];
    match stream.read(&mut byte).await {
        Ok(0) => Ok(()),
        other => Err(format!("the server did not close the connection: {other:?}")),
    }
}

/// Returns the certificate that a server presents to a client which offers this protocol, whoever
/// issued it; none if the handshake fails.
pub(crate) async fn presented(
    address: SocketAddr,
    name: &str,
    protocols: &[&str],
) -> Option<CertificateDer<'static>> {
    let socket = TcpStream::connect(address).await.ok()?;
    let server = ServerName::try_from(name.to_owned()).unwrap();
    let connector = TlsConnector::from(Arc::new(client(protocols)));
    let stream = timeout(PATIENCE, connector.connect(server, socket)).await.unwrap().ok()?;
    Some(stream.get_ref().1.peer_certificates()?.first()?.clone())
}

/// Returns a client that accepts any certificate.
fn client(protocols: &[&str]) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

/// Checks the name and the digest in the certificate.
fn check(certificate: &CertificateDer<'_>, name: &str, authorization: &str) -> Result<(), String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let alternatives = parsed.subject_alternative_name().map_err(|error| error.to_string())?;
    let alternatives = alternatives.ok_or("the certificate has no names")?;
    match alternatives.value.general_names.as_slice() {
        [GeneralName::DNSName(found)] if *found == name => {}
        names => return Err(format!("the certificate has the names {names:?}")),
    }
    if parsed.issuer() != parsed.subject() {
        return Err("the certificate is not self-signed".to_owned());
    }
    let mut identifiers =
        parsed.extensions().iter().filter(|extension| extension.oid.to_id_string() == IDENTIFIER);
    let identifier = identifiers.next().ok_or("the certificate has no acmeIdentifier")?;
    let is_unknown =
        matches!(identifier.parsed_extension(), ParsedExtension::UnsupportedExtension { .. });
    if identifiers.next().is_some() || !identifier.critical || !is_unknown {
        return Err("the acmeIdentifier is not one critical extension".to_owned());
    }
    let expected = digest(&SHA256, authorization.as_bytes());
    // An OCTET STRING of 32 bytes.
    match identifier.value == [&[4, 32], expected.as_ref()].concat() {
        true => Ok(()),
        false => Err("the acmeIdentifier is that of another challenge".to_owned()),
    }
}

/// Accepts any certificate whose key the server has.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 was not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // The critical extension is unknown to rustls, which would parse no such certificate.
        let parsed = X509Certificate::from_der(certificate);
        let (_, parsed) = parsed.map_err(|error| Error::General(error.to_string()))?;
        let key = SubjectPublicKeyInfoDer::from(parsed.tbs_certificate.subject_pki.raw);
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
