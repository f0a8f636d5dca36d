//! The framing of a body (RFC 9112 §6 and §7): by length, by chunks, or until the connection
//! closes.

use bytes::{Buf, Bytes, BytesMut};

use super::body::Broken;

/// Longest line between chunks, and longest trailer section, in bytes.
const LONGEST_LINE: usize = 4 * 1024;
const LONGEST_TRAILERS: usize = 16 * 1024;

/// The framing of a body, with its progress.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Framing {
    /// This many bytes remain.
    Length(u64),
    Chunked(Chunk),
    /// Until the server closes the connection.
    UntilClose,
}

/// The next element of a chunked body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Chunk {
    /// The line with the size of the next chunk.
    Size,
    /// This many bytes of the chunk.
    Data(u64),
    /// The CR LF after the chunk.
    End,
    /// Trailers, of which this many bytes were read.
    Trailers(usize),
    Complete,
}

/// The result of parsing the buffer.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Parsed {
    Data(Bytes),
    /// More bytes must be read first.
    Incomplete,
    /// The body is complete.
    Complete,
}

impl Framing {
    /// Returns whether the body is complete.
    pub(super) fn is_complete(self) -> bool {
        matches!(self, Framing::Length(0) | Framing::Chunked(Chunk::Complete))
    }

    /// Returns the number of remaining bytes, if known.
    pub(super) fn left(self) -> Option<u64> {
        match self {
            Framing::Length(left) => Some(left),
            Framing::Chunked(Chunk::Complete) => Some(0),
            Framing::Chunked(_) | Framing::UntilClose => None,
        }
    }

    /// Takes the next bytes of the body out of the buffer.
    pub(super) fn take(&mut self, buffer: &mut BytesMut) -> Result<Parsed, Broken> {
        match self {
            Framing::Length(left) => Ok(take(left, buffer)),
            Framing::UntilClose if buffer.is_empty() => Ok(Parsed::Incomplete),
            Framing::UntilClose => Ok(Parsed::Data(buffer.split().freeze())),
            Framing::Chunked(chunk) => chunk.take(buffer),
        }
    }

    /// Returns whether the body is complete if the server closes the connection now.
    pub(super) fn may_close(self) -> bool {
        self == Framing::UntilClose || self.is_complete()
    }
}

fn take(left: &mut u64, buffer: &mut BytesMut) -> Parsed {
    if *left == 0 {
        return Parsed::Complete;
    }
    let count = usize::try_from(*left).map_or(buffer.len(), |left| left.min(buffer.len()));
    if count == 0 {
        return Parsed::Incomplete;
    }
    *left -= count as u64;
    Parsed::Data(
        if count == buffer.len() { buffer.split() } else { buffer.split_to(count) }.freeze(),
    )
}

impl Chunk {
    fn take(&mut self, buffer: &mut BytesMut) -> Result<Parsed, Broken> {
        loop {
            match self {
                // The parser treats a line without a digit as the last chunk.
                Chunk::Size if buffer.first().is_some_and(|digit| !digit.is_ascii_hexdigit()) => {
                    return Err(Broken);
                }
                Chunk::Size => match httparse::parse_chunk_size(buffer).map_err(|_| Broken)? {
                    httparse::Status::Partial => return bounded(buffer, LONGEST_LINE),
                    httparse::Status::Complete((line, size)) => {
                        check_line(buffer.get(..line), LONGEST_LINE)?;
                        buffer.advance(line);
                        *self = if size == 0 { Chunk::Trailers(0) } else { Chunk::Data(size) };
                    }
                },
                Chunk::Data(left) => match take(left, buffer) {
                    Parsed::Complete => *self = Chunk::End,
                    taken => return Ok(taken),
                },
                Chunk::End => match buffer.get(..2) {
                    Some(b"\r\n") => {
                        buffer.advance(2);
                        *self = Chunk::Size;
                    }
                    Some(_) => return Err(Broken),
                    None => return Ok(Parsed::Incomplete),
                },
                Chunk::Trailers(read) => {
                    let Some(line) = buffer.windows(2).position(|two| two == b"\r\n") else {
                        return bounded(buffer, LONGEST_TRAILERS - *read);
                    };
                    check_line(buffer.get(..line + 2), LONGEST_TRAILERS)?;
                    buffer.advance(line + 2);
                    *read += line + 2;
                    if *read > LONGEST_TRAILERS {
                        return Err(Broken);
                    }
                    if line == 0 {
                        *self = Chunk::Complete;
                    }
                }
                Chunk::Complete => return Ok(Parsed::Complete),
            }
        }
    }
}

