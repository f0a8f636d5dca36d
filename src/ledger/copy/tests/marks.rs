//! The marks of a copy: pruning, and gates on the source.

use std::path::PathBuf;

use super::*;
use crate::ledger::copy::exclusive::ExclusiveLedger;
use crate::ledger::copy::mark::Mark;
use crate::ledger::copy_mark::{BEING_COPIED, IN_PROGRESS, SourceMark};
use crate::ledger::reports::tests::add_due_report;
use crate::ledger::{Head, Pruned, ReportState};

async fn prune_ended(store: &TestStore) -> Result<Pruned, LedgerError> {
    prune(
        &store.settings(),
        &audit_key(),
        Prunable::Ended { before: Timestamp::MAX },
        &RowsRead::default(),
    )
    .await
}

async fn try_gate(store: &TestStore) -> Result<(), LedgerError> {
    store.try_open(&KEY, Brake::default()).await?.close().await;
    Ok(())
}

/// Runs a future in a callback that is not asynchronous.
fn wait_for<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moved_source_opens_only_after_its_release() {
    let Some((first, there, back)) = stores().await else { return };
    write_ledger(&first).await;
    let unnamed = release_source(&first.settings(), CopiedTo::Unnamed, &keys(), now()).await;
    assert_eq!(unnamed.unwrap(), None);
    for (from, to, name) in
        [(&first, &there, "the database".to_owned()), (&there, &back, "loans.db".to_owned())]
    {
        copy_all(from, to).await.unwrap();
        let sentence = try_gate(from).await.unwrap_err().to_string();
        assert!(sentence.contains("was moved to ") && sentence.contains(&name), "{sentence}");
        assert!(sentence.contains("--release-source"), "{sentence}");
        if let Some(file) = from.file() {
            let probed = probe(&file, &KEY).await;
            assert!(matches!(probed, Err(LedgerError::Moved { .. })), "{probed:?}");
        }
        let pruned = prune_ended(from).await;
        assert!(matches!(pruned, Err(LedgerError::Moved { .. })), "{pruned:?}");
        from.assert_sound().await;
        // Compares only.
        copy_all(from, to).await.unwrap();
        let other = to.another().await;
        let sentence = refused(copy_all(from, &other).await);
        assert!(sentence.contains("was moved to "), "{sentence}");
        let unnamed = release_source(&from.settings(), CopiedTo::Unnamed, &keys(), now()).await;
        assert!(unnamed.unwrap_err().to_string().contains("--to"));
        let there = to.settings();
        let to_there = CopiedTo::Store(&there);
        let released = release_source(&from.settings(), to_there, &keys(), now()).await.unwrap();
        assert!(released.is_some_and(|to| to.contains(&name)));
        try_gate(from).await.unwrap();
        let given_up = try_gate(to).await;
        assert!(matches!(given_up, Err(LedgerError::Moved { .. })), "{given_up:?}");
        // Whoever copies again means it.
        copy_all(from, to).await.unwrap();
        try_gate(from).await.unwrap_err();
    }
    try_gate(&back).await.unwrap();
}

