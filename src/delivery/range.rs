//! The field Range (RFC 9110 §14.2), and which bytes of a file it means.
//!
//! One range is honoured. Several are ignored as the RFC allows, as is what is malformed or of another unit.

use http::header::RANGE;
use http::{HeaderMap, HeaderValue};
use http_range_header::{SyntacticallyCorrectRange, parse_range_header};

/// The one range that a request asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Asked {
    /// From this byte to the end.
    From(u64),
    /// From the first to the second, both included.
    Between(u64, u64),
    /// The last so many.
    Last(u64),
}

/// A part of a file of known length; never empty.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Part {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) complete: u64,
}

impl Asked {
    /// The range that the request asks for; none where there is none that is honoured.
    pub(super) fn of(headers: &HeaderMap) -> Option<Asked> {
        let mut fields = headers.get_all(RANGE).iter();
        let (Some(field), None) = (fields.next(), fields.next()) else {
            return None;
        };
        let (unit, set) = field.to_str().ok()?.split_once('=')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let parsed = parse_range_header(&format!("bytes={}", set.trim())).ok()?;
        match parsed.into_ranges().as_slice() {
            [SyntacticallyCorrectRange::FromStart(first)] => Some(Asked::From(*first)),
            [SyntacticallyCorrectRange::Indexed(first, last)] => Some(Asked::Between(*first, *last)),
            [SyntacticallyCorrectRange::FromLast(count)] => Some(Asked::Last(*count)),
            _ => None,
        }
    }

    /// As the origin is asked.
    pub(super) fn field(self) -> Option<HeaderValue> {
        let text = match self {
            Asked::From(first) => format!("bytes={first}-"),
            Asked::Between(first, last) => format!("bytes={first}-{last}"),
            Asked::Last(count) => format!("bytes=-{count}"),
        };
        HeaderValue::try_from(text).ok()
    }

    /// Which bytes that is of a file of this length; none where it lies outside.
    pub(super) fn within(self, complete: u64) -> Option<Part> {
        let end = complete.checked_sub(1)?;
        let (first, last) = match self {
            Asked::From(first) => (first, end),
            Asked::Between(first, last) => (first, last.min(end)),
            Asked::Last(0) => return None,
            Asked::Last(count) => (complete.saturating_sub(count), end),
        };
        (first <= last).then_some(Part { first, last, complete })
    }
}

impl Part {
    /// Reads a field Content-Range that tells all three numbers, and tells them rightly.
    pub(super) fn read(field: &HeaderValue) -> Option<Part> {
        let (range, complete) = field.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let part =
            Part { first: first.parse().ok()?, last: last.parse().ok()?, complete: complete.parse().ok()? };
        (part.first <= part.last && part.last < part.complete).then_some(part)
    }

    /// As the reader is told.
    pub(super) fn field(self) -> Option<HeaderValue> {
        HeaderValue::try_from(format!("bytes {}-{}/{}", self.first, self.last, self.complete)).ok()
    }

    /// How many bytes it is.
    pub(super) fn length(self) -> u64 {
        self.last - self.first + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(value: &str) -> Option<Asked> {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, HeaderValue::from_str(value).unwrap());
        Asked::of(&headers)
    }

    #[test]
    fn one_range_in_its_three_forms_is_honoured_and_nothing_else() {
        for (value, expected) in [
            ("bytes=0-", Some(Asked::From(0))),
            ("Bytes=0-1", Some(Asked::Between(0, 1))),
            ("bytes=5-5", Some(Asked::Between(5, 5))),
            ("bytes=-500", Some(Asked::Last(500))),
            ("bytes=0-1,5-6", None),
            ("bytes=5-4", None),
            ("bytes=", None),
            ("bytes=-", None),
            ("bytes=a-b", None),
            ("chapters=1-2", None),
            ("bytes 0-1", None),
            ("bytes=18446744073709551616-", Some(Asked::From(u64::MAX))),
        ] {
            assert_eq!(asked(value), expected, "{value}");
        }
    }

    #[test]
    fn a_content_range_must_be_right() {
        for (text, right) in [
            ("bytes 0-9/10", true),
            ("bytes 0-10/10", false),
            ("bytes 5-4/10", false),
            ("bytes 0-9/*", false),
            ("bytes */10", false),
        ] {
            assert_eq!(Part::read(&HeaderValue::from_str(text).unwrap()).is_some(), right, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_part_lies_within_its_file(first in 0u64..50, last in 0u64..50, complete in 0u64..50) {
            for asked in [Asked::From(first), Asked::Between(first, last.max(first)), Asked::Last(first)] {
                if let Some(part) = asked.within(complete) {
                    prop_assert!(part.first <= part.last && part.last < complete);
                    prop_assert!(part.length() <= complete);
                    prop_assert_eq!(Part::read(&part.field().unwrap()), Some(part));
                } else {
                    let empty = matches!(asked, Asked::Last(0)) || complete == 0 || first >= complete;
                    prop_assert!(empty);
                }
            }
        }
    }
}
