//! The comparison of stored steps with the chain, for `loangate audit verify`.

use std::borrow::Cow;
use std::collections::VecDeque;

use super::{AuditKey, Head, StoredStep};
use crate::ledger::findings;

/// The result of [`crate::ledger::verify`].
#[derive(Debug, Default)]
pub struct Verified {
    /// The newest link of the chain; empty for a ledger with several chains.
    pub head: Head,
    /// The number of steps that were compared with their hashes.
    pub steps: u64,
    /// What was read of a ledger with several chains; none for a ledger with one.
    pub chains: Option<Chains>,
    /// The problems found, as sentences.
    pub findings: Vec<String>,
    /// The number of loans whose last step is of version 1, so that no hash covers their row.
    pub uncovered: u64,
    /// The number of pruned steps.
    pub pruned: i64,
}

/// The extent of a ledger with a chain for each library and process.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Chains {
    /// The number of chains.
    pub chains: u64,
    /// The number of libraries.
    pub libraries: u64,
    /// The number of head files on this machine, with which the chains were compared.
    pub head_files: u64,
}

impl Verified {
    /// Adds a finding, up to a maximum.
    pub(in crate::ledger) fn report(&mut self, sentence: String) {
        findings::report(&mut self.findings, sentence);
    }
}

/// The link with which a chain must end, or which it must contain.
#[derive(Clone, Debug)]
pub(in crate::ledger) struct ExpectedEnd {
    pub(in crate::ledger) head: Head,
    /// Where the link is stored, for sentences.
    pub(in crate::ledger) place: Cow<'static, str>,
}

/// The replacement of a run of pruned steps.
#[derive(Clone, Debug)]
pub(in crate::ledger) struct Anchor {
    pub(in crate::ledger) first: i64,
    pub(in crate::ledger) last: i64,
    pub(in crate::ledger) mac: Vec<u8>,
    pub(in crate::ledger) seal: Vec<u8>,
}

impl Anchor {
    /// Returns the link of the last pruned step.
    pub(in crate::ledger) fn end(&self) -> Head {
        Head { number: self.last, mac: self.mac.clone() }
    }

    /// Returns whether the seal was made with this key, for a chain with the hash `before`.
    pub(in crate::ledger) fn is_genuine(&self, before: &[u8], key: &AuditKey) -> bool {
        key.seal(self.first, before, &self.end()) == self.seal
    }
}

/// A walk along the chain from its first step to its last.
pub(in crate::ledger) struct Walk<'a> {
    key: &'a AuditKey,
    expected: Option<ExpectedEnd>,
    /// The newest link that another chain has recorded.
    recorded: Option<ExpectedEnd>,
    /// The anchors that are still ahead, in the order of their steps.
    anchors: VecDeque<Anchor>,
    verified: Verified,
}

impl<'a> Walk<'a> {
    /// Begins a walk of a chain. `start` precedes the first step.
    pub(in crate::ledger) fn new(key: &'a AuditKey, start: Head) -> Walk<'a> {
        let verified = Verified { head: start, ..Verified::default() };
        Walk { key, expected: None, recorded: None, anchors: VecDeque::new(), verified }
    }

    /// Sets the link with which the rest of the chain is compared.
    pub(in crate::ledger) fn expect(&mut self, expected: Option<ExpectedEnd>) {
        self.expected = expected;
    }

    /// Sets the link that another chain has recorded, before the first step is walked.
    pub(in crate::ledger) fn expect_recorded(&mut self, recorded: Option<ExpectedEnd>) {
        self.recorded = recorded;
    }

    /// Adds anchors that are ahead. They must be in the order of their steps.
    pub(in crate::ledger) fn add_anchors(&mut self, anchors: impl IntoIterator<Item = Anchor>) {
        self.anchors.extend(anchors);
    }

    /// Adds a finding about the chain as a whole.
    pub(in crate::ledger) fn report(&mut self, sentence: String) {
        self.verified.report(sentence);
    }

    /// Compares the next step with its hash. Steps must be in the order of their numbers.
    pub(in crate::ledger) fn step(&mut self, step: StoredStep) {
        self.cross_anchors();
        let before = &self.verified.head;
        let (number, next) = (step.number, before.number.saturating_add(1));
        let finding = if number != next {
            Some(format!("steps {next} to {} are missing", number - 1))
        } else if step.link_after(before, self.key).mac != step.mac.as_deref().unwrap_or_default() {
            let StoredStep { loan, at, .. } = &step;
            Some(format!("step {number} (loan {loan}, at {at} ms) was changed or moved"))
        } else {
            None
        };
        finding.into_iter().for_each(|finding| self.report(finding));
        self.verified.steps += 1;
        // Continue from the stored hash, so that each wrong row is reported only once.
        self.advance(Head { number, mac: step.mac.unwrap_or_default() });
    }

    /// Advances over an anchor that was written after steps before it were walked, and that covers
    /// them too. `before` is the hash before its first step.
    pub(in crate::ledger) fn cross_newer_anchor(&mut self, anchor: &Anchor, before: &[u8]) {
        let walked = self.verified.head.number;
        if !anchor.is_genuine(before, self.key) {
            self.report(forged(anchor));
        } else if anchor.last > walked {
            self.verified.pruned += anchor.last - walked;
            self.advance(anchor.end());
        }
    }

    /// Advances over pruned steps that follow what was walked.
    pub(in crate::ledger) fn cross_anchors(&mut self) {
        let mut next = self.verified.head.number.saturating_add(1);
        while let Some(anchor) = self.anchors.pop_front_if(|anchor| anchor.first <= next) {
            if anchor.first < next || anchor.last < anchor.first {
                self.report(misplaced(&anchor));
                continue;
            }
            if !anchor.is_genuine(&self.verified.head.mac, self.key) {
                self.report(forged(&anchor));
            }
            self.verified.pruned += (anchor.last - anchor.first).saturating_add(1);
            self.advance(anchor.end());
            next = anchor.last.saturating_add(1);
        }
    }

    fn advance(&mut self, head: Head) {
        self.verified.head = head;
        let head = &self.verified.head;
        let differs = |expected: &&ExpectedEnd| {
            expected.head.number == head.number && expected.head.mac != head.mac
        };
        let differing = self.expected.iter().chain(&self.recorded).filter(differs);
        let sentence = |ExpectedEnd { place, .. }: &ExpectedEnd| {
            format!("step {} differs from the one in {place}", head.number)
        };
        for sentence in differing.map(sentence).collect::<Vec<_>>() {
            self.report(sentence);
        }
    }

    /// Returns the findings after the last step.
    pub(in crate::ledger) fn end(mut self) -> Verified {
        self.cross_anchors();
        let last = self.verified.head.number;
        for anchor in std::mem::take(&mut self.anchors) {
            self.report(misplaced(&anchor));
        }
        let ends = [self.expected.take(), self.recorded.take()].into_iter().flatten();
        for ExpectedEnd { head, place } in ends.filter(|end| end.head.number > last) {
            self.report(format!(
                "the last steps are missing: the chain ends at {last}, {place} names step {}",
                head.number
            ));
        }
        self.verified
    }
}

fn forged(anchor: &Anchor) -> String {
    let Anchor { first, last, .. } = anchor;
    format!("the anchor of steps {first} to {last} was changed or forged")
}

fn misplaced(anchor: &Anchor) -> String {
    let Anchor { first, last, .. } = anchor;
    format!("the anchor of steps {first} to {last} does not fit the chain")
}
