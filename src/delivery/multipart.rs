//! The text between several parts of one answer: multipart/byteranges (RFC 9110 §14.6, RFC 2046
//! §5.1).

use bytes::Bytes;
use http::HeaderValue;

use super::range::Part;

/// One answer's boundary, and the type that each part tells.
pub(super) struct Multipart {
    boundary: String,
    kind: String,
}

impl Multipart {
    /// Parts of a file of this type, under a boundary that no file has in it but by a chance of one
    /// in 2^122.
    pub(super) fn new(kind: Option<&HeaderValue>) -> Multipart {
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or("application/octet-stream");
        Multipart { boundary: uuid::Uuid::new_v4().simple().to_string(), kind: kind.to_owned() }
    }

    /// The type of the answer.
    pub(super) fn kind(&self) -> HeaderValue {
        let kind = format!("multipart/byteranges; boundary={}", self.boundary);
        HeaderValue::try_from(kind).unwrap_or(HeaderValue::from_static("multipart/byteranges"))
    }

    /// What stands before a part.
    pub(super) fn before(&self, part: Part) -> Bytes {
        let (boundary, kind) = (&self.boundary, &self.kind);
        let (first, last, complete) = (part.first, part.last, part.complete);
        Bytes::from(format!(
            "\r\n--{boundary}\r\nContent-Type: {kind}\r\nContent-Range: bytes {first}-{last}/{complete}\r\n\r\n"
        ))
    }

    /// What stands after the last.
    pub(super) fn end(&self) -> Bytes {
        Bytes::from(format!("\r\n--{}--\r\n", self.boundary))
    }
}
