//! Databases that are restored from a backup, under gates that run, restart or have ended.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::{AssertSqlSafe, PgConnection};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::test_support::support::{Database, Postgres};
use super::test_support::{Node, settings, until};
use super::{PostgresSettings, ReconcileError, close_restored, reconcile};
use crate::clock::Clock;
use crate::ledger::reports::tests::add_due_report;
use crate::ledger::test_support::{KEY, accepted, audit_key, by, key, loan};
use crate::ledger::{Brake, Intended, Keys, Ledger, LedgerError, ReportState};
use crate::loan::{Loan, LoanKey};

/// A lease that a busy machine renews in time.
const LEASE: Duration = Duration::from_secs(4);
const TABLES: [&str; 7] = ["meta", "members", "loans", "chains", "history", "delivered", "reports"];

/// Sets the clock of the database a month back, for new connections.
const CLOCK_BEHIND: &str = "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz \
     LANGUAGE sql AS $$ SELECT pg_catalog.clock_timestamp() - interval '30 days' $$; \
     DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', \
     current_database()); END $$";
const CLOCK_BEHIND_NO_MORE: &str = "DO $$ BEGIN EXECUTE \
     format('ALTER DATABASE %I RESET search_path', current_database()); END $$";

fn now() -> Timestamp {
    Clock::system().machine_now()
}

fn short(database: &Database) -> PostgresSettings {
    PostgresSettings { lease: LEASE, ..settings(&database.url()) }
}

async fn start(database: &Database) -> Node {
    Node::open_with(short(database), Brake::default()).await
}

async fn restart(database: &Database, heads: &TempDir) -> Result<Ledger, LedgerError> {
    Node::try_open(short(database), heads).await
}

async fn run(connection: &mut PgConnection, sql: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(connection).await.unwrap();
}

async fn back_up(connection: &mut PgConnection) {
    run(connection, "CREATE SCHEMA backup").await;
    for table in TABLES {
        run(connection, format!("CREATE TABLE backup.{table} AS TABLE {table}")).await;
    }
}

async fn restore(connection: &mut PgConnection) {
    let mut sql = "BEGIN;".to_owned();
    for table in TABLES {
        sql += &format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM backup.{table};");
    }
    run(connection, sql + "COMMIT").await;
}

async fn are_closed(connection: &mut PgConnection) -> bool {
    let closed = format!("SELECT {}", super::closed_begins::ARE_CLOSED);
    sqlx::query_scalar(AssertSqlSafe(closed)).fetch_one(connection).await.unwrap()
}

/// Waits until all live members have renewed twice, so that each has seen the others.
async fn until_renewed(connection: &mut PgConnection) {
    const LEAST: &str = "SELECT min(renewals) FROM members WHERE fenced IS NULL";
    let mut least =
        async || -> i64 { sqlx::query_scalar(LEAST).fetch_one(&mut *connection).await.unwrap() };
    let before = least().await;
    until("the members renew", async || least().await >= before + 2).await;
}

async fn write(ledger: &Ledger, borrower: u8) {
    let written = ledger.intend(loan(borrower), None, by("reader")).await.unwrap();
    assert!(matches!(written, Intended::Written(_)), "{written:?}");
}

fn files(directory: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_str().unwrap().ends_with(suffix)).collect()
}

fn remove(directory: &Path, suffix: &str) {
    files(directory, suffix).iter().for_each(|file| std::fs::remove_file(file).unwrap());
}

/// Lets an operator compare the ledger with Bokbasen, and open begins.
async fn reconcile_with_balance(ledger: &Ledger, database: &Database) {
    let since = Timestamp::from_second(1_000_000).unwrap();
    ledger.record_balance(since, now()).await.unwrap();
    reconcile(&short(database), since, Duration::ZERO, &keys()).await.unwrap();
}

/// Verifies the ledger with the head files in this directory. Returns what it finds.
async fn verify(database: &Database, heads: &TempDir) -> Vec<String> {
    let store = PostgresSettings { heads: heads.path().to_owned(), ..short(database) };
    super::verify(&store, &audit_key(), &crate::ledger::RowsRead::default()).await.unwrap().findings
}

fn keys() -> Keys {
    Keys { fingerprint: KEY, audit: audit_key() }
}

