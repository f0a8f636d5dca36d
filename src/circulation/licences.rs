//! The policy of `[licences]` as pure functions: which licence a loan is begun under.
//!
//! Without a policy Bokbasen chooses the licence, and nothing is queried before a begin. With a
//! policy, the driver first queries Bokbasen's availability. It then tries the permitted licences
//! in the policy's order. If Bokbasen declines one because none is free, it tries the next.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;

use crate::clock;
use crate::lending::{Availability, FreeLicence};
use crate::loan::{LibraryId, Refusal};

/// Refusal code if the policy forbids every licence of the title.
const NOT_ALLOWED: &str = "licence-not-allowed";
/// Bokbasen's refusal codes (assumed) for a missing licence.
const NO_FREE_LICENCE: &str = "NO_FREE_LICENSE";
const LICENCE_NOT_FOUND: &str = "LICENSE_NOT_FOUND";

/// Maximum memory of the licences left to try for one loan, in bytes, since they are stored while
/// it is pending. Licences beyond it are not tried.
pub(super) const MAX_CANDIDATE_BYTES: usize = 480;

/// The settings in `[licences]`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Licences {
    /// Licence types in the order in which they are tried. Types that are not listed follow in
    /// Bokbasen's order.
    pub order: Vec<String>,
    /// Licence types that a library's loans never use.
    pub never: HashMap<LibraryId, Vec<String>>,
}

/// The licences to try for a loan, in order.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// `None` stands for a begin without a licence id: Bokbasen chooses.
    left: VecDeque<Option<FreeLicence>>,
    current: Option<FreeLicence>,
}

impl Licences {
    /// Returns whether the policy affects this library's loans.
    pub(super) fn applies_to(&self, library: LibraryId) -> bool {
        !self.order.is_empty() || self.forbids_some(library)
    }

    fn forbids_some(&self, library: LibraryId) -> bool {
        self.never.get(&library).is_some_and(|never| !never.is_empty())
    }

    fn allows(&self, library: LibraryId, kind: &str) -> bool {
        !self.never.get(&library).is_some_and(|never| never.iter().any(|other| other == kind))
    }

    /// Returns the availability without licences that the policy forbids.
    pub(super) fn visible(
        &self,
        library: LibraryId,
        mut availability: Availability,
    ) -> Availability {
        if self.forbids_some(library) {
            availability.licences.retain(|licence| self.allows(library, &licence.kind));
            availability.available = availability.licences.iter().any(|licence| licence.free > 0);
        }
        availability
    }

    /// Returns the licences to try for a loan.
    ///
    /// # Errors
    /// Our own refusal if no licence is permitted or none is free.
    pub(super) fn choose(
        &self,
        library: LibraryId,
        availability: Availability,
        now: Timestamp,
        longest: Timestamp,
    ) -> Result<Candidates, Refusal> {
        // For a title without licences Bokbasen's refusal is better than ours.
        if availability.licences.is_empty() && !self.forbids_some(library) {
            return Ok(Candidates::chosen_by_bokbasen());
        }
        let (had, visible) =
            (!availability.licences.is_empty(), self.visible(library, availability));
        let mut free: Vec<FreeLicence> =
            visible.licences.iter().filter(|licence| licence.free > 0).cloned().collect();
        if !free.is_empty() {
            let rank = |kind: &str| self.order.iter().position(|other| other == kind);
            free.sort_by_key(|licence| rank(&licence.kind).unwrap_or(usize::MAX));
            return Ok(Candidates::of(free));
        }
        if visible.licences.is_empty() && had {
            let message = "the policy of [licences] forbids every licence of this title".to_owned();
            return Err(Refusal { code: NOT_ALLOWED.to_owned(), message, retry_at: None });
        }
        let message = "no licence that may be used is free".to_owned();
        // Many loans are returned early, so the reader need not wait for the due time.
        let retry_at = visible
            .next_free()
            .map(|at| at.min(longest).max(clock::after(now, super::DEFAULT_RETRY_AFTER)));
        Err(Refusal { code: NO_FREE_LICENCE.to_owned(), message, retry_at })
    }
}

impl Candidates {
    /// Returns one begin that leaves the choice to Bokbasen.
    pub(super) fn chosen_by_bokbasen() -> Candidates {
        Candidates { left: VecDeque::from([None]), current: None }
    }

    /// Returns the first licence, and as many of the next as fit into [`MAX_CANDIDATE_BYTES`] with
    /// it.
    fn of(licences: Vec<FreeLicence>) -> Candidates {
        let mut bytes = 0;
        let fits = |(place, licence): &(usize, FreeLicence)| {
            bytes +=
                size_of::<Option<FreeLicence>>() + licence.licence_id.len() + licence.kind.len();
            *place == 0 || bytes <= MAX_CANDIDATE_BYTES
        };
        let left =
            licences.into_iter().enumerate().take_while(fits).map(|(_, licence)| Some(licence));
        Candidates { left: left.collect::<Vec<_>>().into(), current: None }
    }

    /// Frees the memory if no licence is left to try.
    pub(super) fn trim(&mut self) {
        if self.left.is_empty() {
            *self = Candidates::default();
        }
    }

