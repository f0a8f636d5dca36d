//! Tests of what only SQLite has: its file, and one chain of all steps.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{backup, check, check_loans, reconcile_file, verify};
use crate::clock::Clock;
use crate::ledger::reports::tests::add_due_report;
use crate::ledger::test_support::{
    KEY, acceptance, accepted, audit_key, by, key, try_open, written,
};
use crate::ledger::{
    AuditKey, Cause, Filter, HistoryRow, Keys, Ledger, LedgerError, ReportState, ReportStep,
    RowsRead, StoredRequest,
};
use crate::loan::{EndReason, Event, LoanId, LoanState};

async fn open(directory: &Path) -> Result<Ledger, LedgerError> {
    try_open(&directory.join("data/loans.db"), &KEY).await
}

/// Verifies a ledger, and returns what is wrong with it.
async fn findings(file: &Path) -> Vec<String> {
    verify(file, &audit_key(), &RowsRead::default()).await.unwrap().findings
}

#[tokio::test]
async fn garbage_is_refused() {
    let directory = tempfile::tempdir().unwrap();
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
        ledger.apply(id, acceptance(100 + i64::from(borrower)), by("begin")).await.unwrap();
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
        let verified = verify(&file, &audit_key(), &RowsRead::default()).await.unwrap();
        assert_eq!(verified.findings.len(), expected.len(), "{damage}: {:?}", verified.findings);
        for (found, expected) in verified.findings.iter().zip(expected) {
            assert!(found.starts_with(expected), "{damage}: {found}");
        }
        let other = verify(&file, &AuditKey::new(&[3; 32]), &RowsRead::default()).await.unwrap();
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
    let verified = verify(&file, &audit_key(), &RowsRead::default()).await.unwrap();
    assert_eq!((verified.findings, verified.uncovered), (Vec::<String>::new(), 0));
    assert_eq!(check(&file, &RowsRead::default()).await.unwrap(), Vec::<String>::new());
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
    ledger.apply(id, acceptance(100), by("begin")).await.unwrap();
    ledger.close().await;
    let verified = verify(&file, &audit_key(), &RowsRead::default()).await.unwrap();
    assert_eq!((verified.findings, verified.uncovered), (Vec::<String>::new(), 1));
    sqlx::raw_sql("UPDATE loans SET due = due + 1").execute(&mut connection).await.unwrap();
    let found = findings(&file).await;
    assert!(found.len() == 1 && found[0].contains(&id.to_string()), "{found:?}");
    assert_eq!(check_loans(&file, &audit_key(), &RowsRead::default()).await.unwrap(), found);
}

#[tokio::test]
async fn step_without_a_hash_after_newer_ones_gets_none() {
    use sqlx::ConnectOptions;
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path()).await.unwrap();
    written(&ledger, 1).await;
    ledger.close().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new();
    let options = options.filename(directory.path().join("data/loans.db"));
    let mut connection = options.connect().await.unwrap();
    let forged = "INSERT INTO history (number, loan, at, from_state, to_state, cause, version) \
         SELECT number + 1, loan, at, to_state, 'accepted', cause, 1 FROM history";
    sqlx::raw_sql(forged).execute(&mut connection).await.unwrap();
    let error = open(directory.path()).await.unwrap_err();
    assert!(error.to_string().contains("step 2 of the trail has no hash"), "{error}");
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
async fn chain_continues_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let file = closed_ledger(directory.path()).await;
    let ledger = open(directory.path()).await.unwrap();
    written(&ledger, 9).await;
    ledger.close().await;
    let verified = verify(&file, &audit_key(), &RowsRead::default()).await.unwrap();
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
            && refused.to_string().contains("loangate ledger reconcile"),
        "{refused}"
    );
    let keys = Keys { fingerprint: KEY, audit: audit_key() };
    let now = Clock::system().machine_now();
    assert_eq!(reconcile_file(&file, &keys, now, false).await.unwrap(), 0);
    let ledger = open(directory.path()).await.unwrap();
    assert_eq!(ledger.reconciled().await.unwrap().map(|at| at.as_second()), Some(now.as_second()));
    ledger.close().await;
    assert_eq!(findings(&file).await, Vec::<String>::new());
    let missing = directory.path().join("none.db");
    assert!(reconcile_file(&missing, &keys, now, true).await.is_err() && !missing.exists());
}

