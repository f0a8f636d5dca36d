//! Gates that were killed or cannot reach the database, and may still deliver files.

use super::*;
use crate::clock;

/// Longer than a gate delivers after its `gate.freshness`: `MARGIN` of the barrier.
const MARGIN: Duration = Duration::from_secs(15);

/// Inserts a member. Times are in milliseconds.
async fn insert_member(store: &TestStore, freshness: u64, fenced_ago: Option<u64>, has_left: bool) {
    let fenced = match fenced_ago {
        Some(ago) => format!("(extract(epoch FROM now()) * 1000)::bigint - {ago}"),
        None => "NULL".to_owned(),
    };
    let member = format!(
        "INSERT INTO members (member, process, joined, lease, freshness, fenced, has_left) \
         VALUES (gen_random_uuid(), gen_random_uuid(), 1, 500, {freshness}, {fenced}, {has_left})"
    );
    store.execute("", &member).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destination_opens_only_when_no_gate_can_deliver() {
    let Some((_, there, back)) = stores().await else { return };
    write_ledger(&there).await;
    insert_member(&there, 2000, None, false).await;
    insert_member(&there, 1000, Some(0), false).await;
    // They deliver nothing.
    insert_member(&there, 300_000, Some(0), true).await;
    insert_member(&there, 300_000, Some(600_000), false).await;
    let from = with_lease(&there, Duration::from_millis(500));
    let to = back.settings();
    // Again: the destination is complete, but the command has not succeeded before.
    for is_complete in [false, true] {
        let mut counts = Vec::new();
        let mut report = |progress| {
            let CopyProgress::Silencing(gates) = progress else { return };
            counts.push(gates);
            if counts.len() > 1 {
                return;
            }
            let opening = async {
                let moved = there.try_open(&KEY, Brake::default()).await;
                assert!(matches!(moved, Err(LedgerError::Moved { .. })), "{moved:?}");
                let copied = probe(&back.file().unwrap(), &KEY).await;
                assert!(
                    is_complete || matches!(copied, Err(LedgerError::HalfCopied)),
                    "{copied:?}"
                );
            };
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(opening));
        };
        let started = clock::since_boot();
        copy(&from, &to, &keys(), second(5000), &mut report).await.unwrap();
        assert!(!counts.is_empty() && counts.iter().all(|gates| *gates == 2), "{counts:?}");
        assert!(clock::since_boot() - started >= Duration::from_secs(2) + MARGIN);
    }
    back.open().await.close().await;
}
