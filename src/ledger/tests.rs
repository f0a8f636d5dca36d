//! The ledger's contract, on real files.

use std::path::Path;

use jiff::Timestamp;

use super::support::{KEY, audit_key, by, key, try_open};
use super::*;
use crate::loan::{EndReason, Terms};

async fn open(directory: &Path) -> Result<Ledger, LedgerError> {
    try_open(&directory.join("data/loans.db"), &KEY).await
}

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn accepted(due: i64) -> Event {
    let terms =
        Terms { due: second(due), licence_id: Some("K1".into()), licence_type: Some("PACKAGE".into()) };
    Event::Accepted { lending_id: "L1".into(), terms }
}

async fn intend(ledger: &Ledger, borrower: u8) -> Intended {
    ledger.intend(Loan::intend(key(borrower), second(1)), None, by("reader")).await.unwrap()
}

async fn written(ledger: &Ledger, borrower: u8) -> LoanId {
    match intend(ledger, borrower).await {
        Intended::Written(loan) => loan.id,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_hundred_intents_of_one_reader_and_title_one_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path()).await.unwrap();
    let wishes: Vec<_> = (0..200)
        .map(|_| {
            let ledger = ledger.clone();
            tokio::spawn(async move { intend(&ledger, 1).await })
        })
        .collect();
    let (mut written, mut live) = (Vec::new(), Vec::new());
    for wish in wishes {
        match wish.await.unwrap() {
            Intended::Written(loan) => written.push(loan.id),
            Intended::Live(loan) => live.push(loan.id),
            Intended::EndedSince(at) | Intended::Braked(at) => panic!("{at}"),
        }
    }
    assert_eq!((written.len(), live.len()), (1, 199));
    assert!(live.iter().all(|id| *id == written[0]));
}

#[tokio::test]
async fn what_was_written_is_there_after_opening_again_with_its_history() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path()).await.unwrap();
    let id = written(&ledger, 1).await;
    let before = ledger.apply(id, accepted(100), by("begin")).await.unwrap();
    ledger.close().await;
    assert!(matches!(ledger.apply(id, Event::Lost, by("x")).await, Err(LedgerError::Closed)));

    let ledger = open(directory.path()).await.unwrap();
    let after = ledger.newest(&key(1)).await.unwrap().unwrap();
    assert_eq!(after.terms, before.terms);
    assert_eq!((after.id, after.open_until()), (id, Some(second(100))));
    let history = ledger.history(id).await.unwrap();
    let steps: Vec<_> = history.iter().map(|row| (row.from, row.to, row.cause.as_str())).collect();
    let expected =
        [(None, LoanState::Intended, "reader"), (Some(LoanState::Intended), LoanState::Accepted, "begin")];
    assert_eq!(steps, expected);
}

#[tokio::test]
async fn an_illegal_event_changes_nothing_and_spoils_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path()).await.unwrap();
    let (one, two) = (written(&ledger, 1).await, written(&ledger, 2).await);
    let (bad, good, none) = tokio::join!(
        ledger.apply(one, Event::EndAcknowledged, by("x")),
        ledger.apply(two, accepted(100), by("begin")),
        ledger.apply(LoanId::fresh(), Event::Lost, by("x")),
    );
    assert!(matches!(bad, Err(LedgerError::Illegal(_))));
    assert!(matches!(none, Err(LedgerError::NoSuchLoan(_))));
    assert_eq!(good.unwrap().state, LoanState::Accepted);
    assert_eq!(ledger.loan(one).await.unwrap().unwrap().state, LoanState::Intended);
    assert_eq!(ledger.history(one).await.unwrap().len(), 1);
}

#[tokio::test]
async fn only_a_credential_issued_after_the_end_borrows_again() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path()).await.unwrap();
    let id = written(&ledger, 1).await;
    ledger.apply(id, accepted(100), by("begin")).await.unwrap();
    let ending = ledger.apply(id, Event::Ending { reason: EndReason::Returned }, by("reader")).await.unwrap();
    assert!(matches!(intend(&ledger, 1).await, Intended::Live(_)), "until Bokbasen knows of the end");
    ledger.apply(id, Event::EndAcknowledged, by("outbox")).await.unwrap();
    let end = ledger.last_end(&key(1)).await.unwrap().unwrap();
    assert_eq!(Some(end.as_millisecond()), ending.ended.map(Timestamp::as_millisecond));
    let later = crate::clock::after(end, std::time::Duration::from_millis(1));
    for (issued, may) in [(None, false), (Some(end), false), (Some(later), true)] {
        let wish = ledger.intend(Loan::intend(key(1), second(1)), issued, by("reader")).await.unwrap();
        assert_eq!(matches!(wish, Intended::Written(_)), may, "{issued:?}");
        assert_eq!(matches!(wish, Intended::EndedSince(_)), !may, "{issued:?}");
    }
}