/// A backup may be kept for longer than requests may.
#[tokio::test]
async fn backup_has_no_stored_request() {
    let directory = tempfile::tempdir().unwrap();
    let file = closed_ledger(directory.path()).await;
    let ledger = open(directory.path()).await.unwrap();
    let id = uuid::Uuid::new_v4();
    let now = Clock::system().machine_now();
    let detail = "{\"path\":\"/files/a-title-that-was-read\"}".to_owned();
    let request =
        StoredRequest { id, at: now, until: now + jiff::SignedDuration::from_hours(1), detail };
    ledger.record_requests(&[request]).await.unwrap();
    assert!(ledger.request(id, now).await.unwrap().is_some());
    let copy = directory.path().join("copy.db");
    backup(&file, &copy).await.unwrap();
    let bytes = std::fs::read(&copy).unwrap();
    assert!(!bytes.windows(20).any(|part| part == b"a-title-that-was-rea"));
    assert!(!directory.path().join("copy.db-wal").exists());
    assert!(check(&copy, &RowsRead::default()).await.unwrap().is_empty());
    ledger.close().await;
}

/// What is due may have been sent from a newer ledger, or not. It cannot be known now.
#[tokio::test]
async fn head_file_that_cannot_be_read_keeps_the_ledger_closed() {
    let directory = tempfile::tempdir().unwrap();
    let file = closed_ledger(directory.path()).await;
    let head_file = directory.path().join("data/loans.db.head");
    let head = std::fs::read(&head_file).unwrap();
    std::fs::remove_file(&head_file).unwrap();
    std::fs::create_dir(&head_file).unwrap();
    let refused = open(directory.path()).await.unwrap_err();
    assert!(matches!(refused, LedgerError::File { .. }), "{refused}");
    let keys = Keys { fingerprint: KEY, audit: audit_key() };
    let now = Clock::system().machine_now();
    let refused = reconcile_file(&file, &keys, now, true).await;
    assert!(matches!(refused, Err(LedgerError::File { .. })), "{refused:?}");
    std::fs::remove_dir(&head_file).unwrap();
    std::fs::write(&head_file, head).unwrap();
    let ledger = open(directory.path()).await.unwrap();
    assert_eq!(ledger.reconciled().await.unwrap(), None);
    ledger.close().await;
}

