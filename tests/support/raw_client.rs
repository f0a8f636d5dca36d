//! A connection to a gate that is spoken to by hand: no client that tidies up what is sent stands
//! between.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long an answer may take, for a test that would else hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// An address that refuses connections as long as the socket lives: bound, so that no other program
/// gets the port, but not listening.
pub(crate) fn refusing() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// A connection under this name (SNI) that trusts this CA, for this protocol (ALPN).
pub(crate) async fn connect(
    address: SocketAddr,
    ca: &Path,
    name: &str,
    protocol: &str,
) -> TlsStream<TcpStream> {
    connect_over(TcpStream::connect(address).await.unwrap(), ca, name, protocol).await
}

/// As [`connect`], over this socket.
pub(crate) async fn connect_over(
    socket: TcpStream,
    ca: &Path,
    name: &str,
    protocol: &str,
) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap()
}

/// As [`connect`], under the name localhost, with a receive buffer of this size: who reads nothing
/// fills it soon.
pub(crate) async fn connect_with_buffer(
    address: SocketAddr,
    ca: &Path,
    protocol: &str,
    bytes: u32,
) -> TlsStream<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(bytes).unwrap();
    connect_over(socket.connect(address).await.unwrap(), ca, "localhost", protocol).await
}

/// Sends these bytes over HTTP/1.1 on a connection of their own, and gives the status and the whole
/// answer.
///
/// The bytes must ask for the connection to be closed, or be what closes it.
pub(crate) async fn exchange(
    address: SocketAddr,
    ca: &Path,
    name: &str,
    bytes: &[u8],
) -> (u16, Vec<u8>) {
    let mut stream = connect(address, ca, name, "http/1.1").await;
    let mut answer = Vec::new();
    let talk = async {
        // A gate that has read enough to say no may close before everything is sent.
        let _ = stream.write_all(bytes).await;
        let _ = stream.flush().await;
        let _ = stream.read_to_end(&mut answer).await;
    };
    assert!(
        tokio::time::timeout(PATIENCE, talk).await.is_ok(),
        "no answer to {}",
        bytes.escape_ascii()
    );
    // HTTP/1.1 400 …, or HTTP/1.0 to who asked so.
    let status =
        answer.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5)).unwrap_or_else(|| {
            panic!("{} was answered {}", bytes.escape_ascii(), answer.escape_ascii())
        });
    (std::str::from_utf8(status).unwrap().parse().unwrap(), answer)
}
