//! Tests of copies between a SQLite file and a PostgreSQL database.

mod marks;
mod network;
mod order;
mod silence;

use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tokio::sync::mpsc;

use super::run::Copy;
use super::*;
use crate::clock::Clock;
use crate::ledger::test_store::TestStore;
use crate::ledger::test_support::{KEY, accepted, audit_key, by, loan, second};
use crate::ledger::{
    Access, AccessFilter, Brake, Delivered, Doubts, Evidence, Filter, Ledger, Measure, Prunable,
    Report, ReportModel, ReportState, ReportStep, RowsRead, Settings, probe, prune, verify,
};
use crate::loan::{EndReason, Event, Loan, LoanId, LoanState, Progress, Refusal, Tally};
use crate::telemetry::Metrics;

/// A gate renews it each second, also on a busy machine.
const LEASE: Duration = Duration::from_secs(5);

fn keys() -> Keys {
    Keys { fingerprint: KEY, audit: audit_key() }
}

async fn copy_all(from: &TestStore, to: &TestStore) -> Result<Copied, CopyError> {
    copy(&from.settings(), &to.settings(), &keys(), second(5000), &mut |_| {}).await
}

/// Copies in small batches, until this many batches are written. Returns none if it was dropped.
async fn copy_until(
    from: &TestStore,
    to: &TestStore,
    batches: usize,
) -> Option<Result<Copied, CopyError>> {
    let (stop, mut stopped) = mpsc::unbounded_channel();
    let mut written = 0;
    let mut report = move |progress| {
        if let CopyProgress::Copying { .. } = progress {
            written += 1;
            if written == batches {
                let _ = stop.send(());
            }
        }
    };
    let keys = keys();
    let deadlines = Deadlines::default();
    let running = Copy { keys: &keys, batch: 2, deadlines, now: second(5000), report: &mut report };
    let (from, to) = (from.settings(), to.settings());
    tokio::select! {
        biased;
        Some(()) = stopped.recv() => None,
        copied = Box::pin(running.run(&from, &to)) => Some(copied),
    }
}

async fn apply(ledger: &Ledger, id: LoanId, event: Event) {
    ledger.apply(id, event, by("test")).await.unwrap();
}

async fn begun(ledger: &Ledger, borrower: u8) -> LoanId {
    let loan = loan(borrower);
    let id = loan.id;
    ledger.intend(loan, None, by("reader")).await.unwrap();
    id
}

async fn end(ledger: &Ledger, id: LoanId) {
    apply(ledger, id, Event::Ending { reason: EndReason::Returned }).await;
    apply(ledger, id, Event::EndAcknowledged).await;
}

/// Writes loans in every state, of two libraries, with all that can belong to a loan.
async fn write_loans(ledger: &Ledger) {
    begun(ledger, 1).await;
    apply(ledger, begun(ledger, 2).await, Event::Begun { lending_id: "L2".into() }).await;
    apply(ledger, begun(ledger, 3).await, Event::Lost).await;
    let refusal =
        Refusal { code: "C".into(), message: "nei «æ»".into(), retry_at: Some(second(9)) };
    let refused = Event::Refused { lending_id: Some("L4".into()), refusal };
    apply(ledger, begun(ledger, 4).await, refused).await;
    apply(ledger, begun(ledger, 5).await, Event::NotSent).await;
    let open = accepted(ledger, 6).await;
    assert!(ledger.mark_opened(open).await.unwrap());
    ledger.note_progress(open, Progress::of_hundredths(4711).unwrap()).await.unwrap();
    let mut tally = Tally { bytes: 70, ..Tally::default() };
    tally.ranges.insert(0..70);
    let delivered = Delivered { loan: open, file: "/a".into(), tally };
    ledger.note_delivered(open.library(), [delivered].into()).await.unwrap();
    report(ledger, open).await;
    ledger.request_examination(open, "a doubt".into()).await.unwrap();
    let ending = accepted(ledger, 7).await;
    apply(ledger, ending, Event::Ending { reason: EndReason::Expired }).await;
    end(ledger, accepted(ledger, 8).await).await;
    let mut key = crate::ledger::test_support::key(9);
    key.library = "NO-1103000".parse().unwrap();
    ledger.intend(Loan::intend(key, second(3)), None, by("reader")).await.unwrap();
    let doubts = Doubts { library: open.library(), absent: vec![open], run: now() };
    ledger.replace_doubts(doubts).await.unwrap();
    for number in 0..5 {
        let access = Access::new(&number.to_string(), "support", "show-loan").to(Some(open.into()));
        ledger.record_access(access.clone()).await.unwrap();
        ledger.record_access(access.of_library(Some(open.library()))).await.unwrap();
    }
}

