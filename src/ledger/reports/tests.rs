//! Tests of the books of reports, on both stores.

use super::super::test_store::{TestStore, on_each_store};
use super::super::test_support::{acceptance, by, end, forget, loan, second};
use super::super::{Prunable, prune};
use super::*;
use crate::loan::Progress;

/// A time after all due times.
const LATE: i64 = 4_000_000_000;

/// Writes an accepted loan under the licence K1 of a package.
async fn lent(ledger: &Ledger, borrower: u8) -> Loan {
    let loan = loan(borrower);
    let id = loan.id;
    ledger.intend(loan, None, by("reader")).await.unwrap();
    ledger.apply(id, acceptance(LATE), by("begin")).await.unwrap()
}

fn report(loan: &Loan, model: ReportModel, subject: &str) -> Report {
    let progress = Some(Progress::of_hundredths(1234).unwrap());
    let at = second(5000);
    Report {
        loan: loan.id,
        model,
        subject: subject.to_owned(),
        isbn: loan.key.isbn,
        licence_id: Some("K1".to_owned()),
        licence_type: "PACKAGE".to_owned(),
        date: "2026-10-31".parse().unwrap(),
        measure: Measure {
            evidence: Evidence::Coverage,
            progress,
            covered: Some(1234),
            size: Some(10_000),
            at,
        },
        price: Some(2990),
        state: ReportState::Due,
        owner: None,
        attempts: 0,
        sent: None,
        note: None,
        changed: at,
    }
}

async fn add(ledger: &Ledger, report: Report) -> u64 {
    let loan = report.loan;
    ledger.add_reports(loan.library(), vec![report], vec![loan]).await.unwrap()
}

/// Writes a loan with a due report.
async fn due(ledger: &Ledger, borrower: u8) -> Report {
    let loan = lent(ledger, borrower).await;
    let report = report(&loan, ReportModel::PayPerLoan, &loan.id.to_string());
    assert_eq!(add(ledger, report.clone()).await, 1);
    report
}

async fn state(ledger: &Ledger, report: &Report) -> ReportState {
    ledger.report_of_loan(report.loan.uuid()).await.unwrap().unwrap().state
}

on_each_store! {
    report_is_stored_with_its_evidence_and_a_step
    what_is_reported_is_in_the_books_once
    report_is_claimed_once_among_processes
    result_of_another_process_is_not_recorded
    report_of_a_dead_process_is_lost_and_never_due_again
    late_result_is_recorded_unless_a_person_resolved_it
    assessed_loans_are_not_searched_again
    listing_has_pages_and_filters
    listing_goes_on_behind_a_damaged_row
    report_outlives_its_pruned_loan
}

async fn report_is_stored_with_its_evidence_and_a_step(store: &TestStore) {
    let ledger = store.open().await;
    let report = due(&ledger, 1).await;
    let stored = ledger.report_of_loan(report.loan.uuid()).await.unwrap().unwrap();
    assert_eq!(Report { changed: report.changed, ..stored }, report);
    let history = ledger.history(report.loan).await.unwrap();
    let step = history.last().unwrap();
    assert_eq!((step.from, step.cause.as_str()), (Some(step.to), "report"));
    let expected = "PAY_PER_LOAN due, 29.90 NOK, 2026-10-31, read 12.34 %, by coverage of 1234 of \
                    10000 bytes";
    assert_eq!(step.detail.as_deref(), Some(expected));
    // The loan goes on, and the trail still verifies.
    end(&ledger, report.loan).await;
    ledger.close().await;
    store.assert_sound().await;
}

async fn what_is_reported_is_in_the_books_once(store: &TestStore) {
    let (ours, other) = (store.open().await, store.open().await);
    let (first, second) = (lent(&ours, 1).await, lent(&ours, 2).await);
    let packages = [&first, &second].map(|loan| report(loan, ReportModel::Package, "K1"));
    let [one, two] = packages.clone();
    let (added, again) = tokio::join!(add(&ours, one), add(&other, two));
    assert_eq!(added + again, 1, "one licence is reported once");
    let of_first = report(&first, ReportModel::PayPerLoan, &first.id.to_string());
    let of_second = report(&second, ReportModel::PayPerLoan, &second.id.to_string());
    let added = add(&ours, of_first).await + add(&other, of_second).await;
    assert_eq!(added, 1, "a loan is used for one report");
    ours.close().await;
    other.close().await;
    store.assert_sound().await;
}