/// Waits until begins are open, and checks that they stay open for some renewals.
async fn assert_open(ledgers: &[&Ledger], connection: &mut PgConnection) {
    for ledger in ledgers {
        until("begins are open", async || ledger.lease().is_held()).await;
    }
    let end = Instant::now() + LEASE;
    while Instant::now() < end {
        assert!(!are_closed(connection).await);
        assert!(ledgers.iter().all(|ledger| !ledger.begins_are_closed()));
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_after_the_confirmation_notices_a_restore() {
    let Some(server) = Postgres::shared().await else { return };
    for witness in [".heads", ".renewals"] {
        let database = server.database().await;
        let mut connection = database.connect().await;
        let node = start(&database).await;
        back_up(&mut connection).await;
        write(&node.ledger, 1).await;
        let heads = node.close().await;
        // This start confirms the files, and has nothing to write.
        let ledger = restart(&database, &heads).await.unwrap();
        until("it renews", async || files(heads.path(), ".renewals").len() == 1).await;
        ledger.close().await;
        restore(&mut connection).await;
        let other = if witness == ".heads" { ".renewals" } else { ".heads" };
        remove(heads.path(), other);
        let refused = restart(&database, &heads).await.unwrap_err();
        assert!(matches!(refused, LedgerError::DatabaseOlder { .. }), "{refused}");
        assert!(are_closed(&mut connection).await);
        let ledger = restart(&database, &heads).await.unwrap();
        assert!(ledger.begins_are_closed() && !ledger.lease().is_held());
        reconcile_with_balance(&ledger, &database).await;
        assert_open(&[&ledger], &mut connection).await;
        write(&ledger, 1).await;
        ledger.close().await;
        restart(&database, &heads).await.unwrap().close().await;
        assert!(!are_closed(&mut connection).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quiet_gate_notices_a_restore_that_lost_the_steps_of_another() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let (quiet, gone) = (start(&database).await, start(&database).await);
    back_up(&mut connection).await;
    write(&gone.ledger, 1).await;
    gone.close().await;
    until_renewed(&mut connection).await;
    assert!(!are_closed(&mut connection).await, "a gate that leaves is no loss");
    restore(&mut connection).await;
    until("begins are closed", async || quiet.ledger.begins_are_closed()).await;
    assert!(!quiet.ledger.lease().is_held());
    until("begins are closed at all gates", async || are_closed(&mut connection).await).await;
    // A gate of a new machine knows nothing of it, and begins nothing.
    let new = start(&database).await;
    assert!(new.ledger.begins_are_closed());
    reconcile_with_balance(&new.ledger, &database).await;
    assert_open(&[&quiet.ledger, &new.ledger], &mut connection).await;
    new.close().await;
    let heads = quiet.close().await;
    restart(&database, &heads).await.unwrap().close().await;
}

/// What was sent in the lost time is due again in the restored database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn report_that_was_sent_in_the_lost_time_is_not_sent_again() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let node = start(&database).await;
    let loans = [accepted(&node.ledger, 1).await, accepted(&node.ledger, 2).await];
    add_due_report(&node.ledger, loans[0]).await;
    back_up(&mut connection).await;
    add_due_report(&node.ledger, loans[1]).await;
    let mut due = Vec::new();
    for loan in loans {
        let report = node.ledger.report_of_loan(loan.uuid()).await.unwrap().unwrap();
        let attempt =
            node.ledger.claim_report(&report, &node.ledger.lease()).await.unwrap().unwrap();
        let sent = node.ledger.record_report(&attempt, ReportState::Reported, String::new());
        assert!(sent.await.unwrap());
        due.push(report);
    }
    let heads = node.close().await;
    restore(&mut connection).await;
    restart(&database, &heads).await.unwrap_err();
    let ledger = restart(&database, &heads).await.unwrap();
    assert!(ledger.begins_are_closed() && !ledger.lease().is_held());
    let before = now();
    reconcile_with_balance(&ledger, &database).await;
    assert_open(&[&ledger], &mut connection).await;
    let report = ledger.report_of_loan(loans[0].uuid()).await.unwrap().unwrap();
    assert_eq!(report.state, ReportState::Unknown);
    assert!(report.note.is_some_and(|note| note.contains("it was due when")));
    let reconciled = ledger.reconciled().await.unwrap().unwrap();
    assert!(reconciled.duration_since(before).abs().as_secs() < 60, "{reconciled}");
    // The row of the other one was lost. It is written again, and cannot be claimed.
    add_due_report(&ledger, loans[1]).await;
    let claimed = ledger.claim_report(&due[1], &ledger.lease()).await.unwrap();
    assert!(claimed.is_none(), "it became due before the ledger was reconciled");
    ledger.close().await;
}

/// Machines that have never seen the lost steps cannot notice a restore.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_database_begins_nothing_on_new_machines() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let node = start(&database).await;
    let loan = accepted(&node.ledger, 1).await;
    add_due_report(&node.ledger, loan).await;
    node.close().await;
    let others = Keys { fingerprint: [9; 32], ..keys() };
    let refused = close_restored(&short(&database), &others).await;
    assert!(matches!(refused, Err(ReconcileError::Ledger(LedgerError::OtherPseudonymKey))));
    for passed in [1, 0] {
        assert_eq!(close_restored(&short(&database), &keys()).await.unwrap(), passed);
    }
    let node = start(&database).await;
    assert!(node.ledger.begins_are_closed() && !node.ledger.lease().is_held());
    let report = node.ledger.report_of_loan(loan.uuid()).await.unwrap().unwrap();
    assert_eq!(report.state, ReportState::Unknown);
    reconcile_with_balance(&node.ledger, &database).await;
    assert_open(&[&node.ledger], &mut connection).await;
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gates_that_start_after_a_restore_notice_it() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let (first, second) = (start(&database).await, start(&database).await);
    back_up(&mut connection).await;
    write(&first.ledger, 1).await;
    let lost = first.close().await;
    let heads = second.close().await;
    drop(lost);
    restore(&mut connection).await;
    // The machine of the gate that wrote is gone.
    let refused = restart(&database, &heads).await.unwrap_err();
    assert!(matches!(refused, LedgerError::DatabaseOlder { .. }), "{refused}");
    assert!(are_closed(&mut connection).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newest_state_that_is_restored_later_is_no_loss() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let node = start(&database).await;
    back_up(&mut connection).await;
    write(&node.ledger, 1).await;
    let heads = node.close().await;
    run(&mut connection, "ALTER SCHEMA backup RENAME TO older").await;
    back_up(&mut connection).await;
    run(&mut connection, "ALTER SCHEMA backup RENAME TO newest").await;
    run(&mut connection, "ALTER SCHEMA older RENAME TO backup").await;
    restore(&mut connection).await;
    restart(&database, &heads).await.unwrap_err();
    let ledger = restart(&database, &heads).await.unwrap();
    sleep(LEASE / 2).await;
    ledger.close().await;
    run(&mut connection, "DROP SCHEMA backup CASCADE").await;
    run(&mut connection, "ALTER SCHEMA newest RENAME TO backup").await;
    restore(&mut connection).await;
    let ledger = restart(&database, &heads).await.unwrap();
    assert!(ledger.lease().is_held() && !are_closed(&mut connection).await);
    ledger.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gate_refuses_lost_steps_of_a_library_until_the_next_epoch() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let node = start(&database).await;
    back_up(&mut connection).await;
    write(&node.ledger, 1).await;
    restore(&mut connection).await;
    let refused = node.ledger.intend(loan(1), None, by("reader")).await.unwrap_err();
    assert!(refused.to_string().contains("lacks a step"), "{refused}");
    reconcile_with_balance(&node.ledger, &database).await;
    // Its lane may try again before the gate has noticed the epoch.
    let _ = node.ledger.intend(loan(2), None, by("reader")).await;
    assert_open(&[&node.ledger], &mut connection).await;
    write(&node.ledger, 1).await;
    let heads = node.close().await;
    restart(&database, &heads).await.unwrap().close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gate_writes_nothing_between_a_restore_and_its_next_renewal() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    start(&database).await.close().await;
    back_up(&mut connection).await;
    let slow = PostgresSettings { lease: Duration::from_secs(600), ..short(&database) };
    let node = Node::open_with(slow, Brake::default()).await;
    write(&node.ledger, 1).await;
    restore(&mut connection).await;
    let key = LoanKey { library: "NO-0301001".parse().unwrap(), ..key(2) };
    let of_another_library = Loan::intend(key, now());
    let refused = node.ledger.intend(of_another_library, None, by("reader")).await.unwrap_err();
    assert!(refused.to_string().contains("lacks a renewal"), "{refused}");
    assert!(are_closed(&mut connection).await && !node.ledger.lease().is_held());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_that_forgot_a_reconciliation_lost_writes() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let node = start(&database).await;
    back_up(&mut connection).await;
    restore(&mut connection).await;
    let since = Timestamp::from_second(1_000_000).unwrap();
    let close = "INSERT INTO meta VALUES ('begins closed', uuid_send(gen_random_uuid()) || \
         int8send((extract(epoch FROM now()) * 1000)::bigint)) ON CONFLICT DO NOTHING";
    run(&mut connection, close).await;
    reconcile_with_balance(&node.ledger, &database).await;
    assert_open(&[&node.ledger], &mut connection).await;
    let heads = node.close().await;
    restore(&mut connection).await;
    restart(&database, &heads).await.unwrap_err();
    let ledger = restart(&database, &heads).await.unwrap();
    ledger.record_balance(since, now()).await.unwrap();
    reconcile(&short(&database), since, Duration::ZERO, &keys()).await.unwrap();
    assert_open(&[&ledger], &mut connection).await;
    ledger.close().await;
}

#[tokio::test]
async fn reconcile_requires_closed_begins_and_a_balance_after_that() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let node = Node::open_with(short(&database), Brake::default()).await;
    let started = now();
    let before = |seconds: i64| started - jiff::SignedDuration::from_secs(seconds);
    let (day, week) = (before(86_400), before(7 * 86_400));
    let reconcile_after =
        async |since, settling| reconcile(&short(&database), since, settling, &keys()).await;
    let reconcile = async |since| reconcile_after(since, Duration::ZERO).await;
    node.ledger.record_balance(week, before(60)).await.unwrap();
    let others = Keys { fingerprint: [9; 32], ..keys() };
    let refused = super::reconcile(&short(&database), week, Duration::ZERO, &others).await;
    assert!(matches!(refused, Err(ReconcileError::Ledger(LedgerError::OtherPseudonymKey))));
    assert!(matches!(reconcile(week).await, Err(ReconcileError::BeginsOpen)));
    let process = uuid::Uuid::new_v4();
    super::closed_begins::close(&mut connection, process, 0).await.unwrap();
    let later = now() + Duration::from_secs(60);
    assert!(matches!(reconcile(later).await, Err(ReconcileError::TooLate { .. })));
    let early = reconcile(week).await;
    assert!(matches!(early, Err(ReconcileError::NotBalanced { .. })), "balanced before the loss");
    node.ledger.record_balance(day, later).await.unwrap();
    let short_period = reconcile(week).await;
    assert!(matches!(short_period, Err(ReconcileError::NotBalanced { .. })), "{short_period:?}");
    assert!(are_closed(&mut connection).await);
    let soon = reconcile_after(day, Duration::from_secs(90)).await;
    assert!(matches!(soon, Err(ReconcileError::NotBalanced { .. })), "a begin may be under way");
    let longer = "UPDATE members SET lease = lease + 90000";
    run(&mut connection, longer).await;
    let soon = reconcile(day).await;
    assert!(matches!(soon, Err(ReconcileError::NotBalanced { .. })), "a gate had a longer lease");
    run(&mut connection, "UPDATE members SET lease = lease - 90000").await;
    let closed = reconcile(day).await.unwrap();
    assert!(
        closed.duration_since(started).abs().as_secs() < 60 && !are_closed(&mut connection).await
    );
    super::closed_begins::close(&mut connection, process, 0).await.unwrap();
    assert!(!are_closed(&mut connection).await, "what was seen in an older epoch closes nothing");
    node.close().await;
}

#[tokio::test]
async fn confirmed_heads_of_ended_processes_are_stored_for_a_week() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let node = Node::open(&database).await;
    write(&node.ledger, 1).await;
    let count = |heads: &TempDir, suffix| files(heads.path(), suffix).len();
    until("the heads are written", async || count(&node.heads, ".heads") == 1).await;
    restart(&database, &node.heads).await.unwrap().close().await;
    assert_eq!(count(&node.heads, ".heads"), 1, "the process is alive");
    assert_eq!(count(&node.heads, ".renewals"), 2, "the process is alive");
    let heads = node.close().await;
    restart(&database, &heads).await.unwrap().close().await;
    assert_eq!((count(&heads, ".heads"), count(&heads, ".renewals")), (1, 1));
    let [file] = &files(heads.path(), ".heads")[..] else { panic!("one file") };
    let file = std::fs::File::open(file).unwrap();
    let written = file.metadata().unwrap().modified().unwrap();
    file.set_modified(written - Duration::from_secs(8 * 86_400)).unwrap();
    let mut connection = database.connect().await;
    run(&mut connection, CLOCK_BEHIND).await;
    restart(&database, &heads).await.unwrap().close().await;
    assert_eq!(count(&heads, ".heads"), 1, "nothing is old by clocks that differ");
    run(&mut connection, CLOCK_BEHIND_NO_MORE).await;
    restart(&database, &heads).await.unwrap().close().await;
    assert_eq!((count(&heads, ".heads"), count(&heads, ".renewals")), (0, 1));
}

/// A person who restores an older database must not hide that with a raised epoch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raised_epoch_does_not_hide_a_restore() {
    const RAISE: &str = "UPDATE meta SET value = int8send(99999999999999) || substr(value, 9) \
         WHERE name = 'epoch'";
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let node = start(&database).await;
    back_up(&mut connection).await;
    write(&node.ledger, 1).await;
    let heads = node.close().await;
    restore(&mut connection).await;
    run(&mut connection, RAISE).await;
    let found = verify(&database, &heads).await;
    let is_found = |part| found.iter().any(|found| found.contains(part));
    assert!(is_found("no valid seal") && is_found("does not have step 1"), "{found:?}");
    let refused = restart(&database, &heads).await.unwrap_err();
    assert!(refused.to_string().contains("no valid seal"), "{refused}");
    let ledger = restart(&database, &heads).await.unwrap();
    assert!(!ledger.lease().is_held() && are_closed(&mut connection).await);
    reconcile_with_balance(&ledger, &database).await;
    assert_open(&[&ledger], &mut connection).await;
    // A running gate notices it too, and closes the begins of all gates.
    run(&mut connection, RAISE).await;
    until("begins are closed", async || are_closed(&mut connection).await).await;
    reconcile_with_balance(&ledger, &database).await;
    assert_open(&[&ledger], &mut connection).await;
    ledger.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_epoch_closes_begins_until_an_operator_reconciles() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let node = start(&database).await;
    run(&mut connection, "DELETE FROM meta WHERE name = 'epoch'").await;
    until("begins are closed", async || are_closed(&mut connection).await).await;
    assert!(!node.ledger.lease().is_held());
    reconcile_with_balance(&node.ledger, &database).await;
    assert_open(&[&node.ledger], &mut connection).await;
    write(&node.ledger, 1).await;
    let heads = node.close().await;
    run(&mut connection, "DELETE FROM meta WHERE name = 'epoch'").await;
    let found = verify(&database, &heads).await;
    assert!(found.len() == 1 && found[0].contains("no valid seal"), "{found:?}");
}

