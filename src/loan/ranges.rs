//! Delivered bytes of a file, as a set of ranges that never overstates.
//!
//! Metering fills the set, and the ledger stores it. The ranges are sorted and merged. If there are
//! more than [`Ranges::MOST`], the shortest are dropped. So the set may omit delivered bytes, but
//! never contains bytes that were not delivered.

use std::iter;
use std::ops::Range;

/// Bytes of a file that were delivered under a loan.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Number of delivered bytes, counting repeated bytes each time.
    pub bytes: u64,
    /// The delivered bytes, each once.
    pub ranges: Ranges,
}

impl Tally {
    /// Adds another tally of the same file.
    pub fn add(&mut self, other: &Tally) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.ranges.merge(&other.ranges);
    }
}

/// A set of bytes: sorted ranges that neither overlap nor touch.
///
/// ```
/// use loangate::loan::Ranges;
///
/// let mut delivered = Ranges::default();
/// delivered.insert(0..1000);
/// delivered.insert(2000..3000);
/// delivered.insert(500..2000); // overlaps the first range and touches the second
/// assert_eq!(delivered.pairs().collect::<Vec<_>>(), [[0, 2999]]);
/// assert_eq!(delivered.length(), 3000);
///
/// // The ledger stores the encoded form, and rejects one that no set has.
/// assert_eq!(Ranges::from_bytes(&delivered.to_bytes()), Some(delivered));
/// assert_eq!(Ranges::from_bytes(&[0xff]), None);
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Maximum number of stored ranges for one file.
    pub const MOST: usize = 512;

    /// Adds a range to the set.
    pub fn insert(&mut self, new: Range<u64>) {
        self.join(new);
        self.drop_the_shortest();
    }

    /// Adds all ranges of another set.
    pub fn merge(&mut self, other: &Ranges) {
        other.0.iter().for_each(|range| self.join(range.clone()));
        self.drop_the_shortest();
    }

    /// Merges a range with those that it overlaps or touches.
    fn join(&mut self, new: Range<u64>) {
        if new.is_empty() {
            return;
        }
        let from = self.0.partition_point(|range| range.end < new.start);
        let to = self.0.partition_point(|range| range.start <= new.end);
        let overlapping = self.0.get(from..to).unwrap_or_default();
        let start = overlapping.first().map_or(new.start, |first| first.start.min(new.start));
        let end = overlapping.last().map_or(new.end, |last| last.end.max(new.end));
        drop(self.0.splice(from..to, iter::once(start..end)));
    }

    fn drop_the_shortest(&mut self) {
        while self.0.len() > Ranges::MOST {
            let lengths = self.0.iter().map(|range| range.end - range.start).enumerate();
            if let Some((shortest, _)) = lengths.min_by_key(|(_, length)| *length) {
                self.0.remove(shortest);
            }
        }
    }

    /// Returns the number of bytes in the set.
    pub fn length(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// Returns the first and the last byte of each range, as in RFC 9110 §14.1.2.
    pub fn pairs(&self) -> impl Iterator<Item = [u64; 2]> {
        self.0.iter().map(|range| [range.start, range.end - 1])
    }

    /// Encodes the set: for each range the distance from the one before and the length, as
    /// variable-length numbers of seven bits to a byte.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 * self.0.len());
        let mut before = 0;
        for range in &self.0 {
            write(range.start - before, &mut bytes);
            write(range.end - range.start, &mut bytes);
            before = range.end;
        }
        bytes
    }

    /// Decodes a set; none if the bytes do not encode one.
    pub fn from_bytes(mut bytes: &[u8]) -> Option<Ranges> {
        let mut ranges = Ranges::default();
        while !bytes.is_empty() {
            let (distance, length) = (read(&mut bytes)?, read(&mut bytes)?);
            let before = ranges.0.last().map_or(0, |range| range.end);
            let start = before.checked_add(distance)?;
            let end = start.checked_add(length)?;
            let touches = distance == 0 && !ranges.0.is_empty();
            if length == 0 || touches || ranges.0.len() == Ranges::MOST {
                return None;
            }
            ranges.0.push(start..end);
        }
        Some(ranges)
    }
}

