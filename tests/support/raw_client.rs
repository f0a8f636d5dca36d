//! TLS connections to a gate for hand-written requests, which a client library would normalize.

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

/// Timeout for a response.
const PATIENCE: Duration = Duration::from_secs(30);

/// Returns an address that refuses connections while the socket lives. The socket is bound but does
/// not listen, so no other program gets the port.
pub(crate) fn refusing() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Opens a TLS connection with this SNI name and ALPN protocol that trusts this CA.
pub(crate) async fn connect(
    address: SocketAddr,
    ca: &Path,
    name: &str,
    protocol: &str,
) -> TlsStream<TcpStream> {
    connect_over(TcpStream::connect(address).await.unwrap(), ca, name, protocol).await
}

/// Like [`connect`], over this socket.
pub(crate) async fn connect_over(
    socket: TcpStream,
    ca: &Path,
    name: &str,
    protocol: &str,
) -> TlsStream<TcpStream> {
    handshake(socket, ca, name, protocol).await.unwrap()
}

/// Returns whether the server at this address has a certificate for localhost of this CA.
pub(crate) async fn trusts(address: SocketAddr, ca: &Path) -> bool {
    let socket = TcpStream::connect(address).await.unwrap();
    handshake(socket, ca, "localhost", "http/1.1").await.is_ok()
}

async fn handshake(
    socket: TcpStream,
    ca: &Path,
    name: &str,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(ca).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, socket).await
}

/// Like [`connect`], for localhost and with a receive buffer of this size, which fills early when
/// the test does not read.
pub(crate) async fn connect_with_buffer(
    address: SocketAddr,
    ca: &Path,
    protocol: &str,
    bytes: u32,
) -> TlsStream<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.unwrap();
    socket.set_recv_buffer_size(bytes).unwrap();
    connect_over(socket.connect(address).await.unwrap(), ca, "localhost", protocol).await
}

/// Sends these bytes over HTTP/1.1 on a new connection. Returns the status and the whole response.
///
/// The bytes must request that the connection closes, or cause it.
pub(crate) async fn exchange(
    address: SocketAddr,
    ca: &Path,
    name: &str,
    bytes: &[u8],
) -> (u16, Vec<u8>) {
    let mut stream = connect(address, ca, name, "http/1.1").await;
    let mut answer = Vec::new();
    let exchange_bytes = async {
        // The gate may respond with an error and close before everything is sent.
        let _ = stream.write_all(bytes).await;
        let _ = stream.flush().await;
        let _ = stream.read_to_end(&mut answer).await;
    };
    assert!(
        tokio::time::timeout(PATIENCE, exchange_bytes).await.is_ok(),
        "no response to {}",
        bytes.escape_ascii()
    );
    // Matches HTTP/1.1 and, for requests of that version, HTTP/1.0.
    let status =
        answer.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5)).unwrap_or_else(|| {
            panic!("{} was answered {}", bytes.escape_ascii(), answer.escape_ascii())
        });
    (std::str::from_utf8(status).unwrap().parse().unwrap(), answer)
}
