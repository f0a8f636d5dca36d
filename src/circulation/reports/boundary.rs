//! The times before which the books of reports do not say what was sent. A pure function of them.
//!
//! A ledger that was restored from a backup lacks what was sent in the lost time. The operator
//! names a day by `[reports] since`, or runs `loangate ledger reconcile`, which records its time.

use std::time::Duration;

use jiff::Timestamp;

use crate::clock;
use crate::ledger::{Report, ReportModel};
use crate::loan::Loan;

/// How long after a reconciliation a package that is new to the ledger may be one that was reported
/// in the lost time: a package in use has a loan in any such time.
const PACKAGE_REAPPEARS_WITHIN: Duration = Duration::from_secs(31 * 86_400);

/// The boundary of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Boundary {
    /// `[reports] since`.
    pub(super) since: Timestamp,
    /// When the ledger was last reconciled.
    pub(super) reconciled: Option<Timestamp>,
}

impl Boundary {
    /// Returns whether a loan is from before `since`. Without a time of acceptance it is.
    pub(super) fn is_before_since(&self, loan: &Loan) -> bool {
        loan.accepted.is_none_or(|at| at < self.since)
    }

    /// Returns why a report in the books may have been sent although they do not say so.
    pub(super) fn doubt(&self, report: &Report) -> Option<String> {
        if report.due_since < self.since {
            return Some("it became due before [reports] since, so it may have been sent".into());
        }
        let reconciled = self.reconciled.filter(|at| report.due_since < *at)?;
        Some(lost_before(reconciled))
    }

    /// Returns why a loan that becomes due now may have been reported although the books do not
    /// say so: it may have become due in the lost time, too.
    pub(super) fn doubt_of_loan(&self, model: ReportModel, loan: &Loan) -> Option<String> {
        let reconciled = self.reconciled?;
        let until = match model {
            ReportModel::Package => clock::after(reconciled, PACKAGE_REAPPEARS_WITHIN),
            ReportModel::PayPerLoan => reconciled,
        };
        loan.accepted.is_none_or(|at| at < until).then(|| lost_before(reconciled))
    }
}

fn lost_before(reconciled: Timestamp) -> String {
    format!("the ledger had lost its newest steps at {reconciled}, so it may have been sent")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loan::{Borrower, Event, LoanKey, Terms};

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn accepted(at: i64) -> Loan {
        let key = LoanKey {
            library: "NO-0301000".parse().unwrap(),
            borrower: Borrower::from_bytes([1; 16]),
            isbn: "9780306406157".parse().unwrap(),
        };
        let terms = Terms { due: second(9_000_000), licence_id: None, licence_type: None };
        let accept = Event::Accepted { lending_id: "L1".to_owned(), terms };
        Loan::intend(key, second(0)).apply(&accept, second(at)).unwrap()
    }

    #[test]
    fn loan_from_before_a_reconciliation_is_in_doubt() {
        use ReportModel::{Package, PayPerLoan};
        let reconciled = Some(second(1_000));
        let boundary = Boundary { since: second(0), reconciled };
        let month = 31 * 86_400;
        for (model, at, expected) in [
            (PayPerLoan, 999, true),
            (PayPerLoan, 1_000, false),
            (Package, 1_000, true),
            (Package, 1_000 + month, false),
        ] {
            let found = boundary.doubt_of_loan(model, &accepted(at));
            assert_eq!(found.is_some(), expected, "{model} at {at}");
        }
        let never = Boundary { reconciled: None, ..boundary };
        assert_eq!(never.doubt_of_loan(PayPerLoan, &accepted(1)), None);
    }
}
