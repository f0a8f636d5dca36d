//! The multipart text of a response with several parts: multipart/byteranges (RFC 9110 §14.6, RFC
//! 2046 §5.1).

use bytes::Bytes;
use http::HeaderValue;

use super::range::Part;

/// The boundary of one response, and the media type of its parts.
pub(super) struct Multipart {
    boundary: String,
    kind: String,
}

impl Multipart {
    /// Creates a boundary for parts of this media type. A file contains it with a probability of at
    /// most about one in 2^122.
    pub(super) fn new(kind: Option<&HeaderValue>) -> Multipart {
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or("application/octet-stream");
        Multipart { boundary: uuid::Uuid::new_v4().simple().to_string(), kind: kind.to_owned() }
    }

    /// Returns the media type of the response.
    pub(super) fn content_type(&self) -> HeaderValue {
        let kind = format!("multipart/byteranges; boundary={}", self.boundary);
        HeaderValue::try_from(kind).unwrap_or(HeaderValue::from_static("multipart/byteranges"))
    }

    /// Returns the text before a part: boundary and part header.
    pub(super) fn part_header(&self, part: Part) -> Bytes {
        let (boundary, kind) = (&self.boundary, &self.kind);
        let (first, last, complete) = (part.first, part.last, part.complete);
        Bytes::from(format!(
            "\r\n--{boundary}\r\nContent-Type: {kind}\r\n\
             Content-Range: bytes {first}-{last}/{complete}\r\n\r\n"
        ))
    }

    /// Returns the closing boundary.
    pub(super) fn closing(&self) -> Bytes {
        Bytes::from(format!("\r\n--{}--\r\n", self.boundary))
    }
}
