//! Which bytes of a file were delivered: a set of ranges that never says more than is true.
//!
//! Metering fills it and the ledger keeps it. It is sorted and merged, and has room for
//! [`Ranges::MOST`] of them: where there are more, the shortest are forgotten. So it may say less
//! than was delivered, and never that something was which was not.

use std::iter;
use std::ops::Range;

/// What was delivered of a file under a loan.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// How many bytes, each as often as it was delivered.
    pub bytes: u64,
    /// Which of them, each once.
    pub ranges: Ranges,
}

impl Tally {
    /// Adds another one of the same file.
    pub fn add(&mut self, other: &Tally) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.ranges.merge(&other.ranges);
    }
}

/// A set of bytes, as ranges in their order that neither overlap nor touch.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// How many ranges are kept of one file.
    pub const MOST: usize = 512;

    /// Adds a range.
    pub fn insert(&mut self, new: Range<u64>) {
        self.join(new);
        self.forget_the_shortest();
    }

    /// Adds all of another set.
    pub fn merge(&mut self, other: &Ranges) {
        other.0.iter().for_each(|range| self.join(range.clone()));
        self.forget_the_shortest();
    }

    /// Joins a range with those that it overlaps or touches.
    fn join(&mut self, new: Range<u64>) {
        if new.is_empty() {
            return;
        }
        let from = self.0.partition_point(|range| range.end < new.start);
        let to = self.0.partition_point(|range| range.start <= new.end);
        let met = self.0.get(from..to).unwrap_or_default();
        let start = met.first().map_or(new.start, |first| first.start.min(new.start));
        let end = met.last().map_or(new.end, |last| last.end.max(new.end));
        drop(self.0.splice(from..to, iter::once(start..end)));
    }

    fn forget_the_shortest(&mut self) {
        while self.0.len() > Ranges::MOST {
            let lengths = self.0.iter().map(|range| range.end - range.start).enumerate();
            if let Some((shortest, _)) = lengths.min_by_key(|(_, length)| *length) {
                self.0.remove(shortest);
            }
        }
    }

    /// How many bytes are in it.
    pub fn length(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// The first and the last byte of each range, as RFC 9110 §14.1.2 writes them.
    pub fn pairs(&self) -> impl Iterator<Item = [u64; 2]> {
        self.0.iter().map(|range| [range.start, range.end - 1])
    }

    /// As bytes: of each range how far it is from the one before, and its length, seven bits to a
    /// byte.
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

    /// The set of these bytes; none where they are not one.
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

/// Writes a number, the lowest seven bits first, with the eighth where more follow.
fn write(mut number: u64, bytes: &mut Vec<u8>) {
    while number > 0x7f {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

/// Reads a number from the front, as [`write`] wrote it.
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
        fn it_is_the_union_in_whatever_order_and_is_sorted_and_merged(ranges in some_ranges(), half in 0..60_usize) {
            let meant: BTreeSet<u64> = ranges.iter().cloned().flatten().collect();
            let set = of(&ranges);
            prop_assert_eq!(bytes_of(&set), meant.clone());
            prop_assert_eq!(set.length(), meant.len() as u64);
            prop_assert!(set.0.iter().all(|range| range.start < range.end));
            prop_assert!(set.0.windows(2).all(|two| two[0].end < two[1].start), "{:?}", set);
            let (one, other) = ranges.split_at(half.min(ranges.len()));
            let mut merged = of(other);
            merged.merge(&of(one));
            prop_assert_eq!(&merged, &set);
            merged.merge(&set);
            prop_assert_eq!(merged, set, "again, it is the same");
        }

        #[test]
        fn it_is_read_as_it_was_written(ranges in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..20)) {
            let ranges: Vec<_> = ranges.into_iter().map(|(one, other)| one.min(other)..one.max(other)).collect();
            let set = of(&ranges);
            prop_assert_eq!(Ranges::from_bytes(&set.to_bytes()), Some(set));
        }

        #[test]
        fn whatever_bytes_are_read_it_is_a_set_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(set) = Ranges::from_bytes(&bytes) {
                prop_assert!(set.0.windows(2).all(|two| two[0].end < two[1].start));
                prop_assert_eq!(Ranges::from_bytes(&set.to_bytes()), Some(set));
            }
        }

        #[test]
        fn where_there_are_too_many_it_says_less_and_nothing_that_was_not(
            ranges in proptest::collection::vec((0..3_000_u64, 1..40_u64), 500..1_500),
        ) {
            // Far apart, so that they do not merge.
            let ranges: Vec<_> =
                ranges.into_iter().map(|(place, length)| 50 * place..50 * place + length).collect();
            let meant: BTreeSet<u64> = ranges.iter().cloned().flatten().collect();
            let set = of(&ranges);
            prop_assert!(set.0.len() <= Ranges::MOST);
            prop_assert!(bytes_of(&set).is_subset(&meant));
        }
    }

    #[test]
    fn a_range_that_grows_is_not_forgotten_for_good_where_there_is_no_room() {
        let mut set = Ranges::default();
        (0..Ranges::MOST as u64).for_each(|number| set.insert(1000 * number..1000 * number + 100));
        let far = 10_000_000;
        for grown in 1..200 {
            set.insert(far..far + grown);
        }
        assert!(set.0.contains(&(far..far + 199)), "as a stream hands it in, from its start");
        assert_eq!(set.0.len(), Ranges::MOST);
    }

    #[test]
    fn a_file_that_came_whole_takes_a_few_bytes() {
        assert_eq!(of(&[0..5_000_000, 5_000_000..9_000_000]).to_bytes().len(), 5);
        assert_eq!(of(&[0..10, 20..30]).pairs().collect::<Vec<_>>(), [[0, 9], [20, 29]]);
        assert_eq!(Ranges::from_bytes(&[0xff; 10]), None);
    }
}
