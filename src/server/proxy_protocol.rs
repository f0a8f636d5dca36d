//! The PROXY protocol: the header by which a load balancer names the client of a connection.
//!
//! `connection` reads it before the TLS handshake, on every connection from a network of
//! `listen.proxy_protocol`. Nothing after the header is read, so the handshake finds all of its
//! bytes. Source: "The PROXY protocol, versions 1 & 2" of HAProxy.

use std::net::IpAddr;

use ppp::{v1, v2};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// The longest header of version 1, its line end included.
const MAX_V1: usize = 107;
/// The first bytes of both versions. The shortest header of version 1 is longer.
const PREFIX: usize = v2::PROTOCOL_PREFIX.len();
const V1_PREFIX: &[u8] = b"PROXY ";
/// The part of version 2 that states the length of the rest.
const V2_FIXED: usize = PREFIX + 4;
/// The longest accepted rest: addresses, and additional fields such as a certificate's name.
const MAX_V2_REST: usize = 4096;

/// Why a connection has no client.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("it does not begin with a header")]
    Missing,
    #[error("the header is malformed")]
    Malformed,
    #[error("the header is longer than {MAX_V2_REST} bytes")]
    TooLong,
    #[error("it ended within the header: {0}")]
    Ended(#[from] std::io::Error),
}

/// Who is at the other end of a balancer's connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ProxiedClient {
    /// The client with this address.
    At(IpAddr),
    /// A client that the header does not name.
    Unknown,
    /// The balancer itself, such as its health check.
    Balancer,
}

/// Reads the header.
///
/// # Errors
/// [`ProxyError`]; the connection must be closed then.
pub(super) async fn read_client(socket: &mut TcpStream) -> Result<ProxiedClient, ProxyError> {
    let mut header = vec![0; PREFIX];
    socket.read_exact(&mut header).await?;
    if header == v2::PROTOCOL_PREFIX {
        read_v2(socket, header).await
    } else if header.starts_with(V1_PREFIX) {
        read_v1(socket, header).await
    } else {
        Err(ProxyError::Missing)
    }
}