/// The older copy may have as due what the newer ledger has sent.
#[tokio::test]
async fn reports_of_an_older_copy_go_to_a_person() {
    for head in ["newer", "older", "none", "empty"] {
        let directory = tempfile::tempdir().unwrap();
        let file = closed_ledger(directory.path()).await;
        let ledger = open(directory.path()).await.unwrap();
        let mut reports = Vec::new();
        for (borrower, state) in [
            (11, ReportState::Due),
            (12, ReportState::Unpriced),
            (13, ReportState::Unmeasured),
            (14, ReportState::Rejected),
        ] {
            let id = accepted(&ledger, borrower).await;
            add_due_report(&ledger, id).await;
            let step = ReportStep::new(id, &[ReportState::Due], state, "report");
            assert!(ledger.step_report(step).await.unwrap());
            reports.push(id);
        }
        let older = directory.path().join("older.db");
        backup(&file, &older).await.unwrap();
        let head_file = directory.path().join("data/loans.db.head");
        let older_head = std::fs::read(&head_file).unwrap();
        let due = ledger.report_of_loan(reports[0].uuid()).await.unwrap().unwrap();
        let attempt = ledger.claim_report(&due, &ledger.lease()).await.unwrap().unwrap();
        let sent = ledger.record_report(&attempt, ReportState::Reported, String::new());
        assert!(sent.await.unwrap());
        ledger.close().await;
        std::fs::copy(&older, &file).unwrap();
        let keys = Keys { fingerprint: KEY, audit: audit_key() };
        // Of a clock that is behind.
        let now = Timestamp::from_second(1).unwrap();
        match head {
            "newer" => assert_eq!(reconcile_file(&file, &keys, now, false).await.unwrap(), 3),
            "older" => {
                std::fs::write(&head_file, older_head).unwrap();
                let refused = reconcile_file(&file, &keys, now, false).await;
                assert!(matches!(refused, Err(LedgerError::NothingLost)), "{refused:?}");
                assert_eq!(reconcile_file(&file, &keys, now, true).await.unwrap(), 3);
            }
            "none" => std::fs::remove_file(&head_file).unwrap(),
            _ => std::fs::write(&head_file, "").unwrap(),
        }
        let ledger = open(directory.path()).await.unwrap();
        let mut states = Vec::new();
        for id in &reports {
            let report = ledger.report_of_loan(id.uuid()).await.unwrap().unwrap();
            assert!(report.note.is_some() || report.state == ReportState::Rejected, "{report:?}");
            states.push(report.state);
        }
        let unknown = ReportState::Unknown;
        assert_eq!(states, [unknown, unknown, unknown, ReportState::Rejected], "{head}");
        let reconciled = ledger.reconciled().await.unwrap();
        assert!(reconciled.is_some_and(|at| at >= due.due_since), "{head}: {reconciled:?}");
        ledger.close().await;
        // The head file is there again.
        let ledger = open(directory.path()).await.unwrap();
        assert!(std::fs::metadata(&head_file).unwrap().len() > 0);
        ledger.close().await;
        assert_eq!(findings(&file).await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn schema_refuses_second_live_loans_and_incomplete_states() {
    use sqlx::sqlite::SqliteConnectOptions;
    use sqlx::{AssertSqlSafe, ConnectOptions};
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path()).await.unwrap();
    let id = written(&ledger, 1).await;
    ledger.apply(id, acceptance(100), by("begin")).await.unwrap();
    ledger.close().await;
    let file = directory.path().join("data/loans.db");
    let mut connection = SqliteConnectOptions::new().filename(file).connect().await.unwrap();
    let copy = |state: &str, borrower: u8| {
        let borrower = format!("x'{}'", format!("{borrower:02x}").repeat(16));
        format!(
            "INSERT INTO loans SELECT * FROM (SELECT hex(randomblob(16)), library, {borrower}, \
             isbn, hex(randomblob(8)), lending_id, '{state}', begun, accepted, due, licence_id, \
             licence_type, ended, end_reason, refusal_code, refusal_message, refusal_retry, \
             changed, owner, progress, forgotten, opened, assessed, examine FROM loans LIMIT 1)"
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

#[tokio::test]
async fn due_times_are_read_by_their_index_whatever_the_statistics() {
    use sqlx::sqlite::SqliteConnectOptions;
    use sqlx::{AssertSqlSafe, ConnectOptions, Row};
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).await.unwrap().close().await;
    let file = directory.path().join("data/loans.db");
    let options = SqliteConnectOptions::new().filename(&file);
    let mut connection = options.connect().await.unwrap();
    // Those of a million loans, by which the planner prefers the index on states.
    for statement in [
        "ANALYZE",
        "DELETE FROM sqlite_stat1",
        "INSERT INTO sqlite_stat1 VALUES ('loans', 'loans_in_state', '1000000 2001 1'), \
         ('loans', 'loans_by_due', '300000 2001')",
    ] {
        sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
    }
    let mut connection = options.connect().await.unwrap();
    for statement in [super::worklist::COUNT_DUE, super::worklist::NEXT_DUE] {
        let plan = format!("EXPLAIN QUERY PLAN {statement}");
        let plan = sqlx::query(AssertSqlSafe(plan)).bind(0).fetch_one(&mut connection).await;
        let plan: String = plan.unwrap().get("detail");
        assert!(plan.contains("loans_by_due (due"), "{statement}: {plan}");
    }
}
