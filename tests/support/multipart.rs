//! Strict parser for multipart/byteranges responses (RFC 9110 §14.6, RFC 2046).

use http::StatusCode;

/// Returns the parts of a response: first byte, last byte, complete length, and content.
pub(crate) async fn parts(answer: reqwest::Response) -> Vec<(u64, u64, u64, Vec<u8>)> {
    assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
    assert!(
        !answer.headers().contains_key("content-range"),
        "only the parts have Content-Range (RFC 9110 §14.6)"
    );
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap().to_owned();
    let length: usize = answer.headers()["content-length"].to_str().unwrap().parse().unwrap();
    let body = answer.bytes().await.unwrap().to_vec();
    assert_eq!(body.len(), length);
    let mut rest = body.as_slice();
    let mut parts = Vec::new();
    let delimiter = format!("\r\n--{boundary}");
    loop {
        rest = rest.strip_prefix(delimiter.as_bytes()).unwrap();
        if rest == b"--\r\n" {
            return parts;
        }
        let head = rest.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let fields = std::str::from_utf8(&rest[..head]).unwrap();
        assert!(fields.contains("\r\nContent-Type: audio/mpeg\r\n"), "{fields}");
        let range = fields.split("Content-Range: bytes ").nth(1).unwrap();
        let (range, complete) = range.split_once('/').unwrap();
        let (first, last) = range.split_once('-').unwrap();
        let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
        rest = &rest[head + 4..];
        let (bytes, after) = rest.split_at((last - first + 1) as usize);
        parts.push((first, last, complete.parse().unwrap(), bytes.to_vec()));
        rest = after;
    }
}