async fn report_is_claimed_once_among_processes(store: &TestStore) {
    let (ours, other) = (store.open().await, store.open().await);
    let report = due(&ours, 1).await;
    let (our_lease, other_lease) = (ours.lease(), other.lease());
    let (first, second) = tokio::join!(
        ours.claim_report(&report, &our_lease),
        other.claim_report(&report, &other_lease)
    );
    assert_eq!(u8::from(first.unwrap()) + u8::from(second.unwrap()), 1);
    assert!(!ours.claim_report(&report, &our_lease).await.unwrap(), "nor again");
    let stored = ours.report_of_loan(report.loan.uuid()).await.unwrap().unwrap();
    assert_eq!((stored.state, stored.attempts), (ReportState::Sending, 1));
    assert!(stored.sent.is_some() && (ours.owns_report(&stored) ^ other.owns_report(&stored)));
    assert!(!ours.is_report_abandoned(&stored).await.unwrap());
    ours.close().await;
    other.close().await;
    store.assert_sound().await;
}

async fn result_of_another_process_is_not_recorded(store: &TestStore) {
    let (ours, other) = (store.open().await, store.open().await);
    let report = due(&ours, 1).await;
    let lease = ours.lease();
    assert!(ours.claim_report(&report, &lease).await.unwrap());
    for to in [ReportState::Reported, ReportState::Due, ReportState::Unknown] {
        let note = String::new();
        assert!(!other.record_report(report.loan, &other.lease(), to, note).await.unwrap());
    }
    let not_sent = "the call was not sent".to_owned();
    assert!(ours.record_report(report.loan, &lease, ReportState::Due, not_sent).await.unwrap());
    assert!(other.claim_report(&report, &other.lease()).await.unwrap(), "it is due again");
    let stored = ours.report_of_loan(report.loan.uuid()).await.unwrap().unwrap();
    assert_eq!((stored.attempts, stored.note), (2, None));
    ours.close().await;
    other.close().await;
}

async fn report_of_a_dead_process_is_lost_and_never_due_again(store: &TestStore) {
    let (ours, other) = (store.open().await, store.open().await);
    let report = due(&ours, 1).await;
    let lease = ours.lease();
    assert!(ours.claim_report(&report, &lease).await.unwrap());
    let (sending, _) = other.reports_in_state(ReportState::Sending, Uuid::nil(), 10).await.unwrap();
    // In PostgreSQL, one of two processes has the bucket of the loan.
    let stored = other.report_of_loan(report.loan.uuid()).await.unwrap().unwrap();
    assert!(sending.is_empty() || sending == [stored.clone()]);
    assert!(!other.is_report_abandoned(&stored).await.unwrap());
    ours.close().await;
    // In SQLite they hold the lock of the process.
    drop((ours, lease));
    assert!(other.is_report_abandoned(&stored).await.unwrap());
    assert!(other.lose_report(&stored, "its process ended".to_owned()).await.unwrap());
    assert_eq!(state(&other, &report).await, ReportState::Unknown);
    assert!(!other.claim_report(&report, &other.lease()).await.unwrap(), "it is sent again");
    assert!(!other.lose_report(&stored, String::new()).await.unwrap());
    other.close().await;
    store.assert_sound().await;
}

async fn late_result_is_recorded_unless_a_person_resolved_it(store: &TestStore) {
    let ledger = store.open().await;
    for (borrower, is_resolved) in [(1, false), (2, true)] {
        let report = due(&ledger, borrower).await;
        let lease = ledger.lease();
        assert!(ledger.claim_report(&report, &lease).await.unwrap());
        let stored = ledger.report_of_loan(report.loan.uuid()).await.unwrap().unwrap();
        assert!(ledger.lose_report(&stored, "?".to_owned()).await.unwrap());
        if is_resolved {
            let from = &[ReportState::Unknown];
            let step = ReportStep::new(report.loan, from, ReportState::NotReported, "admin");
            assert!(ledger.step_report(step).await.unwrap());
        }
        let note = || "Bokbasen acknowledged it".to_owned();
        let due_again = ledger.record_report(report.loan, &lease, ReportState::Due, note()).await;
        assert!(!due_again.unwrap(), "an unknown report became due");
        let recorded = ledger.record_report(report.loan, &lease, ReportState::Reported, note());
        assert_eq!(recorded.await.unwrap(), !is_resolved);
        let expected = if is_resolved { ReportState::NotReported } else { ReportState::Reported };
        assert_eq!(state(&ledger, &report).await, expected);
    }
    ledger.close().await;
}

