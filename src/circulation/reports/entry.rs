//! Creates the entry of a loan in the books.

use jiff::Timestamp;

use super::{Run, date_in_oslo};
use crate::ledger::{Measure, Report, ReportModel, ReportState};
use crate::loan::Loan;

/// Returns the report of a loan that is due, or that is over and was not measured; none if its row
/// would have no use.
pub(super) fn of_loan(
    run: &Run<'_>,
    model: ReportModel,
    loan: &Loan,
    measure: Measure,
    is_due: bool,
) -> Option<Report> {
    let report = report(run, model, loan, measure, is_due);
    if run.boundary.is_before_since(loan) {
        // Its row keeps a later loan from making the package due. Without its licence, it would
        // keep none.
        let is_known = model == ReportModel::Package && report.licence_id.is_some();
        return is_known.then(|| report.of_known_package());
    }
    Some(match run.boundary.doubt_of_loan(model, loan) {
        Some(doubt) => Report { state: ReportState::Unknown, note: Some(doubt), ..report },
        None => report,
    })
}

fn report(
    run: &Run<'_>,
    model: ReportModel,
    loan: &Loan,
    measure: Measure,
    is_due: bool,
) -> Report {
    let terms = loan.terms.as_ref();
    let licence_id = terms.and_then(|terms| terms.licence_id.clone());
    let licence_type = terms.and_then(|terms| terms.licence_type.clone()).unwrap_or_default();
    let price = run.lists.price(model, loan.key.isbn, &licence_type);
    let subject = match (model, &licence_id) {
        (ReportModel::Package, Some(licence)) => licence.clone(),
        (ReportModel::Package, None) | (ReportModel::PayPerLoan, _) => loan.id.to_string(),
    };
    let state = match (model, &licence_id, price) {
        _ if !is_due => ReportState::Unmeasured,
        (ReportModel::Package, None, _) => ReportState::Unidentified,
        (_, _, Some(_)) => ReportState::Due,
        (_, _, None) => ReportState::Unpriced,
    };
    let due_since = due_since(model, loan, measure.at);
    Report {
        loan: loan.id,
        model,
        subject,
        isbn: loan.key.isbn,
        licence_id,
        licence_type,
        date: date_in_oslo(due_since),
        due_since,
        measure,
        price,
        state,
        owner: None,
        attempts: 0,
        sent: None,
        note: None,
        changed: measure.at,
    }
}

/// Returns when the fact occurred that makes a loan due, if `at` is the time of the measure. A loan
/// may be measured long after its end, but nothing was read after it.
fn due_since(model: ReportModel, loan: &Loan, at: Timestamp) -> Timestamp {
    let fact = match model {
        ReportModel::Package => loan.accepted,
        ReportModel::PayPerLoan => loan.ended,
    };
    fact.map_or(at, |fact| fact.min(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circulation::reports::Lists;
    use crate::circulation::reports::boundary::Boundary;
    use crate::ledger::Evidence;
    use crate::loan::{Borrower, EndReason, Event, LoanKey, Terms};

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn loan(accepted: i64, licence_id: Option<&str>) -> Loan {
        let key = LoanKey {
            library: "NO-0301000".parse().unwrap(),
            borrower: Borrower::from_bytes([1; 16]),
            isbn: "9780306406157".parse().unwrap(),
        };
        let licence_id = licence_id.map(str::to_owned);
        let terms = Terms { due: second(9_000_000), licence_id, licence_type: None };
        let accept = Event::Accepted { lending_id: "L1".to_owned(), terms };
        Loan::intend(key, second(0)).apply(&accept, second(accepted)).unwrap()
    }

    fn entry(model: ReportModel, loan: &Loan, reconciled: Option<i64>) -> Option<Report> {
        let boundary = Boundary { since: second(1_000), reconciled: reconciled.map(second) };
        let run = Run { lists: &Lists::default(), boundary };
        let (evidence, at) = (Evidence::Accepted, second(8_000_000));
        let measure = Measure { evidence, progress: None, covered: None, size: None, at };
        of_loan(&run, model, loan, measure, true)
    }

    #[test]
    fn package_in_use_before_since_is_never_sent() {
        let settled = entry(ReportModel::Package, &loan(999, Some("K1")), None).unwrap();
        assert_eq!((settled.state, settled.subject.as_str()), (ReportState::NotReported, "K1"));
        assert!(settled.note.is_some());
        let unidentified = entry(ReportModel::Package, &loan(999, None), None);
        assert_eq!(unidentified, None, "a row of its loan would block nothing");
        let new = entry(ReportModel::Package, &loan(1_000, Some("K1")), None).unwrap();
        assert_eq!(new.state, ReportState::Unpriced);
    }

    #[test]
    fn loan_from_before_a_reconciliation_goes_to_a_person() {
        for (accepted, expected) in [(1_999, ReportState::Unknown), (2_000, ReportState::Unpriced)]
        {
            let report = entry(ReportModel::PayPerLoan, &loan(accepted, None), Some(2_000));
            assert_eq!(report.unwrap().state, expected, "accepted at {accepted}");
        }
    }

    #[test]
    fn day_of_a_report_is_that_of_its_fact() {
        let day = 86_400;
        let end = Event::Ending { reason: EndReason::Returned };
        let over = loan(2 * day, Some("K1")).apply(&end, second(3 * day)).unwrap();
        for (model, fact, date) in [
            (ReportModel::Package, 2 * day, "1970-01-03"),
            (ReportModel::PayPerLoan, 3 * day, "1970-01-04"),
        ] {
            let report = entry(model, &over, None).unwrap();
            assert_eq!((report.due_since, report.date), (second(fact), date.parse().unwrap()));
        }
        let live = entry(ReportModel::PayPerLoan, &loan(2 * day, None), None).unwrap();
        assert_eq!(live.due_since, second(8_000_000));
    }
}
