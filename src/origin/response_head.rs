//! A strict parser for response heads (RFC 9112 §4 to §6). Ambiguous input is a protocol error.

use std::mem::MaybeUninit;

use bytes::{Buf, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use httparse::{EMPTY_HEADER, ParserConfig, Status};

use super::MAX_LENGTH;
use super::framing::{Chunk, Framing};

/// Longest response head in bytes, and most fields in it.
pub(super) const MAX_HEAD: usize = 64 * 1024;
const MAX_FIELDS: usize = 100;
/// The most interim responses (1xx) before a final one.
const MAX_INTERIM: usize = 16;

/// The head of a final response.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) version: Version,
    pub(super) fields: HeaderMap,
    /// Framing of the body.
    pub(super) framing: Framing,
    /// Whether the connection can be reused once the body is complete.
    pub(super) keep_alive: bool,
}

/// Takes the head out of the buffer, with interim responses (RFC 9110 §15.2) before it. Returns
/// `None` while the head is incomplete. `interim` counts interim responses over all calls.
pub(super) fn take(
    buffer: &mut BytesMut,
    to_head: bool,
    interim: &mut usize,
) -> Result<Option<Head>, &'static str> {
    loop {
        // The parser would skip empty lines.
        if buffer.first().is_some_and(|first| *first != b'H') {
            return Err(NOT_HTTP);
        }
        let Some((length, head)) = read(buffer, to_head)? else {
            let is_too_long = buffer.len() >= MAX_HEAD;
            return if is_too_long {
                Err("the head of its response is too long")
            } else {
                Ok(None)
            };
        };
        buffer.advance(length);
        match head.status.as_u16() {
            // The gate never sends Upgrade.
            101 => return Err("it switches to another protocol"),
            100..200 if *interim < MAX_INTERIM => *interim += 1,
            100..200 => return Err("it sends interim responses without end"),
            _ => return Ok(Some(head)),
        }
    }
}

const NOT_HTTP: &str = "its response is not HTTP";

fn read(buffer: &[u8], to_head: bool) -> Result<Option<(usize, Head)>, &'static str> {
    let mut room = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut answer = httparse::Response::new(&mut []);
    let parsed =
        ParserConfig::default().parse_response_with_uninit_headers(&mut answer, buffer, &mut room);
    let Status::Complete(length) = parsed.map_err(|_| NOT_HTTP)? else { return Ok(None) };
    // The parser accepts a bare LF as a line end; an intermediary might not.
    if has_bare_line_feed(buffer.get(..length).unwrap_or_default()) {
        return Err("a line of its head ends without a carriage return");
    }
    let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(NOT_HTTP)?;
    let version = if answer.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let mut fields = HeaderMap::with_capacity(answer.headers.len());
    for field in
        answer.headers.iter().filter(|field| **field != EMPTY_HEADER && !is_unread(field.name))
    {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| NOT_HTTP)?;
        fields.append(name, HeaderValue::from_bytes(field.value).map_err(|_| NOT_HTTP)?);
    }
    let has_transfer_coding = fields.contains_key(TRANSFER_ENCODING);
    let named = framing(&mut fields, has_transfer_coding)?;
    let is_bodiless = to_head || matches!(status.as_u16(), 100..200 | 204 | 304);
    let framing = if is_bodiless { Framing::Length(0) } else { named };
    // If a server sends a body with such a response, it would be read as the next response.
    let has_known_end = !is_bodiless && framing != Framing::UntilClose;
    // HTTP/1.0 has no transfer codings (RFC 9112 §6.1): an intermediary may have misread the
    // framing.
    let is_unambiguous = version == Version::HTTP_11 || !has_transfer_coding;
    let keep_alive = keep_alive(version, &fields) && has_known_end && is_unambiguous;
    Ok(Some((length, Head { status, version, fields, framing, keep_alive })))
}

