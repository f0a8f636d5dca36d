//! Tests of the ledger's contract, on real files.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::test_support::{KEY, audit_key, by, key, try_open};
use super::*;
use crate::loan::{EndReason, LoanState, Terms};

async fn open(directory: &Path) -> Result<Ledger, LedgerError> {
    try_open(&directory.join("data/loans.db"), &KEY).await
}

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn accepted(due: i64) -> Event {
    let terms = Terms {
        due: second(due),
        licence_id: Some("K1".into()),
        licence_type: Some("PACKAGE".into()),
    };
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
async fn concurrent_intents_of_one_reader_and_title_write_one() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path()).await.unwrap();
    let intents: Vec<_> = (0..200)
        .map(|_| {
            let ledger = ledger.clone();
            tokio::spawn(async move { intend(&ledger, 1).await })
        })
        .collect();
    let (mut written, mut live) = (Vec::new(), Vec::new());
    for intent in intents {
        match intent.await.unwrap() {
            Intended::Written(loan) => written.push(loan.id),
            Intended::Live(loan) => live.push(loan.id),
            Intended::EndedSince(at) | Intended::Braked(at) => panic!("{at}"),
        }
    }
    assert_eq!((written.len(), live.len()), (1, 199));
    assert!(live.iter().all(|id| *id == written[0]));
}

#[tokio::test]
async fn loans_and_history_survive_reopening() {
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
    let expected = [
        (None, LoanState::Intended, "reader"),
        (Some(LoanState::Intended), LoanState::Accepted, "begin"),
    ];
    assert_eq!(steps, expected);
}

#[tokio::test]
async fn illegal_event_changes_nothing_and_fails_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path()).await.unwrap();
    let (one, two) = (written(&ledger, 1).await, written(&ledger, 2).await);
    let (illegal, legal, missing) = tokio::join!(
        ledger.apply(one, Event::EndAcknowledged, by("x")),
        ledger.apply(two, accepted(100), by("begin")),
        ledger.apply(LoanId::random(), Event::Lost, by("x")),
    );
    assert!(matches!(illegal, Err(LedgerError::Illegal(_))));
    assert!(matches!(missing, Err(LedgerError::NoSuchLoan(_))));
    assert_eq!(legal.unwrap().state, LoanState::Accepted);
    assert_eq!(ledger.loan(one).await.unwrap().unwrap().state, LoanState::Intended);
    assert_eq!(ledger.history(one).await.unwrap().len(), 1);
}

#[tokio::test]
async fn only_a_credential_issued_after_the_end_borrows_again() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path()).await.unwrap();
    let id = written(&ledger, 1).await;
    ledger.apply(id, accepted(100), by("begin")).await.unwrap();
    let ending = ledger
        .apply(id, Event::Ending { reason: EndReason::Returned }, by("reader"))
        .await
        .unwrap();
    assert!(
        matches!(intend(&ledger, 1).await, Intended::Live(_)),
        "the loan is live until Bokbasen acknowledges the end"
    );
    ledger.apply(id, Event::EndAcknowledged, by("outbox")).await.unwrap();
    let end = ledger.last_end(&key(1)).await.unwrap().unwrap();
    assert_eq!(Some(end.as_millisecond()), ending.ended.map(Timestamp::as_millisecond));
    let later = crate::clock::after(end, std::time::Duration::from_millis(1));
    for (issued, permitted) in [(None, false), (Some(end), false), (Some(later), true)] {
        let intended =
            ledger.intend(Loan::intend(key(1), second(1)), issued, by("reader")).await.unwrap();
        assert_eq!(matches!(intended, Intended::Written(_)), permitted, "{issued:?}");
        assert_eq!(matches!(intended, Intended::EndedSince(_)), !permitted, "{issued:?}");
    }
}

#[tokio::test]
async fn end_seen_before_acceptance_bars_older_credentials() {
    for (borrower, reason, bars) in [
        (1, EndReason::Returned, true),
        (2, EndReason::Expired, true),
        (3, EndReason::Cancelled, false),
        (4, EndReason::Rejected, false),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let ledger = open(directory.path()).await.unwrap();
        let id = written(&ledger, borrower).await;
        ledger.apply(id, Event::Begun { lending_id: "b-1".to_owned() }, by("begin")).await.unwrap();
        ledger.apply(id, Event::EndedThere { reason }, by("poll")).await.unwrap();
        let old = Some(second(1));
        let intended =
            ledger.intend(Loan::intend(key(borrower), second(1)), old, by("reader")).await.unwrap();
        assert_eq!(matches!(intended, Intended::EndedSince(_)), bars, "{reason}: {intended:?}");
    }
}

