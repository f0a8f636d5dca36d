//! The removal of steps from a chain: verifies them, and seals the anchors that replace them.
//!
//! Steps are verified before they are removed, so pruning never hides a change. Anchors that touch
//! become one. The stores read what surrounds the steps and write the result.

use std::collections::{BTreeMap, HashMap};

use super::{Anchor, AuditKey, Head, StoredStep};
use crate::ledger::LedgerError;

/// The steps to be removed from one chain, as runs of consecutive steps.
#[derive(Debug, Default)]
pub(in crate::ledger) struct Removal {
    runs: Vec<Vec<StoredStep>>,
}

/// What surrounds removed steps in their chain.
#[derive(Debug, Default)]
pub(in crate::ledger) struct Surroundings {
    /// The hash before the first step of the chain.
    pub(in crate::ledger) start: Vec<u8>,
    /// The hashes of steps, or of the anchors that replace them, by the numbers of the steps.
    pub(in crate::ledger) macs: HashMap<i64, Vec<u8>>,
    /// The anchors that touch a run.
    pub(in crate::ledger) anchors: Vec<Anchor>,
}

/// A step or an anchor that does not verify.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::ledger) struct Unverified {
    pub(in crate::ledger) step: i64,
}

impl Unverified {
    /// Returns the error of a removal. `chain` names the chain, if the ledger has several.
    pub(in crate::ledger) fn in_chain(self, chain: &str) -> LedgerError {
        let step = self.step;
        let why = format!(
            "the audit trail does not verify at step {step}{chain}, which is not removed; \
             run `loangate audit verify`"
        );
        LedgerError::damaged("?", &why)
    }
}