/// Returns whether a head contains an LF without a CR. It compares all pairs of bytes without a
/// branch, which the compiler vectorizes; a search for each line end costs more.
fn has_bare_line_feed(head: &[u8]) -> bool {
    let follows = head.iter().zip(head.iter().skip(1));
    let bare = follows.map(|(before, byte)| u8::from(*byte == b'\n') & u8::from(*before != b'\r'));
    bare.fold(u8::from(head.first() == Some(&b'\n')), |any, bare| any | bare) != 0
}

/// Returns whether the gate never reads this field. Such a field is not stored, since each one
/// costs about a tenth of parsing a head.
fn is_unread(name: &str) -> bool {
    let unread: &[&str] = match name.len() {
        3 => &["age", "via"],
        4 => &["date", "vary"],
        6 => &["server"],
        7 => &["x-cache"],
        10 => &["keep-alive", "x-amz-id-2"],
        13 => &["accept-ranges"],
        16 => &["x-amz-request-id"],
        _ => &[],
    };
    unread.iter().any(|unread| name.eq_ignore_ascii_case(unread))
}

/// Determines the framing of the body (RFC 9112 §6.3).
fn framing(fields: &mut HeaderMap, has_transfer_coding: bool) -> Result<Framing, &'static str> {
    const TWO_LENGTHS: &str = "its response has two conflicting lengths";
    if has_transfer_coding {
        if fields.contains_key(CONTENT_LENGTH) {
            return Err(TWO_LENGTHS);
        }
        let mut codings = words(fields, &TRANSFER_ENCODING);
        let only = (codings.next(), codings.next());
        return match only {
            (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => {
                Ok(Framing::Chunked(Chunk::Size))
            }
            _ => Err("its response has an unsupported transfer coding"),
        };
    }
    if !fields.contains_key(CONTENT_LENGTH) {
        return Ok(Framing::UntilClose);
    }
    let digits = |word: &str| {
        word.bytes().all(|byte| byte.is_ascii_digit()).then(|| word.parse().ok()).flatten()
    };
    let mut lengths = words(fields, &CONTENT_LENGTH).map(digits);
    let first: u64 =
        lengths.next().flatten().ok_or("the length of its response is not a number")?;
    if first > MAX_LENGTH {
        return Err("its response is longer than any file can be");
    }
    let mut is_list = false;
    for other in lengths {
        if other != Some(first) {
            return Err(TWO_LENGTHS);
        }
        is_list = true;
    }
    // Later readers of the field expect a single number.
    if is_list {
        fields.insert(CONTENT_LENGTH, HeaderValue::from(first));
    }
    Ok(Framing::Length(first))
}

/// Returns whether the connection stays open after the response (RFC 9112 §9.3).
fn keep_alive(version: Version, fields: &HeaderMap) -> bool {
    let has =
        |option: &str| words(fields, &CONNECTION).any(|word| word.eq_ignore_ascii_case(option));
    if version == Version::HTTP_11 { !has("close") } else { has("keep-alive") && !has("close") }
}

