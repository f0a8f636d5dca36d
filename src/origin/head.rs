//! The head of an answer (RFC 9112 §4 to §6), read strictly: what could be read in two ways is refused.

use std::mem::MaybeUninit;

use bytes::{Buf, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use httparse::{EMPTY_HEADER, ParserConfig, Status};

use super::framing::{Chunk, Framing};

/// The longest head that is read, in bytes, and the most fields in it.
pub(super) const LONGEST: usize = 64 * 1024;
const MOST_FIELDS: usize = 100;

/// A head.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) version: Version,
    pub(super) fields: HeaderMap,
    /// How its body is framed.
    pub(super) framing: Framing,
    /// Whether the connection is good for another request once the body is over.
    pub(super) keeps: bool,
}

/// Takes the head off the buffer, with interim answers (RFC 9110 §15.2) before it; none while it is not whole.
pub(super) fn take(buffer: &mut BytesMut, to_head: bool) -> Result<Option<Head>, &'static str> {
    loop {
        let Some((length, head)) = read(buffer, to_head)? else {
            let is_too_long = buffer.len() >= LONGEST;
            return if is_too_long { Err("the head of its answer is too long") } else { Ok(None) };
        };
        buffer.advance(length);
        match head.status.as_u16() {
            // Nobody asked it to change to another protocol.
            101 => return Err("it wants to speak another protocol"),
            100..200 => {}
            _ => return Ok(Some(head)),
        }
    }
}

fn read(buffer: &[u8], to_head: bool) -> Result<Option<(usize, Head)>, &'static str> {
    const NO_HTTP: &str = "what it answers is no HTTP";
    let mut room = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut answer = httparse::Response::new(&mut []);
    let parsed = ParserConfig::default().parse_response_with_uninit_headers(&mut answer, buffer, &mut room);
    let Status::Complete(length) = parsed.map_err(|_| NO_HTTP)? else { return Ok(None) };
    let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(NO_HTTP)?;
    let version = if answer.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let mut fields = HeaderMap::with_capacity(answer.headers.len());
    for field in answer.headers.iter().filter(|field| **field != EMPTY_HEADER) {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| NO_HTTP)?;
        fields.append(name, HeaderValue::from_bytes(field.value).map_err(|_| NO_HTTP)?);
    }
    let framing = match status.as_u16() {
        100..200 | 204 | 304 => Framing::Length(0),
        _ if to_head => Framing::Length(0),
        _ => framing(&mut fields)?,
    };
    let keeps = keeps(version, &fields) && framing != Framing::UntilClose;
    Ok(Some((length, Head { status, version, fields, framing, keeps })))
}

/// RFC 9112 §6.3.
fn framing(fields: &mut HeaderMap) -> Result<Framing, &'static str> {
    const TWO_LENGTHS: &str = "its answer tells its length in two ways";
    if fields.contains_key(TRANSFER_ENCODING) {
        if fields.contains_key(CONTENT_LENGTH) {
            return Err(TWO_LENGTHS);
        }
        let mut codings = words(fields, &TRANSFER_ENCODING);
        let only = (codings.next(), codings.next());
        return match only {
            (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => {
                Ok(Framing::Chunked(Chunk::Size))
            }
            _ => Err("its answer has a transfer coding that nobody asked for"),
        };
    }
    if !fields.contains_key(CONTENT_LENGTH) {
        return Ok(Framing::UntilClose);
    }
    let digits =
        |word: &str| word.bytes().all(|byte| byte.is_ascii_digit()).then(|| word.parse().ok()).flatten();
    let mut lengths = words(fields, &CONTENT_LENGTH).map(digits);
    let first: u64 = lengths.next().flatten().ok_or("the length of its answer is no number")?;
    let mut is_list = false;
    for other in lengths {
        if other != Some(first) {
            return Err(TWO_LENGTHS);
        }
        is_list = true;
    }
    // Said once to whoever reads it after.
    if is_list {
        fields.insert(CONTENT_LENGTH, HeaderValue::from(first));
    }
    Ok(Framing::Length(first))
}

/// RFC 9112 §9.3.
fn keeps(version: Version, fields: &HeaderMap) -> bool {
    let says = |option: &str| words(fields, &CONNECTION).any(|word| word.eq_ignore_ascii_case(option));
    if version == Version::HTTP_11 { !says("close") } else { says("keep-alive") && !says("close") }
}

/// The members of a field that is a list, over all its lines.
fn words<'a>(fields: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = fields.get_all(name).iter();
    lines.flat_map(|line| line.to_str().unwrap_or("?").split(',').map(str::trim))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(text: &str, to_head: bool) -> Result<Option<(u16, Framing, bool, String)>, &'static str> {
        let mut buffer = BytesMut::from(text);
        let head = take(&mut buffer, to_head)?;
        let rest = String::from_utf8(buffer.to_vec()).unwrap();
        Ok(head.map(|head| (head.status.as_u16(), head.framing, head.keeps, rest)))
    }

    #[test]
    fn a_head_tells_how_its_body_is_framed() {
        let chunked = Framing::Chunked(Chunk::Size);
        let good: [(&str, bool, u16, Framing, bool, &str); 14] = [
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
                false,
                200,
                Framing::Length(5),
                true,
                "hello",
            ),
            ("HTTP/1.1 206\r\nContent-Length: 5, 5\r\n\r\n", false, 206, Framing::Length(5), true, ""),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n",
                false,
                200,
                Framing::Length(5),
                true,
                "",
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", true, 200, Framing::Length(0), true, ""),
            ("HTTP/1.1 204 No Content\r\n\r\n", false, 204, Framing::Length(0), true, ""),
            (
                "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n",
                false,
                304,
                Framing::Length(0),
                true,
                "",
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5", false, 200, chunked, true, "5"),
            ("HTTP/1.1 200 OK\r\n\r\nall", false, 200, Framing::UntilClose, false, "all"),
            (
                "HTTP/1.1 200 OK\r\nconnection: x, Close\r\ncontent-length: 1\r\n\r\n",
                false,
                200,
                Framing::Length(1),
                false,
                "",
            ),
            ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n", false, 200, Framing::Length(1), false, ""),
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
                "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                false,
                200,
                Framing::Length(0),
                true,
                "",
            ),
            ("HTTP/1.1 500 Ø\r\ncontent-length: 0\r\n\r\n", false, 500, Framing::Length(0), true, ""),
        ];
        for (text, to_head, status, framing, keeps, rest) in good {
            assert_eq!(taken(text, to_head), Ok(Some((status, framing, keeps, rest.to_owned()))), "{text:?}");
            let end = text.len() - rest.len() - 1;
            if let Some(part) = text.get(..end) {
                assert_eq!(taken(part, to_head), Ok(None), "{part:?}");
            }
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for fields in [
            "content-length: 5\r\ntransfer-encoding: chunked",
            "content-length: 5\r\ncontent-length: 6",
            "content-length: 5, 6",
            "content-length: +5",
            "content-length: 0x5",
            "content-length:",
            "content-length: 99999999999999999999",
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
            "HTTP/1.1 20 OK\r\n\r\n",
        ] {
            assert!(taken(text, false).is_err(), "{text:?}");
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(MOST_FIELDS + 1));
        assert!(taken(&many, false).is_err());
        assert!(taken(&format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(LONGEST)), false).is_err());
    }
}