/// Writes a number, lowest seven bits first. The eighth bit is set if more bytes follow.
fn write(mut number: u64, bytes: &mut Vec<u8>) {
    while number > 0x7f {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

/// Reads a number from the front, as written by [`write()`].
fn read(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if bits.leading_zeros() < shift {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn of(ranges: &[Range<u64>]) -> Ranges {
        let mut set = Ranges::default();
        ranges.iter().for_each(|range| set.insert(range.clone()));
        set
    }

    fn bytes_of(ranges: &Ranges) -> BTreeSet<u64> {
        ranges.0.iter().flat_map(Range::clone).collect()
    }

    fn some_ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        let range = (0..600_u64, 0..40_u64).prop_map(|(first, length)| first..first + length);
        proptest::collection::vec(range, 0..60)
    }

    proptest! {
        #[test]
        fn set_is_the_sorted_union_in_any_insertion_order(
            ranges in some_ranges(),
            half in 0..60_usize,
        ) {
            let expected: BTreeSet<u64> = ranges.iter().cloned().flatten().collect();
            let set = of(&ranges);
            prop_assert_eq!(bytes_of(&set), expected.clone());
            prop_assert_eq!(set.length(), expected.len() as u64);
            prop_assert!(set.0.iter().all(|range| range.start < range.end));
            prop_assert!(set.0.windows(2).all(|two| two[0].end < two[1].start), "{:?}", set);
            let (one, other) = ranges.split_at(half.min(ranges.len()));
            let mut merged = of(other);
            merged.merge(&of(one));
            prop_assert_eq!(&merged, &set);
            merged.merge(&set);
            prop_assert_eq!(merged, set, "merging it again changes nothing");
        }

        #[test]
        fn encoding_round_trips(
            pairs in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..20),
        ) {
            let ranges: Vec<_> =
                pairs.into_iter().map(|(one, other)| one.min(other)..one.max(other)).collect();
            let set = of(&ranges);
            prop_assert_eq!(Ranges::from_bytes(&set.to_bytes()), Some(set));
        }

        #[test]
        fn any_bytes_decode_to_a_valid_set_or_none(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Some(set) = Ranges::from_bytes(&bytes) {
                prop_assert!(set.0.windows(2).all(|two| two[0].end < two[1].start));
                prop_assert_eq!(Ranges::from_bytes(&set.to_bytes()), Some(set));
            }
        }

        #[test]
        fn full_set_drops_ranges_but_never_adds_bytes(
            ranges in proptest::collection::vec((0..3_000_u64, 1..40_u64), 500..1_500),
        ) {
            // Far apart, so that they do not merge.
            let ranges: Vec<_> =
                ranges.into_iter().map(|(place, length)| 50 * place..50 * place + length).collect();
            let expected: BTreeSet<u64> = ranges.iter().cloned().flatten().collect();
            let set = of(&ranges);
            prop_assert!(set.0.len() <= Ranges::MOST);
            prop_assert!(bytes_of(&set).is_subset(&expected));
        }
    }

    #[test]
    fn growing_range_survives_in_a_full_set() {
        let mut set = Ranges::default();
        (0..Ranges::MOST as u64).for_each(|number| set.insert(1000 * number..1000 * number + 100));
        let far = 10_000_000;
        for grown in 1..200 {
            set.insert(far..far + grown);
        }
        assert!(set.0.contains(&(far..far + 199)), "a stream reports its range from its start");
        assert_eq!(set.0.len(), Ranges::MOST);
    }

    #[test]
    fn complete_file_encodes_in_a_few_bytes() {
        assert_eq!(of(&[0..5_000_000, 5_000_000..9_000_000]).to_bytes().len(), 5);
        assert_eq!(of(&[0..10, 20..30]).pairs().collect::<Vec<_>>(), [[0, 9], [20, 29]]);
        assert_eq!(Ranges::from_bytes(&[0xff; 10]), None);
    }
}