#[tokio::test]
async fn dropped_future_does_not_cancel_the_write() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path()).await.unwrap();
    {
        let mut intent =
            std::pin::pin!(ledger.intend(Loan::intend(key(1), second(1)), None, by("reader")));
        // One poll enqueues the command. Then the future is dropped.
        assert!(futures_util::poll!(intent.as_mut()).is_pending());
    }
    assert!(matches!(intend(&ledger, 1).await, Intended::Live(_)));
}

#[tokio::test]
async fn listings_filter_and_continue_after_a_loan() {
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
    assert_eq!(listed(Filter { limit: 2, after: Some(ids[1].uuid()), ..all() }).await, ids[2..4]);
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
    assert!(second.orphans().await.unwrap().is_empty(), "the first process is alive");
    assert!(!second.adopt(id).await.unwrap());
    first.close().await;
    drop(first);
    // The writing task releases the lock slightly later than the last handle.
    while second.orphans().await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(second.adopt(id).await.unwrap());
    assert!(!second.adopt(id).await.unwrap(), "the owner is this live process");
    assert!(second.orphans().await.unwrap().is_empty());
}

#[tokio::test]
async fn ledger_of_another_key_and_garbage_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).await.unwrap().close().await;
    let other = try_open(&directory.path().join("data/loans.db"), &[2; 32]).await;
    assert!(matches!(other, Err(LedgerError::OtherPseudonymKey)));
    let garbage = directory.path().join("garbage.db");
    std::fs::write(&garbage, "this is not a database. ".repeat(200)).unwrap();
    let refused = try_open(&garbage, &KEY).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Database { .. }), "{refused}");
}

/// Writes a ledger with four ended loans, closes it and returns its file.
async fn closed_ledger(directory: &Path) -> PathBuf {
    let ledger = open(directory).await.unwrap();
    for borrower in 0..4 {
        let id = written(&ledger, borrower).await;
        ledger.apply(id, accepted(100 + i64::from(borrower)), by("begin")).await.unwrap();
        let end = Event::Ending { reason: EndReason::Returned };
        ledger.apply(id, end, Cause { by: "admin", detail: Some("a text".into()) }).await.unwrap();
    }
    ledger.close().await;
    directory.join("data/loans.db")
}

/// The beginning of a finding about a loan's row.
const ROW: &str = "loan ";

