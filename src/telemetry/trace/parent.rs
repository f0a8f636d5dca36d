//! The header `traceparent` of W3C Trace Context: the ids of a trace and of its span.
//!
//! The parser accepts what the specification allows and nothing else: a header that is malformed
//! counts as absent. `tracestate` and `baggage` are never read and never sent.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The header that names the trace of a request.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The length of a header of version 00, in bytes.
const LENGTH: usize = 55;
/// The flag of a sampled trace.
const SAMPLED: u8 = 1;

/// A trace, one of its spans, and whether the trace is sampled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TraceParent {
    /// The id of the trace, not zero.
    pub(crate) trace: u128,
    /// The id of the span that sends the request, not zero.
    pub(crate) span: u64,
    /// Whether the sender records the trace.
    pub(crate) is_sampled: bool,
}

impl TraceParent {
    /// Returns what the request names as its parent; none if that is absent, repeated or malformed.
    pub(super) fn of(headers: &HeaderMap) -> Option<TraceParent> {
        let mut values = headers.get_all(&TRACEPARENT).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => TraceParent::parse(value.as_bytes()),
            _ => None,
        }
    }

    fn parse(text: &[u8]) -> Option<TraceParent> {
        let (version, rest) = (hex(text, 0, 2)?, text.get(LENGTH..)?);
        // A later version may have more fields after these.
        let is_known = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.first().is_none_or(|byte| *byte == b'-'),
        };
        let has_dashes = [2, 35, 52].into_iter().all(|at| text.get(at) == Some(&b'-'));
        if !is_known || !has_dashes {
            return None;
        }
        let (trace, span) = (hex(text, 3, 32)?, u64::try_from(hex(text, 36, 16)?).ok()?);
        let flags = u8::try_from(hex(text, 53, 2)?).ok()?;
        (trace != 0 && span != 0).then_some(TraceParent {
            trace,
            span,
            is_sampled: flags & SAMPLED != 0,
        })
    }

    /// Returns the value of the header. Allocates nothing: a request to a storage has one also if
    /// it is not sampled.
    pub(crate) fn text(self) -> [u8; LENGTH] {
        let mut text = [b'-'; LENGTH];
        put_hex(&mut text, 0, 2, 0);
        put_hex(&mut text, 3, 32, self.trace);
        put_hex(&mut text, 36, 16, u128::from(self.span));
        put_hex(&mut text, 53, 2, u128::from(self.is_sampled));
        text
    }

    /// Returns the value of the header for a client that takes headers.
    pub(crate) fn value(self) -> Option<HeaderValue> {
        HeaderValue::from_bytes(&self.text()).ok()
    }
}

/// Writes a number as this many hexadecimal digits.
fn put_hex(text: &mut [u8; LENGTH], at: usize, length: usize, mut number: u128) {
    for byte in text.iter_mut().skip(at).take(length).rev() {
        let digit = (number & 0xf) as u8;
        *byte = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
        number >>= 4;
    }
}

/// Returns the number of this many lower-case hexadecimal digits.
fn hex(text: &[u8], at: usize, length: usize) -> Option<u128> {
    text.get(at..at.checked_add(length)?)?.iter().try_fold(0, |number: u128, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parsed(values: &[&str]) -> Option<TraceParent> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        TraceParent::of(&headers)
    }

    #[test]
    fn valid_headers_are_read_and_written() {
        let parent = parsed(&[VALID]).unwrap();
        assert_eq!(parent.trace, 0x4bf92f3577b34da6a3ce929d0e0e4736);
        assert_eq!((parent.span, parent.is_sampled), (0x00f067aa0ba902b7, true));
        assert_eq!(parent.text(), VALID.as_bytes());
        assert_eq!(parent.value().unwrap(), VALID);
        for (flags, is_sampled) in [("00", false), ("02", false), ("03", true), ("ff", true)] {
            let text = format!("{}{flags}", &VALID[..53]);
            assert_eq!(parsed(&[&text]).unwrap().is_sampled, is_sampled, "{text}");
        }
        for later in ["", "-", "-what-comes-next"] {
            let text = format!("cc{}{later}", &VALID[2..]);
            assert_eq!(parsed(&[&text]), Some(parent), "{text}");
        }
    }

    #[test]
    fn malformed_headers_count_as_absent() {
        let upper = VALID.to_uppercase();
        let cases = [
            "",
            "00",
            &VALID[..54],
            &format!("{VALID}-"),
            &format!("{VALID}-00"),
            &format!("{VALID} "),
            &format!(" {VALID}"),
            &format!("{VALID}x"),
            &format!("ff{}", &VALID[2..]),
            &format!("0g{}", &VALID[2..]),
            &format!("cc{}.more", &VALID[2..]),
            &format!("0{}", &VALID[2..]),
            &upper,
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-000f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473z-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902bz-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
            "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7 01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473\u{e9}00f067aa0ba902b7-01",
        ];
        for case in cases {
            assert_eq!(parsed(&[case]), None, "{case:?}");
        }
        assert_eq!(parsed(&[]), None);
        assert_eq!(parsed(&[VALID, VALID]), None, "two of them name no one parent");
    }
}