/// Rejects a line that is too long or contains a bare LF or CR, which could be read as two lines.
fn check_line(line: Option<&[u8]>, longest: usize) -> Result<(), Broken> {
    let text = line.and_then(|line| line.strip_suffix(b"\r\n")).ok_or(Broken)?;
    let is_good = text.len() <= longest && !text.contains(&b'\n') && !text.contains(&b'\r');
    if is_good { Ok(()) } else { Err(Broken) }
}

/// Requests more bytes, unless the buffer is already too long.
fn bounded(buffer: &BytesMut, most: usize) -> Result<Parsed, Broken> {
    if buffer.len() < most { Ok(Parsed::Incomplete) } else { Err(Broken) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a body from these pieces. Returns it, whether it is complete, and the bytes after it.
    fn read(mut framing: Framing, pieces: &[&[u8]]) -> Result<(Vec<u8>, bool, Vec<u8>), Broken> {
        let (mut buffer, mut body, mut is_complete) = (BytesMut::new(), Vec::new(), false);
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                match framing.take(&mut buffer)? {
                    Parsed::Data(data) => body.extend_from_slice(&data),
                    Parsed::Incomplete => break,
                    Parsed::Complete => {
                        is_complete = true;
                        break;
                    }
                }
            }
        }
        assert!(!is_complete || framing.is_complete());
        Ok((body, is_complete, buffer.to_vec()))
    }

    const CHUNKED: Framing = Framing::Chunked(Chunk::Size);

    #[test]
    fn body_ends_where_its_framing_says() {
        let good: [(Framing, &str, &str, bool, &str); 9] = [
            (Framing::Length(5), "hello", "hello", true, ""),
            (Framing::Length(5), "hello, you", "hello", true, ", you"),
            (Framing::Length(5), "hell", "hell", false, ""),
            (Framing::Length(0), "", "", true, ""),
            (Framing::UntilClose, "hello", "hello", false, ""),
            (CHUNKED, "5\r\nhello\r\n0\r\n\r\n", "hello", true, ""),
            (
                CHUNKED,
                "5;a=\"b\"\r\nhello\r\nA\r\n0123456789\r\n0\r\nx: y\r\n\r\nHTTP",
                "hello0123456789",
                true,
                "HTTP",
            ),
            (CHUNKED, "5\r\nhel", "hel", false, ""),
            (CHUNKED, "5\r\nhello\r\n0\r\n", "hello", false, ""),
        ];
        for (framing, sent, body, is_complete, rest) in good {
            let wanted = Ok((body.as_bytes().to_vec(), is_complete, rest.as_bytes().to_vec()));
            assert_eq!(read(framing, &[sent.as_bytes()]), wanted, "{sent:?}");
            let bytes: Vec<&[u8]> = sent.as_bytes().chunks(1).chain([&b""[..]]).collect();
            let (by_bytes, over, _) = read(framing, &bytes).unwrap();
            assert_eq!(
                (by_bytes, over),
                (body.as_bytes().to_vec(), is_complete),
                "{sent:?} byte by byte"
            );
        }
        for sent in
            ["hello\r\n", "-5\r\nhello", "5\r\nhelloXX", "fffffffffffffffff\r\n", "\r\n\r\n"]
        {
            assert_eq!(read(CHUNKED, &[sent.as_bytes()]), Err(Broken), "{sent:?}");
        }
        for sent in [
            "5;a\nb\r\nhello\r\n0\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "0\r\na: b\nc: d\r\n\r\n",
            "0\r\n\n\r\n",
        ] {
            assert_eq!(read(CHUNKED, &[sent.as_bytes()]), Err(Broken), "{sent:?}: a bare LF");
        }
        let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(5000));
        assert_eq!(read(CHUNKED, &[long.as_bytes()]), Err(Broken), "a long complete line");
        let endless = format!("0\r\n{}", "a: b\r\n".repeat(4000));
        assert_eq!(read(CHUNKED, &[endless.as_bytes()]), Err(Broken));
        assert_eq!(read(CHUNKED, &[format!("5;{}", "x".repeat(5000)).as_bytes()]), Err(Broken));
    }

    proptest! {
        #[test]
        fn chunked_body_is_restored_from_any_split(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..8),
            cuts in prop::collection::vec(1_usize..80, 1..20),
        ) {
            let mut sent = Vec::new();
            for chunk in &chunks {
                sent.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                sent.extend_from_slice(chunk);
                sent.extend_from_slice(b"\r\n");
            }
            sent.extend_from_slice(b"0\r\n\r\n");
            let (mut pieces, mut rest) = (Vec::new(), sent.as_slice());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            prop_assert_eq!(read(CHUNKED, &pieces), Ok((chunks.concat(), true, Vec::new())));
        }
    }
}