#[tokio::test]
async fn verify_names_each_changed_missing_or_swapped_step() {
    use sqlx::Connection;
    for (damage, expected) in [
        ("SELECT 1", &[][..]),
        ("UPDATE history SET at = at + 1 WHERE number = 5", &["step 5 (loan"]),
        ("UPDATE history SET detail = 'a test' WHERE number = 3", &["step 3 (loan"]),
        ("UPDATE history SET detail = NULL WHERE number = 3", &["step 3 (loan"]),
        (
            "UPDATE history SET mac = zeroblob(32) WHERE number = 7",
            &["step 7 (loan", "step 8 (loan"],
        ),
        ("DELETE FROM history WHERE number IN (6, 7)", &["steps 6 to 7 are missing", ROW]),
        (
            "UPDATE history SET number = CASE number WHEN 4 THEN -1 ELSE number END; \
             UPDATE history SET number = 4 WHERE number = 8; \
             UPDATE history SET number = 8 WHERE number = -1",
            &["step 4 (loan", "step 5 (loan", "step 8 (loan", "step 9 (loan", ROW],
        ),
        (
            "DELETE FROM history WHERE number > 9",
            &["the last steps are missing: the chain ends at 9,", ROW],
        ),
        (
            "DELETE FROM history",
            &["the last steps are missing: the chain ends at 0,", ROW, ROW, ROW, ROW],
        ),
        ("UPDATE history SET version = 1 WHERE number = 12", &["step 12 (loan"]),
        ("UPDATE history SET loan_mac = zeroblob(32) WHERE number = 12", &["step 12 (loan", ROW]),
        ("UPDATE history SET salt = NULL WHERE number = 12", &[ROW]),
        ("UPDATE loans SET due = due + 1 WHERE due = 100000", &[ROW]),
        ("UPDATE loans SET borrower = randomblob(16) WHERE due = 101000", &[ROW]),
        ("UPDATE loans SET licence_type = 'PAY_PER_LOAN'", &[ROW, ROW, ROW, ROW]),
        ("UPDATE loans SET ended = ended - 1, end_reason = 'cancelled' WHERE due = 103000", &[ROW]),
        ("UPDATE loans SET progress = 1, owner = 'another'", &[]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let file = closed_ledger(directory.path()).await;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
        let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::raw_sql(damage).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        let verified = verify(&file, &audit_key()).await.unwrap();
        assert_eq!(verified.findings.len(), expected.len(), "{damage}: {:?}", verified.findings);
        for (found, expected) in verified.findings.iter().zip(expected) {
            assert!(found.starts_with(expected), "{damage}: {found}");
        }
        let other = verify(&file, &AuditKey::new(&[3; 32])).await.unwrap();
        assert!(
            other.findings.len() >= expected.len().min(1),
            "another key does not hide the damage"
        );
    }
}

#[tokio::test]
async fn forgotten_loan_verifies_without_the_salts_of_its_steps() {
    let directory = tempfile::tempdir().unwrap();
    let file = closed_ledger(directory.path()).await;
    let ledger = open(directory.path()).await.unwrap();
    let ids: Vec<LoanId> = ledger
        .page(&Filter { limit: 2, ..Filter::default() })
        .await
        .unwrap()
        .iter()
        .map(|l| l.id)
        .collect();
    for id in &ids {
        ledger.apply(*id, Event::EndAcknowledged, by("outbox")).await.unwrap();
    }
    assert_eq!(ledger.forget(Timestamp::MAX, 100).await.unwrap(), 2);
    assert_eq!(ledger.history(ids[0]).await.unwrap().last().unwrap().cause, "retention");
    ledger.close().await;
    let verified = verify(&file, &audit_key()).await.unwrap();
    assert_eq!((verified.findings, verified.uncovered), (Vec::<String>::new(), 0));
    assert_eq!(check(&file).await.unwrap(), Vec::<String>::new());
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let salted = "SELECT count(*) FROM history WHERE salt IS NOT NULL AND cause <> 'retention' \
         AND loan IN (SELECT loan FROM history WHERE cause = 'retention')";
    let salted: i64 = sqlx::query_scalar(salted).fetch_one(&mut connection).await.unwrap();
    assert_eq!(salted, 0);
}

/// Returns the hash of a step of version 1, computed independently from the bytes.
fn hash_of_version_1(before: &[u8], number: i64, step: &HistoryRow, loan: LoanId) -> Vec<u8> {
    use aws_lc_rs::hmac;
    let mut bytes = Vec::new();
    let mut part = |part: Option<&[u8]>| {
        bytes.extend(part.map_or(u64::MAX, |part| part.len() as u64).to_be_bytes());
        bytes.extend(part.unwrap_or_default());
    };
    part(Some(before));
    part(Some(&number.to_be_bytes()));
    part(Some(loan.to_string().as_bytes()));
    part(Some(&step.at.as_millisecond().to_be_bytes()));
    part(step.from.map(|from| from.name().as_bytes()));
    part(Some(step.to.name().as_bytes()));
    part(Some(step.cause.as_bytes()));
    part(step.detail.as_deref().map(str::as_bytes));
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &[2; 32]), &bytes).as_ref().to_vec()
}

#[tokio::test]
async fn only_the_owner_decides_an_undecided_loan() {
    let directory = tempfile::tempdir().unwrap();
    let (owner, other) =
        (open(directory.path()).await.unwrap(), open(directory.path()).await.unwrap());
    let id = written(&owner, 1).await;
    let decided = other.apply(id, accepted(100), by("poll")).await;
    assert!(matches!(decided, Err(LedgerError::NotOwner(of)) if of == id), "{decided:?}");
    // Any process may end a loan, and change one that is decided.
    owner.apply(id, accepted(100), by("poll")).await.unwrap();
    other.apply(id, Event::Ending { reason: EndReason::Returned }, by("reader")).await.unwrap();
    other.apply(id, Event::EndAcknowledged, by("outbox")).await.unwrap();
    owner.close().await;
    other.close().await;
}