/// Returns the members of a list field, from all its lines.
fn words<'a>(fields: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = fields.get_all(name).iter();
    lines.flat_map(|line| line.to_str().unwrap_or("?").split(',').map(str::trim))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(
        text: &str,
        to_head: bool,
    ) -> Result<Option<(u16, Framing, bool, String)>, &'static str> {
        let mut buffer = BytesMut::from(text);
        let head = take(&mut buffer, to_head, &mut 0)?;
        let rest = String::from_utf8(buffer.to_vec()).unwrap();
        Ok(head.map(|head| (head.status.as_u16(), head.framing, head.keep_alive, rest)))
    }

    #[test]
    fn head_determines_the_framing_of_the_body() {
        let chunked = Framing::Chunked(Chunk::Size);
        let good: [(&str, bool, u16, Framing, bool, &str); 15] = [
            (
                "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n5",
                false,
                200,
                chunked,
                false,
                "5",
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
                false,
                200,
                Framing::Length(5),
                true,
                "hello",
            ),
            (
                "HTTP/1.1 206\r\nContent-Length: 5, 5\r\n\r\n",
                false,
                206,
                Framing::Length(5),
                true,
                "",
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n",
                false,
                200,
                Framing::Length(5),
                true,
                "",
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
                true,
                200,
                Framing::Length(0),
                false,
                "",
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n", false, 204, Framing::Length(0), false, ""),
            (
                "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n",
                false,
                304,
                Framing::Length(0),
                false,
                "",
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5",
                false,
                200,
                chunked,
                true,
                "5",
            ),
            ("HTTP/1.1 200 OK\r\n\r\nall", false, 200, Framing::UntilClose, false, "all"),
            (
                "HTTP/1.1 200 OK\r\nconnection: x, Close\r\ncontent-length: 1\r\n\r\n",
                false,
                200,
                Framing::Length(1),
                false,
                "",
            ),
            (
                "HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n",
                false,
                200,
                Framing::Length(1),
                false,
                "",
            ),
            (
                "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\n",
                false,
                200,
                Framing::Length(1),
                true,
                "",
            ),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n",
                false,
                404,
                Framing::Length(0),
                true,
                "",
            ),
            (
                "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
                 HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                false,
                200,
                Framing::Length(0),
                true,
                "",
            ),
            (
                "HTTP/1.1 500 Ø\r\ncontent-length: 0\r\n\r\n",
                false,
                500,
                Framing::Length(0),
                true,
                "",
            ),
        ];
        for (text, to_head, status, framing, keep_alive, rest) in good {
            assert_eq!(
                taken(text, to_head),
                Ok(Some((status, framing, keep_alive, rest.to_owned()))),
                "{text:?}"
            );
            let end = text.len() - rest.len() - 1;
            if let Some(part) = text.get(..end) {
                assert_eq!(taken(part, to_head), Ok(None), "{part:?}");
            }
        }
    }

    #[test]
    fn ambiguous_heads_are_rejected() {
        for fields in [
            "content-length: 5\r\ntransfer-encoding: chunked",
            "content-length: 5\r\ncontent-length: 6",
            "content-length: 5, 6",
            "content-length: +5",
            "content-length: 0x5",
            "content-length:",
            "content-length: 99999999999999999999",
            "content-length: 18446744073709551615",
            "content-length: 9223372036854775808",
            "content-length: 5\ntransfer-encoding: chunked",
            "x: a\nb: c",
            "transfer-encoding: gzip, chunked",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            "transfer-encoding: identity",
            "x: a\r\n folded",
            "no colon",
            "spaced : a",
        ] {
            let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
            assert!(taken(&text, false).is_err(), "{fields:?}: {:?}", taken(&text, false));
        }
        for text in [
            "HTTP/2 200 OK\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
            "HTTP/1.1 101 No\r\n\r\n",
            "HTTP/1.1 200 OK\n\r\n",
            "HTTP/1.1 200 OK\r\n\n",
            "HTTP/1.1 200 OK\r\na: b\n\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
        ] {
            assert!(taken(text, false).is_err(), "{text:?}");
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(MAX_FIELDS + 1));
        assert!(taken(&many, false).is_err());
        assert!(taken(&format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(MAX_HEAD)), false).is_err());
    }

    #[test]
    fn head_response_is_checked_like_any_other() {
        for fields in
            ["content-length: 5\r\ncontent-length: 6", "content-length: 18446744073709551615"]
        {
            let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
            assert!(taken(&text, true).is_err(), "{fields:?}");
        }
    }

    #[test]
    fn interim_responses_without_end_are_an_error() {
        let mut interim = 0;
        let one = "HTTP/1.1 103 Early Hints\r\n\r\n";
        let mut buffer = BytesMut::from(one.repeat(MAX_INTERIM).as_str());
        assert!(take(&mut buffer, false, &mut interim).unwrap().is_none());
        buffer.extend_from_slice(one.as_bytes());
        assert!(take(&mut buffer, false, &mut interim).is_err());
    }
}
