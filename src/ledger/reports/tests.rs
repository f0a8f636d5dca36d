//! Tests of the books of reports, on both stores.

use std::time::Duration;

use super::super::test_store::{TestStore, on_each_store};
use super::super::test_support::{acceptance, by, end, forget, loan, second};
use super::super::{Prunable, RowsRead, prune};
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
        due_since: at,
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
    ledger.add_reports(loan.library(), vec![report], vec![loan], second(0)).await.unwrap()
}

/// Writes a due report of an accepted loan.
pub(in crate::ledger) async fn add_due_report(ledger: &Ledger, id: LoanId) {
    let loan = ledger.loan(id).await.unwrap().unwrap();
    assert_eq!(add(ledger, report(&loan, ReportModel::PayPerLoan, &id.to_string())).await, 1);
}

/// Claims a report as it is stored.
async fn claim(ledger: &Ledger, report: &Report) -> Option<Attempt> {
    let stored = ledger.report_of_loan(report.loan.uuid()).await.unwrap().unwrap();
    ledger.claim_report(&stored, &ledger.lease()).await.unwrap()
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

#[test]
fn ids_after_a_time_follow_the_first_id() {
    let id = LoanId::generate("NO-0301000".parse().unwrap());
    let at = id.created_at();
    assert!(first_loan_id(at) <= id.uuid());
    assert!(first_loan_id(crate::clock::after(at, Duration::from_millis(1))) > id.uuid());
    assert_eq!(first_loan_id(Timestamp::MIN), Uuid::nil());
}

on_each_store! {
    report_is_stored_with_its_evidence_and_a_step
    what_is_reported_is_in_the_books_once
    report_is_claimed_once_among_processes
    result_of_another_process_is_not_recorded
    report_of_a_dead_process_is_lost_and_never_due_again
    late_result_is_recorded_unless_a_person_resolved_it
    late_result_does_not_settle_the_next_attempt
    acknowledgement_without_words_leaves_no_note
    fact_of_a_report_never_changes
    reconciled_ledger_sends_no_report_of_before
    package_of_an_older_loan_elsewhere_is_not_new
    due_report_is_late_after_an_attempt_or_a_wait
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
    assert_eq!([first, second].iter().filter(|one| one.as_ref().unwrap().is_some()).count(), 1);
    assert!(claim(&ours, &report).await.is_none(), "nor again");
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
    let attempt = claim(&ours, &report).await.unwrap();
    let foreign = Attempt { owner: other.lease().name(), ..attempt.clone() };
    for to in [ReportState::Reported, ReportState::Due, ReportState::Unknown] {
        assert!(!other.record_report(&foreign, to, String::new()).await.unwrap());
    }
    let not_sent = "the call was not sent".to_owned();
    assert!(ours.record_report(&attempt, ReportState::Due, not_sent).await.unwrap());
    assert!(claim(&other, &report).await.is_some(), "it is due again");
    let stored = ours.report_of_loan(report.loan.uuid()).await.unwrap().unwrap();
    assert_eq!((stored.attempts, stored.note), (2, None));
    ours.close().await;
    other.close().await;
}

async fn report_of_a_dead_process_is_lost_and_never_due_again(store: &TestStore) {
    let (ours, other) = (store.open().await, store.open().await);
    let report = due(&ours, 1).await;
    let lease = ours.lease();
    assert!(claim(&ours, &report).await.is_some());
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
    assert!(claim(&other, &report).await.is_none(), "it is sent again");
    assert!(!other.lose_report(&stored, String::new()).await.unwrap());
    other.close().await;
    store.assert_sound().await;
}

async fn late_result_is_recorded_unless_a_person_resolved_it(store: &TestStore) {
    let ledger = store.open().await;
    for (borrower, is_resolved) in [(1, false), (2, true)] {
        let report = due(&ledger, borrower).await;
        let attempt = claim(&ledger, &report).await.unwrap();
        let stored = ledger.report_of_loan(report.loan.uuid()).await.unwrap().unwrap();
        assert!(ledger.lose_report(&stored, "?".to_owned()).await.unwrap());
        if is_resolved {
            let from = &[ReportState::Unknown];
            let step = ReportStep::new(report.loan, from, ReportState::NotReported, "admin");
            assert!(ledger.step_report(step).await.unwrap());
        }
        let note = || "Bokbasen acknowledged it".to_owned();
        let due_again = ledger.record_report(&attempt, ReportState::Due, note()).await;
        assert!(!due_again.unwrap(), "an unknown report became due");
        let recorded = ledger.record_report(&attempt, ReportState::Reported, note());
        assert_eq!(recorded.await.unwrap(), !is_resolved);
        let expected = if is_resolved { ReportState::NotReported } else { ReportState::Reported };
        assert_eq!(state(&ledger, &report).await, expected);
    }
    ledger.close().await;
}

async fn late_result_does_not_settle_the_next_attempt(store: &TestStore) {
    let ledger = store.open().await;
    let report = due(&ledger, 1).await;
    let first = claim(&ledger, &report).await.unwrap();
    let note = || "?".to_owned();
    assert!(ledger.record_report(&first, ReportState::Due, note()).await.unwrap());
    let second = claim(&ledger, &report).await.unwrap();
    for to in [ReportState::Reported, ReportState::Due, ReportState::Unknown] {
        assert!(!ledger.record_report(&first, to, note()).await.unwrap(), "{to}");
    }
    assert_eq!(state(&ledger, &report).await, ReportState::Sending);
    assert!(ledger.record_report(&second, ReportState::Due, note()).await.unwrap());
    // The report as it was before both attempts.
    let stale = ledger.claim_report(&report, &ledger.lease()).await.unwrap();
    assert!(stale.is_none(), "claimed by what was read before another claim");
    ledger.close().await;
    store.assert_sound().await;
}

async fn acknowledgement_without_words_leaves_no_note(store: &TestStore) {
    let ledger = store.open().await;
    let report = due(&ledger, 1).await;
    let attempt = claim(&ledger, &report).await.unwrap();
    assert!(ledger.record_report(&attempt, ReportState::Reported, String::new()).await.unwrap());
    let stored = ledger.report_of_loan(report.loan.uuid()).await.unwrap().unwrap();
    assert_eq!((stored.state, stored.note), (ReportState::Reported, None));
    ledger.close().await;
    store.assert_sound().await;
}

async fn fact_of_a_report_never_changes(store: &TestStore) {
    let ledger = store.open().await;
    for (borrower, is_of_an_older_gate) in [(1, false), (2, true)] {
        let loan = lent(&ledger, borrower).await;
        let unmeasured = Report {
            state: ReportState::Unmeasured,
            ..report(&loan, ReportModel::PayPerLoan, &loan.id.to_string())
        };
        add(&ledger, unmeasured.clone()).await;
        if is_of_an_older_gate {
            let older = format!("UPDATE reports SET due_since = NULL WHERE loan = '{}'", loan.id);
            store.execute(&older, &older).await;
        }
        let from = &[ReportState::Unmeasured];
        let step = ReportStep::new(loan.id, from, ReportState::Due, "report");
        let measure = Measure { at: second(9000), ..unmeasured.measure };
        let step = ReportStep { measure: Some(measure), ..step };
        assert!(ledger.step_report(step).await.unwrap());
        let stored = ledger.report_of_loan(loan.id.uuid()).await.unwrap().unwrap();
        assert_eq!((stored.measure.at, stored.due_since), (second(9000), second(5000)));
    }
    ledger.close().await;
}

async fn reconciled_ledger_sends_no_report_of_before(store: &TestStore) {
    let ledger = store.open().await;
    let report = due(&ledger, 1).await;
    assert_eq!(ledger.reconciled().await.unwrap(), None);
    let reconcile = |millis: i64| {
        let bytes = format!("{millis:016x}");
        let row = |value: String| {
            format!(
                "DELETE FROM meta WHERE name = 'reconciled'; \
                 INSERT INTO meta (name, value) VALUES ('reconciled', {value})"
            )
        };
        (row(format!("x'{bytes}'")), row(format!("'\\x{bytes}'")))
    };
    let after = reconcile(5_000_001);
    store.execute(&after.0, &after.1).await;
    assert_eq!(ledger.reconciled().await.unwrap().unwrap().as_millisecond(), 5_000_001);
    assert!(claim(&ledger, &report).await.is_none(), "it may have been sent before");
    let at = reconcile(5_000_000);
    store.execute(&at.0, &at.1).await;
    assert!(claim(&ledger, &report).await.is_some(), "it became due since");
    ledger.close().await;
}

/// Each gate assesses its share of the loans, so the older loan may be assessed later.
async fn package_of_an_older_loan_elsewhere_is_not_new(store: &TestStore) {
    let ledger = store.open().await;
    let (older, newer) = (lent(&ledger, 1).await, lent(&ledger, 2).await);
    let since = crate::clock::after(older.accepted.unwrap(), Duration::from_millis(1));
    let add_since = async |report: Report| {
        let loan = report.loan;
        let added = ledger.add_reports(loan.library(), vec![report], vec![loan], since).await;
        added.unwrap()
    };
    assert_eq!(add_since(report(&newer, ReportModel::Package, "K1")).await, 1);
    let stored = ledger.report_of_loan(newer.id.uuid()).await.unwrap().unwrap();
    assert_eq!(stored.state, ReportState::NotReported);
    assert!(stored.note.is_some_and(|note| note.contains("since")));
    // Its own loan proves nothing of a licence, and other licences are new.
    let other = lent(&ledger, 3).await;
    let licence_id = Some("K2".to_owned());
    let new = Report { licence_id, ..report(&other, ReportModel::Package, "K2") };
    assert_eq!(add_since(new.clone()).await, 1);
    assert_eq!(state(&ledger, &new).await, ReportState::Due);
    ledger.close().await;
    store.assert_sound().await;
}

async fn due_report_is_late_after_an_attempt_or_a_wait(store: &TestStore) {
    let ledger = store.open().await;
    let report = due(&ledger, 1).await;
    // Its fact is old, but it has just been written.
    assert_eq!(ledger.count_late_reports(second(5001)).await.unwrap(), 0);
    assert_eq!(ledger.count_late_reports(Timestamp::MAX).await.unwrap(), 1, "it waited");
    let attempt = claim(&ledger, &report).await.unwrap();
    assert_eq!(ledger.count_late_reports(Timestamp::MAX).await.unwrap(), 0, "it is being sent");
    let note = "no connection".to_owned();
    assert!(ledger.record_report(&attempt, ReportState::Due, note).await.unwrap());
    assert_eq!(ledger.count_late_reports(second(5000)).await.unwrap(), 0);
    assert_eq!(ledger.count_late_reports(second(5001)).await.unwrap(), 1);
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
    let library = loans[1].library();
    ledger.add_reports(library, Vec::new(), assessed, second(0)).await.unwrap();
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
    assert_eq!(
        prune(&store.settings(), &audit_key, ended, &RowsRead::default()).await.unwrap().loans,
        1
    );
    let attempt = claim(&ledger, &report).await.unwrap();
    let note = "Bokbasen acknowledged it".to_owned();
    assert!(ledger.record_report(&attempt, ReportState::Reported, note).await.unwrap());
    assert_eq!(state(&ledger, &report).await, ReportState::Reported);
    ledger.close().await;
    store.assert_sound().await;
}