#[tokio::test]
async fn version_1_steps_verify_and_later_ones_cover_the_loan() {
    use sqlx::{AssertSqlSafe, ConnectOptions};
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path()).await.unwrap();
    let id = written(&ledger, 1).await;
    written(&ledger, 2).await;
    let step = ledger.history(id).await.unwrap().remove(0);
    ledger.close().await;
    drop(ledger);
    let file = directory.path().join("data/loans.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
    let mut connection = options.connect().await.unwrap();
    // Convert the first two steps to version 1, whose hashes do not cover the rows.
    let first = data_encoding::HEXLOWER.encode(&hash_of_version_1(&[], 1, &step, id));
    let old = format!(
        "UPDATE history SET version = 1, salt = NULL, loan_mac = NULL, mac = NULL; \
         UPDATE history SET mac = x'{first}' WHERE number = 1"
    );
    sqlx::raw_sql(AssertSqlSafe(old)).execute(&mut connection).await.unwrap();
    std::fs::remove_file(directory.path().join("data/loans.db.head")).unwrap();
    let ledger = open(directory.path()).await.unwrap();
    // The writing task releases the lock of its process slightly later than the last handle.
    while !ledger.adopt(id).await.unwrap() {
        tokio::task::yield_now().await;
    }
    ledger.apply(id, accepted(100), by("begin")).await.unwrap();
    ledger.close().await;
    let verified = verify(&file, &audit_key()).await.unwrap();
    assert_eq!((verified.findings, verified.uncovered), (Vec::<String>::new(), 1));
    sqlx::raw_sql("UPDATE loans SET due = due + 1").execute(&mut connection).await.unwrap();
    let found = verify(&file, &audit_key()).await.unwrap().findings;
    assert!(found.len() == 1 && found[0].contains(&id.to_string()), "{found:?}");
    assert_eq!(check_loans(&file, &audit_key()).await.unwrap(), found);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn several_processes_open_a_new_ledger_at_once() {
    for _ in 0..5 {
        let directory = tempfile::tempdir().unwrap();
        let open = async || open(directory.path()).await;
        let opened = futures_util::future::join_all((0..6).map(|_| open())).await;
        let ledgers: Vec<Ledger> = opened.into_iter().map(Result::unwrap).collect();
        for (borrower, ledger) in (1..).zip(&ledgers) {
            written(ledger, borrower).await;
        }
        futures_util::future::join_all(ledgers.iter().map(Ledger::close)).await;
        let file = directory.path().join("data/loans.db");
        assert_eq!(verify(&file, &audit_key()).await.unwrap().findings, Vec::<String>::new());
    }
}

#[tokio::test]
async fn support_queries_do_not_use_connections_of_readers() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path()).await.unwrap();
    let id = written(&ledger, 1).await;
    let support = ledger.for_support();
    assert_eq!(support.page(&Filter { limit: 1, ..Filter::default() }).await.unwrap().len(), 1);
    let mut busy = Vec::new();
    let short = std::time::Duration::from_millis(500);
    while let Ok(connection) = tokio::time::timeout(short, support.queries.pool().acquire()).await {
        busy.push(connection.unwrap());
    }
    assert_eq!(busy.len(), 2);
    let mut listing = std::pin::pin!(support.loan(id));
    assert!(
        futures_util::poll!(listing.as_mut()).is_pending(),
        "a support query waits for a connection"
    );
    assert!(ledger.newest(&key(1)).await.unwrap().is_some(), "a reader's query does not");
    drop(busy);
    assert!(listing.await.unwrap().is_some());
    ledger.close().await;
}

#[tokio::test]
async fn loan_due_at_the_maximum_timestamp_can_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path()).await.unwrap();
    let id = written(&ledger, 1).await;
    let terms = Terms { due: Timestamp::MAX, licence_id: None, licence_type: None };
    ledger
        .apply(id, Event::Accepted { lending_id: "L1".into(), terms }, by("begin"))
        .await
        .unwrap();
    let due = ledger.loan(id).await.unwrap().unwrap().open_until().unwrap();
    assert_eq!(due.as_millisecond(), Timestamp::MAX.as_millisecond());
    ledger.close().await;
}

