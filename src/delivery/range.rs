//! The Range field (RFC 9110 §14.2), and the bytes of a file that it selects.
//!
//! A malformed field, or one with another unit, is ignored, as the RFC requires. Several ranges are
//! sorted, and merged if they overlap or nearly touch. If they are still too many, or not shorter
//! than the file, the field is ignored. A field with more than a hundred ranges is ignored too: it
//! is likely an attack.

use http::header::RANGE;
use http::{HeaderMap, HeaderValue};
use http_range_header::{SyntacticallyCorrectRange, parse_range_header};

use crate::origin::{ByteRange, MAX_LENGTH};

/// The part of a file that a request selects.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum RequestedRanges {
    /// The whole file, since no usable Range field was sent.
    Whole,
    /// A single range, as sent.
    One(ByteRange),
    /// Two or more ranges, as sent.
    Several(Vec<ByteRange>),
}

/// The result of applying several ranges to a file of known length.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Parts {
    /// No range lies within the file.
    None,
    /// The ranges are too many or too long: send the whole file.
    Whole,
    /// At least one part, sorted and not overlapping.
    These(Vec<Part>),
}

/// Parts with a gap of fewer bytes than this are merged: a part header is about as long.
const MERGE_GAP: u64 = 100;

/// A part of a file of known length, never empty. Both ends are inclusive.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Part {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) complete: u64,
}

impl RequestedRanges {
    /// Reads the Range field of a request.
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

/// Applies ranges to a file of this length. Returns at most `max_parts` parts.
pub(super) fn parts(ranges: &[ByteRange], complete: u64, max_parts: usize) -> Parts {
    let mut within: Vec<Part> =
        ranges.iter().filter_map(|range| Part::of(*range, complete)).collect();
    within.sort_unstable_by_key(|part| (part.first, part.last));
    let mut merged_parts: Vec<Part> = Vec::with_capacity(within.len());
    for part in within {
        match merged_parts.last_mut() {
            Some(last) if part.first <= last.last.saturating_add(MERGE_GAP) => {
                last.last = last.last.max(part.last)
            }
            _ => merged_parts.push(part),
        }
    }
    let bytes = merged_parts
        .iter()
        .fold(0_u64, |sum, part| sum.saturating_add(part.length()).saturating_add(MERGE_GAP));
    match merged_parts.len() {
        0 if ranges.iter().any(|range| range.is_satisfiable(complete)) => Parts::Whole,
        0 => Parts::None,
        1 => Parts::These(merged_parts),
        count if count > max_parts || bytes >= complete => Parts::Whole,
        _ => Parts::These(merged_parts),
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
    /// Applies a range to a file of this length. Returns `None` if it lies outside.
    pub(super) fn of(range: ByteRange, complete: u64) -> Option<Part> {
        range.within(complete).map(|(first, last)| Part { first, last, complete })
    }

    /// Parses a Content-Range field. Returns `None` unless all three numbers are given and valid.
    pub(super) fn read(field: &HeaderValue) -> Option<Part> {
        let (range, complete) = field.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let part = Part {
            first: first.parse().ok()?,
            last: last.parse().ok()?,
            complete: complete.parse().ok()?,
        };
        let is_valid =
            part.first <= part.last && part.last < part.complete && part.complete <= MAX_LENGTH;
        is_valid.then_some(part)
    }

    /// Returns the value of the Content-Range field.
    pub(super) fn field(self) -> Option<HeaderValue> {
        HeaderValue::try_from(format!("bytes {}-{}/{}", self.first, self.last, self.complete)).ok()
    }

    /// Returns the length in bytes.
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
    fn several_ranges_are_sorted_merged_or_ignored() {
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
    fn single_range_is_parsed_and_malformed_ones_are_ignored() {
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
    fn invalid_content_range_is_rejected() {
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
        fn part_lies_within_its_file(first in 0u64..50, last in 0u64..50, complete in 0u64..50) {
            let ranges = [
                ByteRange::From(first),
                ByteRange::Between(first, last.max(first)),
                ByteRange::Last(first),
            ];
            for range in ranges {
                if let Some(part) = Part::of(range, complete) {
                    prop_assert!(part.first <= part.last && part.last < complete);
                    prop_assert!(part.length() <= complete);
                    prop_assert_eq!(Part::read(&part.field().unwrap()), Some(part));
                } else {
                    let empty = matches!(range, ByteRange::Last(0))
                        || complete == 0
                        || first >= complete;
                    prop_assert!(empty);
                }
            }
        }
    }
}