/// The seal of an older epoch is valid. A head file of a newer one shows that it was set back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_names_an_epoch_that_was_set_back() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let node = start(&database).await;
    back_up(&mut connection).await;
    run(
        &mut connection,
        "INSERT INTO meta SELECT 'begins closed', decode(repeat('00', 16), 'hex') \
         || int8send((extract(epoch FROM now()) * 1000)::bigint)",
    )
    .await;
    reconcile_with_balance(&node.ledger, &database).await;
    assert_open(&[&node.ledger], &mut connection).await;
    write(&node.ledger, 1).await;
    let heads = node.close().await;
    assert_eq!(verify(&database, &heads).await, Vec::<String>::new());
    run(
        &mut connection,
        "UPDATE meta SET value = (SELECT value FROM backup.meta WHERE name = 'epoch') \
         WHERE name = 'epoch'",
    )
    .await;
    let found = verify(&database, &heads).await;
    assert!(found.len() == 1 && found[0].contains("the database was set back"), "{found:?}");
}

/// Head files of another ledger are not compared, and an epoch without a seal must not help.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_id_of_the_ledger_is_noticed() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let node = start(&database).await;
    write(&node.ledger, 1).await;
    let heads = node.close().await;
    assert_eq!(verify(&database, &heads).await, Vec::<String>::new());
    const CHANGES: [&str; 2] = [
        "UPDATE meta SET value = uuid_send(gen_random_uuid()) WHERE name = 'ledger'",
        "UPDATE meta SET value = int8send(0) WHERE name = 'epoch'",
    ];
    for change in CHANGES {
        run(&mut connection, change).await;
        let found = verify(&database, &heads).await;
        assert!(found.len() == 1 && found[0].contains("no valid seal"), "{change}: {found:?}");
        run(&mut connection, "DELETE FROM meta WHERE name = 'begins closed'").await;
        let refused = restart(&database, &heads).await.unwrap_err();
        assert!(refused.to_string().contains("no valid seal"), "{change}: {refused}");
        assert!(are_closed(&mut connection).await);
    }
}
