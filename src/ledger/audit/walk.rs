//! The comparison of stored steps with the chain, for `loangate audit verify`.

use std::collections::VecDeque;

use super::{AuditKey, Head, StoredStep};

/// The maximum number of reported findings.
const MAX_FINDINGS: usize = 100;

/// The result of [`crate::ledger::verify`].
#[derive(Debug, Default)]
pub struct Verified {
    /// The newest link of the chain.
    pub head: Head,
    /// The problems found, as sentences.
    pub findings: Vec<String>,
    /// The number of loans whose last step is of version 1, so that no hash covers their row.
    pub uncovered: u64,
    /// The number of pruned steps.
    pub pruned: i64,
}

impl Verified {
    /// Adds a finding, up to a maximum.
    pub(in crate::ledger) fn report(&mut self, sentence: String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(sentence);
        }
    }
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
    /// The link in the head file.
    stored_head: Option<Head>,
    /// The anchors that are still ahead, in the order of their steps.
    anchors: VecDeque<Anchor>,
    verified: Verified,
}

impl<'a> Walk<'a> {
    /// Begins a walk. The anchors must be in the order of their steps.
    pub(in crate::ledger) fn new(
        key: &'a AuditKey,
        stored_head: Option<Head>,
        anchors: Vec<Anchor>,
    ) -> Walk<'a> {
        Walk { key, stored_head, anchors: anchors.into(), verified: Verified::default() }
    }

    /// Sets what precedes the first step, for a chain that does not start with nothing.
    pub(in crate::ledger) fn starting_at(mut self, start: Head) -> Walk<'a> {
        self.verified.head = start;
        self
    }

    /// Adds a finding about the ledger as a whole.
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
        // Continue from the stored hash, so that each wrong row is reported only once.
        self.advance(Head { number, mac: step.mac.unwrap_or_default() });
    }

    /// Advances over pruned steps.
    fn cross_anchors(&mut self) {
        while let Some(anchor) =
            self.anchors.pop_front_if(|anchor| anchor.first == self.verified.head.number + 1)
        {
            if !anchor.is_genuine(&self.verified.head.mac, self.key) {
                let Anchor { first, last, .. } = anchor;
                self.report(format!("the anchor of steps {first} to {last} was changed or forged"));
            }
            self.verified.pruned += anchor.last - anchor.first + 1;
            self.advance(anchor.end());
        }
    }

    fn advance(&mut self, head: Head) {
        self.verified.head = head;
        let head = &self.verified.head;
        if let Some(stored_head) =
            self.stored_head.as_ref().filter(|stored_head| stored_head.number == head.number)
            && stored_head.mac != head.mac
        {
            let sentence = format!("step {} differs from the one in the head file", head.number);
            self.report(sentence);
        }
    }

    /// Returns the findings after the last step.
    pub(in crate::ledger) fn end(mut self) -> Verified {
        self.cross_anchors();
        let last = self.verified.head.number;
        for Anchor { first, last, .. } in std::mem::take(&mut self.anchors) {
            self.report(format!("the anchor of steps {first} to {last} does not fit the chain"));
        }
        if let Some(stored_head) =
            self.stored_head.clone().filter(|stored_head| stored_head.number > last)
        {
            self.report(format!(
                "the last steps are missing: the chain ends at {last}, the head file names step {}",
                stored_head.number
            ));
        }
        self.verified
    }
}