#[tokio::test]
async fn a_caller_who_hangs_up_undoes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path()).await.unwrap();
    {
        let mut wish = std::pin::pin!(ledger.intend(Loan::intend(key(1), second(1)), None, by("reader")));
        // Polled once, the command is on its way; then the caller is gone.
        assert!(futures_util::poll!(wish.as_mut()).is_pending());
    }
    assert!(matches!(intend(&ledger, 1).await, Intended::Live(_)));
}

#[tokio::test]
async fn listings_filter_and_go_on_after_a_loan() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path()).await.unwrap();
    let mut ids = Vec::new();
    for borrower in 1..=5 {
        ids.push(written(&ledger, borrower).await);
    }
    ledger.apply(ids[2], accepted(50), by("begin")).await.unwrap();
    ids.reverse();
    let listed = async |filter: Filter| -> Vec<LoanId> {
        ledger.page(&filter).await.unwrap().iter().map(|loan| loan.id).collect()
    };
    let all = || Filter { limit: 10, ..Filter::default() };
    assert_eq!(listed(all()).await, ids);
    assert_eq!(listed(Filter { limit: 2, after: Some(ids[1]), ..all() }).await, ids[2..4]);
    assert_eq!(listed(Filter { state: Some(LoanState::Accepted), ..all() }).await, [ids[2]]);
    assert_eq!(listed(Filter { borrower: Some(key(5).borrower), ..all() }).await, [ids[0]]);
    assert!(listed(Filter { since: Some(second(2)), ..all() }).await.is_empty());
    assert!(listed(Filter { library: "NO-1".parse().ok(), ..all() }).await.is_empty());
    assert_eq!(ledger.next_due(second(49)).await.unwrap(), Some(second(50)));
    assert_eq!(ledger.next_due(second(50)).await.unwrap(), None);
    assert!(ledger.due(second(49), 10).await.unwrap().is_empty());
    assert_eq!(ledger.due(second(50), 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn loans_of_a_dead_process_are_taken_over_once() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path()).await.unwrap();
    let id = written(&first, 1).await;
    let second = open(directory.path()).await.unwrap();
    assert!(second.orphans().await.unwrap().is_empty(), "the first still lives");
    assert!(!second.adopt(id).await.unwrap());
    first.close().await;
    drop(first);
    // The writing task holds the lock a moment longer than the last handle.
    while second.orphans().await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(second.adopt(id).await.unwrap());
    assert!(!second.adopt(id).await.unwrap(), "it is ours now, and we live");
    assert!(second.orphans().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_ledger_of_another_key_or_none_at_all_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).await.unwrap().close().await;
    let other = try_open(&directory.path().join("data/loans.db"), &[2; 32]).await;
    assert!(matches!(other, Err(LedgerError::OtherPseudonymKey)));
    let garbage = directory.path().join("garbage.db");
    std::fs::write(&garbage, "this is no database, and never was one. ".repeat(100)).unwrap();
    let refused = try_open(&garbage, &KEY).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Database { .. }), "{refused}");
}

/// A ledger with some loans and all that has happened to them, closed.
async fn with_a_history(directory: &Path) -> PathBuf {
    let ledger = open(directory).await.unwrap();
    for borrower in 0..4 {
        let id = written(&ledger, borrower).await;
        ledger.apply(id, accepted(100 + i64::from(borrower)), by("begin")).await.unwrap();
        let end = Event::Ending { reason: EndReason::Returned };
        ledger.apply(id, end, Cause { by: "admin", detail: Some("a word".into()) }).await.unwrap();
    }
    ledger.close().await;
    directory.join("data/loans.db")
}

