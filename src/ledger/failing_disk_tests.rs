//! Tests of the executor on a disk that fails.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::sqlite::{check, verify};
use super::store::DiskFault;
use super::test_support::{KEY, audit_key, by, key, loan, open};

use super::*;
use crate::clock::Clock;
use crate::loan::LoanState;
use crate::telemetry::Metrics;

async fn open_with_metrics(directory: &Path) -> (Ledger, Metrics) {
    let settings = Settings::sqlite(directory.join("loans.db"), Brake::default());
    let metrics = Metrics::new().unwrap();
    let opened = Ledger::open(&settings, &KEY, audit_key(), Clock::system(), metrics.clone()).await;
    (opened.unwrap(), metrics)
}

/// Writes loans until the database must grow, and returns the first error.
async fn until_full(ledger: &Ledger) -> LedgerError {
    for borrower in 0..200 {
        if let Err(error) = ledger.intend(loan(borrower), None, by("reader")).await {
            return error;
        }
    }
    panic!("the database did not grow");
}

async fn assert_sound(file: &Path) {
    assert_eq!(check(file, &RowsRead::default()).await.unwrap(), Vec::<String>::new());
    assert_eq!(
        verify(file, &audit_key(), &RowsRead::default()).await.unwrap().findings,
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn writer_recovers_from_a_full_database() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("loans.db");
    let ledger = open(&file).await;
    for _ in 0..3 {
        ledger.lanes.inject(DiskFault::Full);
        let error = until_full(&ledger).await;
        assert!(matches!(&error, LedgerError::Commit(why) if why.contains("full")), "{error}");
        // The limit held for the failed connection only.
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Err(error) = ledger.intend(loan(201), None, by("reader")).await {
            assert!(Instant::now() < deadline, "{error}");
            tokio::task::yield_now().await;
        }
        assert_eq!(ledger.check_writable().await, Ok(()));
    }
    ledger.close().await;
    assert_sound(&file).await;
}

#[tokio::test]
async fn writer_recovers_from_a_rollback_by_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("loans.db");
    let ledger = open(&file).await;
    ledger.intend(loan(1), None, by("reader")).await.unwrap();
    ledger.lanes.inject(DiskFault::RolledBack);
    let error = ledger.intend(loan(2), None, by("reader")).await.unwrap_err();
    assert!(matches!(error, LedgerError::Commit(_)), "{error}");
    let again = ledger.intend(loan(2), None, by("reader")).await;
    assert!(matches!(again, Ok(Intended::Written(_))), "{again:?}");
    ledger.close().await;
    assert_sound(&file).await;
}

#[tokio::test]
async fn intent_with_an_unreported_commit_is_ended_as_not_sent() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("loans.db");
    let ledger = open(&file).await;
    ledger.lanes.inject(DiskFault::CommitUnreported);
    let doubtful = loan(1);
    let id = doubtful.id;
    let error = ledger.intend(doubtful, None, by("reader")).await.unwrap_err();
    assert!(matches!(error, LedgerError::Commit(_)), "{error}");
    // Otherwise the intent would stay live: its begin is never sent, and its process is alive.
    let next = ledger.intend(loan(1), None, by("reader")).await.unwrap();
    assert!(matches!(next, Intended::Written(_)), "{next:?}");
    let ended = ledger.loan(id).await.unwrap().unwrap();
    assert_eq!(
        (ended.state, ended.end_reason),
        (LoanState::Ended, Some(crate::loan::EndReason::Rejected))
    );
    assert_eq!(ledger.history(id).await.unwrap().last().unwrap().cause, "ledger");
    ledger.close().await;
    assert_sound(&file).await;
}

#[tokio::test]
async fn write_test_writes_at_most_once_a_second() {
    let directory = tempfile::tempdir().unwrap();
    let (ledger, metrics) = open_with_metrics(directory.path()).await;
    let began = Instant::now();
    for _ in 0..20 {
        let calls = (0..50).map(|_| ledger.check_writable());
        let results = futures_util::future::join_all(calls).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }
    let allowed = began.elapsed().as_secs() + 1;
    let text = metrics.render();
    let line =
        text.lines().find(|line| line.starts_with("loangate_ledger_commands_total")).unwrap();
    let written: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((1..=allowed).contains(&written), "{written} writes, {allowed} allowed");
    assert!(ledger.newest(&key(1)).await.unwrap().is_none());
    ledger.close().await;
}

#[tokio::test]
async fn hanging_write_resets_the_writable_metric() {
    let directory = tempfile::tempdir().unwrap();
    let (ledger, metrics) = open_with_metrics(directory.path()).await;
    let is_writable = || metrics.render().contains("loangate_ledger_writable 1");
    assert!(is_writable());
    let hanging = ledger.write_test.last.clone().lock_owned().await;
    assert!(ledger.check_writable().await.unwrap_err().contains("no response"));
    assert!(!is_writable());
    drop(hanging);
    ledger.intend(loan(1), None, by("reader")).await.unwrap();
    assert!(is_writable(), "a write has succeeded");
    ledger.close().await;
}

#[tokio::test]
async fn truncated_head_file_does_not_prevent_a_start() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("loans.db");
    let ledger = open(&file).await;
    ledger.intend(loan(1), None, by("reader")).await.unwrap();
    ledger.close().await;
    let head = directory.path().join("loans.db.head");
    let whole = std::fs::read(&head).unwrap();
    for length in [0, 1, 2, 3, 10, whole.len() - 3, whole.len() - 1] {
        std::fs::write(&head, &whole[..length]).unwrap();
        open(&file).await.close().await;
        assert_eq!(
            std::fs::read(&head).unwrap(),
            whole,
            "truncated to {length} bytes and not written again"
        );
    }
}

#[tokio::test]
async fn temporary_files_of_dead_processes_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("loans.db");
    let first = open(&file).await;
    let alive = directory.path().join(format!("loans.db.head.{}.new", first.membership.name()));
    let dead = directory.path().join("loans.db.head.0123abcd.new");
    let foreign = directory.path().join("loans.db.head.copy");
    for left in [&alive, &dead, &foreign] {
        std::fs::write(left, "1 ab").unwrap();
    }
    let second = open(&file).await;
    assert_eq!([&alive, &dead, &foreign].map(|left| left.exists()), [true, false, true]);
    second.close().await;
    first.close().await;
}

/// A commit whose success is not reported adds links that the executor has not seen.
#[tokio::test]
async fn head_file_gets_the_links_of_an_unreported_commit() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("loans.db");
    let ledger = open(&file).await;
    let Intended::Written(begun) = ledger.intend(loan(1), None, by("reader")).await.unwrap() else {
        panic!("the first intent is written")
    };
    ledger.lanes.inject(DiskFault::CommitUnreported);
    ledger.apply(begun.id, Event::Lost, by("begin")).await.unwrap_err();
    assert_eq!(ledger.history(begun.id).await.unwrap().len(), 2);
    let head = directory.path().join("loans.db.head");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !std::fs::read_to_string(&head).is_ok_and(|text| text.starts_with("2 ")) {
        assert!(Instant::now() < deadline, "{:?}", std::fs::read_to_string(&head));
        // Each commit shows the executor the newest link, also one without a step.
        let _ = ledger.note_progress(begun.id, Progress::of(0.5).unwrap()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ledger.close().await;
    assert_sound(&file).await;
}
