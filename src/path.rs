//! The path of a request in normal form, and the path of a file at an origin.
//!
//! The server parses each request's path here, once, before any other use. The catalog, the
//! readers' scopes and the origins see decoded segments only. A [`FilePath`] is built from decoded
//! parts and never copied from a request. The gate and the storage therefore cannot interpret one
//! path in two ways (CWE-551). The module depends only on `language`.

use std::fmt;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::language::Sentence;

#[cfg(test)]
mod tests;

/// The longest accepted path, in bytes as sent. A long link and a long file name fit.
pub const MAX_BYTES: usize = 2048;

/// The characters to percent-encode: all except the unreserved ones of RFC 3986 §2.3.
const ENCODED_CHARACTERS: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A request path in normal form, created by [`RequestPath::parse`] only.
///
/// `Debug` leaves out a link's token.
#[derive(Clone, Eq, PartialEq)]
pub struct RequestPath {
    /// The decoded segments, each after a slash. No decoded segment contains a slash.
    text: Arc<str>,
}

/// A sentence that describes what is wrong with a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}", .0.english)]
pub struct PathError(pub &'static Sentence);

impl RequestPath {
    /// Parses a path as sent (`Uri::path`). Decodes it once, and refuses a path not in normal form.
    ///
    /// The normal form has a leading slash, valid UTF-8, and at most [`MAX_BYTES`]. It has no empty
    /// segment (so no trailing slash, except in the root) and no segment of dots only. It has no
    /// double encoding, encoded slash, backslash, semicolon or control character. Any other byte
    /// may be percent-encoded, with hexadecimal digits in either case.
    ///
    /// ```
    /// use loangate::path::RequestPath;
    ///
    /// let path = RequestPath::parse("/files/9788299999014/kapittel%201.xhtml")?;
    /// assert_eq!(path.decoded(), "/files/9788299999014/kapittel 1.xhtml");
    /// assert_eq!(path.segments().next(), Some("files"));
    ///
    /// // Nothing is repaired: a storage could read each of these in another way than the gate.
    /// for trick in ["/files/../keys", "/files/%2e%2e/keys", "/files//keys", "/files/a%2fb"] {
    ///     assert!(RequestPath::parse(trick).is_err(), "{trick}");
    /// }
    /// # Ok::<(), loangate::path::PathError>(())
    /// ```
    ///
    /// # Errors
    /// A sentence for the reader, for 400 `request-malformed`.
    pub fn parse(raw: &str) -> Result<RequestPath, PathError> {
        if raw.len() > MAX_BYTES {
            return Err(PathError(&Sentence {
                english: "The path is longer than 2 KiB. Send a shorter one.",
                norwegian: "Stien er lengre enn 2 KiB. Send en kortere.",
            }));
        }
        if !raw.starts_with('/') {
            return Err(PathError(&Sentence {
                english: "The path does not start with a slash.",
                norwegian: "Stien begynner ikke med en skråstrek.",
            }));
        }
        // Fast path: most paths need no decoding and no check of characters.
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

    /// Returns the path with this decoded text, which starts with a slash.
    ///
    /// # Errors
    /// The same as for [`RequestPath::parse`]: no request can have such a path.
    pub fn of_decoded(text: &str) -> Result<RequestPath, PathError> {
        let Some(below) = text.strip_prefix('/') else {
            return Err(PathError(&Sentence {
                english: "The path does not start with a slash.",
                norwegian: "Stien begynner ikke med en skråstrek.",
            }));
        };
        let raw: String = below
            .split('/')
            .flat_map(|segment| std::iter::once("/").chain(encoded(segment)))
            .collect();
        RequestPath::parse(&raw)
    }

    /// Returns the path of a page with this text, which ends in a slash as no path of a file does.
    /// None if it is that of the root, or if the text before the slash is not in normal form or has
    /// other than plain characters.
    pub fn of_page(text: &str) -> Option<RequestPath> {
        let before = text.strip_suffix('/').filter(|before| before.bytes().all(is_plain))?;
        RequestPath::parse(before).ok().filter(|path| path.decoded() != "/")?;
        Some(RequestPath { text: text.into() })
    }

    /// Iterates over the decoded segments. The root has none.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        segments_of(&self.text)
    }

    /// The decoded segments, each after a slash; `/` for the root. For matching, never for sending.
    pub fn decoded(&self) -> &str {
        &self.text
    }

    /// The text of [`RequestPath::decoded`] as a shared string.
    pub fn shared(&self) -> Arc<str> {
        self.text.clone()
    }

    /// Splits off a first segment that starts with `~`. Returns it without the tilde (a link's
    /// token), and the rest of the path.
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

/// Whether a byte is an unreserved character of RFC 3986 §2.3, or a slash.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/')
}

/// Checks for characters that must not be sent unencoded (RFC 3986 §3.3). Brackets and bars are
/// accepted, because browsers send them.
fn check_raw(raw: &str) -> Result<(), PathError> {
    for byte in raw.bytes() {
        match byte {
            0..=0x20 | 0x7f => {
                return Err(PathError(&Sentence {
                    english: "The path contains a space or a control character.",
                    norwegian: "Stien har et mellomrom eller et styretegn.",
                }));
            }
            0x80.. => {
                return Err(PathError(&Sentence {
                    english: "The path contains a character outside ASCII. Percent-encode \
                                  its UTF-8.",
                    norwegian: "Stien har et tegn utenfor ASCII. Prosentkod tegnets UTF-8.",
                }));
            }
            b'?' | b'#' => {
                return Err(PathError(&Sentence {
                    english: "The path contains a query or a fragment.",
                    norwegian: "Stien har en spørring eller et fragment.",
                }));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Percent-decodes a path once.
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
            return Err(PathError(&Sentence {
                english: "The path contains a percent sign without two hexadecimal digits.",
                norwegian: "Stien har et prosenttegn uten to heksadesimale sifre.",
            }));
        };
        match decoded.0 << 4 | decoded.1 {
            b'/' => {
                return Err(PathError(&Sentence {
                    english: "The path contains an encoded slash.",
                    norwegian: "Stien har en kodet skråstrek.",
                }));
            }
            decoded => bytes.push(decoded),
        }
    }
    let text = String::from_utf8(bytes).map_err(|_| {
        PathError(&Sentence {
            english: "The path is not UTF-8 once it is decoded.",
            norwegian: "Stien er ikke UTF-8 når den er dekodet.",
        })
    })?;
    if is_still_encoded(&text) {
        return Err(PathError(&Sentence {
            english: "The path is percent-encoded twice. Encode it once.",
            norwegian: "Stien er prosentkodet to ganger. Kod den én gang.",
        }));
    }
    Ok(text)
}

fn hex(digit: Option<u8>) -> Option<u8> {
    let value = char::from(digit?).to_digit(16)?;
    u8::try_from(value).ok()
}

/// Whether the decoded text still contains a percent-encoded byte. Checked after decoding, to
/// detect `%25%32%65` as well.
fn is_still_encoded(text: &str) -> bool {
    text.split('%').skip(1).any(|after| {
        let mut bytes = after.bytes();
        hex(bytes.next()).is_some() && hex(bytes.next()).is_some()
    })
}

fn check_characters(text: &str) -> Result<(), PathError> {
    for character in text.chars() {
        match character {
            '\\' => {
                return Err(PathError(&Sentence {
                    english: "The path contains a backslash.",
                    norwegian: "Stien har en omvendt skråstrek.",
                }));
            }
            ';' => {
                return Err(PathError(&Sentence {
                    english: "The path contains a semicolon. There are no path parameters \
                                  here.",
                    norwegian: "Stien har et semikolon. Her finnes ingen stiparametere.",
                }));
            }
            other if other.is_control() => {
                return Err(PathError(&Sentence {
                    english: "The path contains a control character.",
                    norwegian: "Stien har et styretegn.",
                }));
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
            return Err(PathError(&Sentence {
                english: "The path contains an empty segment: two slashes together, or one \
                              at its end.",
                norwegian: "Stien har et tomt ledd: to skråstreker etter hverandre, eller en \
                                på slutten.",
            }));
        }
        if is_dots(segment) {
            return Err(PathError(&Sentence {
                english: "The path contains a segment of dots. Send it resolved.",
                norwegian: "Stien har et ledd av punktum. Send den oppløst.",
            }));
        }
    }
    Ok(())
}

/// Whether a segment is `.` or `..`, or some storage reads it so: more dots, or dots and spaces.
fn is_dots(segment: &str) -> bool {
    segment.bytes().all(|byte| matches!(byte, b'.' | b' '))
}

/// A path at an origin, percent-encoded and without a leading slash. It is built from decoded
/// parts, never copied from a request.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct FilePath(Arc<str>);

impl FilePath {
    /// Builds a path from decoded segments with a slash between them. Percent-encodes every byte
    /// except the unreserved characters of RFC 3986.
    ///
    /// Returns none if a segment is empty or only dots: such a path has no safe form.
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

    /// Returns the percent-encoded path, without a leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Percent-encodes a decoded segment, except for the unreserved characters of RFC 3986.
pub fn encoded(segment: &str) -> impl Iterator<Item = &str> {
    utf8_percent_encode(segment, ENCODED_CHARACTERS)
}