#[tokio::test]
async fn the_audit_finds_what_was_changed_taken_out_swapped_or_cut_off_and_names_it() {
    use sqlx::Connection;
    for (damage, says) in [
        ("SELECT 1", &[][..]),
        ("UPDATE history SET at = at + 1 WHERE number = 5", &["step 5 (loan"]),
        ("UPDATE history SET detail = 'a ward' WHERE number = 3", &["step 3 (loan"]),
        ("UPDATE history SET detail = NULL WHERE number = 3", &["step 3 (loan"]),
        ("UPDATE history SET mac = zeroblob(32) WHERE number = 7", &["step 7 (loan", "step 8 (loan"]),
        ("DELETE FROM history WHERE number IN (6, 7)", &["steps 6 to 7 are missing"]),
        (
            "UPDATE history SET number = CASE number WHEN 4 THEN -1 ELSE number END; \
             UPDATE history SET number = 4 WHERE number = 8; UPDATE history SET number = 8 WHERE number = -1",
            &["step 4 (loan", "step 5 (loan", "step 8 (loan", "step 9 (loan"],
        ),
        ("DELETE FROM history WHERE number > 9", &["the end is cut off: the last step is 9"]),
        ("DELETE FROM history", &["the end is cut off: the last step is 0"]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let file = with_a_history(directory.path()).await;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
        let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::raw_sql(damage).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        let verified = verify(&file, &audit_key()).await.unwrap();
        assert_eq!(verified.findings.len(), says.len(), "{damage}: {:?}", verified.findings);
        for (found, says) in verified.findings.iter().zip(says) {
            assert!(found.starts_with(says), "{damage}: {found}");
        }
        let other = verify(&file, &AuditKey::new(&[3; 32])).await.unwrap();
        assert!(other.findings.len() >= says.len().min(1), "and under another key nothing is right");
    }
}

#[tokio::test]
async fn a_chain_goes_on_after_opening_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = with_a_history(directory.path()).await;
    let ledger = open(directory.path()).await.unwrap();
    written(&ledger, 9).await;
    ledger.close().await;
    let verified = verify(&file, &audit_key()).await.unwrap();
    assert_eq!((verified.findings, verified.head.number), (Vec::<String>::new(), 13));
}

#[tokio::test]
async fn a_ledger_that_was_cut_off_or_put_back_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let file = with_a_history(directory.path()).await;
    let older = directory.path().join("older.db");
    backup(&file, &older).await.unwrap();
    let ledger = open(directory.path()).await.unwrap();
    written(&ledger, 9).await;
    ledger.close().await;
    std::fs::copy(&older, &file).unwrap();
    let refused = open(directory.path()).await.unwrap_err();
    assert!(
        matches!(refused, LedgerError::CutOff { .. }) && refused.to_string().contains("remove"),
        "{refused}"
    );
    // Whoever means it says so.
    std::fs::remove_file(directory.path().join("data/loans.db.head")).unwrap();
    open(directory.path()).await.unwrap().close().await;
    assert!(verify(&file, &audit_key()).await.unwrap().findings.is_empty());
}

#[tokio::test]
async fn the_file_itself_refuses_a_second_live_loan_and_states_that_are_not_borne_out() {
    use sqlx::sqlite::SqliteConnectOptions;
    use sqlx::{AssertSqlSafe, ConnectOptions};
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path()).await.unwrap();
    let id = written(&ledger, 1).await;
    ledger.apply(id, accepted(100), by("begin")).await.unwrap();
    ledger.close().await;
    let file = directory.path().join("data/loans.db");
    let mut connection = SqliteConnectOptions::new().filename(file).connect().await.unwrap();
    let copy = |state: &str, borrower: u8| {
        let borrower = format!("x'{}'", format!("{borrower:02x}").repeat(16));
        format!(
            "INSERT INTO loans SELECT * FROM (SELECT hex(randomblob(16)), library, {borrower}, isbn, \
             hex(randomblob(8)), lending_id, '{state}', begun, accepted, due, licence_id, licence_type, ended, \
             end_reason, refusal_code, refusal_message, refusal_retry, changed, owner, progress, forgotten, \
             opened \
             FROM loans LIMIT 1)"
        )
    };
    for state in LoanState::ALL.into_iter().filter(|state| state.is_live() && *state != LoanState::Ending) {
        let twice = sqlx::query(AssertSqlSafe(copy(state.name(), 1))).execute(&mut connection).await;
        let error = twice.unwrap_err().to_string();
        assert!(error.contains("UNIQUE constraint failed"), "{state}: {error}");
        let other = sqlx::query(AssertSqlSafe(copy(state.name(), 2 + state as u8)));
        other.execute(&mut connection).await.unwrap();
    }
    for (state, what) in
        [("ending", "an end"), ("ended", "an end"), ("refused", "a refusal"), ("lent", "a state")]
    {
        let wrong = sqlx::query(AssertSqlSafe(copy(state, 90))).execute(&mut connection).await;
        let error = wrong.unwrap_err().to_string();
        assert!(error.contains("CHECK constraint failed"), "{state} without {what}: {error}");
    }
    for damage in
        ["lending_id = NULL", "due = NULL", "accepted = NULL", "borrower = x'01'", "progress = 10001"]
    {
        let sql = format!("UPDATE loans SET {damage} WHERE state = 'accepted'");
        let error = sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap_err().to_string();
        assert!(error.contains("CHECK constraint failed"), "{damage}: {error}");
    }
}
