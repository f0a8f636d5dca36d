//! The rule that says whether a loan that is paid by use is due. A pure function.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::ledger::{Evidence, Measure};
use crate::loan::{Loan, Progress, Ranges, Tally};

/// What shows how far a title was read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EvidenceRule {
    /// The progress that the app reported. Without one, the delivered bytes.
    ProgressElseCoverage,
    /// Only the progress that the app reported.
    Progress,
    /// Only the delivered bytes.
    Coverage,
}

/// The whole title, in hundredths of a per cent.
const WHOLE: u128 = 10_000;

/// Measures how far a title was read under a loan. `covered` is the number of delivered bytes, each
/// counted once, and `size` that of the title. Nothing is rounded up.
pub(super) fn measure(
    rule: EvidenceRule,
    loan: &Loan,
    covered: u64,
    size: Option<u64>,
    at: Timestamp,
) -> Measure {
    let none =
        Measure { evidence: Evidence::None, progress: None, covered: Some(covered), size, at };
    if let (Some(progress), EvidenceRule::ProgressElseCoverage | EvidenceRule::Progress) =
        (loan.progress, rule)
    {
        return Measure { evidence: Evidence::Progress, progress: Some(progress), ..none };
    }
    let Some(size) = size.filter(|size| *size > 0 && rule != EvidenceRule::Progress) else {
        return none;
    };
    let part = (u128::from(covered) * WHOLE / u128::from(size)).min(WHOLE);
    let part = u16::try_from(part).ok().and_then(|part| Progress::of_hundredths(part).ok());
    Measure { evidence: Evidence::Coverage, progress: part, ..none }
}

/// Returns the number of bytes that were delivered of all files of a title, each byte counted once.
/// `stored_file` identifies the file of a path: several routes may lead to one file.
pub(super) fn covered(
    tallies: &BTreeMap<String, Tally>,
    stored_file: impl Fn(&str) -> Option<String>,
) -> u64 {
    let mut files: BTreeMap<String, Ranges> = BTreeMap::new();
    for (path, tally) in tallies {
        // A path that no route leads to any more is a file of its own.
        let file = stored_file(path).unwrap_or_else(|| path.clone());
        files.entry(file).or_default().merge(&tally.ranges);
    }
    files.values().fold(0, |sum, ranges| sum.saturating_add(ranges.length()))
}

/// Returns whether a measure reaches the limit.
pub(super) fn is_due(measure: &Measure, limit: Progress) -> bool {
    measure.progress.is_some_and(|progress| progress >= limit)
}

#[cfg(test)]
mod tests {
    use super::EvidenceRule::{Coverage, Progress as App, ProgressElseCoverage};
    use super::*;
    use crate::loan::{Borrower, LoanKey};

    #[test]
    fn file_of_two_routes_counts_once() {
        let tally = |first, next| {
            let mut ranges = Ranges::default();
            ranges.insert(first..next);
            Tally { bytes: next - first, ranges }
        };
        let files = BTreeMap::from([
            ("/files/1/book".to_owned(), tally(0, 300)),
            ("/old/1/book".to_owned(), tally(200, 400)),
            ("/removed/1/book".to_owned(), tally(0, 50)),
        ]);
        let stored_file = |path: &str| {
            let route = ["/files/", "/old/"].into_iter().find_map(|route| path.strip_prefix(route));
            route.map(|file| format!("storage/{file}"))
        };
        assert_eq!(covered(&files, stored_file), 400 + 50);
        assert_eq!(covered(&files, |_| None), 550, "each path is a file of its own");
    }

    fn loan() -> Loan {
        let key = LoanKey {
            library: "NO-0301000".parse().unwrap(),
            borrower: Borrower::from_bytes([1; 16]),
            isbn: "9780306406157".parse().unwrap(),
        };
        Loan::intend(key, Timestamp::UNIX_EPOCH)
    }

    fn due(rule: EvidenceRule, covered: u64, size: Option<u64>) -> (Evidence, bool) {
        let measure = measure(rule, &loan(), covered, size, Timestamp::UNIX_EPOCH);
        (measure.evidence, is_due(&measure, Progress::of_hundredths(1000).unwrap()))
    }

    #[test]
    fn coverage_below_the_limit_is_not_due() {
        for (covered, size, expected) in [
            (0, 1, false),
            (99, 1000, false),
            (999, 10_000, false),
            (9_999_999, 100_000_000, false),
            (100, 1000, true),
            (u64::MAX / 10, u64::MAX, false),
            (u64::MAX, u64::MAX, true),
            (2000, 1000, true),
        ] {
            let found = due(Coverage, covered, Some(size));
            assert_eq!(found, (Evidence::Coverage, expected), "{covered} of {size}");
        }
    }

    #[test]
    fn title_of_unknown_size_has_no_coverage() {
        for size in [None, Some(0)] {
            assert_eq!(due(ProgressElseCoverage, u64::MAX, size), (Evidence::None, false));
        }
        assert_eq!(due(App, 1000, Some(1000)), (Evidence::None, false), "only progress counts");
    }
}
