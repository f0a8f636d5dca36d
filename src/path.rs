//! The path of a request in its one normal form, and the path of a file at an origin.
//!
//! The server parses every request's path here, once, before anything else looks at it; the
//! catalog, the readers' scopes and the origins see decoded segments only. Between the two types
//! lies the promise: a [`FilePath`] is built from decoded parts and never copied from a request, so
//! that the gate and the storage cannot read one path in two ways (CWE-551). It calls nothing of
//! ours.

use std::fmt;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

#[cfg(test)]
mod tests;

/// The longest path that is read, in bytes as sent: room for a long link and a long file name.
pub const MAX_BYTES: usize = 2048;

/// Every byte but RFC 3986's unreserved (§2.3).
const ALL_BUT_UNRESERVED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A request path in its one normal form; made only by [`RequestPath::parse`].
///
/// `Debug` leaves out a link's token.
#[derive(Clone, Eq, PartialEq)]
pub struct RequestPath {
    /// A slash, then the decoded segments with a slash between them: no decoded segment contains
    /// one.
    text: Arc<str>,
}

/// What is wrong with a path: a sentence.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct PathError(pub &'static str);

impl RequestPath {
    /// Reads a path as sent (`Uri::path`), decoding it once, and refuses anything not in normal
    /// form.
    ///
    /// Normal is: a leading slash, no empty segment (so no slash at the end but in the root), no
    /// segment of dots alone, nothing encoded twice, no encoded slash, no backslash, semicolon or
    /// control character, whole UTF-8, at most [`MAX_BYTES`]. An escape may stand for any other
    /// byte, in either case of hex.
    ///
    /// # Errors
    /// The sentence for the reader, for 400 `request-malformed`.
    pub fn parse(raw: &str) -> Result<RequestPath, PathError> {
        if raw.len() > MAX_BYTES {
            return Err(PathError("The path is longer than 2 KiB. Ask for a shorter one."));
        }
        if !raw.starts_with('/') {
            return Err(PathError("The path does not start with a slash."));
        }
        // In most paths there is nothing to decode and nothing that could be wrong.
        if raw.bytes().all(is_plain) {
            check_segments(raw)?;
            return Ok(RequestPath { text: raw.into() });
        }
        check_raw(raw)?;
        let text = decode(raw)?;
        check_characters(&text)?;
        check_segments(&text)?;
        Ok(RequestPath { text: text.into() })
    }

    /// The path that is this text once it is decoded, a slash at its front.
    ///
    /// # Errors
    /// Where no request can have it: as [`RequestPath::parse`].
    pub fn of_decoded(text: &str) -> Result<RequestPath, PathError> {
        let Some(below) = text.strip_prefix('/') else {
            return Err(PathError("The path does not start with a slash."));
        };
        let raw: String = below
            .split('/')
            .flat_map(|segment| std::iter::once("/").chain(encoded(segment)))
            .collect();
        RequestPath::parse(&raw)
    }

    /// The decoded segments; none for the root.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        segments_of(&self.text)
    }

    /// The decoded segments, each after a slash; `/` for the root. Good for matching, never for
    /// sending.
    pub fn decoded(&self) -> &str {
        &self.text
    }

    /// The same, for whoever keeps it.
    pub fn shared(&self) -> Arc<str> {
        self.text.clone()
    }

    /// Splits off a first segment that starts with `~` (a link's token, without the tilde) and
    /// gives the rest.
    pub fn split_token(self) -> (Option<String>, RequestPath) {
        let Some(rest) = self.text.strip_prefix("/~") else {
            return (None, self);
        };
        let (token, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let path = RequestPath { text: format!("/{rest}").into() };
        (Some(token.to_owned()), path)
    }
}

impl fmt::Debug for RequestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text.strip_prefix("/~") {
            Some(rest) => {
                let rest = rest.split_once('/').map_or("", |(_, rest)| rest);
                write!(f, "RequestPath(/~…/{rest})")
            }
            None => write!(f, "RequestPath({})", self.text),
        }
    }
}

fn segments_of(text: &str) -> impl Iterator<Item = &str> {
    text.split('/').skip(1).filter(|segment| !segment.is_empty())
}