    /// Returns the heap memory of the licences, in bytes.
    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        let strings =
            |licence: &FreeLicence| licence.licence_id.capacity() + licence.kind.capacity();
        let licences = self.left.iter().flatten().chain(&self.current);
        self.left.capacity() * size_of::<Option<FreeLicence>>()
            + licences.map(strings).sum::<usize>()
    }

    /// Advances to the next licence; returns false if none is left.
    pub(super) fn next(&mut self) -> bool {
        match self.left.pop_front() {
            Some(licence) => {
                self.current = licence;
                true
            }
            None => false,
        }
    }

    /// Returns the id of the current licence; none if Bokbasen chooses.
    pub(super) fn licence_id(&self) -> Option<String> {
        self.current.as_ref().map(|licence| licence.licence_id.clone())
    }

    /// Describes the current licence, for the history.
    pub(super) fn description(&self) -> Option<String> {
        self.current
            .as_ref()
            .map(|licence| format!("requested the {} licence {}", licence.kind, licence.licence_id))
    }

    /// Returns whether the refusal concerns the licence, and another is left to try.
    pub(super) fn has_next_after(&self, refusal: &Refusal) -> bool {
        let of_the_licence = matches!(refusal.code.as_str(), NO_FREE_LICENCE | LICENCE_NOT_FOUND);
        of_the_licence && self.current.is_some() && !self.left.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn library() -> LibraryId {
        "NO-0301000".parse().unwrap()
    }

    fn there(licences: &[(&str, u32)]) -> Availability {
        let licence = |(number, (kind, free)): (usize, &(&str, u32))| FreeLicence {
            licence_id: format!("L{number}"),
            kind: (*kind).to_owned(),
            free: *free,
            next_free: (*free == 0).then(|| at(1000)),
        };
        Availability {
            available: licences.iter().any(|(_, free)| *free > 0),
            licences: licences.iter().enumerate().map(licence).collect(),
        }
    }

    fn tried(policy: &Licences, licences: &[(&str, u32)]) -> Result<Vec<Option<String>>, Refusal> {
        let mut candidates = policy.choose(library(), there(licences), at(0), at(MINUTE))?;
        let mut ids = Vec::new();
        while candidates.next() {
            ids.push(candidates.licence_id());
        }
        Ok(ids)
    }

    fn policy(order: &[&str], never: &[&str]) -> Licences {
        let texts =
            |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Licences { order: texts(order), never: [(library(), texts(never))].into() }
    }

    #[test]
    fn licences_are_tried_in_policy_order_then_the_others() {
        let some = |ids: &[&str]| Ok(ids.iter().map(|id| Some((*id).to_owned())).collect());
        let all =
            [("PAY_PER_LOAN", 9), ("OTHER", 1), ("PACKAGE", 2), ("IMPORTED", 0), ("PACKAGE", 1)];
        let order = ["IMPORTED", "PACKAGE", "PAY_PER_LOAN"];
        assert_eq!(tried(&policy(&order, &[]), &all), some(&["L2", "L4", "L0", "L1"]));
        assert_eq!(tried(&policy(&[], &["PAY_PER_LOAN", "OTHER"]), &all), some(&["L2", "L4"]));
        assert_eq!(tried(&policy(&order, &["PACKAGE"]), &all), some(&["L0", "L1"]));
        assert_eq!(tried(&policy(&order, &[]), &[]), Ok(vec![None]), "Bokbasen decides");
    }

    #[test]
    fn forbidden_licences_are_never_tried_and_none_free_refuses() {
        let code = |never: &[&str], availability: &[(&str, u32)]| {
            tried(&policy(&["PACKAGE"], never), availability)
                .map_err(|refusal| (refusal.code, refusal.retry_at))
        };
        let pay = [("PAY_PER_LOAN", 9)];
        assert_eq!(code(&["PAY_PER_LOAN"], &pay), Err((NOT_ALLOWED.to_owned(), None)));
        let none_free = code(&["PAY_PER_LOAN"], &[("PAY_PER_LOAN", 9), ("PACKAGE", 0)]);
        assert_eq!(none_free, Err((NO_FREE_LICENCE.to_owned(), Some(at(MINUTE)))));
        assert!(code(&["PAY_PER_LOAN"], &[]).is_err(), "no licence is used without its type");
    }

    #[test]
    fn licences_to_try_are_bounded_in_memory() {
        let long = |number: usize| FreeLicence {
            licence_id: format!("{number}-{}", "L".repeat(1000 * usize::from(number == 0))),
            kind: "PACKAGE".to_owned(),
            free: 1,
            next_free: None,
        };
        let mut candidates = Candidates::of((0..1000).map(long).collect());
        assert!(
            candidates.next() && candidates.left.is_empty(),
            "only the first is tried, whatever its size"
        );
        candidates.trim();
        assert!(candidates.current.is_none());
        let candidates = Candidates::of((1..1000).map(long).collect());
        let strings = |licence: &FreeLicence| licence.licence_id.len() + licence.kind.len();
        let bytes: usize = candidates.left.iter().flatten().map(strings).sum::<usize>()
            + candidates.left.len() * size_of::<Option<FreeLicence>>();
        assert!(candidates.left.len() > 3 && bytes <= MAX_CANDIDATE_BYTES, "{bytes}");
    }

    #[test]
    fn only_a_refusal_of_the_licence_leads_to_the_next() {
        let refusal =
            |code: &str| Refusal { code: code.to_owned(), message: String::new(), retry_at: None };
        let two = there(&[("PACKAGE", 1), ("IMPORTED", 1)]);
        let mut candidates =
            policy(&["PACKAGE"], &[]).choose(library(), two, at(0), at(1)).unwrap();
        candidates.next();
        assert!(
            candidates.has_next_after(&refusal(NO_FREE_LICENCE))
                && candidates.has_next_after(&refusal(LICENCE_NOT_FOUND))
        );
        assert!(!candidates.has_next_after(&refusal("BUDGET_EXCEEDED")));
        candidates.next();
        assert!(!candidates.has_next_after(&refusal(NO_FREE_LICENCE)), "none is left");
        let mut bokbasens = Candidates::chosen_by_bokbasen();
        assert!(
            bokbasens.next()
                && !bokbasens.has_next_after(&refusal(NO_FREE_LICENCE))
                && !bokbasens.next()
        );
    }
}