/// Writes a report of this loan that this process has claimed.
async fn report(ledger: &Ledger, loan: LoanId) {
    let at = second(7);
    let measure = Measure {
        evidence: Evidence::Coverage,
        progress: Some(Progress::of_hundredths(4711).unwrap()),
        covered: Some(70),
        size: Some(90),
        at,
    };
    let report = Report {
        loan,
        model: ReportModel::Package,
        subject: "K1".to_owned(),
        isbn: "9780306406157".parse().unwrap(),
        licence_id: Some("K1".to_owned()),
        licence_type: "PACKAGE".to_owned(),
        date: "2026-10-31".parse().unwrap(),
        due_since: at,
        measure,
        price: Some(2990),
        state: ReportState::Due,
        owner: None,
        attempts: 0,
        sent: None,
        note: None,
        changed: at,
    };
    let added = ledger.add_reports(loan.library(), vec![report.clone()], vec![loan], second(0));
    let added = added.await;
    assert_eq!(added.unwrap(), 1);
    assert!(ledger.claim_report(&report, &ledger.lease()).await.unwrap().is_some());
    let note = Some("nei «æ»".to_owned());
    let step = ReportStep {
        note,
        ..ReportStep::new(loan, &[ReportState::Sending], ReportState::Sending, "report")
    };
    assert!(ledger.step_report(step).await.unwrap());
}

/// Lets gates use the source of a copy again, as after a reconciliation.
async fn release(store: &TestStore) {
    assert!(
        release_source(&store.settings(), CopiedTo::Lost, &keys(), now()).await.unwrap().is_some()
    );
    store.execute("", "DELETE FROM meta WHERE name = 'begins closed'").await;
}

/// Closes a ledger, and with it the file that shows that its process lives.
async fn close(ledger: Ledger) {
    ledger.close().await;
}

fn now() -> Timestamp {
    Clock::system().now()
}

/// Writes a ledger with pruned and forgotten loans between the others.
async fn write_ledger(store: &TestStore) {
    let ledger = store.open().await;
    for borrower in 100..104 {
        end(&ledger, accepted(&ledger, borrower).await).await;
        accepted(&ledger, borrower - 50).await;
    }
    while ledger.forget(Timestamp::MAX, 500).await.unwrap() > 0 {}
    if store.file().is_some() {
        let ended = Prunable::Ended { before: Timestamp::MAX };
        // The loan of the newest step stays.
        assert_eq!(
            prune(&store.settings(), &audit_key(), ended, &RowsRead::default())
                .await
                .unwrap()
                .loans,
            3
        );
    }
    end(&ledger, accepted(&ledger, 104).await).await;
    while ledger.forget(Timestamp::MAX, 500).await.unwrap() > 0 {}
    write_loans(&ledger).await;
    ledger.close().await;
}

/// Returns all columns of a table of SQLite, except the place of a step in the chain.
async fn dump(store: &TestStore, table: &str, order: &str) -> Vec<String> {
    let options = SqliteConnectOptions::new().filename(store.file().unwrap());
    let mut connection = options.connect().await.unwrap();
    let columns = "SELECT group_concat('quote(' || name || ')', ' || '','' || ') \
         FROM pragma_table_info(?) WHERE name NOT IN ('number', 'mac')";
    let columns: String =
        sqlx::query_scalar(columns).bind(table).fetch_one(&mut connection).await.unwrap();
    let sql = AssertSqlSafe(format!("SELECT {columns} FROM {table} ORDER BY {order}"));
    let rows = sqlx::query_scalar(sql).fetch_all(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    rows
}

async fn dump_all(store: &TestStore) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for (table, order) in [
        ("loans", "id"),
        // The order of accesses in the chain has no meaning.
        ("history", "loan, CASE WHEN to_state = 'access' THEN detail END, number"),
        ("delivered", "loan, file"),
        ("doubts", "loan"),
        ("reports", "loan"),
    ] {
        all.push(dump(store, table, order).await);
    }
    all
}