async fn assessed_loans_are_not_searched_again(store: &TestStore) {
    let ledger = store.open().await;
    let mut loans = Vec::new();
    for borrower in 0..5 {
        loans.push(lent(&ledger, borrower).await.id);
    }
    // Never accepted, and without a licence type.
    ledger.intend(loan(9), None, by("reader")).await.unwrap();
    super::super::test_support::accepted(&ledger, 8).await;
    let all = async || {
        let (mut found, mut after) = (Vec::new(), Some(Uuid::nil()));
        while let Some(position) = after {
            let (page, next) = ledger.loans_to_assess("PACKAGE", position, 2).await.unwrap();
            assert!(page.len() <= 2);
            found.extend(page.into_iter().map(|loan| loan.id));
            after = next;
        }
        found
    };
    assert_eq!(all().await, loans);
    let assessed = vec![loans[1], loans[3]];
    ledger.add_reports(loans[1].library(), Vec::new(), assessed).await.unwrap();
    assert_eq!(all().await, [loans[0], loans[2], loans[4]]);
    assert!(ledger.loans_to_assess("OTHER", Uuid::nil(), 9).await.unwrap().0.is_empty());
    ledger.close().await;
    store.assert_sound().await;
}

async fn listing_has_pages_and_filters(store: &TestStore) {
    let ledger = store.open().await;
    let mut all = Vec::new();
    for (borrower, date) in (1..).zip(["2026-10-31", "2026-10-01", "2026-11-01", "2026-09-30"]) {
        let loan = lent(&ledger, borrower).await;
        let subject = loan.id.to_string();
        let report = Report {
            date: date.parse().unwrap(),
            ..report(&loan, ReportModel::PayPerLoan, &subject)
        };
        add(&ledger, report.clone()).await;
        all.push(report);
    }
    let month = ReportFilter {
        from: Some("2026-10-01".parse().unwrap()),
        before: Some("2026-11-01".parse().unwrap()),
        limit: 1,
        ..ReportFilter::default()
    };
    let (first, after) = ledger.reports(&month).await.unwrap();
    assert_eq!(first[0].loan, all[1].loan);
    let (second, after) = ledger.reports(&ReportFilter { after, ..month.clone() }).await.unwrap();
    assert_eq!(second[0].loan, all[0].loan);
    assert!(after.is_some());
    let (third, after) = ledger.reports(&ReportFilter { after, ..month.clone() }).await.unwrap();
    assert_eq!((third.len(), after), (0, None));
    let library = Some("NO-1103000".parse().unwrap());
    assert!(ledger.reports(&ReportFilter { library, ..month.clone() }).await.unwrap().0.is_empty());
    let for_a_person = ReportFilter { for_a_person: true, limit: 9, ..ReportFilter::default() };
    assert!(ledger.reports(&for_a_person).await.unwrap().0.is_empty());
    let unknown = ReportStep::new(all[3].loan, &[ReportState::Due], ReportState::Unknown, "report");
    assert!(ledger.step_report(unknown).await.unwrap());
    assert_eq!(ledger.reports(&for_a_person).await.unwrap().0[0].loan, all[3].loan);
    let counts = ledger.count_reports().await.unwrap();
    let count = |state| counts.iter().find(|(named, _)| *named == state).map(|(_, count)| *count);
    assert_eq!(count(ReportState::Due), Some(3));
    assert_eq!(count(ReportState::Unknown), Some(1));
    ledger.close().await;
}

async fn listing_goes_on_behind_a_damaged_row(store: &TestStore) {
    let ledger = store.open().await;
    let mut loans = [due(&ledger, 1).await, due(&ledger, 2).await].map(|report| report.loan);
    loans.sort_unstable_by_key(|loan| loan.uuid());
    let damage = format!("UPDATE reports SET isbn = 1 WHERE loan = '{}'", loans[0]);
    store.execute(&damage, &damage).await;
    let filter = ReportFilter { limit: 1, ..ReportFilter::default() };
    let (page, after) = ledger.reports(&filter).await.unwrap();
    assert_eq!((page.len(), after.as_ref().map(|after| after.loan)), (0, Some(loans[0].uuid())));
    let (page, _) = ledger.reports(&ReportFilter { after, ..filter }).await.unwrap();
    assert_eq!(page.iter().map(|report| report.loan).collect::<Vec<_>>(), [loans[1]]);
    ledger.close().await;
}

async fn report_outlives_its_pruned_loan(store: &TestStore) {
    let ledger = store.open().await;
    let report = due(&ledger, 1).await;
    end(&ledger, report.loan).await;
    forget(&ledger).await;
    // The loan of the newest step stays in SQLite.
    lent(&ledger, 2).await;
    let ended = Prunable::Ended { before: Timestamp::MAX };
    let audit_key = super::super::test_support::audit_key();
    assert_eq!(prune(&store.settings(), &audit_key, ended).await.unwrap().loans, 1);
    let lease = ledger.lease();
    assert!(ledger.claim_report(&report, &lease).await.unwrap());
    let note = "Bokbasen acknowledged it".to_owned();
    assert!(ledger.record_report(report.loan, &lease, ReportState::Reported, note).await.unwrap());
    assert_eq!(state(&ledger, &report).await, ReportState::Reported);
    ledger.close().await;
    store.assert_sound().await;
}