/// Something that an anchor will cover.
enum Covered<'a> {
    Steps(&'a [StoredStep]),
    Anchor(&'a Anchor),
}

/// An anchor that is not complete yet.
struct Cover {
    first: i64,
    /// The hash before the first step.
    before: Vec<u8>,
    /// The link of the last step.
    last: Head,
}

impl Removal {
    /// Divides steps of one chain into runs. They must be in the order of their numbers.
    pub(in crate::ledger) fn new(steps: Vec<StoredStep>) -> Removal {
        let mut runs: Vec<Vec<StoredStep>> = Vec::new();
        for step in steps {
            match runs.last_mut() {
                Some(run) if run.last().is_some_and(|last| last.number + 1 == step.number) => {
                    run.push(step);
                }
                _ => runs.push(vec![step]),
            }
        }
        Removal { runs }
    }

    /// Returns the first and the last number of each run.
    pub(in crate::ledger) fn ranges(&self) -> Vec<(i64, i64)> {
        let range = |run: &Vec<StoredStep>| Some((run.first()?.number, run.last()?.number));
        self.runs.iter().filter_map(range).collect()
    }

    /// Verifies the steps and the anchors that touch them. Returns the anchors that replace all of
    /// these.
    ///
    /// # Errors
    /// The first step that does not verify. Nothing may be removed then.
    pub(in crate::ledger) fn seal(
        &self,
        surroundings: &Surroundings,
        key: &AuditKey,
    ) -> Result<Vec<Anchor>, Unverified> {
        let steps = self.runs.iter().filter_map(|run| Some((run.first()?.number, run)));
        let steps = steps.map(|(first, run)| (first, Covered::Steps(run)));
        let anchors = surroundings.anchors.iter();
        let anchors = anchors.map(|anchor| (anchor.first, Covered::Anchor(anchor)));
        let in_order: BTreeMap<i64, Covered<'_>> = steps.chain(anchors).collect();
        let mut covers: Vec<Cover> = Vec::new();
        for (first, covered) in in_order {
            let mut cover = match covers.pop() {
                Some(cover) if cover.last.number + 1 == first => cover,
                finished => {
                    covers.extend(finished);
                    let before = surroundings.mac_before(first)?;
                    let last = Head { number: first - 1, mac: before.clone() };
                    Cover { first, before, last }
                }
            };
            cover.last = end_of(&covered, &cover.last, key)?;
            covers.push(cover);
        }
        Ok(covers.into_iter().map(|cover| cover.seal(key)).collect())
    }
}

/// Returns the last link, if everything verifies after `before`.
fn end_of(covered: &Covered<'_>, before: &Head, key: &AuditKey) -> Result<Head, Unverified> {
    match covered {
        Covered::Steps(steps) => {
            let mut last = before.clone();
            for step in *steps {
                last = step.link_after(&last, key);
                if step.mac.as_ref() != Some(&last.mac) {
                    return Err(Unverified { step: step.number });
                }
            }
            Ok(last)
        }
        Covered::Anchor(anchor) if anchor.is_genuine(&before.mac, key) => Ok(anchor.end()),
        Covered::Anchor(anchor) => Err(Unverified { step: anchor.first }),
    }
}

impl Surroundings {
    fn mac_before(&self, step: i64) -> Result<Vec<u8>, Unverified> {
        if step <= 1 {
            return Ok(self.start.clone());
        }
        self.macs.get(&(step - 1)).cloned().ok_or(Unverified { step })
    }
}

impl Cover {
    fn seal(self, key: &AuditKey) -> Anchor {
        let Cover { first, before, last } = self;
        let seal = key.seal(first, &before, &last);
        Anchor { first, last: last.number, mac: last.mac, seal }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a chain of seven steps.
    fn chain(key: &AuditKey) -> Vec<StoredStep> {
        let mut head = Head { number: 0, mac: vec![9; 32] };
        let step = |number| {
            let mut step = StoredStep {
                number,
                loan: number.to_string(),
                at: 1,
                from_state: None,
                to_state: "intended".to_owned(),
                cause: "reader".to_owned(),
                detail: None,
                mac: None,
                version: 2,
                loan_mac: None,
            };
            head = step.link_after(&head, key);
            step.mac = Some(head.mac.clone());
            step
        };
        (1..=7).map(step).collect()
    }

    /// Removes these steps beside anchors, of which each covers the steps from one to another.
    fn seal(
        steps: Vec<StoredStep>,
        numbers: &[i64],
        anchors: &[(i64, i64)],
        damage: impl FnOnce(&mut Vec<StoredStep>, &mut Surroundings),
    ) -> Result<Vec<(i64, i64)>, Unverified> {
        let key = AuditKey::new(&[2; 32]);
        let mac_of: HashMap<i64, Vec<u8>> =
            steps.iter().map(|step| (step.number, step.mac.clone().unwrap())).collect();
        let start = vec![9; 32];
        let before = |first: i64| mac_of.get(&(first - 1)).unwrap_or(&start).clone();
        let anchor = |&(first, last): &(i64, i64)| {
            let end = Head { number: last, mac: mac_of[&last].clone() };
            let seal = key.seal(first, &before(first), &end);
            Anchor { first, last, mac: end.mac, seal }
        };
        let anchors = anchors.iter().map(anchor).collect();
        let mut surroundings = Surroundings { start: start.clone(), macs: mac_of.clone(), anchors };
        let mut removed: Vec<_> =
            steps.into_iter().filter(|step| numbers.contains(&step.number)).collect();
        damage(&mut removed, &mut surroundings);
        let sealed = Removal::new(removed).seal(&surroundings, &key)?;
        assert!(sealed.iter().all(|anchor| anchor.is_genuine(&before(anchor.first), &key)));
        Ok(sealed.iter().map(|anchor| (anchor.first, anchor.last)).collect())
    }

    #[test]
    fn anchors_that_touch_become_one() {
        let steps = || chain(&AuditKey::new(&[2; 32]));
        for (numbers, anchors, expected) in [
            (&[1, 2][..], &[][..], &[(1, 2)][..]),
            (&[2, 3, 6], &[], &[(2, 3), (6, 6)]),
            (&[3], &[(1, 2), (4, 5)], &[(1, 5)]),
            (&[2, 5], &[(3, 4)], &[(2, 5)]),
            (&[7], &[(5, 6)], &[(5, 7)]),
        ] {
            assert_eq!(seal(steps(), numbers, anchors, |_, _| ()).unwrap(), expected);
        }
    }

    #[test]
    fn what_does_not_verify_is_not_removed() {
        let steps = || chain(&AuditKey::new(&[2; 32]));
        let changed = seal(steps(), &[2, 3], &[], |steps, _| steps[1].at = 2);
        assert_eq!(changed, Err(Unverified { step: 3 }));
        let unknown = seal(steps(), &[2, 3], &[], |_, around| around.macs.clear());
        assert_eq!(unknown, Err(Unverified { step: 2 }));
        for (anchors, step) in [(&[(1, 2)], 1), (&[(4, 5)], 4)] {
            let forged = seal(steps(), &[3], anchors, |_, around| around.anchors[0].seal[0] ^= 1);
            assert_eq!(forged, Err(Unverified { step }));
        }
    }
}