async fn all_loans(ledger: &Ledger) -> Vec<Loan> {
    let filter = Filter { limit: 1000, ..Filter::default() };
    let mut loans = ledger.page(&filter).await.unwrap();
    loans.sort_by_key(|loan| loan.id.uuid());
    loans
}

/// The stores of a test: two of SQLite and one of PostgreSQL.
async fn stores() -> Option<(TestStore, TestStore, TestStore)> {
    Some((TestStore::sqlite(), TestStore::postgres().await?, TestStore::sqlite()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ledger_of_every_state_is_the_same_there_and_back() {
    let Some((first, there, back)) = stores().await else { return };
    write_ledger(&first).await;
    let reconciled = "INSERT INTO meta (name, value) VALUES ('reconciled', x'0000000000001388')";
    first.execute(reconciled, "").await;
    let copied = copy_all(&first, &there).await.unwrap();
    for state in LoanState::ALL {
        let count = copied.counts.get(&format!("loans in state {state}"));
        assert!(count.is_some_and(|count| *count > 0), "{state}");
    }
    assert_eq!((copied.covered, copied.counts["doubts"]), (0, 1));
    assert_eq!(copied.counts["accesses"], 10);
    assert_eq!(copied.counts["reports"], 1);
    assert!(copied.origin.pruned > 0, "{}", copied.origin);
    there.assert_sound().await;
    copy_all(&there, &back).await.unwrap();
    back.assert_sound().await;
    assert_eq!(dump_all(&first).await, dump_all(&back).await);

    let origins = copied_from(&back.settings(), &audit_key()).await.unwrap();
    assert_eq!(origins.len(), 2, "{origins:?}");
    assert_eq!((origins[0].clone(), origins[1].store.as_str()), (copied.origin, "PostgreSQL"));
    let verified = verify(&first.settings(), &audit_key(), &RowsRead::default()).await.unwrap();
    assert_eq!((origins[0].step, origins[0].pruned), (verified.head.number, verified.pruned));

    let moved = back.open().await;
    assert_eq!(moved.reconciled().await.unwrap(), Some(second(5)));
    moved.close().await;
    release(&first).await;
    release(&there).await;
    let (first, there) = (first.open().await, there.open().await);
    assert_eq!(all_loans(&first).await, all_loans(&there).await);
    for loan in all_loans(&first).await {
        let histories = (first.history(loan.id).await, there.history(loan.id).await);
        assert_eq!(histories.0.unwrap(), histories.1.unwrap());
    }
    let accesses =
        AccessFilter { library: None, since: None, before: None, after: None, limit: 100 };
    assert_eq!(first.accesses(&accesses).await.unwrap().len(), 10);
    assert_eq!(there.accesses(&accesses).await.unwrap().len(), 10);
    // Both chains continue.
    accepted(&there, 200).await;
    first.close().await;
    there.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gates_adopt_undecided_loans_of_a_copy() {
    let Some((first, there, back)) = stores().await else { return };
    write_ledger(&first).await;
    copy_all(&first, &there).await.unwrap();
    copy_all(&there, &back).await.unwrap();
    release(&there).await;
    for store in [&there, &back] {
        let ledger = store.open().await;
        let orphans = ledger.orphans(None).await.unwrap();
        assert_eq!(orphans.len(), 4, "intended twice, pending, unknown");
        for orphan in orphans {
            assert!(ledger.adopt(orphan.id).await.unwrap());
        }
        let ends = ledger.ends_waiting().await.unwrap();
        assert_eq!(ends.loans.len(), 1);
        ledger.close().await;
        store.assert_sound().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_copy_continues_and_its_destination_opens_only_when_complete() {
    let Some((first, there, back)) = stores().await else { return };
    write_ledger(&first).await;
    for (from, to) in [(&first, &there), (&there, &back)] {
        let (mut drops, mut batches) = (0, 1);
        while copy_until(from, to, batches).await.transpose().unwrap().is_none() {
            (drops, batches) = (drops + 1, batches % 3 + 1);
            let opened = to.try_open(&KEY, Brake::default()).await;
            assert!(matches!(opened, Err(LedgerError::HalfCopied)), "{opened:?}");
            if let Some(file) = to.file() {
                let probed = probe(&file, &KEY).await;
                assert!(matches!(probed, Err(LedgerError::HalfCopied)), "{probed:?}");
            }
        }
        assert!(drops > 5, "{drops}");
        to.assert_sound().await;
        // A copy that was killed after its last commit only compares.
        let again = copy_all(from, to).await.unwrap();
        assert_eq!(
            copied_from(&to.settings(), &audit_key()).await.unwrap().pop(),
            Some(again.origin)
        );
    }
    assert_eq!(dump_all(&first).await, dump_all(&back).await);
    release(&there).await;
    there.open().await.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_gate_refuses_a_copy() {
    let Some((first, there, back)) = stores().await else { return };
    write_ledger(&first).await;
    for (from, to, gate, option) in [
        (&first, &there, &first, "--from"),
        (&first, &there, &there, "--to"),
        (&there, &back, &there, "--from"),
        (&there, &back, &back, "--to"),
    ] {
        let settings = Settings { store: with_lease(gate, LEASE), brake: Brake::default() };
        let (clock, metrics) = (Clock::system(), Metrics::new().unwrap());
        let ledger = Ledger::open(&settings, &KEY, audit_key(), clock, metrics).await.unwrap();
        let refused = refused(copy_with_lease(from, to, LEASE).await);
        assert!(refused.contains(&format!("the ledger of {option} open")), "{refused}");
        ledger.close().await;
    }
    copy_all(&first, &there).await.unwrap();
}

/// A gate that was killed does not leave, but its lease expires.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_gate_delays_a_copy_by_its_lease() {
    let Some((first, there, _)) = stores().await else { return };
    write_ledger(&first).await;
    there.open().await.close().await;
    let member = "INSERT INTO members (member, process, joined, lease, freshness) \
         VALUES (gen_random_uuid(), gen_random_uuid(), 1, 500, 60000)";
    there.execute("", member).await;
    copy_with_lease(&first, &there, Duration::from_millis(500)).await.unwrap();
    let ledger = there.open().await;
    assert_eq!(ledger.other_processes(), 0, "the dead gate is fenced");
    ledger.close().await;
}

fn refused(copied: Result<Copied, CopyError>) -> String {
    copied.unwrap_err().to_string()
}

async fn copy_with_lease(
    from: &TestStore,
    to: &TestStore,
    lease: Duration,
) -> Result<Copied, CopyError> {
    let (from, to) = (with_lease(from, lease), with_lease(to, lease));
    copy(&from, &to, &keys(), second(5000), &mut |_| {}).await
}

fn with_lease(store: &TestStore, lease: Duration) -> StoreSettings {
    match store.settings() {
        StoreSettings::Postgres(mut settings) => {
            settings.lease = lease;
            StoreSettings::Postgres(settings)
        }
        sqlite => sqlite,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_source_is_refused() {
    let Some((first, there, back)) = stores().await else { return };
    write_ledger(&first).await;
    copy_all(&first, &there).await.unwrap();
    let change = "UPDATE history SET cause = 'forged' WHERE number = 30";
    there.execute("", &format!("{change} AND library = 'NO-0301000'")).await;
    let sentence = refused(copy_all(&there, &back).await);
    assert!(sentence.contains("step 30") && sentence.contains("was changed"), "{sentence}");
    release(&first).await;
    first.execute(change, "").await;
    let sentence = refused(copy_all(&first, &TestStore::postgres().await.unwrap()).await);
    assert!(sentence.contains("step 30") && sentence.contains("was changed"), "{sentence}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_that_changed_between_two_attempts_is_refused() {
    let Some((first, there, _)) = stores().await else { return };
    write_ledger(&first).await;
    assert!(copy_until(&first, &there, 3).await.is_none());
    let ledger = first.open().await;
    accepted(&ledger, 201).await;
    close(ledger).await;
    let sentence = refused(copy_all(&first, &there).await);
    assert!(sentence.contains("the source has changed"), "{sentence}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destination_with_other_loans_is_refused() {
    let Some((first, there, back)) = stores().await else { return };
    for store in [&first, &there, &back] {
        write_ledger(store).await;
    }
    for (from, to) in [(&first, &there), (&there, &back)] {
        let sentence = refused(copy_all(from, to).await);
        assert!(sentence.contains("that are not of this copy"), "{sentence}");
        to.open().await.close().await;
    }
    let sentence = refused(copy_all(&first, &back).await);
    assert!(sentence.contains("in either order"), "{sentence}");
    let sentence = refused(copy_all(&TestStore::sqlite(), &there).await);
    assert!(sentence.contains("names no ledger"), "{sentence}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejected_value_is_reported_with_its_loan() {
    let Some((first, there, _)) = stores().await else { return };
    let ledger = first.open().await;
    write_loans(&ledger).await;
    let id = begun(&ledger, 210).await;
    let refusal = Refusal { code: "C".into(), message: "a\0b".into(), retry_at: None };
    apply(&ledger, id, Event::Refused { lending_id: None, refusal }).await;
    close(ledger).await;
    let sentence = refused(copy_all(&first, &there).await);
    assert!(sentence.contains(&format!("a value of loan {id}")), "{sentence}");
}

/// A step from before version 10 of the schema has no hash of its loan's row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loan_without_a_hash_of_its_row_gets_one() {
    let Some((first, there, _)) = stores().await else { return };
    let ledger = first.open().await;
    write_loans(&ledger).await;
    let loans = all_loans(&ledger).await.len() as u64;
    close(ledger).await;
    let older = "UPDATE history SET version = 1, salt = NULL, loan_mac = NULL, mac = NULL";
    first.execute(older, "").await;
    std::fs::remove_file(first.file().unwrap().with_extension("db.head")).unwrap();
    let ledger = first.open().await;
    accepted(&ledger, 220).await;
    close(ledger).await;
    let copied = copy_all(&first, &there).await.unwrap();
    assert_eq!(copied.covered, loans);
    there.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_that_is_changed_during_the_copy_is_refused() {
    let Some((first, there, _)) = stores().await else { return };
    write_ledger(&first).await;
    let file = first.file().unwrap();
    let mut is_changed = false;
    let mut change = |progress: CopyProgress| {
        if is_changed || !matches!(progress, CopyProgress::Copying { .. }) {
            return;
        }
        is_changed = true;
        let options = SqliteConnectOptions::new().filename(&file);
        let changed = async {
            let mut connection = options.connect().await.unwrap();
            let forged = "UPDATE history SET detail = 'forged' WHERE to_state = 'accepted'";
            sqlx::raw_sql(forged).execute(&mut connection).await.unwrap();
        };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(changed));
    };
    let (from, to) = (first.settings(), there.settings());
    let copied = copy(&from, &to, &keys(), now(), &mut change).await;
    let Err(CopyError::Findings(findings)) = copied else { panic!("{copied:?}") };
    assert!(findings[0].starts_with("source: step"), "{findings:?}");
    there.try_open(&KEY, Brake::default()).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origin_is_sealed_and_closed_begins_stay_closed() {
    let Some((first, there, back)) = stores().await else { return };
    write_ledger(&first).await;
    copy_all(&first, &there).await.unwrap();
    there.execute("", "INSERT INTO meta (name, value) VALUES ('begins closed', '')").await;
    let sentence = refused(copy_all(&there, &back).await);
    assert!(sentence.contains("begins are closed"), "{sentence}");
    there.execute("", "DELETE FROM meta WHERE name = 'begins closed'").await;
    let forge = "UPDATE meta SET value = convert_to(replace(convert_from(value, 'UTF8'), \
         '\"loans\":', '\"loans\":1'), 'UTF8') WHERE name = 'copied from 1'";
    there.execute("", forge).await;
    let sentence = copied_from(&there.settings(), &audit_key()).await.unwrap_err().to_string();
    assert!(sentence.contains("changed or forged"), "{sentence}");
}