/// RFC 3986's unreserved (§2.3), and the slash.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/')
}

/// What may not even be sent (RFC 3986 §3.3). Brackets and bars may not either, but browsers send
/// them.
fn check_raw(raw: &str) -> Result<(), PathError> {
    for byte in raw.bytes() {
        match byte {
            0..=0x20 | 0x7f => {
                return Err(PathError("The path contains a space or a control character."));
            }
            0x80.. => {
                return Err(PathError(
                    "The path contains a character outside ASCII. Percent-encode its UTF-8.",
                ));
            }
            b'?' | b'#' => return Err(PathError("The path contains a query or a fragment.")),
            _ => {}
        }
    }
    Ok(())
}

/// Decodes once. Without a percent sign there is nothing to do but to copy.
fn decode(raw: &str) -> Result<String, PathError> {
    if !raw.contains('%') {
        return Ok(raw.to_owned());
    }
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let Some(decoded) = hex(rest.next()).zip(hex(rest.next())) else {
            return Err(PathError(
                "The path contains a percent sign without two hexadecimal digits.",
            ));
        };
        match decoded.0 << 4 | decoded.1 {
            b'/' => return Err(PathError("The path contains an encoded slash.")),
            decoded => bytes.push(decoded),
        }
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| PathError("The path is not UTF-8 once it is decoded."))?;
    if is_still_encoded(&text) {
        return Err(PathError("The path is percent-encoded twice. Encode it once."));
    }
    Ok(text)
}

fn hex(digit: Option<u8>) -> Option<u8> {
    let value = char::from(digit?).to_digit(16)?;
    u8::try_from(value).ok()
}

/// Whether a second decoding would find something: checked on the decoded text, so that `%25%32%65`
/// counts too.
fn is_still_encoded(text: &str) -> bool {
    text.split('%').skip(1).any(|after| {
        let mut bytes = after.bytes();
        hex(bytes.next()).is_some() && hex(bytes.next()).is_some()
    })
}

fn check_characters(text: &str) -> Result<(), PathError> {
    for character in text.chars() {
        match character {
            '\\' => return Err(PathError("The path contains a backslash.")),
            ';' => {
                return Err(PathError(
                    "The path contains a semicolon. There are no path parameters here.",
                ));
            }
            other if other.is_control() => {
                return Err(PathError("The path contains a control character."));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_segments(text: &str) -> Result<(), PathError> {
    if text == "/" {
        return Ok(());
    }
    for segment in text.split('/').skip(1) {
        if segment.is_empty() {
            return Err(PathError(
                "The path contains an empty segment: two slashes together, or one at its end.",
            ));
        }
        if is_dots(segment) {
            return Err(PathError("The path contains a segment of dots. Send it resolved."));
        }
    }
    Ok(())
}

/// `.`, `..`, and what some storage reads as one of them: more dots, or a space among them.
fn is_dots(segment: &str) -> bool {
    segment.bytes().all(|byte| matches!(byte, b'.' | b' '))
}

/// A path at an origin, built from parts: never copied from a request. Already percent-encoded,
/// without a leading slash.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct FilePath(Arc<str>);

impl FilePath {
    /// From decoded segments with a slash between them, percent-encoding every byte outside RFC
    /// 3986's unreserved.
    ///
    /// None where a segment is empty or only dots: such a path has no safe spelling.
    pub fn of_decoded(text: &str) -> Option<FilePath> {
        if text.split('/').any(is_dots) {
            return None;
        }
        if text.bytes().all(is_plain) {
            return Some(FilePath(text.into()));
        }
        let mut path = String::with_capacity(text.len() * 2);
        for segment in text.split('/') {
            if !path.is_empty() {
                path.push('/');
            }
            path.extend(encoded(segment));
        }
        Some(FilePath(path.into()))
    }

    /// The encoded path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A decoded segment as it is sent: every byte outside RFC 3986's unreserved percent-encoded.
pub fn encoded(segment: &str) -> impl Iterator<Item = &str> {
    utf8_percent_encode(segment, ALL_BUT_UNRESERVED)
}
