//! Tests of what a library lends, on both stores.

use std::time::Duration;

use jiff::Timestamp;

use super::super::test_store::{TestStore, on_each_store};
use super::super::test_support::{acceptance, by, key};
use super::super::{
    Brake, Evidence, Ledger, Measure, Report, ReportModel, ReportState, ReportStep,
};
use super::*;
use crate::clock;
use crate::loan::{EndReason, Event, Loan, LoanKey, Refusal};

on_each_store! {
    loans_of_a_day_are_added_up_by_title
    costs_of_a_day_are_those_that_are_reported
    use_of_the_brake_counts_what_its_limits_count
}

const DAY: i64 = 1_790_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(DAY + second).unwrap()
}

async fn intend(ledger: &Ledger, key: LoanKey, second: i64) -> Loan {
    let loan = Loan::intend(key, at(second));
    ledger.intend(loan.clone(), Some(Timestamp::MAX), by("reader")).await.unwrap();
    loan
}

async fn refuse(ledger: &Ledger, borrower: u8, second: i64, code: &str) {
    let loan = intend(ledger, key(borrower), second).await;
    let refusal = Refusal { code: code.to_owned(), message: String::new(), retry_at: None };
    let refused = Event::Refused { lending_id: None, refusal };
    ledger.apply(loan.id, refused, by("begin")).await.unwrap();
}

async fn lend(ledger: &Ledger, key: LoanKey, second: i64) -> Loan {
    let loan = intend(ledger, key, second).await;
    ledger.apply(loan.id, acceptance(4_000_000_000), by("begin")).await.unwrap()
}

async fn loans_of_a_day_are_added_up_by_title(store: &TestStore) {
    let ledger = store.open().await;
    let other = LoanKey { isbn: "9788299999014".parse().unwrap(), ..key(1) };
    let elsewhere = LoanKey { library: "NO-0301001".parse().unwrap(), ..key(1) };
    for (key, second) in
        [(key(1), 0), (key(2), 86_399), (other, 5), (elsewhere, 5), (key(3), -1), (key(4), 86_400)]
    {
        lend(&ledger, key, second).await;
    }
    let ended = lend(&ledger, key(5), 7).await;
    let end = Event::Ending { reason: EndReason::Returned };
    ledger.apply(ended.id, end, by("reader")).await.unwrap();
    refuse(&ledger, 6, 8, BUDGET_EXCEEDED).await;
    refuse(&ledger, 7, 9, "NO_FREE_LICENSE").await;
    intend(&ledger, key(8), 10).await;
    let library = other.library;
    let mut found = ledger.loans_by_title(library, at(0), at(86_400)).await.unwrap();
    found.sort_by_key(|title| (title.isbn.number(), title.licence_type.clone()));
    let title = |isbn, licence_type: Option<&str>, lent, refused, over_budget| TitleLoans {
        isbn,
        licence_type: licence_type.map(str::to_owned),
        lent,
        refused,
        over_budget,
    };
    let one = key(1).isbn;
    let expected = [
        title(one, None, 0, 2, 1),
        title(one, Some("PACKAGE"), 3, 0, 0),
        title(other.isbn, Some("PACKAGE"), 1, 0, 0),
    ];
    assert_eq!(found, expected);
    assert_eq!(
        ledger.libraries().await.unwrap(),
        [library, elsewhere.library],
        "each library once"
    );
    ledger.close().await;
}

async fn costs_of_a_day_are_those_that_are_reported(store: &TestStore) {
    let ledger = store.open().await;
    for (borrower, date, state) in [
        (1, "2026-10-31", ReportState::Reported),
        (2, "2026-10-31", ReportState::Reported),
        (3, "2026-10-31", ReportState::Due),
        (4, "2026-10-31", ReportState::NotReported),
        (5, "2026-10-30", ReportState::Reported),
    ] {
        let loan = lend(&ledger, key(borrower), 0).await;
        let measure = Measure {
            evidence: Evidence::Accepted,
            progress: None,
            covered: None,
            size: None,
            at: at(0),
        };
        let report = Report {
            loan: loan.id,
            model: ReportModel::PayPerLoan,
            subject: loan.id.to_string(),
            isbn: loan.key.isbn,
            licence_id: None,
            licence_type: "PAY_PER_LOAN".to_owned(),
            date: date.parse().unwrap(),
            due_since: at(0),
            measure,
            price: Some(2990),
            state: ReportState::Due,
            owner: None,
            attempts: 0,
            sent: None,
            note: None,
            changed: at(0),
        };
        ledger.add_reports(loan.id.library(), vec![report], vec![loan.id], at(0)).await.unwrap();
        if state != ReportState::Due {
            let step = ReportStep::new(loan.id, &[ReportState::Due], state, "admin");
            assert!(ledger.step_report(step).await.unwrap());
        }
    }
    let found = ledger.costs_by_title(key(1).library, "2026-10-31".parse().unwrap()).await;
    let expected = TitleCost {
        isbn: key(1).isbn,
        licence_type: "PAY_PER_LOAN".to_owned(),
        reported: 2,
        price: 5980,
        open: 1,
    };
    assert_eq!(found.unwrap(), [expected]);
    ledger.close().await;
}

async fn use_of_the_brake_counts_what_its_limits_count(store: &TestStore) {
    let brake = Brake {
        library_per_hour: 3,
        library_per_day: 9,
        attempts_per_library_per_hour: 20,
        ..Brake::default()
    };
    let ledger = store.open_with(brake).await;
    let now = at(0);
    for (borrower, ago) in [(1, 7200), (2, 600), (3, 60)] {
        lend(&ledger, key(borrower), -ago).await;
    }
    refuse(&ledger, 4, -30, BUDGET_EXCEEDED).await;
    let failed = intend(&ledger, key(5), -10).await;
    ledger.apply(failed.id, Event::NotSent, by("begin")).await.unwrap();
    let uses = ledger.brake_use(key(1).library, now).await.unwrap();
    let found: Vec<_> = uses.iter().map(|one| (one.limit.name(), one.maximum, one.used)).collect();
    let attempts = "attempts_per_library_per_hour";
    let expected = [
        ("library_per_hour", 3, 2),
        ("library_per_day", 9, 3),
        (attempts, 20, 3),
        (attempts, 20, 1),
    ];
    assert_eq!(found, expected);
    assert!(uses.iter().all(|one| !one.is_capped));
    let later = clock::after(now, Duration::from_secs(86_400));
    let uses = ledger.brake_use(key(1).library, later).await.unwrap();
    assert!(uses.iter().all(|one| one.used == 0), "{uses:?}");
    ledger.close().await;
}
