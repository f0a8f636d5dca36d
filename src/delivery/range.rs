//! The field Range (RFC 9110 §14.2), and which bytes of a file it means.
//!
//! What is malformed or of another unit is ignored, as the RFC has it. Several ranges are sorted,
//! and put together where they overlap or nearly touch; where they are still too many, or no
//! shorter than the file, the field is ignored too, as is one of more than a hundred ranges, which
//! nobody means well by.

use http::header::RANGE;
use http::{HeaderMap, HeaderValue};
use http_range_header::{SyntacticallyCorrectRange, parse_range_header};

use crate::origin::{ByteRange, MAX_LENGTH};

/// What a request asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum RequestedRanges {
    /// All of it.
    Whole,
    /// One range.
    One(ByteRange),
    /// Several.
    Several(Vec<ByteRange>),
}

/// What several ranges come to in a file of known length.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Parts {
    /// None of them lies within it.
    None,
    /// They are too many, or not worth it: the file is answered whole.
    Whole,
    /// These, in order and apart from each other; at least one.
    These(Vec<Part>),
}

/// Two parts with fewer bytes than these between them are one: the head of a part costs about as
/// many.
const NEARLY: u64 = 100;

/// A part of a file of known length; never empty.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Part {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) complete: u64,
}

impl RequestedRanges {
    /// What the request asks for.
    pub(super) fn of(headers: &HeaderMap) -> RequestedRanges {
        match RequestedRanges::ranges(headers).as_deref() {
            None | Some([]) => RequestedRanges::Whole,
            Some([one]) => RequestedRanges::One(*one),
            Some(several) => RequestedRanges::Several(several.to_vec()),
        }
    }

    fn ranges(headers: &HeaderMap) -> Option<Vec<ByteRange>> {
        let mut fields = headers.get_all(RANGE).iter();
        let (Some(field), None) = (fields.next(), fields.next()) else {
            return None;
        };
        let (unit, set) = field.to_str().ok()?.split_once('=')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let parsed = parse_range_header(&format!("bytes={}", set.trim())).ok()?;
        Some(parsed.into_ranges().iter().map(range).collect())
    }
}

/// What these ranges come to in a file of this length, in at most so many parts.
pub(super) fn parts(ranges: &[ByteRange], complete: u64, most: usize) -> Parts {
    let mut within: Vec<Part> =
        ranges.iter().filter_map(|range| Part::of(*range, complete)).collect();
    within.sort_unstable_by_key(|part| (part.first, part.last));
    let mut apart: Vec<Part> = Vec::with_capacity(within.len());
    for part in within {
        match apart.last_mut() {
            Some(last) if part.first <= last.last.saturating_add(NEARLY) => {
                last.last = last.last.max(part.last)
            }
            _ => apart.push(part),
        }
    }
    let bytes = apart
        .iter()
        .fold(0_u64, |sum, part| sum.saturating_add(part.length()).saturating_add(NEARLY));
    match apart.len() {
        0 if ranges.iter().any(|range| range.is_satisfiable(complete)) => Parts::Whole,
        0 => Parts::None,
        1 => Parts::These(apart),
        count if count > most || bytes >= complete => Parts::Whole,
        _ => Parts::These(apart),
    }
}

fn range(range: &SyntacticallyCorrectRange) -> ByteRange {
    match range {
        SyntacticallyCorrectRange::FromStart(first) => ByteRange::From(*first),
        SyntacticallyCorrectRange::Indexed(first, last) => ByteRange::Between(*first, *last),
        SyntacticallyCorrectRange::FromLast(count) => ByteRange::Last(*count),
    }
}

impl Part {
    /// Which part that is of a file of this length; none where it lies outside.
    pub(super) fn of(range: ByteRange, complete: u64) -> Option<Part> {
        range.within(complete).map(|(first, last)| Part { first, last, complete })
    }

