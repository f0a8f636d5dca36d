//! Counts that wait to be written, by loan and file; so many of them and no more, however long the
//! ledger fails.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::ledger::Delivered;
use crate::loan::{LoanId, Tally};

/// Which file under which loan.
pub(super) type Key = (LoanId, Arc<str>);

/// Of how many files counts may wait; some 200 bytes each. What comes beyond that is lost: less is
/// claimed than came.
const MOST: usize = 100_000;

/// The counts.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    by_file: HashMap<Key, Tally>,
    /// Bytes for which there was no room.
    lost: u64,
}

impl Tallies {
    /// Counts so many bytes of a file, and that these of it were delivered.
    pub(super) fn add(&mut self, key: &Key, bytes: u64, range: Range<u64>) {
        match self.room(key) {
            Some(tally) => {
                tally.bytes = tally.bytes.saturating_add(bytes);
                tally.ranges.insert(range);
            }
            None => self.lost = self.lost.saturating_add(bytes),
        }
    }

    /// Adds the counts of another.
    pub(super) fn take_in(&mut self, other: Tallies) {
        self.lost = self.lost.saturating_add(other.lost);
        for (key, tally) in other.by_file {
            self.add_tally(&key, &tally);
        }
    }

    fn add_tally(&mut self, key: &Key, tally: &Tally) {
        match self.room(key) {
            Some(there) => there.add(tally),
            None => self.lost = self.lost.saturating_add(tally.bytes),
        }
    }

    fn room(&mut self, key: &Key) -> Option<&mut Tally> {
        if self.by_file.len() < MOST || self.by_file.contains_key(key) {
            return Some(self.by_file.entry(key.clone()).or_default());
        }
        None
    }

    /// Takes the counts of so many files out, or of all.
    pub(super) fn some(&mut self, most: usize) -> Vec<Delivered> {
        let keys: Vec<Key> = self.by_file.keys().take(most).cloned().collect();
        let taken = keys.into_iter().filter_map(|key| self.by_file.remove_entry(&key));
        taken.map(|((loan, file), tally)| Delivered { loan, file, tally }).collect()
    }

    /// Puts back what was not written.
    pub(super) fn put_back(&mut self, all: &[Delivered]) {
        for one in all {
            self.add_tally(&(one.loan, one.file.clone()), &one.tally);
        }
    }

    /// How many bytes there was no room for, since this was last asked.
    pub(super) fn lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_so_many_files_and_counts_what_is_lost_beyond() {
        let mut tallies = Tallies::default();
        let loan = LoanId::fresh();
        let file = |number: usize| (loan, Arc::from(format!("/{number}")));
        (0..MOST + 10).for_each(|number| tallies.add(&file(number), 7, 0..7));
        tallies.add(&file(0), 1, 7..8);
        assert_eq!((tallies.lost(), tallies.lost()), (70, 0));
        let all = tallies.some(usize::MAX);
        assert_eq!(all.len(), MOST);
        assert_eq!(all.iter().map(|one| one.tally.bytes).sum::<u64>(), 7 * MOST as u64 + 1);
        tallies.put_back(&all);
        assert_eq!((tallies.some(3).len(), tallies.by_file.len()), (3, MOST - 3));
    }
}
