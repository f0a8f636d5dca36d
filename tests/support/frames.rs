//! HTTP/2 frames written by hand, for misbehaving clients that no library provides (RFC 9113, RFC
//! 7541).

use tokio::io::{AsyncRead, AsyncReadExt};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// Returns a frame with its header.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Returns the client's connection preface with these settings.
pub(crate) fn preface(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, value) in settings {
        payload.extend(id.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &payload)].concat()
}

/// Returns a HEADERS block for a request. `authority` is a host with its port.
pub(crate) fn head(method: &str, authority: &str, path: &str, token: Option<&str>) -> Vec<u8> {
    let mut block = vec![0x87]; // :scheme https
    literal(&mut block, &[0x02], method);
    literal(&mut block, &[0x01], authority);
    literal(&mut block, &[0x04], path);
    if let Some(token) = token {
        literal(&mut block, &[0x0f, 23 - 15], &format!("Bearer {token}"));
    }
    block
}

/// Appends a field without indexing, whose name is an index into the static table.
fn literal(block: &mut Vec<u8>, name: &[u8], value: &str) {
    block.extend(name);
    let mut length = value.len();
    if length < 127 {
        block.push(u8::try_from(length).unwrap());
    } else {
        block.push(127);
        length -= 127;
        while length >= 128 {
            block.push(u8::try_from(length % 128).unwrap() | 0x80);
            length /= 128;
        }
        block.push(u8::try_from(length).unwrap());
    }
    block.extend(value.as_bytes());
}

/// Reads the next frame: type, flags, stream and payload; `None` if the connection is closed.
pub(crate) async fn next(stream: &mut (impl AsyncRead + Unpin)) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut header = [0; 9];
    stream.read_exact(&mut header).await.ok()?;
    let [a, b, c, kind, flags, d, e, f, g] = header;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((kind, flags, u32::from_be_bytes([d & 0x7f, e, f, g]), payload))
}