async fn read_v1(socket: &mut TcpStream, mut header: Vec<u8>) -> Result<ProxiedClient, ProxyError> {
    while !header.ends_with(b"\n") {
        let mut ahead = [0; MAX_V1];
        // What has arrived up to the line end belongs to the header.
        let ahead = ahead.get_mut(header.len()..).unwrap_or_default();
        if ahead.is_empty() {
            return Err(ProxyError::Malformed);
        }
        let arrived = socket.peek(ahead).await?;
        let arrived = ahead.get(..arrived).unwrap_or_default();
        let end = memchr::memchr(b'\n', arrived).map_or(arrived.len(), |end| end + 1);
        if end == 0 {
            return Err(ProxyError::Ended(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let before = header.len();
        header.resize(before + end, 0);
        socket.read_exact(header.get_mut(before..).unwrap_or_default()).await?;
    }
    let parsed = v1::Header::try_from(header.as_slice()).map_err(|_| ProxyError::Malformed)?;
    // The parser reads "+1" as a port.
    let has_sign = header.contains(&b'+') && parsed.addresses != v1::Addresses::Unknown;
    if parsed.header.len() != header.len() || has_sign {
        return Err(ProxyError::Malformed);
    }
    Ok(match parsed.addresses {
        v1::Addresses::Tcp4(addresses) => ProxiedClient::At(addresses.source_address.into()),
        v1::Addresses::Tcp6(addresses) => ProxiedClient::At(addresses.source_address.into()),
        v1::Addresses::Unknown => ProxiedClient::Unknown,
    })
}

async fn read_v2(socket: &mut TcpStream, mut header: Vec<u8>) -> Result<ProxiedClient, ProxyError> {
    header.resize(V2_FIXED, 0);
    socket.read_exact(header.get_mut(PREFIX..).unwrap_or_default()).await?;
    let rest = match *header.as_slice() {
        [.., high, low] => usize::from(u16::from_be_bytes([high, low])),
        _ => return Err(ProxyError::Malformed),
    };
    if rest > MAX_V2_REST {
        return Err(ProxyError::TooLong);
    }
    header.resize(V2_FIXED + rest, 0);
    socket.read_exact(header.get_mut(V2_FIXED..).unwrap_or_default()).await?;
    let parsed = v2::Header::try_from(header.as_slice()).map_err(|_| ProxyError::Malformed)?;
    if parsed.command == v2::Command::Local {
        return Ok(ProxiedClient::Balancer);
    }
    if parsed.protocol == v2::Protocol::Datagram || parsed.tlvs().any(|field| field.is_err()) {
        return Err(ProxyError::Malformed);
    }
    Ok(match parsed.addresses {
        v2::Addresses::IPv4(addresses) => ProxiedClient::At(addresses.source_address.into()),
        v2::Addresses::IPv6(addresses) => ProxiedClient::At(addresses.source_address.into()),
        v2::Addresses::Unix(_) | v2::Addresses::Unspecified => ProxiedClient::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    const V4: &[u8] = &[192, 0, 2, 7, 198, 51, 100, 1, 0x30, 0x39, 0x01, 0xbb];

    fn v2_header(version: u8, family: u8, length: u16, rest: &[u8]) -> Vec<u8> {
        let [high, low] = length.to_be_bytes();
        [SIGNATURE, &[version, family, high, low], rest].concat()
    }

    /// Returns what is read of the parts, which are sent one after the other and then end, and what
    /// is left of them.
    async fn read(parts: &[&[u8]]) -> (Result<ProxiedClient, ProxyError>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut socket, _) = listener.accept().await.unwrap();
        client.set_nodelay(true).unwrap();
        let send = async {
            for part in parts {
                client.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            client.shutdown().await.unwrap();
        };
        let (result, ()) = tokio::join!(read_client(&mut socket), send);
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest).await;
        (result, rest)
    }

    #[tokio::test]
    async fn client_is_read_and_nothing_after_the_header() {
        let v6 = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[7], &[1; 16], &[0; 4]].concat();
        let fields = [V4, &[4, 0, 3, 0, 0, 0], &[0x20, 0, 0]].concat();
        let local = v2_header(0x20, 0, 0, &[]);
        let at = |address: &str| ProxiedClient::At(address.parse().unwrap());
        let (unknown, balancer) = (ProxiedClient::Unknown, ProxiedClient::Balancer);
        let cases: [(Vec<u8>, ProxiedClient); 9] = [
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 12345 443\r\n".to_vec(), at("192.0.2.7")),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 1 443\r\n".to_vec(), at("2001:db8::7")),
            (b"PROXY UNKNOWN\r\n".to_vec(), unknown),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), unknown),
            (v2_header(0x21, 0x11, 12, V4), at("192.0.2.7")),
            (v2_header(0x21, 0x21, 36, &v6), at("2001:db8::7")),
            (v2_header(0x21, 0x11, 21, &fields), at("192.0.2.7")),
            (local, balancer),
            (v2_header(0x21, 0, 0, &[]), unknown),
        ];
        for (header, client) in cases {
            let whole = [&header[..], b"\x16\x03\x01\n"].concat();
            let single: Vec<&[u8]> = whole.chunks(1).collect();
            for parts in [vec![&whole[..]], single] {
                let (result, rest) = read(&parts).await;
                assert_eq!(result.unwrap(), client, "{header:?}");
                assert_eq!(rest, b"\x16\x03\x01\n", "{header:?}");
            }
        }
    }

    #[tokio::test]
    async fn malformed_headers_are_refused() {
        let long = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200], b"\r\n"].concat();
        let unended = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
        let cases: Vec<Vec<u8>> = vec![
            Vec::new(),
            b"P".to_vec(),
            b"PROXY".to_vec(),
            b"PROXY TCP4 192.0.2.7".to_vec(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00".to_vec(),
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            b"proxy TCP4 192.0.2.7 198.51.100.1 1 2\r\n".to_vec(),
            b"PROXY TCP5 192.0.2.7 198.51.100.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\rX\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n".to_vec(),
            b"PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::7 198.51.100.1 1 2\r\n".to_vec(),
            b"PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 -1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n".to_vec(),
            b"PROXY TCP4 gate.example 198.51.100.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 \xff\xfe 198.51.100.1 1 2\r\n".to_vec(),
            long,
            unended,
            SIGNATURE.to_vec(),
            v2_header(0x11, 0x11, 12, V4),
            v2_header(0x22, 0x11, 12, V4),
            v2_header(0x21, 0x41, 12, V4),
            v2_header(0x21, 0x13, 12, V4),
            v2_header(0x21, 0x12, 12, V4),
            v2_header(0x21, 0x11, 11, V4),
            v2_header(0x21, 0x21, 12, V4),
            v2_header(0x21, 0x11, 13, V4),
            v2_header(0x21, 0x11, 14, &[V4, &[4, 0]].concat()),
            v2_header(0x21, 0x11, 15, &[V4, &[4, 0, 9]].concat()),
            v2_header(0x21, 0x11, u16::MAX, V4),
        ];
        assert!(cases.len() >= 30);
        for case in cases {
            let (result, _) = read(&[&case]).await;
            assert!(result.is_err(), "{case:?} is {result:?}");
        }
    }
}
