//! Counts by loan and file that wait to be written. Their number is limited, for the case that the
//! ledger fails for a long time.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::ledger::Delivered;
use crate::loan::{LoanId, Tally};

/// A loan and the path of a file.
pub(super) type Key = (LoanId, Arc<str>);

/// The maximum number of waiting entries, about 200 bytes each. Further counts are lost: the ledger
/// under-reports.
const MAX_ENTRIES: usize = 100_000;

/// The counts that wait to be written.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    by_file: HashMap<Key, Tally>,
    /// The number of bytes that were not counted because of [`MAX_ENTRIES`], or that can never be
    /// written.
    lost: u64,
}

impl Tallies {
    /// Adds a number of delivered bytes of a file, and their range.
    pub(super) fn add(&mut self, key: &Key, bytes: u64, range: Range<u64>) {
        match self.entry(key) {
            Some(tally) => {
                tally.bytes = tally.bytes.saturating_add(bytes);
                tally.ranges.insert(range);
            }
            None => self.lost = self.lost.saturating_add(bytes),
        }
    }

    /// Adds all counts of `other`.
    pub(super) fn merge(&mut self, other: Tallies) {
        self.lost = self.lost.saturating_add(other.lost);
        for (key, tally) in other.by_file {
            self.add_tally(&key, &tally);
        }
    }

    fn add_tally(&mut self, key: &Key, tally: &Tally) {
        match self.entry(key) {
            Some(existing) => existing.add(tally),
            None => self.lost = self.lost.saturating_add(tally.bytes),
        }
    }

    /// Returns the entry of a key, or none if the maximum is reached.
    fn entry(&mut self, key: &Key) -> Option<&mut Tally> {
        if self.by_file.len() < MAX_ENTRIES || self.by_file.contains_key(key) {
            return Some(self.by_file.entry(key.clone()).or_default());
        }
        None
    }

    /// Removes and returns at most `maximum` entries.
    pub(super) fn take(&mut self, maximum: usize) -> Vec<Delivered> {
        let keys: Vec<Key> = self.by_file.keys().take(maximum).cloned().collect();
        let removed = keys.into_iter().filter_map(|key| self.by_file.remove_entry(&key));
        removed.map(|((loan, file), tally)| Delivered { loan, file, tally }).collect()
    }

    /// Adds entries again that could not be written.
    pub(super) fn put_back(&mut self, all: &[Delivered]) {
        for one in all {
            self.add_tally(&(one.loan, one.file.clone()), &one.tally);
        }
    }

    /// Counts the bytes of entries that can never be written as lost.
    pub(super) fn lose(&mut self, all: &[Delivered]) {
        let bytes = all.iter().fold(0, |sum: u64, one| sum.saturating_add(one.tally.bytes));
        self.lost = self.lost.saturating_add(bytes);
    }

    /// Returns the number of lost bytes since the last call.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_limited_and_lost_bytes_counted() {
        let mut tallies = Tallies::default();
        let loan = LoanId::random();
        let file = |number: usize| (loan, Arc::from(format!("/{number}")));
        (0..MAX_ENTRIES + 10).for_each(|number| tallies.add(&file(number), 7, 0..7));
        tallies.add(&file(0), 1, 7..8);
        assert_eq!((tallies.take_lost(), tallies.take_lost()), (70, 0));
        let all = tallies.take(usize::MAX);
        assert_eq!(all.len(), MAX_ENTRIES);
        assert_eq!(all.iter().map(|one| one.tally.bytes).sum::<u64>(), 7 * MAX_ENTRIES as u64 + 1);
        tallies.lose(&all[..2]);
        assert_eq!(tallies.take_lost(), all[0].tally.bytes + all[1].tally.bytes);
        tallies.put_back(&all);
        assert_eq!((tallies.take(3).len(), tallies.by_file.len()), (3, MAX_ENTRIES - 3));
    }
}
