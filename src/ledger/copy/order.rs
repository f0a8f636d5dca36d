//! The order of a loan's steps, if several processes have written them.
//!
//! PostgreSQL has a chain for each process, and the clocks of their machines differ or are set
//! back. So neither the chains nor the times tell which of two steps is the later one. But each
//! chain has its own steps in their order, each step continues from the state to which the one
//! before led, and the last one has the hash of the loan's row. SQLite stores the steps in this
//! order.

use std::collections::{BTreeMap, HashSet};

use uuid::Uuid;

use super::rows::StepRow;

/// The maximum number of dead ends. Histories of many processes have few.
const MAX_DEAD_ENDS: usize = 100_000;

/// A step of a loan in PostgreSQL.
pub(super) struct ChainStep {
    pub(super) step: StepRow,
    pub(super) chain: Uuid,
    pub(super) number: i64,
    /// Whether the step has the hash of the loan's row.
    pub(super) fits_loan: bool,
}

/// Sorts the steps of a loan. Of several possible orders, it returns the one that is closest to the
/// times, so the order is always the same. Returns none if there is no order.
pub(super) fn in_order(steps: Vec<ChainStep>) -> Option<Vec<ChainStep>> {
    let mut chains: BTreeMap<Uuid, Vec<ChainStep>> = BTreeMap::new();
    for step in steps {
        chains.entry(step.chain).or_default().push(step);
    }
    let mut chains: Vec<Vec<ChainStep>> = chains.into_values().collect();
    chains.iter_mut().for_each(|steps| steps.sort_by_key(|step| step.number));
    let path = match chains.len() {
        0 | 1 => return chains.pop().or_else(|| Some(Vec::new())),
        _ => Search::new(&chains).run()?,
    };
    let mut chains: Vec<_> = chains.into_iter().map(Vec::into_iter).collect();
    path.into_iter().map(|chain| chains.get_mut(chain)?.next()).collect()
}

/// A search for the order in which the chains continue each other.
struct Search<'a> {
    chains: &'a [Vec<ChainStep>],
    /// How many steps of each chain precede.
    taken: Vec<usize>,
    total: usize,
    /// The chain of each step so far.
    path: Vec<usize>,
    /// What cannot be continued to the end.
    dead_ends: HashSet<Vec<usize>>,
}

impl Search<'_> {
    fn new(chains: &[Vec<ChainStep>]) -> Search<'_> {
        let total = chains.iter().map(Vec::len).sum();
        let (taken, path, dead_ends) = (vec![0; chains.len()], Vec::new(), HashSet::new());
        Search { chains, taken, total, path, dead_ends }
    }

    /// Returns the chain of each step.
    fn run(mut self) -> Option<Vec<usize>> {
        while self.path.len() < self.total {
            if let Some(chain) = self.next() {
                self.take(chain);
                continue;
            }
            if self.dead_ends.len() == MAX_DEAD_ENDS {
                return None;
            }
            self.dead_ends.insert(self.taken.clone());
            let last = self.path.pop()?;
            if let Some(taken) = self.taken.get_mut(last) {
                *taken -= 1;
            }
        }
        Some(self.path)
    }

    fn take(&mut self, chain: usize) {
        self.path.push(chain);
        if let Some(taken) = self.taken.get_mut(chain) {
            *taken += 1;
        }
    }

    /// Returns the chain of the earliest step that can follow.
    fn next(&self) -> Option<usize> {
        let state = self.path.last().and_then(|chain| {
            let taken = self.taken.get(*chain)?;
            let last = self.chains.get(*chain)?.get(taken.checked_sub(1)?)?;
            Some(last.step.to_state.as_str())
        });
        let is_last = self.path.len() + 1 == self.total;
        let steps = self.chains.iter().zip(&self.taken).enumerate();
        let steps = steps.filter_map(|(chain, (steps, taken))| Some((chain, steps.get(*taken)?)));
        let can_follow = |(chain, next): &(usize, &ChainStep)| {
            next.step.from_state.as_deref() == state
                && (next.fits_loan || !is_last)
                && !self.leads_to_dead_end(*chain)
        };
        let possible = steps.filter(can_follow);
        possible.min_by_key(|(chain, next)| (next.step.at, *chain)).map(|(chain, _)| chain)
    }

    fn leads_to_dead_end(&self, chain: usize) -> bool {
        let mut taken = self.taken.clone();
        if let Some(taken) = taken.get_mut(chain) {
            *taken += 1;
        }
        self.dead_ends.contains(&taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates steps of a loan: the chain, the time, and both states.
    fn steps(of: &[(u128, i64, &str, &str)]) -> Vec<ChainStep> {
        let step = |(number, (chain, at, from, to)): (usize, &(u128, i64, &str, &str))| ChainStep {
            step: StepRow {
                library: "NO-1".parse().unwrap(),
                loan: Uuid::from_u128(7),
                at: *at,
                from_state: (!from.is_empty()).then(|| (*from).to_owned()),
                to_state: (*to).to_owned(),
                cause: String::new(),
                detail: None,
                version: 2,
                salt: None,
                loan_mac: None,
                place: 0,
                chain: None,
            },
            chain: Uuid::from_u128(*chain),
            number: i64::try_from(number).unwrap(),
            fits_loan: false,
        };
        let mut steps: Vec<_> = of.iter().enumerate().map(step).collect();
        steps.last_mut().unwrap().fits_loan = true;
        steps
    }

    /// Sorts steps that are given in their order, after they were stored by their times.
    fn assert_order(of: &[(u128, i64, &str, &str)]) {
        let mut stored = steps(of);
        stored.sort_by_key(|step| (step.step.at, step.chain, step.number));
        let sorted = in_order(stored).unwrap();
        let numbers: Vec<i64> = sorted.iter().map(|step| step.number).collect();
        assert_eq!(numbers, (0..i64::try_from(of.len()).unwrap()).collect::<Vec<_>>());
    }

    #[test]
    fn steps_follow_their_states_and_not_their_times() {
        assert_order(&[
            (2, 900, "", "intended"),
            (1, 10, "intended", "pending"),
            (1, 20, "pending", "accepted"),
            (2, 5, "accepted", "ending"),
            (1, 4, "ending", "ended"),
        ]);
        // The clock of one process was set back: its own chain has the order.
        assert_order(&[(1, 9, "", "intended"), (1, 5, "intended", "unknown")]);
    }

    #[test]
    fn last_step_has_the_hash_of_the_loan() {
        // By the states and times alone, the second and third could change places.
        assert_order(&[
            (1, 1, "", "intended"),
            (2, 30, "intended", "intended"),
            (3, 20, "intended", "intended"),
        ]);
    }

    #[test]
    fn order_that_ends_too_early_is_not_followed() {
        // By time, chain 3 would lead to the end before chain 2 is used.
        assert_order(&[
            (1, 1, "", "intended"),
            (2, 50, "intended", "pending"),
            (2, 51, "pending", "intended"),
            (3, 10, "intended", "accepted"),
            (1, 60, "accepted", "ended"),
        ]);
    }

    #[test]
    fn steps_that_do_not_continue_each_other_have_no_order() {
        let of = [(1, 1, "", "intended"), (2, 2, "pending", "accepted")];
        assert!(in_order(steps(&of)).is_none());
        let mut of = steps(&[(1, 1, "", "intended"), (2, 2, "intended", "accepted")]);
        of.iter_mut().for_each(|step| step.fits_loan = false);
        assert!(in_order(of).is_none());
    }
}