/// Gates may have sent reports from the lost destination.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_whose_copy_is_lost_counts_as_restored() {
    let Some((first, there, back)) = stores().await else { return };
    let ledger = first.open().await;
    let loan = accepted(&ledger, 1).await;
    add_due_report(&ledger, loan).await;
    close(ledger).await;
    for (from, to) in [(&first, &there), (&there, &back)] {
        copy_all(from, to).await.unwrap();
        let settings = from.settings();
        release_source(&settings, CopiedTo::Lost, &keys(), now()).await.unwrap().unwrap();
        let ledger = from.open().await;
        let report = ledger.report_of_loan(loan.uuid()).await.unwrap().unwrap();
        assert_eq!(report.state, ReportState::Unknown);
        assert!(ledger.reconciled().await.unwrap().is_some());
        assert_eq!(ledger.begins_are_closed(), from.file().is_none());
        ledger.close().await;
        // Once more, for the other store.
        let due = "UPDATE reports SET state = 'due'; DELETE FROM meta WHERE name = 'reconciled'";
        to.execute(due, due).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_without_its_head_is_not_copied() {
    let Some((first, there, _)) = stores().await else { return };
    write_ledger(&first).await;
    let head_file = PathBuf::from(format!("{}.head", first.file().unwrap().display()));
    let head = std::fs::read(&head_file).unwrap();
    for damaged in [None, Some("")] {
        let _ = std::fs::remove_file(&head_file);
        damaged.into_iter().for_each(|text| std::fs::write(&head_file, text).unwrap());
        let sentence = refused(copy_all(&first, &there).await);
        assert!(sentence.contains("ledger reconcile"), "{sentence}");
    }
    std::fs::write(&head_file, head).unwrap();
    copy_all(&first, &there).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_killed_before_its_last_commit_leaves_no_ledger_open() {
    let Some((first, there, back)) = stores().await else { return };
    write_ledger(&first).await;
    for (from, to) in [(&first, &there), (&there, &back)] {
        to.open().await.close().await;
        let sqlite = "CREATE TRIGGER stop BEFORE INSERT ON meta WHEN NEW.name LIKE 'copied from%' \
             BEGIN SELECT RAISE(ABORT, 'stopped'); END";
        let postgres = "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE 'stopped'; END $$; \
             CREATE TRIGGER stop BEFORE INSERT ON meta FOR EACH ROW \
             WHEN (NEW.name LIKE 'copied from%') EXECUTE FUNCTION stop()";
        to.execute(sqlite, postgres).await;
        let sentence = refused(copy_all(from, to).await);
        assert!(sentence.contains("stopped"), "{sentence}");
        let opened = (try_gate(from).await, try_gate(to).await);
        assert!(
            matches!(opened, (Err(LedgerError::Moved { .. }), Err(LedgerError::HalfCopied))),
            "{opened:?}"
        );
        to.execute("DROP TRIGGER stop", "DROP TRIGGER stop ON meta").await;
        copy_all(from, to).await.unwrap();
        try_gate(from).await.unwrap_err();
        try_gate(to).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_pruned_while_a_copy_is_unfinished() {
    let Some((first, there, back)) = stores().await else { return };
    write_ledger(&first).await;
    for (from, to) in [(&first, &there), (&there, &back)] {
        assert!(copy_until(from, to, 2).await.is_none());
        let pruned = (prune_ended(from).await, prune_ended(to).await);
        assert!(
            matches!(pruned, (Err(LedgerError::BeingCopied { .. }), Err(LedgerError::HalfCopied))),
            "{pruned:?}"
        );
        // A gate gives the copy up. Until something changes, it can still be continued.
        try_gate(from).await.unwrap();
        assert!(copy_until(from, to, 1).await.is_none());
        let unnamed = release_source(&from.settings(), CopiedTo::Unnamed, &keys(), now()).await;
        assert!(unnamed.unwrap().is_some());
        copy_all(from, to).await.unwrap();
    }
    assert!(prune_ended(&back).await.unwrap().loans > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_that_begins_stops_a_running_prune() {
    let Some((first, there, _)) = stores().await else { return };
    for store in [&first, &there] {
        let ledger = store.open().await;
        for borrower in 0..120 {
            end(&ledger, accepted(&ledger, borrower).await).await;
        }
        while ledger.forget(Timestamp::MAX, 500).await.unwrap() > 0 {}
        close(ledger).await;
        // The first batch is removed while the copy begins.
        let sqlite = "CREATE TRIGGER begin_copy AFTER DELETE ON loans \
             BEGIN INSERT OR IGNORE INTO meta VALUES ('being copied', x'00'); END";
        let postgres = "CREATE FUNCTION begin_copy() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN INSERT INTO meta VALUES ('being copied', '') ON CONFLICT DO NOTHING; \
             RETURN NULL; END $$; \
             CREATE TRIGGER begin_copy AFTER DELETE ON loans EXECUTE FUNCTION begin_copy()";
        store.execute(sqlite, postgres).await;
        let pruned = prune_ended(store).await;
        assert!(matches!(pruned, Err(LedgerError::BeingCopied { .. })), "{pruned:?}");
        let ledger = store.open().await;
        let left = all_loans(&ledger).await.len();
        assert!((1..120).contains(&left), "{left}");
        close(ledger).await;
    }
}

/// A prune and a mark that is not committed yet exclude each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prune_waits_for_a_copy_that_begins() {
    let Some((_, there, _)) = stores().await else { return };
    write_ledger(&there).await;
    let settings = there.settings();
    let opened = ExclusiveLedger::open(&settings, &keys(), Deadlines::default()).await;
    let Ok(ExclusiveLedger::Postgres(database)) = opened else { panic!("PostgreSQL") };
    let mark = SourceMark { copy: "1".into(), to: "2".into() }.to_bytes();
    let marking = database.write(async |connection| {
        crate::ledger::postgres::lock_to_mark(connection).await?;
        let insert = sqlx::query("INSERT INTO meta VALUES ($1, $2)").bind(BEING_COPIED);
        insert.bind(&mark).persistent(false).execute(&mut *connection).await?;
        let store = there.settings();
        let pruning = tokio::spawn(async move {
            prune(
                &store,
                &audit_key(),
                Prunable::Ended { before: Timestamp::MAX },
                &RowsRead::default(),
            )
            .await
        });
        const WAITS: &str = "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted \
             AND pg_backend_pid() = ANY(pg_blocking_pids(pid)))";
        while !sqlx::query_scalar::<_, bool>(WAITS)
            .persistent(false)
            .fetch_one(&mut *connection)
            .await?
        {
            assert!(!pruning.is_finished(), "it does not wait for the mark");
            tokio::task::yield_now().await;
        }
        Ok(pruning)
    });
    let pruned = marking.await.unwrap().await.unwrap();
    assert!(matches!(pruned, Err(LedgerError::BeingCopied { .. })), "{pruned:?}");
    database.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gate_that_opened_the_source_during_the_copy_fails_it() {
    let Some((first, there, back)) = stores().await else { return };
    write_ledger(&first).await;
    copy_all(&first, &there).await.unwrap();
    let mut is_opened = false;
    let mut open_gate = |progress| {
        if let CopyProgress::Copying { .. } = progress
            && !std::mem::replace(&mut is_opened, true)
        {
            wait_for(try_gate(&there)).unwrap();
        }
    };
    let (from, to) = (there.settings(), back.settings());
    let copied = copy(&from, &to, &keys(), now(), &mut open_gate).await;
    let sentence = refused(copied);
    assert!(sentence.contains("the source has changed"), "{sentence}");
    try_gate(&there).await.unwrap();
    try_gate(&back).await.unwrap_err();
    copy_all(&there, &back).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn step_written_just_before_the_mark_fails_the_copy() {
    write_just_before_the_mark_fails_the_copy("number").await;
}

/// The progress of a reader, counts of delivered bytes and the mark of an opened loan have no step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_without_a_step_just_before_the_mark_fails_the_copy() {
    write_just_before_the_mark_fails_the_copy("batch").await;
}

async fn write_just_before_the_mark_fails_the_copy(column: &str) {
    let Some((first, there, back)) = stores().await else { return };
    write_ledger(&first).await;
    copy_all(&first, &there).await.unwrap();
    // As of a gate that was suspended, after the comparison.
    let postgres = format!(
        "CREATE OR REPLACE FUNCTION extend() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN UPDATE chains SET {column} = {column} + 1; RETURN OLD; END $$; \
         CREATE TRIGGER extend BEFORE DELETE ON meta FOR EACH ROW \
         WHEN (OLD.name = 'being copied') EXECUTE FUNCTION extend()"
    );
    let undo = format!("DROP TRIGGER extend ON meta; UPDATE chains SET {column} = {column} - 1");
    there.execute("", &postgres).await;
    let sentence = refused(copy_all(&there, &back).await);
    assert!(sentence.contains("the source has changed"), "{sentence}");
    there.execute("", &undo).await;
    copy_all(&there, &back).await.unwrap();
    // The same, for a copy that is complete already.
    release(&there).await;
    let mark = "INSERT INTO meta (name, value) VALUES ('being copied', '')";
    there.execute("", mark).await;
    there.execute("", &postgres).await;
    let sentence = refused(copy_all(&there, &back).await);
    assert!(sentence.contains("the source has changed"), "{sentence}");
    there.execute("", &undo).await;
    copy_all(&there, &back).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptied_copy_can_be_a_destination_again() {
    let Some((first, there, _)) = stores().await else { return };
    let other = first.another().await;
    write_ledger(&first).await;
    write_ledger(&other).await;
    for from in [&first, &first, &other] {
        release_source(&from.settings(), CopiedTo::Lost, &keys(), now()).await.unwrap();
        copy_all(from, &there).await.unwrap();
        try_gate(&there).await.unwrap();
        // Not TRUNCATE: a gate may still build an index, and the two would wait for each other.
        let tables = ["reports", "doubts", "delivered", "history", "loans", "chains"];
        there.execute("", &tables.map(|table| format!("DELETE FROM {table};")).concat()).await;
    }
}

/// A gate that has looked for a mark before it was there, and ends because of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destination_that_a_gate_used_before_the_mark_is_kept() {
    let Some((first, there, _)) = stores().await else { return };
    write_ledger(&first).await;
    let mut begin_loan = |progress| {
        if progress == CopyProgress::Verifying("source") {
            wait_for(async {
                let ledger = there.open().await;
                accepted(&ledger, 1).await;
                close(ledger).await;
            });
        }
    };
    let (from, to) = (first.settings(), there.settings());
    let sentence = refused(copy(&from, &to, &keys(), now(), &mut begin_loan).await);
    assert!(sentence.contains("a gate has used the destination meanwhile"), "{sentence}");
    let ledger = there.open().await;
    assert_eq!(all_loans(&ledger).await.len(), 1);
    close(ledger).await;
    // The source has no mark.
    assert!(prune_ended(&first).await.unwrap().loans > 0);
}

/// The same, if the copy is killed before it checks that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destination_used_before_a_killed_copy_is_kept() {
    let Some((first, there, _)) = stores().await else { return };
    write_ledger(&first).await;
    let ledger = there.open().await;
    accepted(&ledger, 1).await;
    close(ledger).await;
    let mut ends = Vec::new();
    for store in [&first, &there] {
        let opened = ExclusiveLedger::open(&store.settings(), &keys(), Deadlines::default()).await;
        ends.push(opened.unwrap());
    }
    let mark = Mark::new(&ends[0].extent().await.unwrap().head);
    ends[1].insert_mark(&mark).await.unwrap();
    for ledger in ends {
        ledger.close().await;
    }
    let sentence = refused(copy_all(&first, &there).await);
    assert!(sentence.contains("a gate has used the destination meanwhile"), "{sentence}");
    try_gate(&there).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_its_own_mark_is_removed() {
    let Some((first, there, _)) = stores().await else { return };
    for store in [&first, &there] {
        let opened = ExclusiveLedger::open(&store.settings(), &keys(), Deadlines::default()).await;
        let mut ledger = opened.unwrap();
        let head = Head { number: 7, mac: vec![1] };
        let (own, other) = (Mark::new(&head), Mark::new(&head));
        ledger.insert_mark(&own).await.unwrap();
        ledger.remove_mark(&other).await.unwrap();
        assert_eq!(ledger.mark().await.unwrap(), Some(own.to_bytes()));
        assert!(!ledger.complete(&other, &[], None, &[]).await.unwrap());
        ledger.remove_mark(&own).await.unwrap();
        assert_eq!(ledger.mark().await.unwrap(), None, "{IN_PROGRESS}");
        ledger.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destination_spelled_otherwise_is_the_same_copy() {
    let Some((first, there, _)) = stores().await else { return };
    for store in [&first, &there] {
        write_ledger(store).await;
        let opened = ExclusiveLedger::open(&store.settings(), &keys(), Deadlines::default()).await;
        let mut ledger = opened.unwrap();
        let extent = ledger.extent().await.unwrap();
        let mark = |copy: &str, to: &str| SourceMark { copy: copy.to_owned(), to: to.to_owned() };
        ledger.mark_source(&mark("1", "localhost")).await.unwrap();
        assert!(ledger.mark_moved(&mark("1", "localhost"), &extent).await.unwrap());
        assert!(ledger.mark_moved(&mark("1", "127.0.0.1"), &extent).await.unwrap());
        assert!(!ledger.mark_moved(&mark("2", "localhost"), &extent).await.unwrap());
        assert!(ledger.is_moved_by("1").await.unwrap() && !ledger.is_moved_by("2").await.unwrap());
        ledger.close().await;
    }
}

/// A ledger that gates write has no mark, so its writers do not wait for a release.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn release_of_an_unmarked_ledger_waits_for_no_writer() {
    let Some((_, there, _)) = stores().await else { return };
    write_ledger(&there).await;
    let opened = ExclusiveLedger::open(&there.settings(), &keys(), Deadlines::default()).await;
    let Ok(ExclusiveLedger::Postgres(database)) = opened else { panic!("PostgreSQL") };
    let writing = database.write(async |connection| {
        let write = sqlx::query("UPDATE chains SET number = number").persistent(false);
        write.execute(connection).await?;
        Ok(release_source(&there.settings(), CopiedTo::Unnamed, &keys(), now()).await)
    });
    assert_eq!(writing.await.unwrap().unwrap(), None);
    database.close().await;
}

/// As of an operator who releases the source at the worst moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_whose_source_was_released_says_so() {
    let Some((first, there, back)) = stores().await else { return };
    write_ledger(&first).await;
    let (sqlite, postgres) = (
        "CREATE TRIGGER release AFTER INSERT ON meta WHEN NEW.name = 'moved' \
             BEGIN DELETE FROM meta WHERE name = 'moved'; END",
        "CREATE FUNCTION release() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN DELETE FROM meta WHERE name = 'moved'; RETURN NULL; END $$; \
             CREATE TRIGGER release AFTER INSERT ON meta FOR EACH ROW \
             WHEN (NEW.name = 'moved') EXECUTE FUNCTION release()",
    );
    for (from, to) in [(&first, &there), (&there, &back)] {
        from.execute(sqlite, postgres).await;
        let sentence = refused(copy_all(from, to).await);
        assert!(sentence.contains("--release-source"), "{sentence}");
        from.execute("DROP TRIGGER release", "DROP TRIGGER release ON meta").await;
        copy_all(from, to).await.unwrap();
        try_gate(from).await.unwrap_err();
    }
}

/// Two ledgers would lend the same loans twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_whose_copy_is_used_stays_moved() {
    let Some((first, there, back)) = stores().await else { return };
    write_ledger(&first).await;
    for (from, to, borrower) in [(&first, &there, 77), (&there, &back, 78)] {
        copy_all(from, to).await.unwrap();
        let settings = to.settings();
        let release = async || refused_release(from, &settings).await;
        let gate = to.open().await;
        assert!(release().await.contains("a gate has"), "{}", release().await);
        begun(&gate, borrower).await;
        close(gate).await;
        let sentence = release().await;
        assert!(sentence.contains("newer loans"), "{sentence}");
        try_gate(from).await.unwrap_err();
        let other = to.another().await;
        other.open().await.close().await;
        let sentence = refused_release(from, &other.settings()).await;
        assert!(sentence.contains("no copy"), "{sentence}");
    }
}

async fn refused_release(from: &TestStore, to: &StoreSettings) -> String {
    let released = release_source(&from.settings(), CopiedTo::Store(to), &keys(), now()).await;
    released.unwrap_err().to_string()
}

/// A gate may use the copy just before it is marked as given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_used_just_before_its_mark_is_not_given_up() {
    let sqlite = "CREATE TRIGGER use BEFORE INSERT ON meta WHEN NEW.name = 'moved' \
         BEGIN DELETE FROM history; END";
    let postgres = "CREATE FUNCTION use() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN DELETE FROM history; RETURN NEW; END $$; \
         CREATE TRIGGER use BEFORE INSERT ON meta FOR EACH ROW \
         WHEN (NEW.name = 'moved') EXECUTE FUNCTION use()";
    for is_file in [false, true] {
        let Some((first, there, back)) = stores().await else { return };
        write_ledger(&first).await;
        if is_file {
            copy_all(&first, &there).await.unwrap();
        }
        let (from, to) = if is_file { (&there, &back) } else { (&first, &there) };
        copy_all(from, to).await.unwrap();
        to.execute(sqlite, postgres).await;
        let sentence = refused_release(from, &to.settings()).await;
        assert!(sentence.contains("newer loans"), "{sentence}");
        to.execute("DROP TRIGGER use", "DROP TRIGGER use ON meta").await;
        let opened = try_gate(to).await;
        assert!(!matches!(opened, Err(LedgerError::Moved { .. })), "{opened:?}");
        try_gate(from).await.unwrap_err();
    }
}

/// Gates also write what is no step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_with_newer_data_of_its_loans_is_not_given_up() {
    let Some((first, there, _)) = stores().await else { return };
    write_ledger(&first).await;
    copy_all(&first, &there).await.unwrap();
    let to = there.settings();
    for (table, column) in [("delivered", "bytes"), ("loans", "progress"), ("reports", "changed")] {
        let change = |sign| format!("UPDATE {table} SET {column} = {column} {sign} 1");
        there.execute(&change('+'), &change('+')).await;
        let sentence = refused_release(&first, &to).await;
        assert!(sentence.contains("newer data"), "{table}: {sentence}");
        there.execute(&change('-'), &change('-')).await;
    }
    let released = release_source(&first.settings(), CopiedTo::Store(&to), &keys(), now()).await;
    assert!(released.unwrap().is_some());
}