    /// Reads a field Content-Range that tells all three numbers, and tells them rightly.
    pub(super) fn read(field: &HeaderValue) -> Option<Part> {
        let (range, complete) = field.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let part = Part {
            first: first.parse().ok()?,
            last: last.parse().ok()?,
            complete: complete.parse().ok()?,
        };
        let is_good =
            part.first <= part.last && part.last < part.complete && part.complete <= MAX_LENGTH;
        is_good.then_some(part)
    }

    /// As the reader is merged.
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

    fn one(value: &str) -> Option<ByteRange> {
        match wanted(value) {
            RequestedRanges::One(range) => Some(range),
            RequestedRanges::Whole | RequestedRanges::Several(_) => None,
        }
    }

    fn wanted(value: &str) -> RequestedRanges {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, HeaderValue::from_str(value).unwrap());
        RequestedRanges::of(&headers)
    }

    #[test]
    fn several_ranges_are_sorted_put_together_and_not_honoured_where_they_are_not_worth_it() {
        let merged = |value: &str| {
            let RequestedRanges::Several(ranges) = wanted(value) else { panic!("{value}") };
            match parts(&ranges, 10_000, 4) {
                Parts::These(parts) => {
                    Some(parts.iter().map(|part| (part.first, part.last)).collect())
                }
                Parts::None => None,
                Parts::Whole => Some(Vec::new()),
            }
        };
        for (value, expected) in [
            ("bytes=0-9,5000-5009", Some(vec![(0, 9), (5000, 5009)])),
            ("bytes=5000-5009, 0-9", Some(vec![(0, 9), (5000, 5009)])),
            ("bytes=0-99,50-149", Some(vec![(0, 149)])),
            ("bytes=0-99,150-199", Some(vec![(0, 199)])),
            ("bytes=0-9,-10", Some(vec![(0, 9), (9990, 9999)])),
            ("bytes=0-9,20000-", Some(vec![(0, 9)])),
            ("bytes=20000-,10000-", None),
            ("bytes=0-,0-", Some(vec![(0, 9999)])),
            ("bytes=0-4999,5200-", Some(Vec::new())),
            ("bytes=0-0,1000-1000,2000-2000,3000-3000,4000-4000", Some(Vec::new())),
        ] {
            assert_eq!(merged(value), expected, "{value}");
        }
        for malformed in ["bytes=0-1,5-4", "bytes=0-1,a-b"] {
            assert_eq!(wanted(malformed), RequestedRanges::Whole, "{malformed}");
        }
    }

    #[test]
    fn one_range_in_its_three_forms_is_read_and_nothing_malformed() {
        for (value, expected) in [
            ("bytes=0-", Some(ByteRange::From(0))),
            ("Bytes=0-1", Some(ByteRange::Between(0, 1))),
            ("bytes=5-5", Some(ByteRange::Between(5, 5))),
            ("bytes=-500", Some(ByteRange::Last(500))),
            ("bytes=0-1,5-6", None),
            ("bytes=5-4", None),
            ("bytes=", None),
            ("bytes=-", None),
            ("bytes=a-b", None),
            ("chapters=1-2", None),
            ("bytes 0-1", None),
            ("bytes=18446744073709551616-", Some(ByteRange::From(u64::MAX))),
        ] {
            assert_eq!(one(value), expected, "{value}");
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
            assert_eq!(
                Part::read(&HeaderValue::from_str(text).unwrap()).is_some(),
                right,
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_part_lies_within_its_file(first in 0u64..50, last in 0u64..50, complete in 0u64..50) {
            for range in [ByteRange::From(first), ByteRange::Between(first, last.max(first)), ByteRange::Last(first)] {
                if let Some(part) = Part::of(range, complete) {
                    prop_assert!(part.first <= part.last && part.last < complete);
                    prop_assert!(part.length() <= complete);
                    prop_assert_eq!(Part::read(&part.field().unwrap()), Some(part));
                } else {
                    let empty = matches!(range, ByteRange::Last(0)) || complete == 0 || first >= complete;
                    prop_assert!(empty);
                }
            }
        }
    }
}