#[tokio::test]
async fn every_filter_of_the_listing_has_an_index() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path()).await.unwrap();
    let first = written(&ledger, 1).await;
    let second = written(&ledger, 2).await;
    for mask in 0..32_u32 {
        let has = |bit: u32| mask & (1 << bit) != 0;
        let filter = Filter {
            library: has(0).then(|| key(1).library),
            isbn: has(1).then(|| key(1).isbn),
            state: has(2).then_some(LoanState::Intended),
            borrower: has(3).then(|| key(1).borrower),
            since: has(4).then(|| Timestamp::from_second(1).unwrap()),
            after: None,
            limit: 10,
        };
        // Each query names its index, and SQLite fails if it cannot use it.
        let ids: Vec<LoanId> =
            ledger.page(&filter).await.unwrap().iter().map(|loan| loan.id).collect();
        assert_eq!(ids, if has(3) { vec![first] } else { vec![second, first] }, "{filter:?}");
        let next = Filter { after: ids.first().map(|id| id.uuid()), ..filter };
        assert_eq!(ledger.page(&next).await.unwrap().len(), ids.len() - 1, "{next:?}");
    }
    // After a pruned loan, the listing continues at the position derived from its id.
    let pruned = Filter { after: Some(LoanId::random().uuid()), limit: 10, ..Filter::default() };
    assert_eq!(ledger.page(&pruned).await.unwrap().len(), 2);
    ledger.close().await;
}

#[tokio::test]
async fn chain_continues_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let file = closed_ledger(directory.path()).await;
    let ledger = open(directory.path()).await.unwrap();
    written(&ledger, 9).await;
    ledger.close().await;
    let verified = verify(&file, &audit_key()).await.unwrap();
    assert_eq!((verified.findings, verified.head.number), (Vec::<String>::new(), 13));
}

#[tokio::test]
async fn older_copy_of_a_ledger_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let file = closed_ledger(directory.path()).await;
    let older = directory.path().join("older.db");
    backup(&file, &older).await.unwrap();
    let ledger = open(directory.path()).await.unwrap();
    written(&ledger, 9).await;
    ledger.close().await;
    std::fs::copy(&older, &file).unwrap();
    let refused = open(directory.path()).await.unwrap_err();
    assert!(
        matches!(refused, LedgerError::HeadMissing { .. })
            && refused.to_string().contains("remove"),
        "{refused}"
    );
    // Removing the head file accepts the older copy.
    std::fs::remove_file(directory.path().join("data/loans.db.head")).unwrap();
    open(directory.path()).await.unwrap().close().await;
    assert!(verify(&file, &audit_key()).await.unwrap().findings.is_empty());
}

#[tokio::test]
async fn schema_refuses_second_live_loans_and_incomplete_states() {
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
            "INSERT INTO loans SELECT * FROM (SELECT hex(randomblob(16)), library, {borrower}, \
             isbn, hex(randomblob(8)), lending_id, '{state}', begun, accepted, due, licence_id, \
             licence_type, ended, end_reason, refusal_code, refusal_message, refusal_retry, \
             changed, owner, progress, forgotten, opened FROM loans LIMIT 1)"
        )
    };
    for state in
        LoanState::ALL.into_iter().filter(|state| state.is_live() && *state != LoanState::Ending)
    {
        let second_live =
            sqlx::query(AssertSqlSafe(copy(state.name(), 1))).execute(&mut connection).await;
        let error = second_live.unwrap_err().to_string();
        assert!(error.contains("UNIQUE constraint failed"), "{state}: {error}");
        let other = sqlx::query(AssertSqlSafe(copy(state.name(), 2 + state as u8)));
        other.execute(&mut connection).await.unwrap();
    }
    for (state, missing) in
        [("ending", "an end"), ("ended", "an end"), ("refused", "a refusal"), ("lent", "a state")]
    {
        let inserted = sqlx::query(AssertSqlSafe(copy(state, 90))).execute(&mut connection).await;
        let error = inserted.unwrap_err().to_string();
        assert!(error.contains("CHECK constraint failed"), "{state} without {missing}: {error}");
    }
    for damage in [
        "lending_id = NULL",
        "due = NULL",
        "accepted = NULL",
        "borrower = x'01'",
        "progress = 10001",
    ] {
        let sql = format!("UPDATE loans SET {damage} WHERE state = 'accepted'");
        let error =
            sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap_err().to_string();
        assert!(error.contains("CHECK constraint failed"), "{damage}: {error}");
    }
}
